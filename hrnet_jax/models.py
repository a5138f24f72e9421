"""Making models and their variables."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax.archs import Arch, get_arch
from hrnet_jax.backbone import STRIDE
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.layers import Configured

Variables = dict[str, Any]
Path = tuple[str, ...]
_OF_A_BACKBONE = {'conv1', 'conv2', 'layer1_0', 'stage2_0', 'stage3_0', 'stage4_0'}


def create_model(
    arch: str | Arch,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    channels: tuple[int, int, int, int] | None = None,
    head: tuple[int, int, int, int] | None = None,
    features: int | None = None,
    **options: Any,
) -> Classifier:
    """A classifier; variables come from `init` or `load`.

    Args:
        arch: a name of `list_models()` or an `Arch`.
        num_classes: length of the logits.
        in_channels: channels of the images.
        channels: instead of the architecture's four branch widths.
        head: instead of the channels that the head widens the maps to; multiples of 4.
        features: instead of the length of the pooled features.
        **options: dtype, param_dtype, remat, bn_group_size, ...: see `hrnet_jax.HRNet`.

    Raises:
        UserError: for an unknown architecture or sizes that make no network.
    """
    table = get_arch(arch)
    arch = dataclasses.replace(
        table,
        channels=tuple(channels) if channels else table.channels,
        head=tuple(head) if head else table.head,
        features=features or table.features,
    )
    if arch != table:
        arch = dataclasses.replace(arch, name='custom')
    if min(num_classes, in_channels) < 1:
        raise UserError('classes and input channels must be at least 1')
    return Classifier(arch, num_classes, in_channels, **options)


@functools.lru_cache(maxsize=8)
def variable_shapes(model: Any) -> Variables:
    """The tree of the variables of one of our models as `jax.ShapeDtypeStruct`."""
    images = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, model.in_channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def backbones(variables: Variables) -> list[Path]:
    """Where in params the HRNet backbones are: () where the root is one."""
    children: dict[Path, set[str]] = {}
    for path in flatten_dict(variables.get('params', {})):
        for i in range(len(path) - 1):
            children.setdefault(path[:i], set()).add(path[i])
    return [path for path, names in children.items() if names >= _OF_A_BACKBONE]


def init(
    model: nn.Module,
    key: jax.Array,
    image_size: int | tuple[int, int] = 224,
    *,
    inputs: Sequence[Any] | None = None,
) -> Variables:
    """Fresh variables, distributed as the official initialisation; the same for every image size.

    Convolutions: normal with variance 2 / fan-out (He et al. 2015). Linear: PyTorch's default,
    uniform within 1 / sqrt(fan-in), bias too. BatchNorm: 1 and 0.

    One draw is cut up for all kernels: `model.init` compiles hundreds of small generators (about a
    minute). The numbers differ from those of `model.init`; the distributions do not.

    Args:
        model: one of ours, or a module of your own with an `HRNet` inside; there, what is outside
            of the backbone is initialised as that module says.
        key: of `jax.random.key`.
        image_size: in pixels, of the images that the model is called with.
        inputs: what the model is called with instead: arrays, or their `jax.ShapeDtypeStruct`.

    Raises:
        UserError: if images of that size do not fit the model.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    for n in size:
        if n < 1 or n % STRIDE:
            raise UserError(f'image size {n} is not a multiple of {STRIDE}')
    ours: list[Path] = [()]
    if isinstance(model, Configured) and inputs is None:
        shapes = variable_shapes(model)
    else:
        if inputs is None:
            channels = getattr(model, 'in_channels', 3)
            inputs = [jax.ShapeDtypeStruct((1, *size, channels), np.float32)]
        shapes = jax.eval_shape(model.init, key, *inputs)
        if not isinstance(model, Configured):
            ours = backbones(shapes)
    flat = flatten_dict(shapes)
    inside = [k for k in flat if any(k[1 : 1 + len(path)] == path for path in ours)]
    values = _official(key, {path: flat[path] for path in sorted(inside)})
    if others := flat.keys() - values.keys():

        @jax.jit
        def rest(key: jax.Array, inputs: Any) -> dict[Path, Any]:
            every = flatten_dict(model.init(key, *inputs))
            return {path: every[path] for path in others}  # XLA computes nothing else

        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), list(inputs or ()))
        values |= rest(jax.random.fold_in(key, 1), zeros)
    return unflatten_dict({path: values[path] for path in flat})


def _official(key: jax.Array, shapes: dict[Path, jax.ShapeDtypeStruct]) -> dict[Path, jax.Array]:
    """The official initialisation of these arrays, in this order."""

    def total(of: Iterable[Path]) -> int:
        return sum(shapes[path].size for path in of)

    linear = {path for path in shapes if path[-2] == 'classifier'}
    kernels = {path for path in shapes if path[-1] == 'kernel'} - linear
    normal, uniform = _draw(key, total(kernels), total(linear))
    if not isinstance(normal, jax.core.Tracer):
        # Cutting up on the host makes views; on a device it compiles hundreds of slices.
        normal, uniform = np.asarray(normal), np.asarray(uniform)
    values = []
    for path, leaf in shapes.items():
        if path in linear:
            value, uniform = uniform[: leaf.size], uniform[leaf.size :]
            value = value * np.float32(shapes[*path[:-1], 'kernel'].shape[0] ** -0.5)
        elif path in kernels:
            height, width, _, out = leaf.shape
            value, normal = normal[: leaf.size], normal[leaf.size :]
            value = value * np.float32((2 / (height * width * out)) ** 0.5)
        else:
            value = np.full(leaf.shape, path[-1] in ('scale', 'var'), np.float32)
        values.append(value.reshape(leaf.shape).astype(leaf.dtype))
    return dict(zip(shapes, jax.device_put(values), strict=True))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, normals: int, uniforms: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(key)
    return (
        jax.random.normal(keys[0], (normals,)),
        jax.random.uniform(keys[1], (uniforms,), minval=-1.0),
    )
