"""What a network of a file is: its architecture, and which parts of a head it has."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
from collections.abc import Collection
from typing import Any

from convert.heads import CLASSIFIER, TRUNKS, kind_of
from convert.kinds import Kind, Shapes, length
from convert.layouts import canonical_key, flax_path
from convert.networks import Network, cleaned
from hrnet_jax.archs import ARCHS, Arch
from hrnet_jax.backbone import HRNet
from hrnet_jax.backbone import Network as Model
from hrnet_jax.errors import UserError
from hrnet_jax.models import flat, variable_shapes

TRUNK = 'trunk'
_TRUNK = re.compile(r'backbone\.((conv|bn)[12]|layer1|transition[123]|stage[234])\.')


@dataclasses.dataclass(frozen=True)
class Parts:
    """The tensors of a file by what they are.

    Attributes:
        kind: of the head, or the nearest.
        known: 'trunk' or part of the head -> canonical key -> name in the file; those that it has.
        others: how the names of the other tensors of the file begin -> how many there are.
        another: what it is, where it is a known network that is not converted.
    """

    kind: Kind
    known: dict[str, dict[str, str]]
    others: dict[str, int]
    another: str | None = None

    @property
    def lacking(self) -> list[str]:
        """What it would need to be a whole network of this kind."""
        return [part for part in (TRUNK, *self.kind.parts) if part not in self.known]

    @property
    def whole(self) -> bool:
        return not self.lacking and not self.another

    @property
    def trunk(self) -> Kind:
        """The largest kind without a head that it has whole."""
        return next(kind for kind in TRUNKS if kind.parts.keys() <= self.known.keys())

    def names(self, kind: Kind) -> dict[str, str]:
        """Canonical key -> name in the file; of the trunk and of the parts of this kind."""
        held = (self.known.get(part, {}) for part in (TRUNK, *kind.parts))
        return {key: name for names in held for key, name in names.items()}

    def text(self, without: Collection[str] = ()) -> str:
        """The parts that there are, but for some, with numbers of tensors."""
        counts = {part: len(names) for part, names in self.known.items() if part not in without}
        return ', '.join(f'{part} ({count})' for part, count in (counts | self.others).items())


def parts(network: Network) -> Parts:
    kind = network.kind or CLASSIFIER
    known: dict[str, dict[str, str]] = {part: {} for part in (TRUNK, *kind.parts)}
    others = list(network.beside)
    for key, name in canonical(network)[0].items():
        part = TRUNK if _TRUNK.match(key) else kind.part(key)
        if part:
            known[part][key] = name
        else:
            others.append(name)
    others += canonical(network)[1]
    groups = collections.Counter(_group(cleaned(name), network.prefix) for name in others)
    held = {part: names for part, names in known.items() if names}
    return Parts(kind, held, dict(groups), kind.other(network.names))


def _group(name: str, prefix: str) -> str:
    outer = prefix if name.startswith(prefix) else ''
    first, dot, _ = name.removeprefix(outer).partition('.')
    return f'{outer}{first}{".*" * bool(dot)}'


def canonical(network: Network) -> tuple[dict[str, str], list[str]]:
    """Canonical key -> name in the file; names that the layout does not know."""
    found, unknown = {}, []
    for key, name in network.names.items():
        known = network.layout.to_canonical(key)
        if known is None:
            unknown.append(name)
        else:
            found[known] = name
    return found, unknown


def recognise(shapes: Shapes, kind: Kind) -> Model:
    """The network of this kind with these canonical keys and PyTorch shapes.

    The numbers of modules and blocks must be those of the table; the widths may be anyone's.
    Where nothing fits, the nearest architecture is taken, for the error message to compare with.
    """

    def count(pattern: str) -> int:
        matches = (re.match(pattern, key) for key in shapes)
        numbers = (m.group(1) for m in matches if m)
        return 1 + max((int(number) for number in numbers if len(number) < 10), default=-1)

    stages = (2, 3, 4)
    widths = (f'backbone.stage4.0.branches.{i}.0.conv1.weight' for i in range(4))
    planes = length(shapes, 'backbone.layer1.0.conv1.weight')
    found: dict[str, Any] = {
        'channels': tuple(length(shapes, key) for key in widths),
        'layer1': (count(r'backbone\.layer1\.(\d+)\.'), planes),
        'modules': tuple(count(rf'backbone\.stage{s}\.(\d+)\.') for s in stages),
        'blocks': tuple(count(rf'backbone\.stage{s}\.0\.branches\.0\.(\d+)\.') for s in stages),
        'stem': length(shapes, 'backbone.conv1.weight'),
        **kind.sizes(shapes),
    }
    numbers = (found['layer1'][0], found['modules'], found['blocks'])

    def model(arch: Arch) -> Model:
        channels = length(shapes, 'backbone.conv1.weight', 1) or 3
        return kind.model(arch, shapes, in_channels=channels)

    def likeness(arch: Arch) -> tuple[bool, int]:
        structure = (arch.layer1[0], arch.modules, arch.blocks)
        equal = sum(getattr(arch, name) == value for name, value in found.items())
        return structure == numbers, equal

    best = max(map(kind.arch, ARCHS), key=likeness)
    known, equal = likeness(best)
    if known and equal < len(found):
        with contextlib.suppress(UserError):  # of widths that make no network
            custom = model(type(best)('custom', **found))
            if fills(shapes, custom):
                return custom
    return model(best)


def kind_of_model(model: Model) -> Kind | None:
    """The kind of one of our models with a head."""
    shapes = flat_shapes(model).items()
    return kind_of(canonical_key(path, len(shape))[0] for path, shape in shapes)


def fills(shapes: Shapes, model: Model) -> bool:
    """Whether every variable of the model is there, in its shape."""
    rules = {key: flax_path(key, len(shape)) for key, shape in shapes.items()}
    got = {
        rule[0]: tuple(shapes[key][axis] for axis in rule[1]) for key, rule in rules.items() if rule
    }
    return all(got.get(path) == shape for path, shape in flat_shapes(model).items())


def flat_shapes(model: Model) -> dict[tuple[str, ...], tuple[int, ...]]:
    """By the path that `layouts.flax_path` gives, which has the name of the backbone in it."""
    inner = ('backbone',) if isinstance(model, HRNet) else ()
    leaves = flat(variable_shapes(model))
    return {(path[0], *inner, *path[1:]): leaf.shape for path, leaf in leaves.items()}


def called(arch: Any) -> str:
    """An architecture, for messages."""
    return arch.name if arch.name in ARCHS else f'a custom architecture of widths {arch.channels}'
