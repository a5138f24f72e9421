"""The forms of a folded network: convolutions with bias, as a platform computes them fastest."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn

from hrnet_jax.errors import UserError
from hrnet_jax.inference import winograd
from hrnet_jax.inference.padding import Padded
from hrnet_jax.initialisers import ZEROS
from hrnet_jax.layers import (
    Array,
    BasicBlock,
    ConvNorm,
    Options,
    convolve,
    group_norm,
)
from hrnet_jax.moments import on_channels
from hrnet_jax.tracing import parameter


@dataclasses.dataclass(frozen=True)
class Form(Padded):
    """Blocks without BatchNorm.

    Attributes:
        channel_multiple: inside, the branches' channels are rounded up to it.
        winograd: in the backbone, 3x3 convolutions with stride 1 to at most so many channels run
            by `inference.winograd`, and equal blocks in a loop; 0 for none.
        kernels: order of the axes of a convolution's kernel: I inputs, O outputs.
        in_backbone: this is the set for the backbone. A head has convolutions of several sizes,
            each once: Winograd's would be a fifth of what is compiled.
    """

    winograd: int = 0
    kernels: Literal['HWIO', 'OHWI'] = 'HWIO'
    in_backbone: bool = False
    folded: ClassVar[bool] = True

    @property
    def backbone(self) -> Form:
        return dataclasses.replace(self, in_backbone=True)

    def tiled(self, layer: ConvNorm) -> bool:
        """Whether this convolution of the backbone is Winograd's."""
        return (layer.kernel, layer.stride) == (3, 1) and layer.features <= self.winograd

    def conv_norm(self, x: Array, layer: ConvNorm, opts: Options, train: bool) -> Array:
        if train and layer.norm == 'batch':
            raise UserError('a folded model has no BatchNorm to train')
        if self.in_backbone and self.tiled(layer):
            size = (x.shape[1], x.shape[2])
            tiles = WinogradConv(layer.features, size, opts, name=layer.names[0])(winograd.split(x))
            return winograd.join(tiles, size)
        y = FoldedConv(layer, self.kernels, opts, name=layer.names[0])(x)
        return group_norm(y, layer, opts) if layer.norm == 'group' else y

    def conv_norm_joined(
        self,
        maps: Sequence[Array],
        layer: ConvNorm,
        opts: Options,
        train: bool,
        align_corners: bool,
    ) -> Array:
        # Bilinear resizing and a 1x1 convolution may change places: coarse maps are convolved
        # before they are resized.
        if self.kernels != 'HWIO':
            return super().conv_norm_joined(maps, layer, opts, train, align_corners)
        resize = functools.partial(self.resize, align_corners=align_corners)
        return JoinedConv(layer, resize, opts, name=layer.names[0])(maps)

    def chain(
        self,
        block: type[nn.Module],
        fields: tuple[Any, ...],
        name: str,
        numbers: Sequence[int],
        x: Array,
        train: bool,
    ) -> Array:
        if not self.winograd:
            return super().chain(block, fields, name, numbers, x, train)
        if not numbers:
            return x
        if block is BasicBlock and fields[0] <= self.winograd:
            size = (x.shape[1], x.shape[2])
            tiles = WinogradBlock(fields[0], size, fields[1], name=name)
            return winograd.join(looped(tiles, len(numbers), winograd.split(x)), size)
        return looped(block(*fields, name=name), len(numbers), x, train)


class FoldedConv(nn.Module):
    """A convolution as of `layers.Conv`, its parameters stored as they are computed."""

    layer: ConvNorm
    axes: str
    opts: Options

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer, dtype = self.layer, self.opts.dtype
        k = layer.kernel
        sizes = {'H': k, 'W': k, 'I': x.shape[-1], 'O': layer.features}
        shape = tuple(sizes[axis] for axis in self.axes)
        kernel = parameter(self, 'kernel', ZEROS, shape, dtype)
        bias = None
        if layer.use_bias or layer.norm == 'batch':
            bias = parameter(self, 'bias', ZEROS, (layer.features,), dtype)
        x = self.opts.blocks.valid(x) if k > 1 else x
        y = convolve(x.astype(dtype), kernel.astype(dtype), layer.stride, self.axes)
        return y if bias is None else y + on_channels(bias.astype(dtype))


class JoinedConv(nn.Module):
    """A 1x1 `FoldedConv` of maps side by side; `resize` brings each result to the first's size."""

    layer: ConvNorm
    resize: Callable[..., Array]
    opts: Options

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> Array:
        dtype, features = self.opts.dtype, self.layer.features
        channels = [x.shape[-1] for x in maps]
        kernel = parameter(self, 'kernel', ZEROS, (1, 1, sum(channels), features), dtype)
        bias = parameter(self, 'bias', ZEROS, (features,), dtype)
        size, start, total = maps[0].shape[1:3], 0, on_channels(bias.astype(dtype))
        for x, width in zip(maps, channels, strict=True):
            part = kernel[:, :, start : start + width].astype(dtype)
            total = total + self.resize(convolve(x.astype(dtype), part, 1), size)
            start += width
        return total


class WinogradConv(nn.Module):
    """3x3 convolution with bias on the tiles of a map of `size`; see `winograd`."""

    features: int
    size: tuple[int, int]
    opts: Options

    @nn.compact
    def __call__(self, tiles: Array) -> Array:
        dtype = self.opts.dtype
        columns = -(-self.size[1] // winograd.TILE)
        shape = (winograd.POINTS**2, tiles.shape[-1] // columns, self.features)
        kernel = parameter(self, 'kernel', ZEROS, shape, dtype).astype(dtype)
        bias = parameter(self, 'bias', ZEROS, (self.features,), dtype).astype(dtype)
        tiles = self.opts.blocks.valid_tiles(tiles, self.size)
        return winograd.convolve(tiles.astype(dtype), kernel, bias, self.size)


class WinogradBlock(nn.Module):
    """A `BasicBlock` on the tiles of a map of `size`."""

    features: int
    size: tuple[int, int]
    opts: Options

    @nn.compact
    def __call__(self, tiles: Array) -> Array:
        conv = functools.partial(WinogradConv, self.features, self.size, self.opts)
        y = nn.relu(conv(name='conv1')(tiles))
        return nn.relu(conv(name='conv2')(y) + tiles)


def looped(block: nn.Module, length: int, x: Array, *args: Any) -> Array:
    """`length` blocks one after another, their parameters stacked along a first axis.

    In a straight line XLA's CPU compiler does not keep the sum that is a block's result for the
    next shortcut: every block adds up all before it again.
    """
    scan = nn.scan(
        lambda block, x, _: (block(x, *args), None),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=length,
        check_constancy_invariants=False,  # traces every block once more
    )
    return scan(block, x, None)[0]
