"""The side of the other projects in compare.py; it imports nothing of hrnet_jax.

Models are channels_last. bfloat16 is autocast, float32 is float32 on GPUs too: TF32 is turned off
for convolutions, where PyTorch allows it by default. cuDNN chooses its algorithms by measuring.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import itertools
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from compare_profile import Kernel, of_torch
from compare_worker import best_rate, picture, results
from torch.nn.functional import cross_entropy

OPERATORS = (
    'nms', 'qnms', 'roi_align', '_roi_align_backward', 'qroi_align', 'ps_roi_align',
    '_ps_roi_align_backward', 'roi_pool', '_roi_pool_backward', 'ps_roi_pool',
    '_ps_roi_pool_backward', 'deform_conv2d', '_deform_conv2d_backward',
)  # fmt: skip
_kept = []  # PyTorch forgets the operators of a library that is gone


def import_torchvision() -> None:
    """Declares torchvision's operators where its compiled part does not fit this PyTorch.

    All rivals import torchvision, and none of these networks uses its operators.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if 'torchvision::' not in str(error):
            raise
        library = torch.library.Library('torchvision', 'DEF')
        for name in OPERATORS:
            # Those that the compiled part did bring stay as they are.
            with contextlib.suppress(RuntimeError):
                library.define(f'{name}(Tensor x) -> Tensor')
        _kept.append(library)


