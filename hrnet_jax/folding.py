"""BatchNorm folded into the convolutions before it, for inference."""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from hrnet_jax.layers import EPSILON
from hrnet_jax.models import Variables


@dataclasses.dataclass(frozen=True)
class Folded:
    """A model without BatchNorm and its variables, {'params': ...}."""

    model: nn.Module
    variables: Variables


def fold(model: nn.Module, variables: Variables) -> Folded:
    """The same function of images in evaluation, with a bias in each convolution instead.

    BatchNorm is (conv(x) - mean) * gain + bias with gain = scale / sqrt(var + epsilon), so kernels
    are multiplied by `gain` and the new bias is `bias - mean * gain`.

    Args:
        model: an `HRNet` or `Classifier`, or another module with a `folded` field and their names.
        variables: {'params': ..., 'batch_stats': ...} of the model.

    Returns:
        `fast.model.apply(fast.variables, images)`, and its other methods as before; no training.
    """
    params = _fold(variables['params'], variables['batch_stats'])
    return Folded(model.clone(folded=True), {'params': params})


def _fold(params: Variables, stats: Variables) -> Variables:
    result: Variables = {}
    norms = {_convolution_of(name): name for name, node in stats.items() if 'mean' in node}
    for name, node in params.items():
        if name in norms:
            norm, mean = params[norms[name]], stats[norms[name]]
            dtype, wide = node['kernel'].dtype, mean['var'].dtype
            gain = norm['scale'].astype(wide) * lax.rsqrt(jnp.asarray(mean['var']) + EPSILON)
            kernel = node['kernel'].astype(wide) * gain[None, None, None]
            bias = norm['bias'].astype(wide) - mean['mean'] * gain
            result[name] = {'kernel': kernel.astype(dtype), 'bias': bias.astype(dtype)}
        elif name in stats and 'mean' not in stats[name]:
            result[name] = _fold(node, stats[name])
        elif name not in norms.values():
            result[name] = node
    return result


def _convolution_of(norm: str) -> str:
    """`bn2` follows `conv2`; `downsample_1` follows `downsample_0`."""
    if norm.startswith('bn'):
        return norm.replace('bn', 'conv')
    return re.sub(r'_1$', '_0', norm)
