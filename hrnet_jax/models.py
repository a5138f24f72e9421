"""Making models and their variables."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from hrnet_jax.archs import Arch, get_arch
from hrnet_jax.backbone import STRIDE
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier

Variables = dict[str, Any]


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
def variable_shapes(model: Classifier) -> Variables:
    """The tree of the model's variables as `jax.ShapeDtypeStruct`; computes nothing."""
    images = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, model.in_channels), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def init(model: Classifier, key: jax.Array, image_size: int | tuple[int, int] = 224) -> Variables:
    """Fresh variables, distributed as the official initialisation; the same for every image size.

    Convolutions: normal with variance 2 / fan-out (He et al. 2015). Linear: PyTorch's default,
    uniform within 1 / sqrt(fan-in), bias too. BatchNorm: 1 and 0.

    One draw is cut up for all kernels: `model.init` compiles hundreds of small generators (about a
    minute). The numbers differ from those of `model.init`; the distributions do not.

    Raises:
        UserError: if images of that size do not fit the model.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    for n in size:
        if n < 1 or n % STRIDE:
            raise UserError(f'image size {n} is not a multiple of {STRIDE}')
    shapes, tree = jax.tree_util.tree_flatten_with_path(variable_shapes(model))
    named = [(tuple(k.key for k in path), leaf) for path, leaf in shapes]
    sizes = {'classifier': 0, 'conv': 0}
    for path, leaf in named:
        if path[-2] == 'classifier' or path[-1] == 'kernel':
            sizes['classifier' if path[-2] == 'classifier' else 'conv'] += leaf.size
    normal, uniform = _draw(key, sizes['conv'], sizes['classifier'])
    if not isinstance(normal, jax.core.Tracer):
        # Cutting up on the host makes views; on a device it compiles hundreds of slices.
        normal, uniform = np.asarray(normal), np.asarray(uniform)
    values = []
    for path, leaf in named:
        if path[-2] == 'classifier':
            value, uniform = uniform[: leaf.size], uniform[leaf.size :]
            value = value * np.float32(model.arch.features**-0.5)
        elif path[-1] == 'kernel':
            height, width, _, out = leaf.shape
            value, normal = normal[: leaf.size], normal[leaf.size :]
            value = value * np.float32((2 / (height * width * out)) ** 0.5)
        else:
            value = np.full(leaf.shape, path[-1] in ('scale', 'var'), np.float32)
        values.append(value.reshape(leaf.shape).astype(leaf.dtype))
    return jax.tree_util.tree_unflatten(tree, jax.device_put(values))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, normals: int, uniforms: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(key)
    return (
        jax.random.normal(keys[0], (normals,)),
        jax.random.uniform(keys[1], (uniforms,), minval=-1.0),
    )
