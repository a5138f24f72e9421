"""The layers HRNet is made of: convolution with BatchNorm, the two residual blocks.

Images and maps are (N, H, W, C). A layer's name is its official PyTorch name with `_` before a
number where PyTorch has `.`, so that a checkpoint's keys map onto these trees mechanically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from hrnet_jax import tracing
from hrnet_jax.archs import whole_number
from hrnet_jax.errors import UserError
from hrnet_jax.initialisers import HE, ONES, ZEROS, linear_init
from hrnet_jax.moments import groups_of, moments, on_channels, per_image
from hrnet_jax.tracing import parameter
from hrnet_jax.upsampling import Upsample, resize_bilinear, upsample
from hrnet_jax.upsampling import at_least_float32 as at_least_float32

Array = jax.Array
Norm = Literal['batch', 'group']
Inits = tuple[Any, Any]  # initialisers of kernel and bias

EPSILON = 1e-5
MOMENTUM = 0.9  # PyTorch's 0.1: Flax weighs the old value, PyTorch the new one.


@dataclasses.dataclass(frozen=True)
class ConvNorm:
    """A convolution and the norm behind it.

    Attributes:
        features: channels of the result.
        kernel, stride: of the convolution; padded by (kernel - 1) / 2 on every side.
        names: of the two layers; the second is not looked at where there is no norm.
        use_bias: the convolution has a bias of its own, with or without a norm behind it.
        norm: 'batch'; 'group' for GroupNorm, which `fold` keeps; None for none.
        groups: of GroupNorm.
        kernel_init, bias_init: initialisers: `Normal`, `Uniform`, `Constant`, or any of Flax's.
        last: the task's last layer, new where a checkpoint has other classes.
    """

    features: int
    kernel: int
    names: tuple[str, str]
    stride: int = 1
    use_bias: bool = False
    norm: Norm | None = 'batch'
    groups: int = 32
    kernel_init: Any = HE
    bias_init: Any = ZEROS
    last: bool = False


@dataclasses.dataclass(frozen=True)
class Blocks:
    """What a network computes its layers with: as the paper has them.

    `hrnet_jax.fold` gives a model another set, and the network and its heads do not notice.
    """

    folded: ClassVar[bool] = False  # without BatchNorm, for inference alone

    @property
    def backbone(self) -> Blocks:
        """The set for the backbone, whose layers are many and equal."""
        return self

    def widths(self, channels: Sequence[int]) -> tuple[int, ...]:
        """The channels that branches of `channels` are computed with; the first are the maps'."""
        return tuple(channels)

    def module(self, kind: Any) -> Any:
        """The class that stands for a module of which a network has many that are equal."""
        return tracing.once_unless_watched(kind)

    def conv_norm(self, x: Array, layer: ConvNorm, opts: Options, train: bool) -> Array:
        """The layers `layer.names` of the module whose compact method calls this."""
        y = Conv(layer, opts, name=layer.names[0])(x)
        if layer.norm == 'batch':
            return BatchNorm(opts, name=layer.names[1])(y, train)
        return group_norm(y, layer, opts) if layer.norm else y

    def conv_norm_joined(
        self,
        maps: Sequence[Array],
        layer: ConvNorm,
        opts: Options,
        train: bool,
        align_corners: bool,
    ) -> Array:
        """`conv_norm`, 1x1, of `joined` maps."""
        return self.conv_norm(self.joined(maps, align_corners), layer, opts, train)

    def joined(self, maps: Sequence[Array], align_corners: bool) -> Array:
        """The maps side by side, each resized to the size of the first."""
        size = (maps[0].shape[1], maps[0].shape[2])
        return jnp.concatenate([self.resize(x, size, align_corners) for x in maps], -1)

    def chain(
        self,
        block: type[nn.Module],
        fields: tuple[Any, ...],
        name: str,
        numbers: Sequence[int],
        x: Array,
        train: bool,
    ) -> Array:
        """`block(*fields)` one after another: `name`_0, `name`_1, ... for these numbers."""
        for number in numbers:
            x = self.module(block)(*fields, name=f'{name}_{number}')(x, train)
        return x

    def dense(
        self, x: Array, features: int, name: str, opts: Options, last: bool, inits: Inits
    ) -> Array:
        return plain_dense(x, features, name, opts, inits)

    def scale(self, x: Array, name: str, opts: Options) -> Array:
        """x times a number that is learned, of the layer `name`; at least in float32."""
        return Scale(opts, name=name)(x)

    def upsample(
        self, x: Array, factor: int, size: tuple[int, int], way: Upsample, align_corners: bool
    ) -> Array:
        """(N, h, w, C) -> (N, *size, C): see `upsampling.upsample`."""
        return upsample(x, factor, size, way, align_corners)

    def resize(self, x: Array, size: tuple[int, int], align_corners: bool) -> Array:
        """(N, h, w, C) -> (N, *size, C): see `upsampling.resize_bilinear`."""
        return resize_bilinear(x, size, align_corners)

    def softmax_of_pixels(self, x: Array) -> Array:
        """(N, H, W, C) -> the softmax over the pixels of each channel."""
        return jax.nn.softmax(x, (1, 2))

    def valid(self, x: Array) -> Array:
        """x, (N, H, W, C), with zeros beyond the images, which usually fill all of it."""
        return x

    def valid_tiles(self, tiles: Array, size: tuple[int, int]) -> Array:
        """The same of a map of `size` in tiles: see `inference.winograd`."""
        return tiles


