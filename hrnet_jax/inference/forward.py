"""How a protocol asks a network, also of images that do not fill their arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hrnet_jax.archs import STRIDE
from hrnet_jax.data.answers import filled
from hrnet_jax.data.preprocess import normalize
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError
from hrnet_jax.inference import winograd
from hrnet_jax.inference.folding import apply
from hrnet_jax.layers import Array, Blocks
from hrnet_jax.models import Variables
from hrnet_jax.upsampling import Upsample, resize_each


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """What `Protocol.outputs` calls: pixels, uint8 (N, H, W, 3) -> the network's outputs.

    Attributes:
        in_pieces: see `folding.apply`.
    """

    model: Any
    variables: Variables
    transform: Protocol
    in_pieces: bool = True

    def __call__(
        self,
        pixels: Array,
        method: str = '__call__',
        sizes: Array | None = None,
        more: tuple[Array, ...] = (),
    ) -> Any:
        """What the network's method gives.

        Args:
            sizes: int32 (N, 2): heights and widths of what is in `pixels`, from the upper left
                corner; the outputs there are those of the image alone.
            more: arrays (N, ...) that the method takes beside the images.
        """
        images = normalize(pixels, self.transform, self.model.dtype)
        if sizes is not None and getattr(self.model, 'upsample', '') == 'nearest':
            raise UserError(
                'images of several sizes need a network with a bilinear fusion; this one has '
                'nearest: give images of one size, a multiple of 32'
            )
        if sizes is None:
            return apply(self.model, self.variables, images, method, self.in_pieces, more)
        edges = images.shape[1:3]
        beyond = [(0, -n % STRIDE) for n in edges]
        images = jnp.pad(images, ((0, 0), *beyond, (0, 0)))
        full = (images.shape[1], images.shape[2])
        model = self.model.clone(blocks=bounded(self.model.blocks, sizes, full))
        outputs = apply(model, self.variables, images, method, in_pieces=False, more=more)

        def cut(x: Array) -> Array:
            each = zip(edges, x.shape[1:3], full, strict=True)
            height, width = (-(-edge * part // whole) for edge, part, whole in each)
            return x[:, :height, :width]

        return jax.tree.map(cut, outputs)


@dataclasses.dataclass(frozen=True, eq=False)
class Bounded(Blocks):
    """Blocks that keep zeros beyond the images, as the padding of a convolution of each alone.

    Attributes:
        sizes: int32 (N, 2), heights and widths of the images.
        full: of the arrays that hold them; multiples of 32.
    """

    sizes: Any = dataclasses.field(default=None, kw_only=True)
    full: tuple[int, int] = dataclasses.field(default=(0, 0), kw_only=True)

    def _sizes(self, shape: Sequence[int]) -> Array:
        """Of the images in a map of this height and width."""
        strides = jnp.array([whole // part for whole, part in zip(self.full, shape, strict=True)])
        return -(-self.sizes // strides[None])

    def module(self, kind: Any) -> Any:
        return kind  # not traced once for all: `sizes` are of this trace alone

    def valid(self, x: Array) -> Array:
        return jnp.where(filled(self._sizes(x.shape[1:3]), x.shape[1:3]), x, jnp.zeros_like(x))

    def softmax_of_pixels(self, x: Array) -> Array:
        inside = filled(self._sizes(x.shape[1:3]), x.shape[1:3])
        return super().softmax_of_pixels(jnp.where(inside, x, jnp.full_like(x, -jnp.inf)))

    def valid_tiles(self, tiles: Array, size: tuple[int, int]) -> Array:
        inside = winograd.split(filled(self._sizes(size), size))
        inside = jnp.repeat(inside, tiles.shape[-1] // inside.shape[-1], -1)
        return jnp.where(inside, tiles, jnp.zeros_like(tiles))

    def resize(self, x: Array, size: tuple[int, int], align_corners: bool) -> Array:
        return resize_each(x, size, self._sizes(x.shape[1:3]), self._sizes(size), align_corners)

    def upsample(
        self, x: Array, factor: int, size: tuple[int, int], way: Upsample, align_corners: bool
    ) -> Array:
        if way == 'bilinear':
            return self.resize(x, size, align_corners)
        before, after = self._sizes(x.shape[1:3]), self._sizes(size)
        x = resize_each(x, size, before, before * factor, align_corners)
        return resize_each(x, size, before * factor, after, align_corners)


def bounded(blocks: Blocks, sizes: Array, full: tuple[int, int]) -> Blocks:
    """These blocks for images of `sizes` in arrays of `full`."""
    fields = {f.name: getattr(blocks, f.name) for f in dataclasses.fields(blocks)}
    kind: Any = type(blocks)  # whose hash mypy does not find
    return _bounded(kind)(**fields, sizes=sizes, full=full)


@functools.cache
def _bounded(kind: Any) -> Any:
    # Arrays have no hash, so that these blocks are equal to themselves alone.
    alone = {'__eq__': object.__eq__, '__hash__': object.__hash__}
    return dataclasses.dataclass(frozen=True, eq=False)(
        type(f'Bounded{kind.__name__}', (Bounded, kind), alone)
    )
