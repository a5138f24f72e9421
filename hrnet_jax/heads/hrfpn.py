"""HRFPN: a pyramid of five maps for detection, of the four maps joined.

HRNetV2p: Wang et al., TPAMI 2019, section 3.3 and figure 4c. Layers have their official names.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import flax.linen as nn
import jax.numpy as jnp

from hrnet_jax.archs import Arch, at_least_one, get_arch
from hrnet_jax.backbone import FeatureInfo, Network
from hrnet_jax.errors import UserError
from hrnet_jax.initialisers import Uniform
from hrnet_jax.layers import Array, ConvNorm, Options, conv

Pooling = Literal['average', 'max']
LEVELS = 5


class HRFPN(nn.Module):
    """Maps at strides 4 to 32 -> five at `stride` times 4 to 64, each of `channels`.

    Attributes:
        channels: of every level.
        pooling: how the joined map becomes the coarser levels.
        stride: of the last convolution of each level.
    """

    channels: int
    pooling: Pooling
    stride: int
    opts: Options

    @nn.compact
    def __call__(self, maps: tuple[Array, ...]) -> tuple[Array, ...]:
        opts, width = self.opts, sum(x.shape[-1] for x in maps)
        layer = ConvNorm(
            self.channels, 1, ('reduction_conv_0', ''), use_bias=True, norm=None,
            kernel_init=fan_in(width),
        )  # fmt: skip
        x = opts.blocks.conv_norm_joined(maps, layer, opts, False, False)
        init, levels = fan_in(9 * self.channels), []
        for i in range(LEVELS):
            y = self._pooled(x, 2**i)
            layer_name = f'fpn_conv_{i}'
            y = conv(y, self.channels, 3, layer_name, opts, stride=self.stride, kernel_init=init)
            levels.append(y)
        return tuple(levels)

    def _pooled(self, x: Array, size: int) -> Array:
        """What does not fill a window at the right and below is left out."""
        n, height, width, channels = x.shape
        h, w = height // size, width // size
        windows = x[:, : h * size, : w * size].reshape((n, h, size, w, size, channels))
        pool = jnp.mean if self.pooling == 'average' else jnp.max
        return pool(windows, (2, 4))


def fan_in(inputs: int) -> Uniform:
    """The initialiser of mmdetection's pyramids, for layers with so many inputs."""
    return Uniform((3 / inputs) ** 0.5)


class WithPyramid(Network):
    """HRNet with a pyramid: `backbone`, then `neck`. H and W of the images are multiples of 32;
    from 64 on every level has pixels.

    Attributes:
        arch: a name of `list_models()` or an `Arch`.
        channels, pooling: of the pyramid, see `HRFPN`.
    """

    arch: Arch
    channels: int = 256
    pooling: Pooling = 'average'

    def __post_init__(self) -> None:
        if self.pooling not in get_args(Pooling):
            raise UserError(f'pooling must be average or max, not {self.pooling!r}')
        object.__setattr__(self, 'channels', at_least_one('channels', self.channels))
        object.__setattr__(self, 'arch', get_arch(self.arch))  # of a name, too
        super().__post_init__()

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the levels of the pyramid."""
        raise NotImplementedError

    def setup(self) -> None:
        self.backbone = self.hrnet(self.arch)
        self.neck = HRFPN(self.channels, self.pooling, self.strides[0] // 4, self.opts)

    def features(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """-> four maps, strides 4, 8, 16, 32: (N, H / s, W / s, arch.channels[i])."""
        return self.backbone(images, train)

    def pyramid(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """(N, H, W, in_channels) normalised images -> five maps of `strides`: (N, h, w,
        channels)."""
        return self.neck(self.backbone(images, train))


class Pyramid(WithPyramid):
    """A `WithPyramid` that returns its five maps.

    Attributes beside those of `WithPyramid`:
        stride: of the last convolution of each level: 2 with FCOS, 1 with Faster R-CNN.
    """

    task: ClassVar[str] = 'backbone'  # what a checkpoint of it says

    stride: int = 1

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(4 * 2**i * self.stride for i in range(LEVELS))

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that are returned."""
        return tuple(
            FeatureInfo(f'level{i}', self.channels, stride) for i, stride in enumerate(self.strides)
        )

    def __call__(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """See `pyramid`."""
        return self.pyramid(images, train)
