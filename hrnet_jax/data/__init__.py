"""Images and labels: data sets, pixels as PIL has them, batches for evaluation and for training.

May import runtime, errors and, for what is asked of a network, network; only that needs JAX.
"""

import importlib
from typing import Any

_PLACE = {
    name: module
    for module, names in {
        'evaluation': 'batches competing_classes local_batch missing open_dataset',
        'folder': 'open_files',
        'sources': 'DATASETS Dataset Facts Field Source check_labels',
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    """The names of an evaluation set, imported when they are asked for."""
    if name not in _PLACE:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_PLACE[name]}'), name)
