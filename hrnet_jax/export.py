"""`inference.export`, where the documentation has it, and python -m hrnet_jax.export."""

from hrnet_jax.commands.export import entry, main
from hrnet_jax.inference.export import (
    LIMIT,
    PLATFORMS,
    TOLERANCE,
    check,
    difference,
    export,
    flat_weights,
    fold_for,
    known_platforms,
)

__all__ = [
    'LIMIT',
    'PLATFORMS',
    'TOLERANCE',
    'check',
    'difference',
    'entry',
    'export',
    'flat_weights',
    'fold_for',
    'known_platforms',
    'main',
]

if __name__ == '__main__':
    entry()
