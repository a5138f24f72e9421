"""The classes of the published segmentation sets, and their colours.

`segmentation_sets.csv` has a line a class, in the order of their numbers in the published
checkpoints; colours are hexadecimal. Sources: mmsegmentation 1.2.2, and for LIP the official code,
which draws with the colours of VOC.
"""

from __future__ import annotations

import csv
import functools
from importlib import resources

Colour = tuple[int, int, int]  # R, G, B, 0 to 255


def names() -> list[str]:
    """The sets that there are."""
    return list(_table())


def classes(dataset: str) -> tuple[str, ...] | None:
    """The names of a set's classes 0, 1, ...; None of a set that is not in the table."""
    rows = _table().get(dataset)
    return tuple(name for name, _ in rows) if rows else None


def palette(dataset: str) -> tuple[Colour, ...] | None:
    """The colours of a set's classes 0, 1, ...; None of a set that is not in the table."""
    rows = _table().get(dataset)
    return tuple(colour for _, colour in rows) if rows else None


@functools.cache
def _table() -> dict[str, list[tuple[str, Colour]]]:
    text = resources.files('hrnet_jax.data').joinpath('segmentation_sets.csv').read_text()
    table: dict[str, list[tuple[str, Colour]]] = {}
    for row in csv.DictReader(text.splitlines()):
        red, green, blue = bytes.fromhex(row['colour'])
        table.setdefault(row['dataset'], []).append((row['class'], (red, green, blue)))
    return table
