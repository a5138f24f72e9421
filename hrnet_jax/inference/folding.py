"""BatchNorm folded into the convolutions before it, for inference."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax.errors import UserError
from hrnet_jax.inference import winograd
from hrnet_jax.inference.folded_blocks import Form
from hrnet_jax.inference.padding import computed_wide
from hrnet_jax.introspection import Path, Structure, structure
from hrnet_jax.layers import EPSILON, Array, Configured, matmul_precision
from hrnet_jax.models import Variables, fitting
from hrnet_jax.runtime import compilation


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
    """A model without BatchNorm and its variables, {'params': ...}; with batch_stats only where a
    module that is not ours has some.

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
    """`fold` to the `Form` with these fields, such as {'winograd': 200}."""
    if not isinstance(model, Configured):
        raise UserError(f'{type(model).__name__} is no HRNet, FeatureMaps or Classifier')
    if model.folded:
        raise UserError('the model is folded already')
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(variables)):
        raise UserError('variables to fold are arrays: fold them outside of jax.jit')
    form = Form(**fields)
    wide, widen, _ = computed_wide(model, form.channel_multiple)
    variables = widen(fitting(model, variables))
    folded = _fold(variables, structure(wide), form, jnp.dtype(model.dtype))
    return Folded(model.clone(blocks=form), jax.device_put(folded))


# What JAX and `jax.export` call a platform -> the kind.
PLATFORMS = {'cpu': 'cpu', 'gpu': 'gpu', 'cuda': 'gpu', 'rocm': 'gpu', 'tpu': 'tpu'}
# Fields of the form, by platform and type. On CPUs, Winograd wins in float32 as long as its kernels
# (four times as large) are not too large (docs/experiments.md). On GPUs, cuDNN needs channels in
# multiples of 8 or 16, and would otherwise transpose every kernel in every call.
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
    more: tuple[Array, ...] = (),
) -> Any:
    """`model.apply(variables, images, *more, method=method)`, on a CPU a few images at a time.

    The tiles of many images do not fit into a CPU's caches. `in_pieces=False` computes all images
    at once, for images that are spread over devices.

    Args:
        more: arrays (N, ...) that the method takes beside the images.
    """
    n, few = images.shape[0], at_a_time()
    with matmul_precision(model):
        tiled = in_pieces and images.ndim == 4 and _by_winograd(model)
        if not tiled or not isinstance(n, int) or n <= few:  # a symbolic batch stays whole
            return model.apply(variables, images, *more, method=method)
        parts = -(-n // few)
        size = -(-n // parts)

        def cut(x: Array) -> Array:
            padded = jnp.pad(x, ((0, parts * size - n), *[(0, 0)] * (x.ndim - 1)))
            return padded.reshape((parts, size, *x.shape[1:]))

        results = jax.lax.map(
            lambda xs: model.apply(variables, *xs, method=method),
            tuple(cut(x) for x in (images, *more)),
        )
        return jax.tree.map(lambda x: x.reshape((parts * size, *x.shape[2:]))[:n], results)


def traced(*args: Any) -> bool:
    """Whether a call with these arguments is a part of a program or of a derivative, where JAX
    refuses compiler options."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args)):
        return True
    # JAX has moved its function for this question several times. An array that is made inside a
    # traced program is a tracer.
    return isinstance(jax.lax.iota(np.int32, 1), jax.core.Tracer)


def compiler_options(model: nn.Module) -> dict[str, Any] | None:
    """For `jax.jit(..., compiler_options=)` around a folded model.

    On a CPU the options switch off XLA's default library for convolutions, which uses one core and
    is half as fast (docs/experiments.md). They also choose the widest vectors, and a level of
    optimisation that compiles in four fifths of the time and runs as fast.
    """
    return _options_of_cpu() if _by_winograd(model) else None


def _by_winograd(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, 'blocks', None), 'winograd', False))


@functools.lru_cache
def _options_of_cpu() -> dict[str, Any] | None:
    return compilation.known_options(CPU_OPTIONS)


def at_a_time() -> int:
    """Images that a CPU computes together: 4 a core, whose tiles stay in the caches."""
    return 4 * compilation.cores()


@functools.lru_cache(maxsize=16)
def _compiled(model: nn.Module, method: str, in_pieces: bool, inside: bool) -> Any:
    step = functools.partial(apply, model, method=method, in_pieces=in_pieces)
    return jax.jit(step, compiler_options=None if inside else compiler_options(model))


def _fold(variables: Variables, parts: Structure, form: Form, dtype: np.dtype) -> Variables:
    """The variables of a model with blocks of this form; what is not of our layers stays."""
    params = flatten_dict(variables['params'])
    stats = flatten_dict(variables.get('batch_stats', {}))
    tiled = set()
    for path, layer in parts.layers.items():
        if layer.conv is None:
            continue
        kernel, bias = np.asarray(params.pop((*path, 'kernel'))), params.pop((*path, 'bias'), None)
        if layer.conv.norm == 'batch':
            norm = (*path[:-1], str(layer.norm))
            scale, shift = (np.asarray(params.pop((*norm, name))) for name in ('scale', 'bias'))
            mean, var = (np.asarray(stats.pop((*norm, name))) for name in ('mean', 'var'))
            gain = scale.astype(var.dtype) / np.sqrt(var + var.dtype.type(EPSILON))
            # A bias of the convolution's own goes through the norm, too.
            mean = mean if bias is None else mean - np.asarray(bias).astype(var.dtype)
            kernel = kernel.astype(var.dtype, copy=False) * gain
            bias = shift.astype(var.dtype) - mean * gain
        kernel = kernel.astype(dtype, copy=False)
        if bias is not None:
            params[*path, 'bias'] = np.asarray(bias).astype(dtype)
        params[*path, 'kernel'] = np.transpose(kernel, ['HWIO'.index(a) for a in form.kernels])
        if layer.in_backbone and form.tiled(layer.conv):
            tiled.add(path)
    if form.winograd:
        params, tiled = _stacked(params, parts, tiled)
    for path in tiled:
        params[*path, 'kernel'] = winograd.transform_kernel(params[*path, 'kernel'])
    result = {'params': unflatten_dict(params)}
    return result | ({'batch_stats': unflatten_dict(stats)} if stats else {})


def _stacked(
    params: dict[Path, Any], parts: Structure, tiled: set[Path]
) -> tuple[dict[Path, Any], set[Path]]:
    """Blocks of a chain as one, with a leading axis: see `folded_blocks.looped`."""
    places = {
        (*chain[:-1], f'{chain[-1]}_{number}'): (chain, index)
        for chain, note in parts.chains.items()
        for index, number in enumerate(note.numbers)
    }

    def moved(path: Path) -> tuple[Path, int | None]:
        for i in range(1, len(path)):
            if path[:i] in places:
                chain, index = places[path[:i]]
                return (*chain, *path[i:]), index
        return path, None

    result: dict[Path, Any] = {}
    blocks: dict[Path, dict[int, Any]] = {}
    for path, leaf in params.items():
        new, index = moved(path)
        if index is None:
            result[new] = leaf
        else:
            blocks.setdefault(new, {})[index] = leaf
    result |= {path: np.stack([of[i] for i in range(len(of))]) for path, of in blocks.items()}
    return result, {moved(path)[0] for path in tiled}
