"""A converted network beside its reference in PyTorch, stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from convert import reference_detection as detection
from convert.heads import BACKBONE
from convert.kinds import Kind
from convert.recognise import Model, kind_of_model
from convert.reference import HRNet, Trunk
from convert.reference_pose import Finest, Joined
from convert.reference_segmentation import FCN, OCR
from hrnet_jax.archs import get_arch
from hrnet_jax.heads.faster_rcnn import BINS
from hrnet_jax.models import Variables
from hrnet_jax.runtime import compilation

# The program runs once: what counts is the time to compile it, which these options divide by six.
_QUICK_ON_CPU = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
    'xla_cpu_use_fusion_emitters': False,
    'xla_cpu_parallel_codegen_split_count': 1,
}

# Name of a kind -> (our model) -> its reference.
_REFERENCES: dict[str, Callable[[Any], torch.nn.Module]] = {
    'backbone': lambda m: Trunk(get_arch(m.arch), **_trunk(m)),
    'classifier': lambda m: HRNet(m.arch, m.num_classes, m.in_channels),
    'fcn': lambda m: FCN(m.arch, m.num_classes, **_trunk(m)),
    'ocr': lambda m: OCR(m.arch, m.num_classes, m.ocr_channels, m.key_channels, **_trunk(m)),
    'finest': lambda m: Finest(m.arch, m.num_keypoints, **_trunk(m)),
    'joined': lambda m: Joined(m.arch, m.num_keypoints, **_trunk(m)),
    'fcos': lambda m: detection.FCOS(m.arch, m.num_classes, *_neck(m), **_trunk(m)),
    'faster_rcnn': lambda m: detection.FasterRCNN(m.arch, m.num_classes, *_neck(m), **_trunk(m)),
    'pyramid': lambda m: detection.Pyramid(m.arch, *_neck(m), **_trunk(m)),
}


def _kind(model: Model) -> Kind:
    kind = kind_of_model(model)
    assert kind, type(model)
    return kind


def _trunk(model: Any) -> dict[str, Any]:
    return {name: getattr(model, name) for name in ('in_channels', 'upsample', 'align_corners')}


def _neck(model: Any) -> tuple[Any, ...]:
    return model.channels, model.pooling, model.strides[0] // 4


def reference(model: Model, state: dict[str, Any]) -> Any:
    """The PyTorch model of official names, in evaluation mode.

    Args:
        state: NumPy arrays; what is not there, counters and biases before BatchNorm, is zero.
    """
    found = _REFERENCES[_kind(model).name](model)
    zeros = {k: torch.zeros_like(v) for k, v in found.state_dict().items() if k not in state}
    tensors = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()}
    found.load_state_dict(zeros | tensors)
    return found.eval()


def verify(
    model: Model,
    variables: Variables,
    state: dict[str, Any],
    size: tuple[int, int] = (224, 224),
) -> dict[str, float]:
    """Runs the converted model beside the reference with the file's own tensors.

    Args:
        state: the file's tensors under official names, as NumPy arrays.
        size: height and width of the two random images.

    Of a backbone its own stages are compared, and of the last the maps that it has.

    Returns:
        stage -> the largest max|a - b| / max|b| over its maps.
    """
    images = np.random.default_rng(0).standard_normal((2, *size, model.in_channels), np.float32)
    with torch.no_grad():
        theirs = reference(model, state).stages(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    on_cpu = jax.default_backend() == 'cpu'
    quick = compilation.known_options(_QUICK_ON_CPU) if on_cpu else None
    with jax.default_matmul_precision('highest'):
        ours = jax.jit(stages_of(model), compiler_options=quick)(variables, images)
    return {
        name: max(_difference(a, b) for a, b in zip(ours[name], maps, strict=False))
        for name, maps in theirs.items()
    }


def stages_of(model: Model) -> Callable[[Variables, Any], dict[str, list[jax.Array]]]:
    """A function of (variables, images) with the same result as `stages` of the reference, NHWC."""
    whole, arch = _kind(model) is not BACKBONE, get_arch(model.arch)
    place = ('backbone',) * whole
    last = {f'layer1_{arch.layer1[0] - 1}': 'layer1', 'bn2': 'stem'}
    last |= {f'stage{s}_{m - 1}': f'stage{s}' for s, m in zip((2, 3, 4), arch.modules, strict=True)}

    def run(variables: Variables, images: Any) -> dict[str, list[jax.Array]]:
        def wanted(module: Any, method: str) -> bool:
            inside = module.name in last and module.path[:-1] == place
            return (inside or module.path == ('neck',)) and method == '__call__'

        outputs, extra = model.apply(variables, images, capture_intermediates=wanted)
        kept = extra['intermediates']['backbone'] if whole else extra['intermediates']
        seen = {last[name]: jax.tree.leaves(value['__call__']) for name, value in kept.items()}
        seen['stem'] = [jax.nn.relu(seen['stem'][0])]
        if neck := extra['intermediates'].get('neck'):
            seen['pyramid'] = jax.tree.leaves(neck)
        if hasattr(model, 'embed'):
            pooled = lambda m, maps: m.head(maps, False, logits=False)  # noqa: E731
            seen['pooled'] = [model.apply(variables, seen['stage4'], method=pooled)]
        if getattr(model, 'head', '') == 'faster_rcnn':
            region = seen['pyramid'][0][:, :BINS, :BINS]
            of_region = model.apply(variables, region, method=lambda m, x: m.bbox_head(x))
            seen |= {name: [x] for name, x in zip(detection.OF_REGION, of_region, strict=True)}
        return seen | _named(outputs) if whole else seen

    return run


def _named(outputs: Any) -> dict[str, list[jax.Array]]:
    """The network's outputs, by the names of the reference."""
    if isinstance(outputs, dict):
        return {name: list(maps) for name, maps in outputs.items()}
    return {} if isinstance(outputs, tuple) else {'logits': [outputs]}


def _difference(ours: jax.Array, theirs: torch.Tensor) -> float:
    b = theirs.numpy()
    a = np.asarray(ours).transpose(0, 3, 1, 2) if b.ndim == 4 else np.asarray(ours)
    return float(np.abs(a - b).max() / np.abs(b).max())