@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Options:
    """What all layers of one network have in common; not to be changed.

    Attributes:
        dtype: computation of convolutions; statistics and logits are never below float32.
        param_dtype: storage of parameters; of folded convolutions `dtype`.
        bn_group_size: images that share training statistics; None for the whole batch.
        frozen_norm: BatchNorm keeps its running statistics in training, and uses them (for
            fine-tuning with small batches).
        blocks: what layers are computed with; `hrnet_jax.fold` sets it.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    bn_group_size: int | None = 32
    frozen_norm: bool = False
    blocks: Blocks = Blocks()

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises UserError for values that make no network."""
        size = self.bn_group_size
        if size is not None and (whole_number(size) or 0) < 1:
            raise UserError(f'bn_group_size must be at least 1, or None, not {size!r}')
        for name in ('dtype', 'param_dtype'):
            try:
                known = jnp.issubdtype(jnp.dtype(getattr(self, name)), jnp.floating)
            except TypeError:
                known = False
            if not known:
                raise UserError(f'{name} is a floating-point type, not {getattr(self, name)!r}')


class Configured(nn.Module, Options, kw_only=True):
    """A module with the fields of `Options`, given by keyword, and `opts` made of them."""

    def __post_init__(self) -> None:
        self.check()
        super().__post_init__()

    @property
    def opts(self) -> Options:
        return Options(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Options)})

    @property
    def folded(self) -> bool:
        """Made by `hrnet_jax.fold`."""
        return self.blocks.folded


class Conv(nn.Module):
    """k x k convolution padded by (k - 1) / 2 on every side, as PyTorch pads.

    'SAME' would pad (0, 1) where the stride is 2, and shift the result.
    """

    layer: ConvNorm
    opts: Options

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer, o = self.layer, self.opts
        shape = (layer.kernel, layer.kernel, x.shape[-1], layer.features)
        kernel = parameter(self, 'kernel', layer.kernel_init, shape, o.param_dtype)
        x = o.blocks.valid(x) if layer.kernel > 1 else x
        y = convolve(x.astype(o.dtype), kernel.astype(o.dtype), layer.stride)
        if not layer.use_bias:
            return y
        bias = parameter(self, 'bias', layer.bias_init, (layer.features,), o.param_dtype)
        return y + on_channels(bias.astype(o.dtype))


def convolve(x: Array, kernel: Array, stride: int, axes: str = 'HWIO') -> Array:
    """(N, H, W, I) -> (N, ceil(H / stride), ceil(W / stride), O); `axes`: those of the kernel."""
    pad = (kernel.shape[axes.index('H')] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=('NHWC', axes, 'NHWC'),
    )


class BatchNorm(nn.Module):
    """BatchNorm with PyTorch's constants and PyTorch's unbiased running variance.

    In training the batch is cut into groups of `bn_group_size` consecutive images, each with
    its own statistics (the published models had 32 images a GPU), whatever the number of
    devices; the running statistics follow the mean over the groups.
    """

    opts: Options

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        o, size = self.opts, (x.shape[-1],)
        stat_dtype = at_least_float32(o.dtype, o.param_dtype)
        scale = parameter(self, 'scale', ONES, size, o.param_dtype)
        bias = parameter(self, 'bias', ZEROS, size, o.param_dtype)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, size, stat_dtype)
        var = self.variable('batch_stats', 'var', jnp.ones, size, stat_dtype)
        # One pass over a map of few digits, around a value known before it: see `moments`.
        shift = lax.stop_gradient(mean.value) if x.dtype == jnp.bfloat16 else None
        x = x.astype(stat_dtype)
        if not train or o.frozen_norm:
            m, v = mean.value[None], var.value[None]
        else:
            groups = groups_of(x.shape[0], o.bn_group_size)
            m, v = moments(x, groups, shift)
            if not self.is_initializing() and self.is_mutable_collection('batch_stats'):
                n = x.size // m.size
                keep, unbiased = MOMENTUM, n / max(n - 1, 1)
                mean.value = keep * mean.value + (1 - keep) * jnp.mean(m, 0)
                var.value = keep * var.value + (1 - keep) * jnp.mean(v, 0) * unbiased
        gain = scale.astype(stat_dtype)[None] * lax.rsqrt(v + EPSILON)
        y = (x - per_image(m, x)) * per_image(gain, x) + on_channels(bias.astype(stat_dtype))
        return y.astype(o.dtype)


