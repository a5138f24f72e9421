"""What a kind of network in files is: what its head consists of, and what the layers are called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from convert.layouts import Layout
from hrnet_jax.archs import Arch, get_arch
from hrnet_jax.backbone import Network
from hrnet_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]  # canonical key -> PyTorch shape


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """A network with a head of one kind, or the trunk alone.

    Attributes:
        name: of the head: in `Task.heads` and in the published table.
        title: for messages; label: of the head, where it must be told from others.
        parts: part of the head -> its canonical keys; a file of this kind has all of them.
        layouts: how files name the tensors; the reference in PyTorch has the names of the first.
        bare: what the name of a BatchNorm begins with whose convolution may have a bias in a file:
            it is NAME.0, the BatchNorm NAME.1.
        others: pattern of names in a file that networks like these have, which are not converted ->
            what they are; the first that is there counts.
        arch: the architecture, of a name or an `Arch`, with the fields of the head.
        sizes: of shapes, these fields.
        model: (arch, shapes, in_channels=...) -> our module.
    """

    name: str
    title: str
    model: Callable[..., Network]
    parts: Mapping[str, re.Pattern[str]] = dataclasses.field(default_factory=dict)
    layouts: tuple[Layout, ...] = ()
    bare: re.Pattern[str] = re.compile(r'(?!)')
    label: str = ''
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    arch: Callable[[Any], Arch] = get_arch
    sizes: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}

    def part(self, key: str) -> str | None:
        """The part of the head that a canonical key is of."""
        return next((part for part, names in self.parts.items() if names.match(key)), None)

    def other(self, names: Iterable[str]) -> str | None:
        """What a file with these names is, where it is a network that is not converted."""
        names = list(names)
        for begin, what in self.others.items():
            if any(re.match(begin, name) for name in names):
                return what
        return None

    def layout(self, name: str) -> Layout:
        """The layout of that name; raises UserError if there is none."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        known = ', '.join(layout.name for layout in self.layouts)
        raise UserError(f'unknown layout {name!r} of a {self.title}; known: {known}')

    def bias_before(self, mean: str) -> str | None:
        """The convolution's bias that the BatchNorm with this running mean takes away."""
        module = mean.removesuffix('.1.running_mean')
        return f'{module}.0.bias' if module != mean and self.bare.fullmatch(module) else None


def length(shapes: Shapes, key: str, axis: int = 0) -> int:
    """Of one axis of a tensor; 0 where it has none."""
    shape = shapes.get(key, ())
    return shape[axis] if len(shape) > axis else 0


def under_head(*names: str) -> tuple[tuple[str, str], ...]:
    """Rules for official names: these modules are of the head, all others of the trunk."""
    return (*((f'{name}.', f'head.{name}.') for name in names), ('', 'backbone.'))
