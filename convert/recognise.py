"""What a network of a file is: its architecture, and which parts of a classifier it has."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from convert.layouts import LAYOUTS, flax_path
from convert.networks import Network, cleaned
from hrnet_jax.archs import ARCHS, Arch, get_arch
from hrnet_jax.backbone import HRNet
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier, ClassifierArch, classifier_arch
from hrnet_jax.models import create_model, flat, variable_shapes

TRUNK, WIDENED = 'trunk', 'widening layers'
# Part -> its canonical keys. A classifier has all of them.
_PARTS = {
    TRUNK: re.compile(r'backbone\.((conv|bn)[12]|layer1|transition[123]|stage[234])\.'),
    WIDENED: re.compile(r'head\.incre_modules\.'),
    'downsampling layers': re.compile(r'head\.downsamp_modules\.'),
    'final layer': re.compile(r'head\.final_layer\.[01]\.'),
    'classifier': re.compile(r'head\.classifier\.(weight|bias)$'),
}
Model = Classifier | HRNet


@dataclasses.dataclass(frozen=True)
class Parts:
    """The tensors of a file by what they are.

    Attributes:
        known: part of a classifier -> canonical key -> name in the file; those that it has.
        others: how the names of the other tensors of the file begin -> how many there are.
    """

    known: dict[str, dict[str, str]]
    others: dict[str, int]

    @property
    def lacking(self) -> list[str]:
        """What it would need to be a classifier."""
        return [part for part in _PARTS if part not in self.known]

    def text(self, *, trunk: bool = True) -> str:
        """All that there is, or all but the trunk, with numbers of tensors."""
        counts = {part: len(names) for part, names in self.known.items() if trunk or part != TRUNK}
        return ', '.join(f'{part} ({count})' for part, count in (counts | self.others).items())


def parts(network: Network) -> Parts:
    known: dict[str, dict[str, str]] = {}
    others = list(network.beside)
    for key, name in canonical(network)[0].items():
        part = next((part for part, names in _PARTS.items() if names.match(key)), None)
        if part:
            known.setdefault(part, {})[key] = name
        else:
            others.append(name)
    others += canonical(network)[1]
    groups = collections.Counter(_group(cleaned(name), network.prefix) for name in others)
    return Parts({part: known[part] for part in _PARTS if part in known}, dict(groups))


def _group(name: str, prefix: str) -> str:
    outer = prefix if name.startswith(prefix) else ''
    first, dot, _ = name.removeprefix(outer).partition('.')
    return f'{outer}{first}{".*" * bool(dot)}'


def canonical(network: Network) -> tuple[dict[str, str], list[str]]:
    """Canonical key -> name in the file; names that the layout does not know. What has no head that
    is known has the names of the official layout behind its prefix."""
    layout = network.layout or LAYOUTS['official']
    found, unknown = {}, []
    for key, name in network.names.items():
        known = layout.to_canonical(key)
        if known is None:
            unknown.append(name)
        else:
            found[known] = name
    return found, unknown


def recognise(shapes: Mapping[str, tuple[int, ...]], backbone: bool = False) -> Model:
    """The classifier, or the `backbone` alone, of canonical keys and PyTorch shapes.

    The numbers of modules and blocks must be those of the table; the widths may be anyone's.
    Where nothing fits, the nearest architecture is taken, for the error message to compare with.
    """

    def count(pattern: str) -> int:
        matches = (re.match(pattern, key) for key in shapes)
        return 1 + max((int(m.group(1)) for m in matches if m), default=-1)

    def out(key: str, axis: int = 0) -> int:
        shape = shapes.get(key, ())
        return shape[axis] if len(shape) > axis else 0

    stages = (2, 3, 4)
    found: dict[str, Any] = {
        'channels': tuple(out(f'backbone.stage4.0.branches.{i}.0.conv1.weight') for i in range(4)),
        'layer1': (count(r'backbone\.layer1\.(\d+)\.'), out('backbone.layer1.0.conv1.weight')),
        'modules': tuple(count(rf'backbone\.stage{s}\.(\d+)\.') for s in stages),
        'blocks': tuple(count(rf'backbone\.stage{s}\.0\.branches\.0\.(\d+)\.') for s in stages),
        'stem': out('backbone.conv1.weight'),
    }
    if not backbone:
        found['head'] = tuple(out(f'head.incre_modules.{i}.0.conv3.weight') for i in range(4))
        found['features'] = out('head.final_layer.0.weight')
    channels = out('backbone.conv1.weight', 1) or 3

    def model(arch: Arch) -> Model:
        if backbone:
            return HRNet(arch, outputs=outputs(shapes), in_channels=channels)
        classes = out('head.classifier.weight') or 1000
        return create_model(arch, classes, in_channels=channels)

    numbers = (found['layer1'][0], found['modules'], found['blocks'])

    def likeness(arch: Arch) -> tuple[bool, int]:
        structure = (arch.layer1[0], arch.modules, arch.blocks)
        equal = sum(getattr(arch, name) == value for name, value in found.items())
        return structure == numbers, equal

    best = max(map(get_arch if backbone else classifier_arch, ARCHS), key=likeness)
    known, equal = likeness(best)
    if known and equal < len(found):
        with contextlib.suppress(UserError):  # of widths that make no network
            custom = model((Arch if backbone else ClassifierArch)('custom', **found))
            if fills(shapes, custom):
                return custom
    return model(best)


def outputs(keys: Iterable[str]) -> int:
    """How many maps the backbone with these canonical keys gives: networks for pose end in the
    finest alone."""
    found = (re.match(r'backbone\.stage4\.(\d+)\.fuse_layers\.(\d+)\.', key) for key in keys)
    places = {(int(m[1]), int(m[2])) for m in found if m}
    last = max((module for module, _ in places), default=0)
    return 1 if {row for module, row in places if module == last} == {0} else 4


def fills(shapes: Mapping[str, tuple[int, ...]], model: Model) -> bool:
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
