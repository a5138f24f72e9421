"""The JSON of a checkpoint: its version, its digest, and what must be in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.errors import UserError
from hrnet_jax.runtime import files

VERSION = 1
REMEDY = '; convert again, take another step of the run, or remove a cached folder'


def with_digest(content: dict[str, Any]) -> dict[str, Any]:
    """The JSON with its version, and with a digest of itself; NumPy's arrays become lists."""
    content = json.loads(json.dumps({'version': VERSION, **content}, default=_plain))
    return {**content, 'digest': _digest(content)}


def read(file: Path, fields: Collection[str]) -> dict[str, Any]:
    """The JSON in a file, without its digest.

    Args:
        fields: what must be in it.

    Raises:
        UserError: if it cannot be read, is not one of ours, or has changed.
    """
    try:
        meta = files.read_json(file)
        version, digest, own = meta['version'], meta.pop('digest', None), _digest(meta)
    except OSError as error:
        raise UserError(f'cannot read {file}: {error.strerror}') from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f'{file} is damaged or not of this program{REMEDY}') from None
    if version != VERSION:
        raise UserError(f'{file} has format {version!r:.60}, this program reads {VERSION}{REMEDY}')
    if digest != own:
        raise UserError(f'{file} is damaged or was edited: its digest differs{REMEDY}')
    if missing := [name for name in fields if name not in meta]:
        raise UserError(f'{file} is not of this program: it has no {missing[0]!r}{REMEDY}')
    if odd := [name for name, fits in _FORM.items() if name in meta and not fits(meta[name])]:
        raise UserError(f'{file} is not of this program: {odd[0]} is {meta[odd[0]]!r:.60}{REMEDY}')
    return meta


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} is no JSON: {value!r:.60}')


def _are_entries(value: Any) -> bool:
    fields = {'shape': list, 'dtype': str, 'digest': str}
    return isinstance(value, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(k), v) for k, v in fields.items())
        for entry in value.values()
    )


def _are_names(value: Any) -> bool:
    return value is None or isinstance(value, list) and all(isinstance(x, str) for x in value)


def _is_object(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_training(value: Any) -> bool:
    scores = value.get('scores', value.get('top1', {})) if isinstance(value, dict) else None
    return (
        isinstance(scores, dict)
        and isinstance(value.get('step'), int)
        and all(step.isdecimal() and isinstance(x, int | float) for step, x in scores.items())
    )


# Whoever writes a JSON can compute its digest, so that a right one says nothing of the form.
_FORM: dict[str, Callable[[Any], bool]] = {
    'arrays': _are_entries,
    'ema': lambda value: value is None or _are_entries(value),
    'rest': _are_entries,
    'class_names': _are_names,
    **dict.fromkeys(('transform', 'source', 'published'), _is_object),
    'training': _is_training,
}
