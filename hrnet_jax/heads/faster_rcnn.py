"""Faster R-CNN: a network that proposes regions, and a head that classifies and moves each.

Ren et al., NeurIPS 2015, with a pyramid: Lin et al., CVPR 2017. Layers have mmdetection's names.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from hrnet_jax.initialisers import ZEROS, Normal, Uniform
from hrnet_jax.layers import Array, Options, at_least_float32, conv, dense

ANCHORS = 3  # at a place
BINS = 7  # of a region, along each edge
_WIDTH = 1024


class RPNHead(nn.Module):
    """A level of the pyramid -> logits (N, h, w, A) and deltas (N, h, w, 4 A) of the anchors, those
    of an anchor side by side."""

    opts: Options

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        opts, init = self.opts, Normal(0.01)
        x = nn.relu(conv(x, x.shape[-1], 3, 'rpn_conv', opts, kernel_init=init))
        last = dataclasses.replace(opts, dtype=at_least_float32(opts.dtype, opts.param_dtype))
        logits = conv(x, ANCHORS, 1, 'rpn_cls', last, kernel_init=init)
        return logits, conv(x, 4 * ANCHORS, 1, 'rpn_reg', last, kernel_init=init)


class BoxHead(nn.Module):
    """Regions (..., 7, 7, C) -> logits (..., classes + 1), of the background last, and deltas
    (..., classes, 4); at least in float32."""

    num_classes: int
    opts: Options

    @nn.compact
    def __call__(self, regions: Array) -> tuple[Array, Array]:
        opts, classes = self.opts, self.num_classes
        # The first layer's inputs are in PyTorch's order: channels, rows, columns.
        x = jnp.moveaxis(regions, -1, -3).reshape((*regions.shape[:-3], -1))
        for i in range(2):
            bound = (6 / (x.shape[-1] + _WIDTH)) ** 0.5
            inits = (Uniform(bound), ZEROS)
            x = nn.relu(dense(x, _WIDTH, f'shared_fcs_{i}', opts, inits=inits))
        logits = dense(x, classes + 1, 'fc_cls', opts, True, (Normal(0.01), ZEROS))
        deltas = dense(x, 4 * classes, 'fc_reg', opts, True, (Normal(0.001), ZEROS))
        return logits, deltas.reshape((*deltas.shape[:-1], classes, 4))
