"""What compare.py measures, and beside whom: a task or a rival more is a row more."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any

import hrnet_jax

MODES = ('inference', 'train', 'latency', 'chain')
WITH_CHAIN = ('inference', 'latency', 'chain')
Cell = dict[str, Any]  # one measurement: task, arch, head, image_size, mode, dtype, batch


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of hrnet_jax.

    Attributes:
        heads: their names -> what our model is made with; the first is the default.
        image_size: the default, height and width.
        result: what the network gives for images: it is compared, and then timed.
        modes: those that can be measured.
        chain: what a chain gives of people or objects, by their names in our results.
        asked: how often a chain asks the network of an image.
    """

    heads: Mapping[str, Mapping[str, Any]]
    image_size: tuple[int, int]
    result: str = 'logits'
    modes: tuple[str, ...] = ('inference', 'latency')
    chain: tuple[str, ...] = ()
    asked: int = 1


@dataclasses.dataclass(frozen=True)
class Rival:
    """A contender of another project.

    Attributes:
        task: of `TASKS`.
        package: Python's name of it; `convert.to_torch` has a layout of that name.
        names: `network` -> what the package calls it; in OpenMMLab's dense packages its config.
        needs: what must be there beside PyTorch, torchvision and the package.
        compiled: by torch.compile.
        colour: of its bars.
    """

    task: str
    package: str
    names: Mapping[str, str]
    needs: tuple[str, ...] = ('mmcv', 'mmengine')
    compiled: bool = False
    colour: str = '#8a929b'

    def missing(self) -> list[str]:
        """Modules that cannot be imported."""
        every = ('torch', 'torchvision', *self.needs, self.package)
        return [name for name in every if importlib.util.find_spec(name) is None]


TASKS = {
    'classification': Task({'': {}}, (224, 224), modes=('inference', 'train', 'latency')),
    'segmentation': Task(
        {head: {'head': head, 'num_classes': 19} for head in ('fcn', 'ocr')}, (512, 512)
    ),
    'pose': Task({'': {}}, (256, 192), 'heatmaps', WITH_CHAIN, ('keypoints', 'scores'), asked=2),
    'detection': Task(
        {head: {'head': head} for head in ('fcos', 'faster_rcnn')},
        (800, 1344),
        'maps',
        WITH_CHAIN,
        ('box', 'score'),
    ),
}
PUBLISHED = ('w18', 'w30', 'w32', 'w40', 'w44', 'w48', 'w64')
TIMM = Rival(
    'classification',
    'timm',
    {name: f'hrnet_{name}' for name in PUBLISHED}
    | {'w18_small_v1': 'hrnet_w18_small', 'w18_small_v2': 'hrnet_w18_small_v2'},
    needs=(),
    colour='#d98032',
)
MMSEG = {
    f'{arch} {head}': f'{folder}/{name}_{width}_4xb2-40k_cityscapes-512x1024.py'
    for arch, width in (('w18_small_v2', 'hr18s'), ('w18', 'hr18'), ('w48', 'hr48'))
    for head, folder, name in (('fcn', 'hrnet', 'fcn'), ('ocr', 'ocrnet', 'ocrnet'))
}
MMPOSE = {
    arch: f'body_2d_keypoint/topdown_heatmap/coco/td-hm_hrnet-{arch}_{batches}-256x192.py'
    for arch, batches in (('w32', '8xb64-210e_coco'), ('w48', '8xb32-210e_coco'))
}
MMDET = {
    f'{arch} {head}': f'hrnet/{name.format(arch)}'
    for arch in ('w18', 'w32')
    for head, name in (
        ('fcos', 'fcos_hrnetv2p-{}-gn-head_4xb4-1x_coco.py'),
        ('faster_rcnn', 'faster-rcnn_hrnetv2p-{}-1x_coco.py'),
    )
}
RIVALS = {
    'timm': TIMM,
    'timm-compile': dataclasses.replace(TIMM, compiled=True, colour='#e9b98c'),
    'mmpretrain': Rival(
        'classification',
        'mmpretrain',
        {name: f'hrnet-{name}_3rdparty_8xb32_in1k' for name in PUBLISHED},
    ),
    'mmseg': Rival('segmentation', 'mmseg', MMSEG),
    'mmpose': Rival('pose', 'mmpose', MMPOSE, ('mmcv', 'mmengine', 'json_tricks', 'munkres')),
    'mmdet': Rival('detection', 'mmdet', MMDET, ('mmcv', 'mmengine', 'pycocotools', 'shapely')),
}


def network(cell: Cell) -> str:
    """The architecture, and the head where the task has several."""
    return f'{cell["arch"]} {cell["head"]}'.strip()


def size(cell: Cell) -> str:
    """Of the images, height x width."""
    return '{} x {}'.format(*cell['image_size'])


def create_model(cell: Cell, **options: Any) -> Any:
    """Ours."""
    head = TASKS[cell['task']].heads[cell['head']]
    return hrnet_jax.create_model(cell['arch'], task=cell['task'], **head, **options)
