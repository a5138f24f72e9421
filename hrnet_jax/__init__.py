"""HRNet in JAX: Flax modules, converted PyTorch weights, exact evaluation."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

# Imported when they are asked for: the process that reads images (`data.reader`) needs no JAX.
_PLACE: dict[str, str] = {
    name: module
    for module, name in re.findall(
        r'^from (\S+) import (\w+)', Path(__file__).with_suffix('.pyi').read_text(), re.MULTILINE
    )
}
__all__ = sorted(_PLACE)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """A public name, or a module of this package."""
    module = _PLACE.get(name, f'{__name__}.{name}')
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not (error.name or '').startswith(f'{__name__}.'):
            raise
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}') from None
    if name in _PLACE:
        found = globals()[name] = getattr(found, name)
    return found


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith('__')} | {*__all__})
