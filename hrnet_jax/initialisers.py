"""What parameters are at first: initialisers as Flax's, which say what they are.

`hrnet_jax.init` cuts up one draw for all that are `Normal` or `Uniform`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Constant:
    """Initialiser: one value everywhere."""

    value: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.full(shape, self.value, dtype)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initialiser: normal with deviation `std`; None for He et al. 2015 with fan-out, as the
    official classification code initialises every convolution."""

    std: float | None = None

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if self.std is None:
            return nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')(key, shape, dtype)
        return nn.initializers.normal(self.std)(key, shape, dtype)

    def scale(self, shape: tuple[int, ...]) -> float:
        if self.std is not None:
            return self.std
        return (2 / (shape[0] * shape[1] * shape[3])) ** 0.5


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Initialiser: uniform within `bound`."""

    bound: float

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -self.bound, self.bound)

    def scale(self, shape: tuple[int, ...]) -> float:
        return self.bound


HE, ZEROS, ONES = Normal(), Constant(0), Constant(1)


def linear_init(fan_in: int) -> Uniform:
    """PyTorch's default for a linear layer, kernel and bias."""
    return Uniform(fan_in**-0.5)
