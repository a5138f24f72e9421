"""What separates the tensors of a file from those of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from convert.layouts import canonical_key
from hrnet_jax.errors import UserError, listed

SHOWN = 20  # names of a kind in an error message
COUNTER = '.num_batches_tracked'
# Biases before BatchNorm, and counters: a file has all of a kind, or none.
ALONE = 'missing, though others of their kind are there'


def counter_of(mean: str) -> str:
    """The counter of the BatchNorm with this running mean."""
    return mean.removesuffix('.running_mean') + COUNTER


def differences(
    got: Mapping,
    expected: Mapping,
    spell: Callable[[str], str],
    own: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """What separates the two trees, by kind; `own` has the file's names, `spell` makes others."""

    def name(path: tuple[str, ...], shape: tuple[int, ...]) -> str:
        key = canonical_key(path, len(shape))[0]
        return (own or {}).get(key) or spell(key)

    def sizes(path: tuple[str, ...], shape: tuple[int, ...]) -> str:
        order = canonical_key(path, len(shape))[1]
        return 'x'.join(str(shape[axis]) for axis in order)

    return {
        'missing': [name(p, s) for p, s in expected.items() if p not in got],
        'unexpected': [name(p, s) for p, s in got.items() if p not in expected],
        ALONE: [],
        'misshapen': [
            f'{name(p, s)}: {sizes(p, s)} instead of {sizes(p, expected[p])}'
            for p, s in got.items()
            if s != expected.get(p, s)
        ],
    }


def refuse(problems: Mapping[str, list[str]], called: str) -> None:
    """Raises UserError with all the differences, if there are any."""
    if any(problems.values()):
        found = (
            f'{len(names)} {kind} ({listed(names, SHOWN)})'
            for kind, names in problems.items()
            if names
        )
        raise UserError(f'compared with {called}, the nearest architecture: {"; ".join(found)}')
