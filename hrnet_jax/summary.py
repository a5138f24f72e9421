"""`inference.summary`, where the documentation has it, and python -m hrnet_jax.summary."""

from hrnet_jax.commands.summary import entry, main
from hrnet_jax.inference.summary import (
    Row,
    multiply_adds,
    parameters,
    render,
    table,
)

__all__ = [
    'Row',
    'entry',
    'main',
    'multiply_adds',
    'parameters',
    'render',
    'table',
]

if __name__ == '__main__':
    entry()
