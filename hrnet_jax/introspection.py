"""What a model is made of, found without computing anything: its variables' shapes and its layers.

The model is traced once with blocks that declare their arrays and return zeros. Each layer leaves a
note of what it is in a collection of its own, beside its parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax import tracing
from hrnet_jax.archs import STRIDE
from hrnet_jax.initialisers import ONES, ZEROS
from hrnet_jax.layers import Array, Blocks, Configured, ConvNorm, Inits, Options, at_least_float32

Path = tuple[str, ...]
Variables = dict[str, Any]
NOTES = 'hrnet_jax_notes'  # the collection
# The same as Flax's default, but a different object: what `nn.jit` caches for this use then stays
# separate.
MUTABLE = flax.core.DenyList(('intermediates', f'no_{NOTES}'))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer of `layers.conv_norm`, `conv`, `dense` or `Blocks.scale`, by its path in `params`.

    Attributes:
        kind: 'conv', 'batch', 'group', 'dense' or 'scale'.
        inits: collection, name and initialiser of each of its arrays.
        last: it is the task's last layer.
        norm: of a convolution: the name of its norm, beside it in the tree; None without.
        conv: of a convolution: what it is.
        in_backbone: of a convolution: it is made with `Blocks.backbone`.
    """

    kind: str
    inits: tuple[tuple[str, str, Any], ...]
    last: bool = False
    norm: str | None = None
    conv: ConvNorm | None = None
    in_backbone: bool = False


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """`Blocks.chain`, by the path of its name: the numbers of its blocks."""

    numbers: tuple[int, ...]


class Arrays(nn.Module):
    """The arrays of one layer and the note about it, or the note of a chain."""

    note: Layer | Chain
    shapes: tuple[tuple[tuple[int, ...], Any], ...] = ()  # with type, as `Layer.inits`

    @nn.compact
    def __call__(self) -> None:
        if isinstance(self.note, Layer):
            for (collection, name, _), given in zip(self.note.inits, self.shapes, strict=True):
                self.put_variable(collection, name, jnp.zeros(*given))
        if self.is_mutable_collection(NOTES):  # not inside of nn.vmap, which changes the arrays
            self.put_variable(NOTES, 'note', self.note)


@dataclasses.dataclass(frozen=True)
class Declared(Blocks):
    """Blocks that have the arrays of `of` and compute nothing."""

    of: Blocks = Blocks()
    in_backbone: bool = False

    @property
    def backbone(self) -> Blocks:
        return Declared(self.of.backbone, True)

    def widths(self, channels: Sequence[int]) -> tuple[int, ...]:
        return self.of.widths(channels)

    def module(self, kind: Any) -> Any:
        return tracing.once(kind)

    def conv_norm(self, x: Array, layer: ConvNorm, opts: Options, train: bool) -> Array:
        k, size, stored = layer.kernel, (layer.features,), opts.param_dtype
        norm = layer.names[1] if layer.norm else None
        inits = [('params', 'kernel', layer.kernel_init)]
        shapes: list[Any] = [((k, k, x.shape[-1], layer.features), stored)]
        if layer.use_bias:
            inits.append(('params', 'bias', layer.bias_init))
            shapes.append((size, stored))
        note = Layer('conv', tuple(inits), layer.last, norm, layer, self.in_backbone)
        Arrays(note, tuple(shapes), name=layer.names[0])()
        if layer.norm:
            arrays = [('params', 'scale', ONES), ('params', 'bias', ZEROS)]
            shapes = [(size, stored)] * 2
            if layer.norm == 'batch':
                arrays += [('batch_stats', 'mean', ZEROS), ('batch_stats', 'var', ONES)]
                shapes += [(size, at_least_float32(opts.dtype, stored))] * 2
            Arrays(Layer(layer.norm, tuple(arrays)), tuple(shapes), name=norm)()
        height, width = (-(-n // layer.stride) for n in x.shape[1:3])
        return jnp.zeros((x.shape[0], height, width, layer.features), opts.dtype)

    def chain(
        self,
        block: type[nn.Module],
        fields: tuple[Any, ...],
        name: str,
        numbers: Sequence[int],
        x: Array,
        train: bool,
    ) -> Array:
        if numbers:
            Arrays(Chain(tuple(numbers)), name=name)()
        return super().chain(block, fields, name, numbers, x, train)

    def dense(
        self, x: Array, features: int, name: str, opts: Options, last: bool, inits: Inits
    ) -> Array:
        stored = opts.param_dtype
        note = Layer('dense', (('params', 'kernel', inits[0]), ('params', 'bias', inits[1])), last)
        Arrays(note, (((x.shape[-1], features), stored), ((features,), stored)), name=name)()
        return jnp.zeros((*x.shape[:-1], features), at_least_float32(opts.dtype, stored))

    def scale(self, x: Array, name: str, opts: Options) -> Array:
        note = Layer('scale', (('params', 'scale', ONES),))
        Arrays(note, (((), opts.param_dtype),), name=name)()
        return jnp.zeros(x.shape, at_least_float32(opts.dtype, opts.param_dtype))


@dataclasses.dataclass(frozen=True)
class Structure:
    """Shapes of the variables, `jax.ShapeDtypeStruct` by path with the collection in front; layers
    and chains by path in params."""

    shapes: dict[Path, Any]
    layers: dict[Path, Layer]
    chains: dict[Path, Chain]


def traced(make: Callable[..., Any], *args: Any) -> Structure:
    """Of a model, ours or any with one inside: `make(*args, mutable=...)` calls its `init`."""
    with nn.intercept_methods(_declaring):
        return _traced(make, *args)


def _traced(make: Callable[..., Any], *args: Any) -> Structure:
    tree = jax.eval_shape(functools.partial(make, mutable=MUTABLE), *args)
    leaves = flatten_dict(flax.core.unfreeze(tree))
    notes = {path[1:-1]: note for path, note in leaves.items() if path[0] == NOTES}
    return Structure(
        {path: leaf for path, leaf in leaves.items() if path[0] != NOTES},
        {path: note for path, note in notes.items() if isinstance(note, Layer)},
        {path: note for path, note in notes.items() if isinstance(note, Chain)},
    )


def _declaring(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Flax's interceptor: outermost modules of ours go on with other blocks."""
    module = context.module
    ours = isinstance(module, Configured) and not module.folded
    if not ours or isinstance(module.blocks, Declared) or context.method_name != '__call__':
        return call(*args, **kwargs)
    declared = module.clone(parent=module.scope.rewound(), blocks=Declared(module.blocks))
    return declared(*args, **kwargs)


@functools.lru_cache(maxsize=16)
def structure(model: Any) -> Structure:
    """Of one of our models, for images as it takes them. Of a folded one there are no layers."""
    channels = getattr(model, 'in_channels', 3)
    images = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, channels), np.float32)
    if type(model).__module__.startswith('hrnet_jax.') and not model.folded:
        # Our own blocks record themselves, so no interceptor is needed: nine times as fast.
        return _traced(model.clone(blocks=Declared(model.blocks)).init, jax.random.key(0), images)
    return traced(model.init, jax.random.key(0), images)


def variable_shapes(model: Any) -> Variables:
    """The tree of the variables of one of our models as `jax.ShapeDtypeStruct`."""
    return unflatten_dict(structure(model).shapes)


def layers_of(model: Any) -> dict[Path, Layer]:
    """What each layer of one of our models is, by its path in params, in no particular order."""
    return structure(model).layers


def last_layers(model: Any) -> list[Path]:
    """The paths in params of the task's last layers."""
    return [path for path, layer in layers_of(model).items() if layer.last]
