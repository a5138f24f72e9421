"""The names of `inference.folding`, where the documentation has them."""

from hrnet_jax.inference.folding import (
    CPU_OPTIONS,
    PLANS,
    PLATFORMS,
    Folded,
    apply,
    at_a_time,
    compiler_options,
    fold,
    folded_as,
    traced,
)

__all__ = [
    'CPU_OPTIONS',
    'Folded',
    'PLANS',
    'PLATFORMS',
    'apply',
    'at_a_time',
    'compiler_options',
    'fold',
    'folded_as',
    'traced',
]
