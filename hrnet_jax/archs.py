"""The table of architectures: data only.

Sources: Wang et al., TPAMI 2019, section 3 and table 1; the configurations of
HRNet-Image-Classification.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterable

from hrnet_jax.errors import UserError

STRIDE = 32  # of the coarsest branch


@dataclasses.dataclass(frozen=True)
class Arch:
    """The sizes that define an HRNet.

    Attributes:
        name: the name users type.
        channels: channels of the four branches, at strides 4, 8, 16 and 32.
        layer1: number of Bottleneck blocks of stage 1, and their inner width; they return 4 times
            that.
        modules: number of HRModules of stages 2, 3 and 4.
        blocks: number of BasicBlocks a branch, in stages 2, 3 and 4.
        stem: channels of the two stride-2 convolutions at the start.
    """

    name: str
    channels: tuple[int, ...]
    layer1: tuple[int, int] = (4, 64)
    modules: tuple[int, ...] = (1, 4, 3)
    blocks: tuple[int, ...] = (4, 4, 4)
    stem: int = 64

    def __post_init__(self) -> None:
        check_sizes(self, {'channels': 4, 'layer1': 2, 'modules': 3, 'blocks': 3, 'stem': 0})


def whole_number(value: object) -> int | None:
    """The integer that this is, of Python or NumPy; None for anything else."""
    if isinstance(value, bool) or not hasattr(value, '__index__'):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of several
        return None


def at_least_one(name: str, value: object) -> int:
    """The value as an integer; raises UserError unless it is one above 0."""
    number = whole_number(value)
    if number is None or number < 1:
        raise UserError(f'{name} is a whole number, at least 1, not {value!r}')
    return number


def check_sizes(arch: Arch, lengths: dict[str, int]) -> None:
    """Makes these fields tuples of so many integers; 0: one integer.

    Raises:
        UserError: if they are not, or not above 0.
    """
    for field, length in lengths.items():
        given = getattr(arch, field)
        listed = list(given) if length and isinstance(given, Iterable) else [given]
        values = [whole_number(value) for value in listed]
        if len(values) != max(length, 1) or not all(n is not None and n > 0 for n in values):
            wanted = f'{length} whole numbers' if length else 'a whole number'
            raise UserError(f'{arch.name}: {field} is {wanted} above 0, not {given!r}')
        object.__setattr__(arch, field, tuple(values) if length else values[0])


def _doubling(width: int) -> tuple[int, int, int, int]:
    return (width, 2 * width, 4 * width, 8 * width)


_SMALL = (2, 2, 2)
ARCHS: dict[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch('w18', _doubling(18)),
        Arch('w30', _doubling(30)),
        Arch('w32', _doubling(32)),
        Arch('w40', _doubling(40)),
        Arch('w44', _doubling(44)),
        Arch('w48', _doubling(48)),
        Arch('w64', _doubling(64)),
        # The published "small v1" is 16 wide in spite of its name.
        Arch('w18_small_v1', _doubling(16), (1, 32), (1, 1, 1), _SMALL),
        Arch('w18_small_v2', _doubling(18), (2, 64), (1, 3, 2), _SMALL),
        # Ours, for the demo and quick tests: every kind of layer, few of each.
        Arch('tiny', _doubling(6), (1, 8), (1, 1, 1), (1, 1, 1), 16),
    )
}


def list_models() -> list[str]:
    """The names that `create_model` takes."""
    return sorted(ARCHS)


def get_arch(arch: str | Arch) -> Arch:
    """The table's entry; an `Arch` of your own passes through.

    Raises:
        UserError: if the name is not in the table.
    """
    if isinstance(arch, Arch):
        return arch
    if arch not in ARCHS:
        near = _near(str(arch))
        hint = f'perhaps {" or ".join(near)}; ' if near else ''
        raise UserError(f'unknown architecture {arch!r}; {hint}known: {", ".join(list_models())}')
    return ARCHS[arch]


def _near(name: str) -> list[str]:
    """The names that may be meant, in the spelling of others, too: timm/hrnet_w18.ms_in1k."""
    bare = re.sub(r'(.*/)?(hrnet(v2)?[-_]?)?', '', name.lower(), count=1).split('.')[0]
    begins = [known for known in ARCHS if bare and known.startswith(bare)]
    return [bare] if bare in ARCHS else begins or [k for k in ARCHS if k in bare]
