"""How large compiled programs are: they may not grow unseen."""

from __future__ import annotations

import collections
import re

import jax

VERSION = '0.10.2'  # of JAX, that the figures are from
NOTHING = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast')


def counted(text: str) -> tuple[int, int, int, int]:
    """Convolutions, matrix products, collectives, all other instructions but `NOTHING`, of a
    compiled program, inside loops once, without the insides of fusions."""
    called = set(re.findall(r'(?:calls|to_apply)=%?([\w.-]+)', text))
    found: collections.Counter[str] = collections.Counter()
    for computation in text.split('\n\n'):
        name = re.match(r'(?:ENTRY )?%?([\w.-]+)', computation)
        kinds = re.findall(r'^\s+(?:ROOT )?\S+ = .*? ([a-z][\w-]*)\(', computation, re.M)
        if name and name[1] in called:  # the inside of a fusion
            kinds = [kind for kind in kinds if kind in ('convolution', 'dot')]
        found.update(kinds)
    collectives = sum(n for k, n in found.items() if re.match('all-|reduce-scatter|coll', k))
    big = (found['convolution'], found['dot'], collectives)
    return (*big, found.total() - sum(big) - sum(found[kind] for kind in NOTHING))


def no_larger(text: str, most: tuple[int, int, int, int]) -> None:
    """Than these figures of `counted`, in the release that they are from."""
    got = counted(text)
    assert jax.__version__ != VERSION or all(n <= m for n, m in zip(got, most, strict=True)), got
