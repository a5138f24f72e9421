"""`inference.visualize`, where the documentation has it, and python -m hrnet_jax.visualize."""

from hrnet_jax.commands.visualize import entry, main
from hrnet_jax.inference.visualize import (
    FORMATS,
    STRIDES,
    Look,
    View,
    components,
    find_class,
    grad_cam,
    view,
)

__all__ = [
    'FORMATS',
    'Look',
    'STRIDES',
    'View',
    'components',
    'entry',
    'find_class',
    'grad_cam',
    'main',
    'view',
]

if __name__ == '__main__':
    entry()
