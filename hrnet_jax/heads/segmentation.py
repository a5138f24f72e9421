"""Segmentation heads: FCN on the four maps joined, and OCR, which looks at the pixels' classes.

FCN is HRNetV2 (Wang et al., TPAMI 2019, section 3.3); OCR is Yuan et al., "Object-Contextual
Representations for Semantic Segmentation", ECCV 2020, figure 3. Layers have their official names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from hrnet_jax.archs import Arch, at_least_one, get_arch
from hrnet_jax.backbone import FeatureInfo, HRNet, Network
from hrnet_jax.errors import UserError
from hrnet_jax.layers import Array, ConvNorm, Options, at_least_float32, conv, conv_norm
from hrnet_jax.upsampling import Upsample

Head = Literal['fcn', 'ocr']


def fcn(
    maps: Sequence[Array], num_classes: int, name: str, opts: Options, train: bool, align: bool
) -> Array:
    """The maps joined, a 1x1 convolution as wide, one to the classes; layers of the calling
    module."""
    layer = ConvNorm(sum(x.shape[-1] for x in maps), 1, (f'{name}_0', f'{name}_1'))
    x = nn.relu(opts.blocks.conv_norm_joined(maps, layer, opts, train, align))
    return classified(x, num_classes, f'{name}_3', opts)


def classified(x: Array, num_classes: int, name: str, opts: Options) -> Array:
    """(N, H, W, C) -> (N, H, W, num_classes) logits, at least in float32."""
    opts = dataclasses.replace(opts, dtype=at_least_float32(opts.dtype, opts.param_dtype))
    return conv(x, num_classes, 1, name, opts, last=True)


def object_regions(x: Array, weights: Array) -> Array:
    """The mean of the pixels, as each class weighs them (equation 7).

    Args:
        x: (N, H, W, C).
        weights: (N, H, W, K), the softmax over the pixels of each class's logits.

    Returns:
        (N, K, 1, C).
    """
    return jnp.einsum('nhwk,nhwc->nkc', weights.astype(x.dtype), x)[:, :, None]


class ObjectAttention(nn.Module):
    """What the regions tell each pixel, by the likeness of the two (equation 8)."""

    channels: int
    opts: Options

    @nn.compact
    def __call__(self, x: Array, regions: Array, train: bool) -> Array:
        """(N, H, W, C), (N, K, 1, C) -> (N, H, W, C)."""

        def layers(y: Array, name: str, *widths: int) -> Array:
            for i, width in enumerate(widths):
                names = (f'{name}_{2 * i}', f'{name}_{2 * i + 1}_0')
                y = nn.relu(conv_norm(y, width, 1, names, self.opts, train))
            return y

        query = layers(x, 'f_pixel', self.channels, self.channels)
        key = layers(regions, 'f_object', self.channels, self.channels)[:, :, 0]
        value = layers(regions, 'f_down', self.channels)[:, :, 0]
        likeness = jnp.einsum('nhwc,nkc->nhwk', query, key) * self.channels**-0.5
        weights = jax.nn.softmax(likeness.astype(at_least_float32(x.dtype)))
        told = jnp.einsum('nhwk,nkc->nhwc', weights.astype(x.dtype), value)
        return layers(told, 'f_up', x.shape[-1])


class ObjectContext(nn.Module):
    """Pixels beside what the regions tell them, joined by a 1x1 convolution."""

    channels: int
    dropout: float
    opts: Options

    @nn.compact
    def __call__(self, x: Array, regions: Array, train: bool) -> Array:
        attention = ObjectAttention(self.channels, self.opts, name='object_context_block')
        y = jnp.concatenate([attention(x, regions, train), x], -1)
        names = ('conv_bn_dropout_0', 'conv_bn_dropout_1_0')
        y = nn.relu(conv_norm(y, x.shape[-1], 1, names, self.opts, train))
        return dropped(y, self.dropout, train)


def dropped(x: Array, rate: float, train: bool) -> Array:
    """Without some whole channels in training, by the key 'dropout'; PyTorch's Dropout2d."""
    return nn.Dropout(rate, broadcast_dims=(1, 2), deterministic=not train)(x) if rate else x


