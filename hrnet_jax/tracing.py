"""Ways to trace a large network in less time. They change nothing of what it computes."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError


@functools.cache
def once(layer: Any) -> Any:
    """`layer`, a class of modules, traced once for all that are equal; argument 2, counted with
    self, is `train`."""
    return nn.jit(layer, static_argnums=(2,))


def once_unless_watched(layer: Any) -> Any:
    """`once`: a training step is traced in a third of the time; XLA sees the same program.

    Not while Flax watches or changes calls (interceptors, captured intermediates, tabulate): it
    would see only the first of several equal layers.
    """
    return layer if _watched() else once(layer)


def _watched() -> bool:
    """Whether Flax looks at calls of modules. It does not say so in public; if in doubt, yes."""
    try:
        context, interceptors = nn.module._context, nn.module._global_interceptor_stack
        # Every `apply` puts what it captures there: False for nothing.
        return bool(len(interceptors) or any(context.capture_stack) or context.call_info_stack)
    except AttributeError:
        return True


def parameter(
    module: nn.Module, name: str, init: Any, shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    """As `module.param(name, init, shape, dtype)`.

    Flax checks the shape of a parameter that exists by tracing `init`, for each of them: half of
    the time in which the network is traced.
    """
    if not module.has_variable('params', name):
        return module.param(name, init, shape, dtype)
    value = nn.meta.unbox(module.get_variable('params', name))
    if jnp.shape(value) != shape:
        path = '/'.join(module.path)
        raise ScopeParamShapeError(name, path, jnp.shape(value), shape)
    return value
