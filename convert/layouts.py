"""The naming rule: PyTorch key <-> Flax path, mechanical in both directions.

A key of any layout is first rewritten to the official one with `backbone.` or `head.` before it
(a table of prefixes), and that is the Flax path up to spelling: a number joins the name before it
(`stage2.0.branches.1.3.conv1` is `stage2_0/branches_1_3/conv1`) and the leaf follows from its
name and number of axes.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of a network with a head.

    Attributes:
        name: what users type.
        rules: (prefix of a key, what replaces it); the first that fits counts; {} is a number.
        head_bias: whether the convolutions before BatchNorm in the head have biases.
        fields: of our model, as the networks that have these names have them; no file shows them.
        doubt: (one of these fields in which the networks differ, what to say where it is a guess).
    """

    name: str
    rules: tuple[tuple[str, str], ...]
    head_bias: bool = False
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    doubt: tuple[str, str] | None = None

    def to_canonical(self, key: str) -> str | None:
        return _rewrite(key, self.rules)

    def from_canonical(self, key: str) -> str:
        rewritten = _rewrite(key, [(new, old) for old, new in self.rules])
        assert rewritten is not None, key
        return rewritten


# (leaf in PyTorch, axes) -> (collection, leaf in Flax, order of the axes in Flax)
_LEAVES: dict[tuple[str, int], tuple[str, str, tuple[int, ...]]] = {
    ('weight', 4): ('params', 'kernel', (2, 3, 1, 0)),
    ('weight', 2): ('params', 'kernel', (1, 0)),
    ('weight', 1): ('params', 'scale', (0,)),
    ('bias', 1): ('params', 'bias', (0,)),
    ('scale', 0): ('params', 'scale', ()),
    ('running_mean', 1): ('batch_stats', 'mean', (0,)),
    ('running_var', 1): ('batch_stats', 'var', (0,)),
}
_BACK = {
    (collection, flax, len(axes)): (torch, tuple(np.argsort(axes)))
    for (torch, _), (collection, flax, axes) in _LEAVES.items()
}


def flax_path(canonical: str, axes: int) -> tuple[Path, tuple[int, ...]] | None:
    """Path of a canonical key and the order of its axes; None if it is no variable of ours."""
    module, _, leaf = canonical.rpartition('.')
    if (leaf, axes) not in _LEAVES:
        return None
    collection, name, order = _LEAVES[leaf, axes]
    return (collection, *re.sub(r'\.(\d+)', r'_\1', module).split('.'), name), order


def canonical_key(path: Path, axes: int) -> tuple[str, tuple[int, ...]]:
    """The inverse of `flax_path`."""
    leaf, order = _BACK[path[0], path[-1], axes]
    return re.sub(r'_(\d+)(?=[_.])', r'.\1', '.'.join((*path[1:-1], leaf))), order


def _rewrite(key: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for old, new in rules:
        match = re.match(re.escape(old).replace(r'\{\}', r'(\d+)'), key)
        if match:
            return new.format(*match.groups()) + key[match.end() :]
    return None