class SegmentationHead(nn.Module):
    """Four maps -> the logits that are trained; those that count are the last."""

    kind: Head
    num_classes: int
    channels: int
    key_channels: int
    dropout: float
    align_corners: bool
    opts: Options

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], train: bool) -> tuple[Array, ...]:
        opts, classes = self.opts, self.num_classes
        align = self.align_corners
        if self.kind == 'fcn':
            return (fcn(maps, classes, 'last_layer', opts, train, align),)
        rough = fcn(maps, classes, 'aux_head', opts, train, align)
        x = opts.blocks.joined(maps, align)
        names = ('conv3x3_ocr_0', 'conv3x3_ocr_1')
        x = nn.relu(conv_norm(x, self.channels, 3, names, opts, train))
        regions = object_regions(x, opts.blocks.softmax_of_pixels(rough))
        context = ObjectContext(self.key_channels, self.dropout, opts, name='ocr_distri_head')
        return rough, classified(context(x, regions, train), classes, 'cls_head', opts)


class Segmenter(Network):
    """HRNet for semantic segmentation: `backbone`, then `head`.

    Attributes:
        arch: a name of `list_models()` or an `Arch`.
        num_classes: length of each pixel's logits.
        head: 'fcn' or 'ocr'.
        ocr_channels, key_channels: of OCR, those of its pixels and of their comparison.
        dropout: of OCR in training, the part of the channels that is left out.
        upsample, align_corners, and others: by keyword, see `Network`; the fusion is by default
            as mmsegmentation's.
        transform, class_names: filled in by `hrnet_jax.load`, as of a `Classifier`.
    """

    arch: Arch  # type: ignore[misc]
    num_classes: int = 19
    head: Head = 'fcn'
    ocr_channels: int = 512
    key_channels: int = 256
    dropout: float = 0.0
    upsample: Upsample = dataclasses.field(default='bilinear_two_step', kw_only=True)
    task: str = 'segmentation'
    transform: Any = dataclasses.field(default=None, compare=False, repr=False)
    class_names: tuple[str, ...] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise UserError(f'head must be one of {", ".join(get_args(Head))}, not {self.head!r}')
        for name in ('num_classes', 'ocr_channels', 'key_channels'):
            object.__setattr__(self, name, at_least_one(name, getattr(self, name)))
        if not 0 <= self.dropout < 1:
            raise UserError(f'dropout must be from 0 to below 1, not {self.dropout!r}')
        object.__setattr__(self, 'arch', get_arch(self.arch))  # of a name, too
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that `features` returns."""
        return HRNet(self.arch, parent=None).feature_info

    def __call__(self, images: Array, train: bool = False) -> Array:
        """(N, H, W, in_channels) normalised RGB -> (N, ceil(H / 4), ceil(W / 4), num_classes)
        logits, float32; H and W are at least 32.

        Args:
            train: see `Classifier`; with `dropout` a key of that name is needed.
        """
        return self.heads(images, train)[-1]

    def heads(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """All logits that are trained: of 'ocr' those of its first guess, too, before the last."""
        return self._run(images, train)

    def features(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """-> four maps, strides 4, 8, 16, 32: (N, ceil(H / s), ceil(W / s), arch.channels[i])."""
        return self._run(images, train, logits=False)

    @nn.compact
    def _run(self, images: Array, train: bool, logits: bool = True) -> tuple[Array, ...]:
        maps = self.hrnet(self.arch, name='backbone')(images, train)
        if not logits:
            return maps
        head = SegmentationHead(
            self.head, self.num_classes, self.ocr_channels, self.key_channels, self.dropout,
            self.align_corners, self.opts, name='head',
        )  # fmt: skip
        return head(maps, train)
