"""The names of `checkpoints` and `weights.loading`, where the documentation has them."""

from hrnet_jax.checkpoints.description import VERSION, with_digest
from hrnet_jax.checkpoints.format import (
    ARRAYS,
    JSON,
    Misfit,
    describe,
    differing,
    entries,
    model_of,
    named,
    read_json,
    restore,
    save,
)
from hrnet_jax.weights.loading import (
    find,
    load,
)

__all__ = [
    'ARRAYS',
    'JSON',
    'Misfit',
    'VERSION',
    'describe',
    'differing',
    'entries',
    'find',
    'load',
    'model_of',
    'named',
    'read_json',
    'restore',
    'save',
    'with_digest',
]