def matmul_precision(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """float32 products as PyTorch has them for a float32 model; the caller's choice for others.

    Accelerators round their factors unless told not to: TPUs to bfloat16, recent GPUs to TF32.
    """
    dtype = getattr(model, 'dtype', None)  # a module that is not ours may have none
    exact = dtype is None or jnp.dtype(dtype) == jnp.float32
    return jax.default_matmul_precision('highest') if exact else contextlib.nullcontext()


def group_norm(x: Array, layer: ConvNorm, opts: Options) -> Array:
    """GroupNorm with PyTorch's epsilon, as layer `layer.names[1]`; computed in float32."""
    norm = nn.GroupNorm(
        layer.groups,
        epsilon=EPSILON,
        dtype=at_least_float32(opts.dtype, opts.param_dtype),
        param_dtype=opts.param_dtype,
        use_fast_variance=False,
        name=layer.names[1],
    )
    return norm(x).astype(opts.dtype)


def conv_norm(
    x: Array,
    features: int,
    kernel: int,
    names: tuple[str, str],
    opts: Options,
    train: bool,
    stride: int = 1,
    **more: Any,
) -> Array:
    """Convolution, then a norm, as two layers of the module whose compact method calls this.

    Args:
        x: (N, H, W, C).
        **more: use_bias, norm, groups, kernel_init, bias_init, last: see `ConvNorm`.

    Returns:
        (N, ceil(H / stride), ceil(W / stride), features).
    """
    return opts.blocks.conv_norm(x, ConvNorm(features, kernel, names, stride, **more), opts, train)


def conv(x: Array, features: int, kernel: int, name: str, opts: Options, **more: Any) -> Array:
    """A convolution with bias and without a norm; otherwise as `conv_norm`."""
    layer = ConvNorm(features, kernel, (name, ''), **{'use_bias': True, 'norm': None} | more)
    return opts.blocks.conv_norm(x, layer, opts, False)


def dense(
    x: Array,
    features: int,
    name: str,
    opts: Options,
    last: bool = False,
    inits: Inits | None = None,
) -> Array:
    """(..., C) -> (..., features): a linear layer, at least in float32.

    Args:
        last: see `ConvNorm`.
        inits: initialisers of kernel and bias; by default as PyTorch initialises.
    """
    inits = inits or (linear_init(x.shape[-1]),) * 2
    return opts.blocks.dense(x, features, name, opts, last, inits)


def plain_dense(x: Array, features: int, name: str, opts: Options, inits: Inits) -> Array:
    layer = nn.Dense(
        features,
        dtype=at_least_float32(opts.dtype, opts.param_dtype),
        param_dtype=opts.param_dtype,
        kernel_init=inits[0],
        bias_init=inits[1],
        name=name,
    )
    return layer(x)


class Scale(nn.Module):
    """See `Blocks.scale`."""

    opts: Options

    @nn.compact
    def __call__(self, x: Array) -> Array:
        dtype = at_least_float32(self.opts.dtype, self.opts.param_dtype)
        scale = parameter(self, 'scale', ONES, (), self.opts.param_dtype)
        return x.astype(dtype) * scale.astype(dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity (He et al. 2016, figure 5 left)."""

    features: int
    opts: Options

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = nn.relu(conv_norm(x, self.features, 3, ('conv1', 'bn1'), self.opts, train))
        y = conv_norm(y, self.features, 3, ('conv2', 'bn2'), self.opts, train)
        return nn.relu(y + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut, projected where `project` says so
    (He et al. 2016, figure 5 right). Returns 4 * planes channels."""

    planes: int
    project: bool
    opts: Options

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        conv = functools.partial(conv_norm, opts=self.opts, train=train)
        y = nn.relu(conv(x, self.planes, 1, ('conv1', 'bn1')))
        y = nn.relu(conv(y, self.planes, 3, ('conv2', 'bn2')))
        y = conv(y, 4 * self.planes, 1, ('conv3', 'bn3'))
        if self.project:
            x = conv(x, 4 * self.planes, 1, ('downsample_0', 'downsample_1'))
        return nn.relu(y + x)
