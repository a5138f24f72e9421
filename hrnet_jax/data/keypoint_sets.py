"""The keypoints of the published pose sets: names, partners, skeletons, colours, sigmas.

`keypoint_sets.csv` has a line a keypoint, in the order of the published checkpoints;
`skeletons.csv` one a line of the picture. Colours are hexadecimal. Source: mmpose 1.3.2.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from importlib import resources

Colour = tuple[int, int, int]  # R, G, B, 0 to 255
Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class KeypointSet:
    """What is known of the keypoints of a set.

    Attributes:
        names: of the keypoints 0, 1, ...
        pairs: keypoints that change places in a mirror.
        skeleton: keypoints that a picture joins; colours of the lines: `links`.
        upper: keypoints of the upper body.
        colours: of the keypoints.
        sigmas: how far apart people mark each keypoint, in parts of the person's size; () where
            nobody has measured it.
    """

    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    skeleton: tuple[Pair, ...]
    links: tuple[Colour, ...]
    upper: tuple[int, ...]
    colours: tuple[Colour, ...]
    sigmas: tuple[float, ...]


def known(names: Sequence[str]) -> str | None:
    """The set with these keypoints in this order; the first, where several have them."""
    return next((title for title, held in sets().items() if held.names == tuple(names)), None)


def usual(count: int) -> str | None:
    """The set that so many keypoints are taken to be of: COCO, or the first, if those with so many
    have the same partners and lines."""
    fitting = {title: held for title, held in sets().items() if len(held.names) == count}
    if 'coco' in fitting or len({(held.pairs, held.skeleton) for held in fitting.values()}) == 1:
        return next(iter(fitting))
    return None


@functools.cache
def sets() -> dict[str, KeypointSet]:
    """Those that there are, by name."""
    links: dict[str, list[tuple[Pair, Colour]]] = {}
    for row in _rows('skeletons.csv'):
        pair = int(row['start']), int(row['end'])
        links.setdefault(row['dataset'], []).append((pair, _colour(row['colour'])))
    points: dict[str, list[dict[str, str]]] = {}
    for row in _rows('keypoint_sets.csv'):
        points.setdefault(row['dataset'], []).append(row)
    found = {}
    for title, rows in points.items():
        partners = enumerate(int(row['partner']) for row in rows)
        joined = links.get(title, [])
        found[title] = KeypointSet(
            tuple(row['keypoint'] for row in rows),
            tuple((i, partner) for i, partner in partners if i < partner),
            tuple(pair for pair, _ in joined),
            tuple(colour for _, colour in joined),
            tuple(i for i, row in enumerate(rows) if row['upper'] == '1'),
            tuple(_colour(row['colour']) for row in rows),
            tuple(float(row['sigma']) for row in rows if row['sigma']),
        )
    return found


def described(
    names: Sequence[str], skeleton: Sequence[Sequence[int]], upper: Sequence[str] | None = None
) -> KeypointSet:
    """A set of which only the names and the lines are known. In a mirror `left_eye` changes places
    with `right_eye`, and `L_Eye` with `R_Eye`.

    Args:
        upper: names of the keypoints of the upper body; None: as in the published sets, if these
            have keypoints of all these names.
    """
    lower = [name.lower() for name in names]
    partners = [
        (i, lower.index(other)) for i, x in enumerate(lower) if (other := _other(x)) in lower
    ]
    pairs = tuple((i, partner) for i, partner in partners if i < partner)
    lines = tuple((int(a), int(b)) for a, b in skeleton)
    above = _upper(names) if upper is None else tuple(names.index(name) for name in upper)
    return KeypointSet(tuple(names), pairs, lines, (), above, (), ())


def _upper(names: Sequence[str]) -> tuple[int, ...]:
    """See `described`."""
    known = {
        name.lower(): i in held.upper
        for held in sets().values()
        if held.upper
        for i, name in enumerate(held.names)
    }
    found = [known.get(name.lower()) for name in names]
    return () if None in found else tuple(i for i, above in enumerate(found) if above)


_SIDES = {'left': 'right', 'right': 'left', 'l': 'r', 'r': 'l'}


def _other(name: str) -> str:
    """The name on the other side; words of one letter stand alone."""
    sides = r'left|right|(?<![a-z])[lr](?![a-z])'
    return re.sub(sides, lambda found: _SIDES[found[0]], name)


def _colour(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text)
    return red, green, blue


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = resources.files('hrnet_jax.data').joinpath(name).read_text()
    return csv.DictReader(text.splitlines())
