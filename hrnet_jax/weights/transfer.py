"""Weights of one network in another: a backbone in any model, a new head, other input channels."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import flax.core
import flax.traverse_util
import jax
import numpy as np

from hrnet_jax.errors import UserError, listed
from hrnet_jax.models import Path, Variables, backbones
from hrnet_jax.weights import hub_cache, loading

log = logging.getLogger('hrnet_jax')


@dataclasses.dataclass(frozen=True)
class Transferred:
    """What `transfer` did with each array, by its name in the target (`left`: in the source).

    Attributes:
        loaded: taken as they are.
        adapted: taken, changed for another number of input channels.
        initialised: as they were in the target: not in the source, or named by `fresh`.
        left: of the source, without a place in the target or named by `fresh`.
    """

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    initialised: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            names = getattr(self, field.name)
            lines.append(f'{field.name:12}{len(names):6}  {_grouped(names)}'.rstrip())
        return '\n'.join(lines)


def transfer(
    target: Variables,
    source: Variables | str | os.PathLike,
    *,
    fresh: str | Sequence[str] = (),
) -> tuple[Variables, Transferred]:
    """`target` with the arrays of `source`; what was done is logged and returned.

    The HRNet backbone is found wherever it is in either tree, so that a classifier's goes into any
    model with an `HRNet` inside; what lies beside it (the head) is taken too where it has the same
    name. The first kernel fits another number of input channels as timm does it
    (`adapt_input_conv`): summed over the colours for one; else repeated, times 3 / channels.

    Args:
        target: {'params': ..., 'batch_stats': ...} of the model to fill, such as `init` gives.
        source: variables; or the folder of a checkpoint: see `hrnet_jax.load`; or a PyTorch file,
            of which the network is taken if its head is one that is known, or else the backbone.
        fresh: regular expressions; arrays whose name they match (`re.search`; for instance
            'head/classifier') stay as they are in `target`.

    Returns:
        (variables, in the types of `target`; a `Transferred`).

    Raises:
        UserError: if either has no backbone or several, if a pattern matches nothing, or if shapes
            differ, naming all of them.
    """
    if isinstance(source, (str, os.PathLike)):
        source = _read(source)
    flat_target, flat_source = _flat(target), _flat(source)
    patterns = [fresh] if isinstance(fresh, str) else list(fresh)
    _require_matches(patterns, ['/'.join(path[1:]) for path in flat_target])
    theirs, ours = _backbone(source, 'source'), _backbone(target, 'target')
    for which, one, other in (('source', source, target), ('target', target, source)):
        if 'batch_stats' in other and 'batch_stats' not in one:
            raise UserError(
                f'the {which} has no batch_stats: it is folded, or only its params are given'
            )
    if theirs[-1:] == ours[-1:] == ('backbone',):  # what is beside it corresponds, too
        theirs, ours = theirs[:-1], ours[:-1]
    result: dict[Path, Any] = {}
    done: dict[str, list[str]] = {field.name: [] for field in dataclasses.fields(Transferred)}
    problems: dict[str, str] = {}
    taken = set()
    for (collection, *rest), leaf in flat_target.items():
        path = tuple(rest)
        key = (collection, *path)
        from_ = (collection, *theirs, *path[len(ours) :])
        name = '/'.join(path)
        inside = path[: len(ours)] == ours and from_ in flat_source
        if not inside or any(re.search(p, name) for p in patterns):
            result[key] = leaf
            done['initialised'].append(name)
            continue
        value, how = np.asarray(flat_source[from_]), 'loaded'
        if value.shape != leaf.shape and path[-2:] == ('conv1', 'kernel') and value.ndim == 4:
            value, how = _adapted(value, leaf.shape), 'adapted'
        if value.shape != leaf.shape:
            problems[name] = f'{name} {value.shape} for {leaf.shape}'
        taken.add(from_)
        result[key] = jax.numpy.asarray(value, leaf.dtype)
        done[how].append(name)
    if problems:
        layers = list(dict.fromkeys(name.rpartition('/')[0] for name in problems))
        raise UserError(
            f'the source does not fit: {listed(list(problems.values()), separator="; ")}; to leave '
            f'these layers as they are initialised, give fresh={layers[:5]}'
        )
    done['left'] = ['/'.join(path[1:]) for path in flat_source if path not in taken]
    report = Transferred(**{name: tuple(names) for name, names in done.items()})
    log.info('weights transferred:\n%s', report)
    return flax.traverse_util.unflatten_dict(result), report


def _read(source: str | os.PathLike[str]) -> Variables:
    """The variables of a checkpoint, or of a PyTorch file."""
    if not os.path.isfile(source):
        return loading.load(source)[1]
    with hub_cache.converting(os.fspath(source)):
        from convert import folders
    file = folders.read(os.fspath(source), backbone=None)
    for note in file.notes:
        log.info('%s: %s', source, note)
    return file.done.variables


def matching(params: Variables, *patterns: str) -> Variables:
    """The tree of `params` with True where a regular expression matches an array's name.

    A mask for optax: `optax.masked(optax.set_to_zero(), hrnet_jax.matching(params, '^backbone/'))`
    after the optimiser leaves these arrays as they are.

    Raises:
        UserError: if a pattern matches nothing.
    """
    flat = flax.traverse_util.flatten_dict(flax.core.unfreeze(params))
    names = {path: '/'.join(path) for path in flat}
    _require_matches(patterns, list(names.values()))
    found = {path: any(re.search(p, name) for p in patterns) for path, name in names.items()}
    tree = flax.traverse_util.unflatten_dict(found)
    return flax.core.freeze(tree) if isinstance(params, flax.core.FrozenDict) else tree


def _require_matches(patterns: Sequence[str], names: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise UserError(f'{pattern!r} is no regular expression: {error}') from None
        if not found:
            hint = f'; names are like {min(names)}' if names else ''
            raise UserError(f'{pattern!r} matches no array{hint}')


def _flat(variables: Variables) -> dict[Path, Any]:
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(variables))


def _backbone(variables: Variables, which: str) -> Path:
    """Where in params the backbone is."""
    found = backbones(flax.core.unfreeze(variables))
    if len(found) != 1:
        places = ', '.join('/'.join(path) or 'the root' for path in found)
        what = f'{len(found)} HRNet backbones: {places}' if found else 'no HRNet backbone'
        more = "; transfer into the part of one: {k: v['PART'] for k, v in tree.items()}"
        raise UserError(f'the {which} holds {what}{more if found else ""}')
    return found[0]


def _adapted(kernel: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """(3, 3, 3, O) for other input channels; as it is where the rest differs, too."""
    channels = wanted[2]
    if kernel.shape[2] != 3 or kernel.shape[:2] + kernel.shape[3:] != wanted[:2] + wanted[3:]:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // 3), 1))[:, :, :channels]
    return repeated * np.asarray(3 / channels, kernel.dtype)


def _grouped(names: Sequence[str]) -> str:
    """Whole parts with their number of arrays; a few names are told apart."""
    if len(names) <= 4:
        return ', '.join(names)
    counts = collections.Counter('/'.join(name.split('/')[:2]) for name in names)
    if len(counts) > 8:
        counts = collections.Counter(name.split('/')[0] for name in names)
    return ', '.join(f'{part} ({count})' for part, count in counts.items())
