"""The recipes of detection."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

from hrnet_jax.data.box_augment import scaled
from hrnet_jax.data.keep_ratio import Channels, KeepRatio, Size
from hrnet_jax.tasks.recipe import Group, Pair, Recipe, Schedule, setting


@dataclasses.dataclass(frozen=True)
class BoxRecipe(Recipe):
    """For boxes, as mmdetection trains: whole images at one scale, mirrored or not, and SGD."""

    task: ClassVar[str] = 'detection'

    head: Literal['fcos', 'faster_rcnn'] = setting(
        'fcos', 'what finds boxes: fcos, or faster_rcnn, which proposes regions first'
    )
    pyramid: int = setting(256, 'channels of each level of the pyramid')
    frozen_norm: bool = setting(True, 'BatchNorm keeps and uses the statistics of --init')
    channels: Channels | None = setting(
        None, 'order of the channels that the network gets; mean and std are turned with them',
        inherited=True, none='as the detector of --init, or rgb',
    )  # fmt: skip

    scale: Size = setting(
        (1333, 800), 'LONG SHORT: an image is resized until one edge is of that length'
    )
    resize: Pair = setting((1.0, 1.0), 'factors on that scale in training, from and to')
    flip: float = setting(0.5, 'probability of a horizontal flip')
    empty: bool = setting(False, 'train on images without a box, too')

    batch_size: int = 16
    base_batch: int = 16
    learning_rate: float = 0.01
    nesterov: bool = False
    epochs: float = 12
    milestones: tuple[float, ...] = (8, 11)
    warmup_steps: int = 500

    def check(self) -> None:
        self.pair('resize')

    @property
    def sizes(self) -> tuple[Size, Size]:
        """Of the arrays of images that are not higher than wide, and of those that are."""
        long, short = scaled(self.scale, self.resize[1])
        height, width = (-(-edge // 32) * 32 for edge in (short, long))
        return (height, width), (width, height)

    @property
    def size(self) -> Size:
        return self.sizes[0]

    @property
    def transform(self) -> KeepRatio:
        """With categories from 1 on: `Task.transform` puts those of the data in their place."""
        return KeepRatio(scale=self.scale).override(channels=self.channels, **self.pixels)

    def parameter_groups(self, head: Sequence[Sequence[str]]) -> tuple[Group, ...]:
        """FCOS: biases of convolutions have twice the rate and no decay."""
        bias = Group('^(neck|bbox_head)/.*(?<!/gn)/bias$', 2.0, 0.0)
        return (*super().parameter_groups(head), *(bias,) * (self.head == 'fcos'))


@dataclasses.dataclass(frozen=True)
class Fcos1x(BoxRecipe):
    """FCOS on COCO as mmdetection trains it: 12 epochs of batches of 16 images.

    Source: mmdet 3.3.0, configs/hrnet, fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py and its
    neighbours: SGD 0.01, a tenth from epochs 8 and 11 on, a third of the rate for the first 500
    steps, gradients of a norm of 35 at most; images in B G R.

        python train.py --recipe fcos_1x --init converted/w18 --data-dir coco --workdir runs/fcos

    Expect (published, AP on val2017): w18 0.353, w32 0.395. Not yet run to the end by us.
    """

    required: ClassVar[tuple[str, ...]] = ()

    dataset: str = setting('coco', 'coco, coco/2017 of tfds, or folder:PATH')
    channels: Channels | None = 'bgr'
    clip_norm: float | None = 35.0
    warmup_factor: float = 1 / 3
    warmup: Literal['linear', 'constant'] = 'constant'


@dataclasses.dataclass(frozen=True)
class FasterRcnn1x(BoxRecipe):
    """Faster R-CNN on COCO as mmdetection trains it: 12 epochs of batches of 16 images.

    Source: mmdet 3.3.0, configs/hrnet, faster-rcnn_hrnetv2p-w18-1x_coco.py and its neighbours: SGD
    0.02, a tenth from epochs 8 and 11 on, 500 steps of warm-up from a thousandth.

        python train.py --recipe faster_rcnn_1x --init converted/w18 --data-dir coco \\
            --workdir runs/faster

    Expect (published, AP on val2017): w18 0.369, w32 0.402, w40 0.412. Not yet run to the end by
    us.
    """

    required: ClassVar[tuple[str, ...]] = ()

    dataset: str = setting('coco', 'coco, coco/2017 of tfds, or folder:PATH')
    head: Literal['fcos', 'faster_rcnn'] = 'faster_rcnn'
    learning_rate: float = 0.02
    warmup_factor: float = 0.001


@dataclasses.dataclass(frozen=True)
class OwnBoxes(BoxRecipe):
    """Boxes of your own, in the form of COCO, from a converted checkpoint.

        python train.py --recipe detect --init converted/w18 \\
            --dataset folder:cats --split train --eval-split val --workdir runs/cats

    `cats/train.json` and `cats/val.json` have boxes and categories, and `cats/images` the images
    (docs/detection.md). --init takes a classifier or a detector; --head says which detector.
    Without --init, --arch says which network; BatchNorm must then be trained, --no-frozen-norm, and
    more epochs are needed. The values are ours. Run by us on small sets only.
    """

    epochs: float = 24
    batch_size: int = 8
    base_batch: int = 8
    learning_rate: float = 0.005
    resize: Pair = (0.8, 1.0)
    schedule: Schedule = 'cosine'
    warmup_steps: int = 100
    clip_norm: float | None = 35.0


RECIPES: dict[str, type[BoxRecipe]] = {
    'fcos_1x': Fcos1x,
    'faster_rcnn_1x': FasterRcnn1x,
    'detect': OwnBoxes,
}
