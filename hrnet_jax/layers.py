"""The layers HRNet is made of: convolution with BatchNorm, the two residual blocks, upsampling.

Images and maps are (N, H, W, C). A layer's name is its official PyTorch name with `_` before a
number where PyTorch has `.`, so that a checkpoint's keys map onto these trees mechanically.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import ScopeParamShapeError
from jax import lax

from hrnet_jax.errors import UserError
from hrnet_jax.inference import winograd

Array = jax.Array
Upsample = Literal['nearest', 'bilinear', 'bilinear_two_step']

EPSILON = 1e-5
MOMENTUM = 0.9  # PyTorch's 0.1: Flax weighs the old value, PyTorch the new one.

# He et al. 2015, fan-out, as the official classification code initialises every convolution.
conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
zeros = nn.initializers.zeros_init()
# Inside of `shapes_alone`: leading axes of the parameters.
_STACK: contextvars.ContextVar[tuple[int, ...] | None] = contextvars.ContextVar(
    'stack', default=None
)


@contextlib.contextmanager
def shapes_alone(*stack: int) -> Iterator[None]:
    """Layers make zeros of the right shapes and compute nothing: a model is traced in a fraction of
    the time. `stack`: axes in front of those of each parameter."""
    token = _STACK.set(stack)
    try:
        yield
    finally:
        _STACK.reset(token)


def for_shapes_alone() -> bool:
    """Inside of `shapes_alone`."""
    return _STACK.get() is not None


def parameter(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """As `module.param(name, init, shape, dtype)`.

    Flax checks the shape of a parameter that exists by tracing `init`, for each of them: half of
    the time in which the network is traced.
    """
    if not module.has_variable('params', name):
        if (stack := _STACK.get()) is not None:
            return module.variable('params', name, jnp.zeros, (*stack, *shape), dtype).value
        return module.param(name, init, shape, dtype)
    value = nn.meta.unbox(module.get_variable('params', name))
    if jnp.shape(value) != shape:
        path = '/'.join(module.path)
        raise ScopeParamShapeError(name, path, jnp.shape(value), shape)
    return value


@dataclasses.dataclass(frozen=True)
class Options:
    """What all layers of one network have in common.

    Attributes:
        dtype: computation of convolutions; statistics and logits are never below float32.
        param_dtype: storage of parameters; of folded convolutions `dtype`.
        bn_group_size: images that share training statistics; None for the whole batch.
        frozen_norm: BatchNorm keeps its running statistics in training, and uses them (for
            fine-tuning with small batches).
        folded: BatchNorm is folded away; convolutions have a bias instead.
        winograd: 3x3 convolutions with stride 1 to at most so many channels run by
            `inference.winograd` (folded models only).
        channel_multiple: inside, the branches' channels are rounded up to it; variables are to be
            widened with zeros (`inference.padding`).
        kernels: order of the axes of a convolution's kernel (folded models only): I inputs, O
            outputs.
        upsample: how the fusion upsamples. 'nearest' by the factor (classification, pose,
            detection); 'bilinear' straight to the size of the target (official segmentation);
            'bilinear_two_step' by the factor and then to the size (mmsegmentation).
        align_corners: PyTorch's flag of that name, for the bilinear ways.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    bn_group_size: int | None = 32
    frozen_norm: bool = False
    folded: bool = False
    winograd: int = 0
    channel_multiple: int = 1
    kernels: Literal['HWIO', 'OHWI'] = 'HWIO'
    upsample: Upsample = 'nearest'
    align_corners: bool = False

    @property
    def stored(self) -> Any:
        """The type of a convolution's parameters; folded, not to be cast in every call."""
        return self.dtype if self.folded else self.param_dtype

    def __post_init__(self) -> None:
        if self.upsample not in get_args(Upsample):
            raise UserError(f'upsample must be one of {get_args(Upsample)}, not {self.upsample!r}')
        if self.bn_group_size is not None and self.bn_group_size < 1:
            raise UserError(f'bn_group_size must be at least 1, or None, not {self.bn_group_size}')
        if not self.folded and (self.winograd or self.kernels != 'HWIO'):
            raise UserError('winograd and kernels are for folded models: hrnet_jax.fold')


class Configured(nn.Module, kw_only=True):
    """A module with the fields of `Options`, given by keyword, and `opts` made of them."""

    dtype: Any = Options.dtype
    param_dtype: Any = Options.param_dtype
    bn_group_size: int | None = Options.bn_group_size
    frozen_norm: bool = Options.frozen_norm
    folded: bool = Options.folded
    winograd: int = Options.winograd
    channel_multiple: int = Options.channel_multiple
    kernels: Literal['HWIO', 'OHWI'] = Options.kernels
    upsample: Upsample = Options.upsample
    align_corners: bool = Options.align_corners

    @property
    def opts(self) -> Options:
        return Options(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Options)})