class Absent(types.ModuleType):
    """Stands for a module that these networks do not use: it has all names, and no function."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise NotImplementedError(f'{self.__name__}.{name} is not there')

        return refuse


# mmcv's operators, which mmcv-lite has not; what mmpose evaluates with, and its RTMO head needs.
UNUSED = (
    'mmcv._ext', 'xtcocotools', 'xtcocotools.coco', 'xtcocotools.cocoeval', 'xtcocotools.mask',
    'mmdet', 'mmdet.utils',
)  # fmt: skip


def is_there(name: str) -> bool:
    """Whether the module can be imported, without importing it."""
    parent = name.rpartition('.')[0]
    if parent in sys.modules and isinstance(sys.modules[parent], Absent):
        return False
    return importlib.util.find_spec(name) is not None


def of_timm(name: str, package: str) -> torch.nn.Module:
    import timm

    return timm.create_model(name, pretrained=False)


def of_mmpretrain(name: str, package: str) -> torch.nn.Module:
    import mmpretrain

    return mmpretrain.get_model(name, pretrained=False)


def of_config(name: str, package: str) -> torch.nn.Module:
    """What a config of the package describes, which is its `cfg`; without its weights."""
    for module in itertools.filterfalse(is_there, UNUSED):
        absent = sys.modules[module] = Absent(module)
        absent.__spec__ = importlib.machinery.ModuleSpec(module, None)
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, init_default_scope

    place = importlib.import_module(f'{package}.models').__path__[0]
    config = Config.fromfile(Path(place).parent / '.mim' / 'configs' / name)
    init_default_scope(package)
    model = revert_sync_batchnorm(MODELS.build(config.model))
    model.cfg = config
    model.forward = functools.partial(model.forward, data_samples=None)  # mmpose has no default
    return model


def of_detector(name: str, package: str) -> torch.nn.Module:
    """mmdet's, up to what its heads say of the levels of the pyramid."""
    model = of_config(name, package)
    fcos = not hasattr(model, 'rpn_head')
    head = model.bbox_head if fcos else model.rpn_head
    names = ('classes', 'distances', 'centerness') if fcos else ('objectness', 'deltas')

    def forward(images: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        return dict(zip(names, head(model.neck(model.backbone(images))), strict=True))

    model.forward = forward
    return model


def joined(levels: list[torch.Tensor]) -> torch.Tensor:
    """Maps (N, C, h, w) -> (N, C, places of all levels)."""
    return torch.cat([x.flatten(2) for x in levels], 2)


def people(model: torch.nn.Module, folder: str) -> dict[str, np.ndarray]:
    """The keypoints of the people in a picture's boxes, by mmpose's own function."""
    import mmcv
    from mmpose.apis import inference_topdown

    path, boxes = picture(folder)
    found = inference_topdown(model, mmcv.imread(path), boxes, 'xywh')
    names = {'keypoints': 'keypoints', 'scores': 'keypoint_scores'}
    return {k: np.stack([x.pred_instances[v][0] for x in found]) for k, v in names.items()}


MAKERS = {
    'timm': of_timm,
    'mmpretrain': of_mmpretrain,
    'mmseg': of_config,
    'mmpose': of_config,
    'mmdet': of_detector,
}


class Side:
    """See compare_worker.py for what it is asked."""

    def __init__(self, spec: dict[str, Any]):
        torch.set_num_threads(spec['threads'])
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.spec, self.platform = spec, spec['platform']
        self.train = spec['mode'] == 'train'
        if self.platform not in ('cpu', 'gpu'):
            raise RuntimeError(f'PyTorch does not run on the {self.platform} that JAX runs on')
        if self.platform == 'gpu' and not torch.cuda.is_available():
            raise RuntimeError('JAX runs on a GPU that this PyTorch does not see')
        self.where = torch.device('cuda' if self.platform == 'gpu' else 'cpu')
        self.device = torch.cuda.get_device_name() if self.platform == 'gpu' else 'cpu'
        if spec['mode'] == 'rates':
            return
        import_torchvision()
        self.model = MAKERS[spec['package']](spec['name'], spec['package'])
        with np.load(f'{spec["folder"]}/{spec["package"]}.npz') as file:
            state = {name: torch.from_numpy(file[name]) for name in file.files}
        self.model.load_state_dict(state, strict=True)
        self.model.to(self.where, memory_format=torch.channels_last).train(self.train)
        with np.load(f'{spec["folder"]}/batch.npz') as file:
            images = torch.from_numpy(file['images']).to(self.where).permute(0, 3, 1, 2)
            self.labels = torch.from_numpy(file['labels']).long().to(self.where)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.parameters = list(self.model.parameters())
        self.call: Any = self.model
        if spec['mode'] == 'chain' and spec['package'] != 'mmpose':
            raise RuntimeError(f'{spec["package"]} needs operators that mmcv-lite has not')
        if spec['mode'] == 'chain':
            from mmpose.apis.inference import dataset_meta_from_config

            self.model.dataset_meta = dataset_meta_from_config(self.model.cfg)
        if self.train:
            self.optimizer = torch.optim.SGD(self.parameters, **spec['sgd'])

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        low = self.spec['dtype'] == 'bfloat16'
        return torch.autocast(self.where.type, torch.bfloat16, enabled=low)

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """For any number of steps; without training, weights are then cast once for them all."""
        if self.train:
            yield
        else:
            with torch.inference_mode(), self.autocast():
                yield

    def first(self) -> dict[str, np.ndarray]:
        """Compiles, and fetches the first result."""
        if self.spec['compiled']:
            latency = self.spec['mode'] == 'latency'
            self.call = torch.compile(self.model, mode='reduce-overhead' if latency else None)
        if self.spec['mode'] == 'chain':
            with self.session():
                return self.step()
        if not self.train:
            with self.session():
                found = results(self.step(), self.spec['result'], joined)
            # Channels last, as ours.
            return {k: x.float().moveaxis(1, -1).cpu().numpy() for k, x in found.items()}
        # The last linear layer's, under every name that it has.
        bias = self.parameters[-1]
        before = bias.detach().cpu().numpy().copy()
        loss = self.step().detach().cpu().numpy()
        return {'loss': loss, 'update': bias.detach().cpu().numpy() - before}

    def step(self) -> Any:
        if self.spec['mode'] == 'chain':
            return people(self.model, self.spec['folder'])
        if not self.train:
            return self.call(self.images)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = cross_entropy(self.call(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss

    def wait(self, result: Any) -> None:
        if self.platform == 'gpu':
            torch.cuda.synchronize()

    def profile(self, iterations: int) -> list[Kernel]:
        return of_torch(self.step, iterations, self.platform == 'gpu')

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.platform == 'gpu' else None

    def rates(self) -> dict[str, float]:
        """FLOP/s of a large matrix product, bytes/s read and written by a large copy."""
        size, length = (2048, 2**26) if self.platform == 'cpu' else (8192, 2**28)
        dtype = getattr(torch, self.spec['dtype'])
        matrix = torch.randn(size, size, device=self.where).to(dtype)
        product = torch.empty_like(matrix)
        flops = best_rate(2 * size**3, lambda: torch.mm(matrix, matrix, out=product), self.wait)
        source = torch.ones(length, device=self.where)
        target = torch.zeros_like(source)
        return {
            'flops': flops,
            'bytes': best_rate(8 * length, lambda: target.copy_(source), self.wait),
        }
