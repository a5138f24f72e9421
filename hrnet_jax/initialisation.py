"""Fresh variables of a network, or of any module with one inside."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax.backbone import Network, check_images, image_hw
from hrnet_jax.errors import UserError
from hrnet_jax.initialisers import Constant, Normal, Uniform
from hrnet_jax.introspection import Path, Structure, Variables, structure, traced

Known = Constant | Normal | Uniform


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
    if getattr(model, 'folded', False):
        raise UserError('a folded model cannot be initialised: initialise a model, then fold it')
    size, channels = image_hw(image_size), getattr(model, 'in_channels', 3)
    known = isinstance(model, Network) and inputs is None and not kwargs
    if known:
        check_images((1, *size, channels), channels, model.upsample == 'nearest')
    if inputs is None:
        inputs = [jax.ShapeDtypeStruct((1, *size, channels), np.float32)]
    inputs = [inputs] if hasattr(inputs, 'shape') else list(inputs)
    leaves, tree = jax.tree.flatten((inputs, kwargs))
    given = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, 'shape')}

    def whole(key: jax.Array, given: dict[int, Any], **how: Any) -> Variables:
        filled = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
        arguments, named = jax.tree.unflatten(tree, filled)
        return flax.core.unfreeze(model.init(key, *arguments, **how, **named))

    parts = structure(model) if known else traced(whole, key, given)
    shapes, inits = parts.shapes, _known(parts)
    ours = {path: (shapes[path], inits[path]) for path in sorted(inits)}
    values = _drawn(key, ours)
    if others := shapes.keys() - ours.keys():

        @jax.jit
        def rest(key: jax.Array, given: dict[int, Any]) -> dict[Path, Any]:
            every = flatten_dict(whole(key, given))
            return {path: every[path] for path in others}  # XLA computes nothing else

        arrays = {i: _zeros(leaf) for i, leaf in given.items()}
        values |= rest(jax.random.fold_in(key, 1), arrays)
    return unflatten_dict({path: values[path] for path in shapes})


def _known(parts: Structure) -> dict[Path, Known]:
    """The initialisers of the arrays that are as their layers say, not changed by Flax's
    transformations."""
    result: dict[Path, Known] = {}
    for path, layer in parts.layers.items():
        for collection, name, init in layer.inits:
            place = (collection, *path, name)
            axes = {'dense': 2, 'conv': 4, 'scale': 0}
            dims = axes[layer.kind] if name == 'kernel' or layer.kind == 'scale' else 1
            if isinstance(init, Known) and len(parts.shapes[place].shape) == dims:
                result[place] = init
    return result


def _zeros(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _drawn(key: jax.Array, arrays: dict[Path, tuple[Any, Known]]) -> dict[Path, jax.Array]:
    """Values of arrays, given by shape and initialiser, in this order."""

    def total(kind: type) -> int:
        return sum(leaf.size for leaf, init in arrays.values() if isinstance(init, kind))

    normal, uniform = _draw(key, total(Normal), total(Uniform))
    if not isinstance(normal, jax.core.Tracer):
        # Cutting up on the host makes views; on a device it compiles hundreds of slices.
        normal, uniform = np.asarray(normal), np.asarray(uniform)
    values = []
    for leaf, init in arrays.values():
        if isinstance(init, Constant):
            value = np.full(leaf.shape, init.value, np.float32)
        elif isinstance(init, Normal):
            value, normal = normal[: leaf.size], normal[leaf.size :]
            value = value * np.float32(init.scale(leaf.shape))
        else:
            value, uniform = uniform[: leaf.size], uniform[leaf.size :]
            value = value * np.float32(init.scale(leaf.shape))
        values.append(value.reshape(leaf.shape).astype(leaf.dtype))
    return dict(zip(arrays, jax.device_put(values), strict=True))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _draw(key: jax.Array, normals: int, uniforms: int) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(key)
    return (
        jax.random.normal(keys[0], (normals,)),
        jax.random.uniform(keys[1], (uniforms,), minval=-1.0),
    )