class Conv(nn.Module):
    """k x k convolution padded by (k - 1) / 2 on every side, as PyTorch pads.

    'SAME' would pad (0, 1) where the stride is 2, and shift the result.
    """

    features: int
    kernel: int
    stride: int
    opts: Options

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, pad, o = self.kernel, (self.kernel - 1) // 2, self.opts
        sizes = {'H': k, 'W': k, 'I': x.shape[-1], 'O': self.features}
        shape = tuple(sizes[axis] for axis in o.kernels)
        kernel = parameter(self, 'kernel', conv_init, shape, o.stored)
        size = (self.features,)
        bias = parameter(self, 'bias', zeros, size, o.stored) if o.folded else None
        if for_shapes_alone():
            height, width = (-(-n // self.stride) for n in x.shape[1:3])
            return jnp.zeros((x.shape[0], height, width, self.features), o.dtype)
        y = lax.conv_general_dilated(
            x.astype(o.dtype),
            kernel.astype(o.dtype),
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)),
            dimension_numbers=('NHWC', o.kernels, 'NHWC'),
        )
        return y + _channels(bias.astype(o.dtype)) if bias is not None else y


class WinogradConv(nn.Module):
    """3x3 convolution with bias on the tiles of a map of `size`; see `winograd`."""

    features: int
    size: tuple[int, int]
    opts: Options

    @nn.compact
    def __call__(self, tiles: Array) -> Array:
        o = self.opts
        columns = -(-self.size[1] // winograd.TILE)
        shape = (winograd.POINTS**2, tiles.shape[-1] // columns, self.features)
        kernel = parameter(self, 'kernel', zeros, shape, o.stored).astype(o.dtype)
        bias = parameter(self, 'bias', zeros, (self.features,), o.stored).astype(o.dtype)
        if for_shapes_alone():
            return jnp.zeros((*tiles.shape[:-1], columns * self.features), o.dtype)
        return winograd.convolve(tiles.astype(o.dtype), kernel, bias, self.size)


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
        scale = parameter(self, 'scale', nn.initializers.ones_init(), size, o.param_dtype)
        bias = parameter(self, 'bias', zeros, size, o.param_dtype)
        mean = self.variable('batch_stats', 'mean', jnp.zeros, size, stat_dtype)
        var = self.variable('batch_stats', 'var', jnp.ones, size, stat_dtype)
        if for_shapes_alone():
            return x
        # One pass over a map of few digits, around a value known before it: see `_moments`.
        shift = lax.stop_gradient(mean.value) if x.dtype == jnp.bfloat16 else None
        x = x.astype(stat_dtype)
        if not train or o.frozen_norm:
            m, v = mean.value[None], var.value[None]
        else:
            groups = _groups(x.shape[0], o.bn_group_size)
            m, v = _moments(x, groups, shift)
            if not self.is_initializing() and self.is_mutable_collection('batch_stats'):
                n = x.size // m.size
                keep, unbiased = MOMENTUM, n / max(n - 1, 1)
                mean.value = keep * mean.value + (1 - keep) * jnp.mean(m, 0)
                var.value = keep * var.value + (1 - keep) * jnp.mean(v, 0) * unbiased
        gain = scale.astype(stat_dtype)[None] * lax.rsqrt(v + EPSILON)
        y = (x - _images(m, x)) * _images(gain, x) + _channels(bias.astype(stat_dtype))
        return y.astype(o.dtype)


def _moments(x: Array, groups: int, shift: Array | None) -> tuple[Array, Array]:
    """Mean and variance, (groups, C) each, of (N, H, W, C) in `groups` runs of images.

    Without `shift`, (C,), the variance takes a pass of its own, around the mean. With it, one pass
    does for both; that loses digits where the mean is many deviations away from the shift (over
    32 maps of 112 x 112, at 10 deviations 1e-5 of the variance, at 100 1e-3, at 1000 a tenth).
    """

    def mean(values: Array) -> Array:
        return jnp.mean(values.reshape((groups, -1, *values.shape[1:])), (1, 2, 3))

    if shift is None:
        m = mean(x)
        return m, mean(jnp.square(x - _images(m, x)))
    centred = x - _channels(shift)
    m = mean(centred)
    return shift[None] + m, jnp.maximum(mean(jnp.square(centred)) - jnp.square(m), 0)


def matmul_precision(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """float32 products as PyTorch has them for a float32 model.

    Accelerators round their factors unless told not to: TPUs to bfloat16, recent GPUs to TF32.
    """
    exact = jnp.dtype(model.dtype) == jnp.float32
    return jax.default_matmul_precision('highest' if exact else 'default')


def at_least_float32(*dtypes: Any) -> Any:
    return jnp.float64 if jnp.float64 in map(jnp.dtype, dtypes) else jnp.float32


def _channels(vector: Array) -> Array:
    return vector.reshape((1, 1, 1, -1))  # explicit: rank promotion may be an error


def _images(values: Array, x: Array) -> Array:
    """(G, C), of G runs of images, in the form that broadcasts to x, (N, H, W, C)."""
    if len(values) > 1:
        values = jnp.repeat(values, x.shape[0] // len(values), 0)
    return values[:, None, None]


def _groups(batch: int, group_size: int | None) -> int:
    if group_size is None or batch <= group_size:
        return 1
    if batch % group_size:
        raise UserError(
            f'a training batch of {batch} images does not divide into BatchNorm groups of '
            f'{group_size}; choose a multiple, another bn_group_size, or None for the whole batch'
        )
    return batch // group_size


def conv_norm(
    x: Array,
    features: int,
    kernel: int,
    names: tuple[str, str],
    opts: Options,
    train: bool,
    stride: int = 1,
) -> Array:
    """Convolution, then BatchNorm, as two layers of the module whose compact method calls this."""
    if train and opts.folded:
        raise UserError('a folded model has no BatchNorm to train')
    if (kernel, stride) == (3, 1) and features <= opts.winograd:
        size = (x.shape[1], x.shape[2])
        conv = WinogradConv(features, size, opts, name=names[0])
        return winograd.join(conv(winograd.split(x)), size)
    x = Conv(features, kernel, stride, opts, name=names[0])(x)
    return x if opts.folded else BatchNorm(opts, name=names[1])(x, train)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity (He et al. 2016, figure 5 left)."""

    features: int
    opts: Options

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = nn.relu(conv_norm(x, self.features, 3, ('conv1', 'bn1'), self.opts, train))
        y = conv_norm(y, self.features, 3, ('conv2', 'bn2'), self.opts, train)
        return nn.relu(y + x)


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
    if (stack := _STACK.get()) is not None:
        with shapes_alone(*stack, length):
            return block(x, *args)
    scan = nn.scan(
        lambda block, x, _: (block(x, *args), None),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=length,
        check_constancy_invariants=False,  # traces every block once more
    )
    return scan(block, x, None)[0]


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


def upsample(x: Array, factor: int, size: tuple[int, int], opts: Options) -> Array:
    """(N, h, w, C) -> (N, *size, C), by one of the three ways of `Options.upsample`.

    `factor` is the ratio of the two strides; `size` that of the map to add to.
    """
    n, h, w, c = x.shape
    if opts.upsample == 'nearest':
        # One axis at a time: the shape that explicit sharding can follow.
        x = jnp.broadcast_to(x[:, :, None], (n, h, factor, w, c)).reshape((n, h * factor, w, c))
        x = jnp.broadcast_to(x[:, :, :, None], (n, h * factor, w, factor, c))
        return x.reshape((n, h * factor, w * factor, c))
    if opts.upsample == 'bilinear_two_step':
        x = resize_bilinear(x, (h * factor, w * factor), opts.align_corners)
    return resize_bilinear(x, size, opts.align_corners)


def resize_bilinear(x: Array, size: tuple[int, int], align_corners: bool = False) -> Array:
    """PyTorch's `interpolate(mode='bilinear')` (no antialiasing) of (N, h, w, C) to `size`."""
    dtype = at_least_float32(x.dtype)
    y = x.astype(dtype)
    for axis, out in zip((1, 2), size, strict=True):
        if x.shape[axis] != out:
            taps = jnp.asarray(_bilinear_taps(x.shape[axis], out, align_corners), dtype)
            y = jnp.moveaxis(jnp.tensordot(taps, y, (1, axis), precision='highest'), 0, axis)
    return y.astype(x.dtype)


@functools.lru_cache
def _bilinear_taps(n: int, out: int, align_corners: bool) -> np.ndarray:
    """(out, n) interpolation weights; each row has at most two that are not zero."""
    i = np.arange(out)
    if align_corners:
        at = i * ((n - 1) / max(out - 1, 1))
    else:
        at = np.maximum((i + 0.5) * (n / out) - 0.5, 0)
    low = np.minimum(at.astype(int), n - 1)
    high, part = np.minimum(low + 1, n - 1), at - low
    taps = np.zeros((out, n))
    np.add.at(taps, (i, low), 1 - part)
    np.add.at(taps, (i, high), part)
    return taps
