"""BatchNorm folded into the convolutions before it, for inference."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.errors import UserError
from hrnet_jax.inference import winograd
from hrnet_jax.inference.padding import widened
from hrnet_jax.layers import EPSILON, Array, Configured, matmul_precision
from hrnet_jax.models import Variables, fitting, variable_shapes


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
    """A model without BatchNorm and its variables, {'params': ...}.

    `fast(images)` is compiled and the fastest way; `fast.model.apply(fast.variables, images)` is
    for programs of your own: see `compiler_options`.
    """

    model: Any
    variables: Variables = dataclasses.field(repr=False)

    def __call__(self, images: Array, method: str = '__call__') -> Any:
        """What the model's method of that name gives for (N, H, W, C) images, compiled.

        Raises:
            UserError: for images of another shape.
        """
        here = isinstance(images, jax.Array) and not isinstance(images, jax.core.Tracer)
        one = not here or len(images.devices()) == 1
        inside = self._traced or traced(images)
        return _compiled(self.model, method, one, inside)(self.variables, images)

    @functools.cached_property
    def _traced(self) -> bool:
        """Once: to look at hundreds of arrays takes as long as to start the program."""
        return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self.variables))


def fold(model: nn.Module, variables: Variables, platform: str | None = None) -> Folded:
    """The same function of images in evaluation, with a bias in each convolution instead.

    BatchNorm is (conv(x) - mean) * gain + bias with gain = scale / sqrt(var + epsilon), so kernels
    are multiplied by `gain` and the new bias is `bias - mean * gain`. Then what pays on the
    platform: `PLANS`.

    Args:
        model: an `HRNet`, `FeatureMaps` or `Classifier`.
        variables: {'params': ..., 'batch_stats': ...} of the model; arrays, not traced.
        platform: whose form is wanted, of `PLATFORMS`; JAX's default if None. The result is right
            on all (in a mesh: with axes that are not explicit), and lies on JAX's default device.

    Raises:
        UserError: for another platform or model, one that is folded, or variables of another.
    """
    if platform and platform not in PLATFORMS:
        raise UserError(f'unknown platform {platform!r}; known: {", ".join(PLATFORMS)}')
    kind = PLATFORMS.get(platform or jax.default_backend(), '')
    dtype = jnp.dtype(getattr(model, 'dtype', jnp.float32)).name
    return folded_as(model, variables, PLANS.get((kind, dtype), {}))


def folded_as(model: nn.Module, variables: Variables, fields: dict[str, Any]) -> Folded:
    """`fold` to a model with these fields, such as {'winograd': 200}."""
    if not isinstance(model, Configured):
        raise UserError(f'{type(model).__name__} is no HRNet, FeatureMaps or Classifier')
    if model.folded:
        raise UserError('the model is folded already')
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(variables)):
        raise UserError('variables to fold are arrays: fold them outside of jax.jit')
    variables = fitting(model, variables)
    params = _fold(variables['params'], variables['batch_stats'], jnp.dtype(model.dtype))
    model = model.clone(folded=True, **fields)
    params = _ordered(params, model.kernels)
    params = _stack(params) if model.winograd else params
    params = _fitted(params, variable_shapes(model)['params'])
    return Folded(model, {'params': jax.device_put(params)})


# What JAX and `jax.export` call a platform -> the kind.
PLATFORMS = {'cpu': 'cpu', 'gpu': 'gpu', 'cuda': 'gpu', 'rocm': 'gpu', 'tpu': 'tpu'}
# Fields of the model by kind and type. On CPUs a quarter of the multiplications wins in float32
# where the kernels, four times as large, are not yet too large (docs/benchmarks.md). On GPUs cuDNN
# takes channels by the 8 or 16, and else would turn the axes of every kernel in every call.
PLANS: dict[tuple[str, str], dict[str, Any]] = {
    ('cpu', 'float32'): {'winograd': 200},
    ('gpu', 'bfloat16'): {'channel_multiple': 16, 'kernels': 'OHWI'},
    ('gpu', 'float16'): {'channel_multiple': 16, 'kernels': 'OHWI'},
    ('gpu', 'float32'): {'kernels': 'OHWI'},
}


CPU_OPTIONS = {
    'xla_cpu_experimental_ynn_fusion_type': '',
    'xla_cpu_prefer_vector_width': 512,
    'xla_backend_optimization_level': 1,
}


def apply(
    model: nn.Module,
    variables: Variables,
    images: Array,
    method: str = '__call__',
    in_pieces: bool = True,
) -> Any:
    """`model.apply(variables, images, method=method)`, on a CPU a few images at a time.

    There the tiles of many images do not stay in the caches. Not `in_pieces`: all at once, where
    the images are spread over devices.
    """
    n, few = images.shape[0], at_a_time()
    with matmul_precision(model):
        tiled = in_pieces and images.ndim == 4 and getattr(model, 'winograd', False)
        if not tiled or not isinstance(n, int) or n <= few:  # a symbolic batch stays whole
            return model.apply(variables, images, method=method)
        parts = -(-n // few)
        size = -(-n // parts)
        padded = jnp.pad(images, ((0, parts * size - n), (0, 0), (0, 0), (0, 0)))
        results = jax.lax.map(
            lambda x: model.apply(variables, x, method=method),
            padded.reshape((parts, size, *images.shape[1:])),
        )
        return jax.tree.map(lambda x: x.reshape((parts * size, *x.shape[2:]))[:n], results)


def traced(*args: Any) -> bool:
    """Whether a call with these arguments is a part of a program or of a derivative, where JAX
    refuses compiler options."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        return True
    # JAX's own ways to ask moved from release to release; what is made in a program is traced.
    return isinstance(jax.lax.iota(np.int32, 1), jax.core.Tracer)


