"""Classes by name: in which order a folder has them, and which output of a checkpoint is which."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.data import imagenet
from hrnet_jax.data.sources import Facts, Source, tensorflow
from hrnet_jax.errors import UserError, listed

OTHERWISE = '--class-names FILE says another order'


def read_names(file: str) -> tuple[str, ...]:
    """The lines of a text file, one class each; raises UserError."""
    try:
        lines = Path(file).expanduser().read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'cannot read --class-names {file}: {error}') from None
    names = [line.strip() for line in lines if line.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f'--class-names {file} names {listed(twice)} more than once')
    if not names:
        raise UserError(f'--class-names {file} is empty; it must have one class a line')
    return tuple(names)


def numbered(names: Sequence[str]) -> bool:
    """Whether they are the whole numbers from 0 on, each once."""
    values = sorted(int(name) if name.isdecimal() else -1 for name in names)
    return values == list(range(len(names)))


def in_order(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Names of folders as the classes 0, 1, ..., and a note where another order is possible.

    Names 0 to N - 1 are these numbers; others are sorted by their characters, as torchvision does.
    """
    plain = sorted(names)
    if numbered(plain):
        chosen = sorted(plain, key=int)
        note = (
            f'folders {chosen[0]} to {chosen[-1]} are the classes of these numbers, not in '
            f'alphabetical order ({listed(plain)}); {OTHERWISE}'
        )
        return chosen, (note,) * (chosen != plain)
    natural = sorted(plain, key=_natural)
    note = f'classes 0, 1, ... are the folders in the order {listed(plain, 10)}; {OTHERWISE}'
    numbers = all(name.isdecimal() for name in plain)
    return plain, (note,) * (numbers or natural != plain)


def _natural(name: str) -> list[Any]:
    parts = re.split(r'(\d+)', name.casefold())
    return [int(part) if part.isdecimal() else part for part in parts]


def renumbered(source: Source, names: Sequence[str], change: Callable | None = None) -> Source:
    """The source with its classes numbered as in `names`, which may have more of them.

    Args:
        change: (labels, number in `names` of each class of the source) -> labels, in TensorFlow
            operations; by default labels are class indices.

    Raises:
        UserError: as `places`.
    """
    table = places(source, names)
    change = change or _indices

    def parse(*raw: Any) -> dict[str, Any]:
        example = source.parse(*raw)
        labels = {k: change(v, table) for k, v in example.items() if k in ('label', 'original')}
        return {**example, **labels}

    number = dict(zip(source.class_names or (), table, strict=True))
    present = source.present and tuple(names[number[x]] for x in source.present)
    return dataclasses.replace(
        source,
        num_classes=len(names),
        class_names=tuple(names),
        present=present,
        official={file: int(table[label]) for file, label in source.official.items()},
        parse=parse,
    )


def places(source: Facts, names: Sequence[str]) -> np.ndarray:
    """The number in `names` of each class of the source, int32.

    Raises:
        UserError: if the source has classes that `names` lacks, or says no names.
    """
    if source.class_names is None:
        raise UserError(f'{source.dataset.name} has no class names to put in order')
    number = {_same(name): i for i, name in enumerate(names)}
    if unknown := [x for x in source.class_names if _same(x) not in number]:
        raise UserError(
            f'{source.dataset.name}: {listed(unknown)} {"are" if len(unknown) > 1 else "is"} not '
            f'among the {len(names)} class names'
        )
    return np.array([number[_same(x)] for x in source.class_names], np.int32)


def _same(name: str) -> str:
    """Macs write an accent as a character of its own."""
    return unicodedata.normalize('NFC', name)


def _indices(labels: Any, table: np.ndarray) -> Any:
    """What is no class stays below 0."""
    tf = tensorflow()
    inside = (labels >= 0) & (labels < len(table))
    return tf.where(inside, tf.gather(table, tf.clip_by_value(labels, 0, len(table) - 1)), -1)


def of_checkpoint(
    source: Source,
    meta: Mapping[str, Any],
    chosen: bool,
    renumber: Callable[[Source, Sequence[str]], Source] = renumbered,
) -> Source:
    """The source with the class numbers of a checkpoint, found by their names.

    Args:
        meta: its num_classes and class_names, None where it does not say.
        chosen: the user has given the order of the source's classes.

    Raises:
        UserError: if the classes are others.
    """
    have, count, names = source.class_names, meta.get('num_classes'), meta.get('class_names')
    name = source.dataset.name
    if have is None or count is None:
        return source
    ids = imagenet.classes()
    if count == len(ids) and set(have) <= ids.keys() and not set(have) <= set(names or ()):
        if names and list(names) != list(ids.values()):
            source = source.noted("the classes of the checkpoint are taken for ImageNet's 1000")
        names = list(ids)
    if not names:
        if len(have) == count and not numbered(have) and not chosen:
            return source.noted(
                f'the checkpoint has no class names: {listed(have)} are taken for its classes '
                f'0, 1, ...; {OTHERWISE}'
            )
        return source
    ours, theirs = list(map(_same, have)), list(map(_same, names))
    if ours == theirs:
        return source
    if set(ours) <= set(theirs):
        if chosen and len(ours) == len(theirs):
            raise UserError(
                f'--class-names: the checkpoint has these classes in another order, {listed(names)}'
                '; without the flag they are found by name'
            )
        source = renumber(source, names)
        if len(ours) == len(theirs):
            note = 'the checkpoint has the classes in another order; they are found by name'
            return source.noted(note)
        return source
    if len(have) == count and (chosen or numbered(have)):
        return source.noted(
            f'{listed(have)} are taken for the classes {listed(names)} of the checkpoint'
        )
    unknown = [x for x in have if _same(x) not in theirs]
    missing = [x for x in names if _same(x) not in ours]
    lacks = f'; it lacks {listed(missing)}' if missing and len(have) == count else ''
    raise UserError(
        f'{name} has classes that the checkpoint does not have: {listed(unknown)}{lacks}; if only '
        'the names differ, give their order by --class-names FILE'
    )
