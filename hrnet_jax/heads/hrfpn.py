"""HRFPN: a pyramid of five maps for detection, of the four maps joined.

HRNetV2p: Wang et al., TPAMI 2019, section 3.3 and figure 4c. Layers have their official names.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn

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
        if size == 1:
            return x
        pool = nn.avg_pool if self.pooling == 'average' else nn.max_pool
        return pool(x, (size, size), (size, size))


def fan_in(inputs: int) -> Uniform:
    """The initialiser of mmdetection's pyramids, for layers with so many inputs."""
    return Uniform((3 / inputs) ** 0.5)
