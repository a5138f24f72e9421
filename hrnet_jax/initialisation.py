"""Fresh variables of a network, or of any module with one inside."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax.backbone import check_images, image_hw
from hrnet_jax.errors import UserError
from hrnet_jax.layers import Configured
from hrnet_jax.models import Path, Variables, backbones, variable_shapes

_OURS = re.compile(
    r'(conv|bn)[12]|layer1_\d+|transition\d_\d.*|stage\d_\d+'
    r'|(incre|downsamp)_modules_\d.*|final_layer_\d|classifier'
)


def init(
    model: nn.Module,
    key: jax.Array,
    image_size: int | tuple[int, int] = 224,
    *,
    inputs: Sequence[Any] | None = None,
    **kwargs: Any,
) -> Variables:
    """Fresh variables, distributed as the official initialisation; the same for every image size.

    Convolutions: normal with variance 2 / fan-out (He et al. 2015). Linear: PyTorch's default,
    uniform within 1 / sqrt(fan-in), bias too. BatchNorm: 1 and 0.

    One draw is cut up for all kernels: `model.init` compiles hundreds of small generators (about a
    minute). The numbers differ from those of `model.init`; the distributions do not.

    Args:
        model: one of ours, or a module of your own with an `HRNet` inside; what is not ours in it
            is initialised as the module says.
        key: of `jax.random.key`.
        image_size: in pixels, of the images that the model is called with.
        inputs: what the model is called with instead: arrays or `jax.ShapeDtypeStruct`, which
            stand for zeros; anything else as it is.
        **kwargs: by keyword, such as `train=False`.

    Raises:
        UserError: if images of that size do not fit the model, or it is one of `fold`.
    """
    if getattr(model, 'winograd', 0):
        raise UserError('a folded model has no initialisation; fold one that is initialised')
    size, channels = image_hw(image_size), getattr(model, 'in_channels', 3)
    known = isinstance(model, Configured) and inputs is None and not kwargs
    if known:
        check_images((1, *size, channels), channels, model.upsample == 'nearest')
    if inputs is None:
        inputs = [jax.ShapeDtypeStruct((1, *size, channels), np.float32)]
    inputs = [inputs] if hasattr(inputs, 'shape') else list(inputs)
    leaves, tree = jax.tree.flatten((inputs, kwargs))
    given = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, 'shape')}

    def whole(key: jax.Array, given: dict[int, Any]) -> dict[Path, Any]:
        filled = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        arguments, named = jax.tree.unflatten(tree, filled)
        return flatten_dict(flax.core.unfreeze(model.init(key, *arguments, **named)))

    shapes = flatten_dict(variable_shapes(model)) if known else jax.eval_shape(whole, key, given)
    places = backbones(unflatten_dict(shapes))
    places += [('head',)] if isinstance(model, Configured) else []
    ours = {path: shapes[path] for path in sorted(shapes) if _is_ours(path, shapes[path], places)}
    values = _official(key, ours)
    if others := shapes.keys() - ours.keys():

        @jax.jit
        def rest(key: jax.Array, given: dict[int, Any]) -> dict[Path, Any]:
            every = whole(key, given)
            return {path: every[path] for path in others}  # XLA computes nothing else

        arrays = {i: _zeros(leaf) for i, leaf in given.items()}
        values |= rest(jax.random.fold_in(key, 1), arrays)
    return unflatten_dict({path: values[path] for path in shapes})


def _is_ours(path: Path, leaf: Any, places: Sequence[Path]) -> bool:
    """Whether it is an array of a layer of ours, as it is without transformations of Flax."""
    collection, *names = path
    dims = {'kernel': 2 if names[-2:-1] == ['classifier'] else 4}.get(names[-1], 1)
    inside = (place for place in places if tuple(names[: len(place)]) == place)
    layers = ('/'.join(names[len(place) :][:1]) for place in inside)
    return (
        collection in ('params', 'batch_stats')
        and getattr(leaf, 'ndim', None) == dims
        and any(_OURS.fullmatch(layer) for layer in layers)
    )


def _zeros(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


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
