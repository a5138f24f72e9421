"""FCOS: classes, distances to the four edges and centre-ness for each place of a pyramid.

Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, figure 2. Layers
have mmdetection's names.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.linen as nn
import jax.numpy as jnp

from hrnet_jax.initialisers import Constant, Normal
from hrnet_jax.layers import Array, Options, at_least_float32, conv, conv_norm

_DEPTH = 4  # convolutions of a tower
_INIT = Normal(0.01)
RARE = 0.01  # how probable each class is at first


class Tower(nn.Module):
    """One 3x3 convolution with GroupNorm and ReLU."""

    features: int
    opts: Options

    @nn.compact
    def __call__(self, x: Array) -> Array:
        layer = functools.partial(conv_norm, norm='group', kernel_init=_INIT)
        return nn.relu(layer(x, self.features, 3, ('conv', 'gn'), self.opts, False))


class FCOSHead(nn.Module):
    """A level of the pyramid -> its logits of classes (N, h, w, C), its distances to the left,
    upper, right and lower edge of a box (N, h, w, 4), and its logits of centre-ness (N, h, w, 1).

    All levels have the same layers but for a number that the logarithms of the distances are
    multiplied by. Distances are in pixels of the image.
    """

    num_classes: int
    opts: Options

    @nn.compact
    def __call__(self, x: Array, level: int) -> tuple[Array, Array, Array]:
        last = dataclasses.replace(
            self.opts, dtype=at_least_float32(self.opts.dtype, self.opts.param_dtype)
        )

        def tower(name: str) -> Array:
            y = x
            for i in range(_DEPTH):
                y = Tower(x.shape[-1], self.opts, name=f'{name}_convs_{i}')(y)
            return y

        def output(y: Array, features: int, name: str, bias: float = 0, new: bool = False) -> Array:
            init = {'kernel_init': _INIT, 'bias_init': Constant(bias)}
            return conv(y, features, 3, name, last, last=new, **init)

        y = tower('cls')
        rare = -math.log(1 / RARE - 1)
        classes = output(y, self.num_classes, 'conv_cls', rare, True)
        centerness = output(y, 1, 'conv_centerness')
        distances = output(tower('reg'), 4, 'conv_reg')
        distances = self.opts.blocks.scale(distances, f'scales_{level}', last)
        return classes, jnp.exp(distances), centerness
