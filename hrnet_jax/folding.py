"""BatchNorm folded into the convolutions before it, for inference."""

from __future__ import annotations

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hrnet_jax import winograd
from hrnet_jax.layers import EPSILON
from hrnet_jax.models import Variables, variable_shapes


@dataclasses.dataclass(frozen=True)
class Folded:
    """A model without BatchNorm and its variables, {'params': ...}."""

    model: nn.Module
    variables: Variables


def fold(model: nn.Module, variables: Variables, platform: str | None = None) -> Folded:
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
    model = model.clone(folded=True)
    if (platform or jax.default_backend()) == 'cpu' and model.dtype == jnp.float32:
        model = model.clone(winograd=True)
        params = _transform(_stack(params), variable_shapes(model)['params'])
    return Folded(model, {'params': params})


def _stack(params: Variables) -> Variables:
    """Blocks of the same kind as one, with a leading axis: see `layers.looped`."""
    blocks: dict[str, list[Variables]] = {}
    result: Variables = {}
    for name, node in params.items():
        if found := re.fullmatch(r'(branches_\d+)_\d+|(layer1)_[1-9]\d*', name):
            blocks.setdefault(found[1] or found[2], []).append(node)
        elif any(isinstance(value, dict) for value in node.values()):
            result[name] = _stack(node)
        else:
            result[name] = node
    stacked = {name: jax.tree.map(lambda *x: np.stack(x), *nodes) for name, nodes in blocks.items()}
    return result | stacked


def _transform(params: Variables, wanted: Variables) -> Variables:
    """Kernels (..., 3, 3, I, O) as Winograd's where the model has such."""

    def one(leaf, shape):
        return leaf if leaf.shape == shape.shape else winograd.transform_kernel(leaf)

    return jax.tree.map(one, params, wanted)


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
