"""The names of `checkpoints.format` and `weights.loading`, where the documentation has them."""

from hrnet_jax.checkpoints.format import (
    ARRAYS,
    JSON,
    VERSION,
    Misfit,
    describe,
    differing,
    entries,
    model_of,
    named,
    read_json,
    restore,
    save,
    with_digest,
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
