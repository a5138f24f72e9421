"""Tensors of a checkpoint file: PyTorch's two formats, safetensors, and the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convert.formats import digest_of, find_format
from convert.pickles import Inert, LazyTensor
from hrnet_jax.checkpoints import beside
from hrnet_jax.checkpoints.hub_files import download
from hrnet_jax.checkpoints.published import find_published
from hrnet_jax.errors import UserError, listed

_DEPTH = 3  # of mappings in mappings
_LONG = 200  # characters of a name, above which it is none that a script has given
_MOST = 100_000  # tensors; the largest network has 3,000
_SHOWN = 6  # names in a message
_SHARED = 4  # times that the bytes of a file may be shared by its tensors
# Of the last step, in order of preference.
_WRAPPERS = ('state_dict', 'model', 'model_state_dict', 'net', 'module', 'best_state_dict')
_AVERAGED = re.compile(r'(\w+_)?(ema|swa|averaged?)(_\w+)?')
# What training scripts keep beside the weights.
_EXTRAS = re.compile(
    r'(amp_|grad_)?scaler|amp|arch|args|best_(acc\w*|mIoU)|callbacks|cfg|config|epoch|(global_)?step|'
    r'hparams|hyper_parameters|iter\w*|loops|(lr_|param_)?schedulers?|message_hub|meta|metric|'
    r'optimizers?(_states?)?|perf|version'
)
# Counters of averaged models, and the image statistics of OpenMMLab.
_DROPPED = ('n_averaged', 'steps', 'data_preprocessor.mean', 'data_preprocessor.std')
_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


@dataclasses.dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        path: the local file.
        origin: what the user typed.
        sha256: of the file.
        tensors: in the file's order (safetensors: sorted), names as in the file.
        container: keys that lead to them, such as 'state_dict'; '' where they lie at the top.
        notes: one-line remarks for the user.
        weights: 'ema' or 'raw' where the file has both, or averaged ones alone.
        meta: what the file says beside them, as OpenMMLab writes it.
    """

    path: Path
    origin: str
    sha256: str
    tensors: Mapping[str, LazyTensor]
    container: str
    notes: tuple[str, ...]
    weights: str | None = None
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read(
    source: str | os.PathLike,
    offline: bool = False,
    weights: str | None = None,
    check_digest: bool = True,
) -> Source:
    """Opens a checkpoint, whatever its extension; `hf:OWNER/REPO[@REVISION]` is downloaded,
    or, `offline`, taken from the hub's cache.

    Args:
        weights: 'ema' or 'raw', where the file has both; by default the averaged ones.
        check_digest: refuse a file of a published name whose content has another hash.

    Raises:
        UserError: if it is no checkpoint, damaged, or holds no tensors.
    """
    try:
        origin = os.fsdecode(source)
    except TypeError:
        raise UserError(f'a path or a state dict is needed, not {type(source).__name__}') from None
    if not origin:
        raise UserError('the name of the checkpoint is empty')
    try:
        hub = origin.startswith('hf:')
        path = download(origin, _HUB_FILES, offline) if hub else Path(origin)
        reader = find_format(path)
        sha256, promised = digest_of(path)
        if promised and check_digest and find_published(None, origin):
            raise UserError(
                f'is damaged or renamed: {promised}; get it again, or say --ignore-digest'
            )
        if check_digest and beside.digest(path) not in (None, sha256):
            raise UserError(
                f'is damaged or was changed since {beside.place(path).name} was written: get it '
                'again, remove that JSON, or say --ignore-digest'
            )
        try:
            tree, remarks = reader(path)
        except UserError:
            raise
        except Exception as error:  # whatever damaged bytes may do to the parsers
            kind = type(error).__name__
            raise UserError(f'is damaged or cut short ({kind}): get it again') from error
    except UserError as error:
        raise UserError(f'{origin} {error}') from error.__cause__
    found = resolve(tree, origin, weights)
    tensors = {k: dataclasses.replace(tensor, name=k) for k, tensor in found.tensors.items()}
    if all(tensor.shape == (0,) for tensor in tensors.values()):
        raise UserError(
            f'{origin} holds names without numbers, as DeepSpeed (ZeRO-3) writes them: its script '
            'zero_to_fp32.py, which lies beside the checkpoint, gathers the weights in one file'
        )
    total = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
    if total > _SHARED * path.stat().st_size:  # views of few numbers that claim to be many
        raise UserError(f'{origin} is damaged: its tensors claim {total / 1e9:,.1f} GB')
    notes = (
        *remarks,
        *found.notes,
        *[f'perhaps another file than its name says: {promised}'] * bool(promised),
    )
    meta = tree.get('meta') if isinstance(tree, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    return Source(path, origin, sha256, tensors, found.container, notes, found.weights, meta)


def is_inplace_abn(source: Source, name: str | None = None) -> bool:
    """Whether the norms of a file are of InPlaceABN: official files of PyTorch 0.4, by their names;
    what was saved later has counters.

    Args:
        name: of a published checkpoint.
    """
    known = find_published(name, source.origin)
    named = 'inplace_abn' in known.details if known else '_torch04' in source.path.name
    return named and not any(key.endswith('.num_batches_tracked') for key in source.tensors)


class Resolved(NamedTuple):
    """The state dict in a loaded object: its tensors of any kind, where they lay, remarks; 'ema' or
    'raw' where there were averaged weights, too."""

    tensors: dict[str, Any]
    container: str
    notes: tuple[str, ...]
    weights: str | None


def resolve(tree: Any, origin: str = 'the state dict', weights: str | None = None) -> Resolved:
    """Finds the state dict in a loaded object.

    Args:
        weights: 'ema' or 'raw'; by default the averaged ones, if there are any.

    Raises:
        UserError: if there are none.
    """
    path: list[str] = []
    notes = []
    kind = None
    while len(path) < _DEPTH and isinstance(tree, Mapping):
        found = {key: key for key in _WRAPPERS if next(_tensors(tree.get(key)), None)}
        averaged = [k for k in tree if is_averaged(k) and next(_tensors(tree[k]), None)]
        if 'state_dict' in found and averaged == ['ema_state_dict']:  # mmengine swaps the two
            averaged, found = ['state_dict'], {'ema_state_dict': '', **found}
            del found['state_dict']
        if averaged and found and kind is None:
            kind = weights or 'ema'
            taken, other = averaged[0], next(iter(found))
            taken, other = (taken, other) if kind == 'ema' else (other, taken)
            notes.append(which_weights(kind, repr(taken), repr(other)))
        elif averaged and kind is None:
            kind, taken = 'ema', averaged[0]
        elif found:
            taken = next(iter(found))
            others = [key for key in found if key != taken]
            if others:
                notes.append(
                    f'took the weights under {taken!r}, not those under {listed(others, _SHOWN)}'
                )
        else:
            break
        path.append(taken)
        tree = tree[taken]
    tensors = dict(itertools.islice(_tensors(tree), _MOST + 1))
    if len(tensors) > _MOST:  # a few dicts, each many times in another, make names without end
        raise UserError(f'{origin} is no checkpoint: it claims more than {_MOST} tensors')
    if not tensors:
        raise UserError(
            f'{origin} holds no tensors with names, only {_described(tree)}; '
            'save the state_dict() of the model with torch.save'
        )
    others = [k for k, v in tree.items() if not _is_tensor(v) and not isinstance(v, Mapping)]
    if others := [_shown(key) for key in others if not _is_extra(key)]:
        notes.append(f'ignored what is no tensor: {listed(others, _SHOWN)}')
    copies = {f'ema_{name.replace(".", "_")}': name for name in tensors}
    if copies := {key: copies[key] for key in tensors if key in copies}:  # mmcv 1.x swaps, too
        kind = weights or 'ema'
        sides = ('plain names', 'names ema_*')
        notes.append(which_weights(kind, *(sides if kind == 'ema' else sides[::-1])))
        for key, name in copies.items():
            copy = tensors.pop(key)
            tensors[name] = tensors[name] if kind == 'ema' else copy
    for name in _DROPPED:
        tensors.pop(name, None)
    return Resolved(tensors, '.'.join(path), tuple(notes), kind)


def is_averaged(name: Any) -> bool:
    """Whether a name is one under which scripts keep averaged weights."""
    return isinstance(name, str) and len(name) < _LONG and bool(_AVERAGED.fullmatch(name))


def which_weights(kind: str, taken: str, other: str) -> str:
    """The remark on a file that has averaged weights and those of the last step."""
    names = {'ema': 'the averaged weights', 'raw': 'the weights of the last step'}
    left = 'raw' if kind == 'ema' else 'ema'
    return f'took {names[kind]}, under {taken}; --weights {left} takes {names[left]}, under {other}'


def require_weights(wanted: str | None, found: str | None) -> None:
    """Raises UserError where `wanted` is not what was found."""
    if wanted == found or wanted is None:
        return
    if wanted not in ('ema', 'raw'):
        raise UserError(f'weights are ema or raw, not {wanted!r}')
    if wanted == 'ema':
        raise UserError('the file holds no averaged weights; leave out --weights ema')
    if found == 'ema':
        raise UserError('the file holds only averaged weights; leave out --weights raw')


def _tensors(
    tree: Any, prefix: str = '', depth: int = _DEPTH, empty: set[tuple[int, int]] | None = None
) -> Iterator[tuple[str, Any]]:
    """Names and tensors; a mapping inside gives its key to the names.

    Args:
        empty: (id of a mapping, depth) of those without tensors, which are not searched twice.
    """
    empty, found = set() if empty is None else empty, False
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        if isinstance(key, str) and _is_tensor(value):
            found = True
            yield prefix + key, value
        elif isinstance(value, Mapping) and isinstance(key, str) and depth > 1:
            if (id(value), depth - 1) in empty or _is_extra(key):
                continue
            for item in _tensors(value, f'{prefix}{key}.', depth - 1, empty):
                found = True
                yield item
    if not found:
        empty.add((id(tree), depth))


def _is_tensor(value: Any) -> bool:
    return hasattr(value, 'shape') and hasattr(value, 'dtype') and not isinstance(value, np.generic)


def _is_extra(key: Any) -> bool:
    return isinstance(key, str) and bool(_EXTRAS.fullmatch(key))


def _described(tree: Any) -> str:
    if isinstance(tree, Mapping) and tree:
        found = [f'{_shown(key)} ({_kind(value)})' for key, value in tree.items()]
        return listed(found, _SHOWN)
    return f'a {_kind(tree)}'


def _kind(value: Any) -> str:
    if _is_tensor(value):
        return 'tensor without a name'
    return f'pickled {value.name}' if isinstance(value, Inert) else type(value).__name__


def _shown(key: Any) -> str:
    return f'{key!r:.60}' if isinstance(key, str) else type(key).__name__