def compiler_options(model: nn.Module) -> dict[str, Any] | None:
    """For `jax.jit(..., compiler_options=)` around a folded model.

    On a CPU: without XLA's default library for convolutions, which uses one core and reaches half
    the speed of the other (docs/benchmarks.md); with the widest vectors; and at a level of
    optimisation that is compiled in four fifths of the time and runs as fast.
    """
    return _options_of_cpu() if getattr(model, 'winograd', False) else None


@functools.lru_cache
def _options_of_cpu() -> dict[str, Any] | None:
    def known(options: dict[str, Any]) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:  # releases of XLA differ in their options
            return False
        return True

    if known(CPU_OPTIONS):
        return CPU_OPTIONS
    return {name: value for name, value in CPU_OPTIONS.items() if known({name: value})} or None


def at_a_time() -> int:
    """Images that a CPU computes together: 4 a core, whose tiles stay in the caches."""
    known = hasattr(os, 'sched_getaffinity')
    return 4 * (len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1)


@functools.lru_cache(maxsize=16)
def _compiled(model: nn.Module, method: str, in_pieces: bool, inside: bool) -> Any:
    step = functools.partial(apply, model, method=method, in_pieces=in_pieces)
    return jax.jit(step, compiler_options=None if inside else compiler_options(model))


def _fitted(params: Variables, shapes: Variables) -> Variables:
    """What `shapes` has of `params`: a feature extractor takes a classifier's variables."""
    return {
        name: _fitted(params[name], inner) if isinstance(inner, dict) else _fit(params[name], inner)
        for name, inner in shapes.items()
    }


def _fit(leaf: Any, wanted: jax.ShapeDtypeStruct) -> Any:
    """`leaf` as a model with other fields has it: a kernel transformed, channels of zeros added."""
    if leaf.shape == wanted.shape:
        return leaf
    if leaf.ndim != len(wanted.shape):
        return winograd.transform_kernel(leaf)
    return widened(leaf, wanted)


def _ordered(params: Variables, axes: str) -> Variables:
    """Kernels of convolutions with their axes in another order than HWIO."""
    order = ['HWIO'.index(axis) for axis in axes]
    return jax.tree.map(lambda x: np.transpose(x, order) if x.ndim == 4 else x, params)


def _stack(params: Variables) -> Variables:
    """Blocks of the same kind as one, with a leading axis: see `layers.looped`."""
    blocks: dict[str, list[Variables]] = {}
    result: Variables = {}
    # Trees sort '10' before '2'.
    for name, node in sorted(params.items(), key=lambda item: (len(item[0]), item[0])):
        if found := re.fullmatch(r'(branches_\d+)_\d+|(layer1)_[1-9]\d*', name):
            blocks.setdefault(found[1] or found[2], []).append(node)
        elif isinstance(node, dict):
            result[name] = _stack(node)
        else:
            result[name] = node
    stacked = {name: jax.tree.map(lambda *x: np.stack(x), *nodes) for name, nodes in blocks.items()}
    return result | stacked


def _fold(params: Variables, stats: Variables, dtype: np.dtype) -> Variables:
    result: Variables = {}
    norms = {convolution_of(name): name for name, node in stats.items() if 'mean' in node}
    for name, node in params.items():
        if name in norms:
            norm, own = params[norms[name]], stats[norms[name]]
            mean, var, scale, shift, kernel = map(
                np.asarray, (own['mean'], own['var'], norm['scale'], norm['bias'], node['kernel'])
            )
            gain = scale.astype(var.dtype) / np.sqrt(var + var.dtype.type(EPSILON))
            bias = shift.astype(var.dtype) - mean * gain
            result[name] = {
                'kernel': (kernel.astype(var.dtype, copy=False) * gain).astype(dtype, copy=False),
                'bias': bias.astype(dtype),
            }
        elif name in stats and 'mean' not in stats[name]:
            result[name] = _fold(node, stats[name], dtype)
        elif name not in norms.values():
            result[name] = node
    return result


def convolution_of(norm: str) -> str:
    """`bn2` follows `conv2`; `downsample_1` follows `downsample_0`."""
    if norm.startswith('bn'):
        return norm.replace('bn', 'conv')
    return re.sub(r'_1$', '_0', norm)
