"""Which tensors of a file are the network: one of several, with wrappers inside of its names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from convert.heads import BACKBONE, KINDS
from convert.kinds import Kind
from convert.layouts import Layout
from convert.readers import is_averaged, which_weights
from hrnet_jax.errors import UserError, listed

_TRUNK = 'stage2.0.branches.0.'  # every HRNet has it, whatever the task
# What DistributedDataParallel, torch.compile, activation checkpointing and FSDP put into names.
_WRAPPERS = re.compile(
    r'(?<![^.])(module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """One HRNet of a file.

    Attributes:
        prefix: what its names begin with, such as 'model.'; without wrappers.
        kind: of its head; None where it has none that is known.
        layout: how its names become canonical keys.
        names: its names without prefix and wrappers -> the names in the file.
        beside: names in the file of what belongs to no network.
    """

    prefix: str
    kind: Kind | None
    layout: Layout
    names: Mapping[str, str]
    beside: tuple[str, ...] = ()


def find(
    tensors: Mapping[str, Any],
    prefix: str | None,
    weights: str | None,
    what: Callable[[Network], str],
    values: Callable[[Any], np.ndarray],
) -> tuple[Network, list[str], str | None]:
    """The network of a state dict; remarks on the choice; 'ema' or 'raw' where there is one of
    averaged weights.

    Args:
        prefix: which of several.
        weights: 'ema' or 'raw': which of two; by default that of averaged weights.
        what: says what a network is, for the message that asks for `prefix`.
        values: of one tensor.

    Raises:
        UserError: if there is none, or several that differ and `prefix` names none of them.
    """
    found = networks(tensors)
    if not found:
        raise UserError(f'no HRNet weights found; the tensors are {listed(list(tensors), 3)}')
    called = [network.prefix or 'no prefix' for network in found]
    averaged = [n for n in found if any(map(is_averaged, n.prefix.split('.')))]
    kind = None
    if prefix is not None:
        wanted = cleaned(f'{prefix.rstrip(".")}.').lstrip('.')
        chosen = [network for network in found if network.prefix == wanted]
        if not chosen:
            raise UserError(f'--prefix {prefix}: the networks begin with {", ".join(called)}')
        notes = [f'took the network under {called[found.index(chosen[0])]}'] * (len(found) > 1)
    else:
        chosen = [found[0]]
        chosen += [n for n in found[1:] if not _equal(tensors, found[0], n, values)]
        notes = [
            f'the network under {name} is an equal copy of that under {called[0]}'
            for network, name in zip(found, called, strict=True)
            if network not in chosen
        ]
        if len(chosen) == 2 and len(averaged) == 1 and averaged[0] in chosen:
            kind = weights or 'ema'
            chosen.sort(key=lambda network: (network in averaged) != (kind == 'ema'))
            notes.append(which_weights(kind, *(n.prefix or 'no prefix' for n in chosen)))
            chosen = chosen[:1]
        if len(chosen) > 1:
            each = [f'{n.prefix or "no prefix"} ({what(n)})' for n in chosen]
            raise UserError(
                f'{len(chosen)} networks are in it, whose names begin with {" and ".join(each)}; '
                f'choose one by --prefix, such as --prefix {chosen[0].prefix or chosen[1].prefix}'
            )
    if chosen[0] in averaged:
        kind = 'ema'
    return chosen[0], notes, kind


def networks(tensors: Iterable[str]) -> list[Network]:
    """Every HRNet, in the order of the names."""
    names: dict[str, str] = {}
    for name in tensors:
        short = cleaned(name)
        names[name if short in names else short] = name
    outer = {key[: key.index(_TRUNK)]: None for key in names if _TRUNK in key}
    found = [_layout(start, names) for start in outer]
    prefixes = [prefix for prefix, *_ in found]

    def inside(key: str, prefix: str) -> bool:
        longer = (p for p in prefixes if len(p) > len(prefix) and p.startswith(prefix))
        return key.startswith(prefix) and not any(map(key.startswith, longer))

    held = [
        {k.removeprefix(prefix): name for k, name in names.items() if inside(k, prefix)}
        for prefix in prefixes
    ]
    taken = {name for own in held for name in own.values()}
    beside = tuple(name for name in names.values() if name not in taken)
    return [Network(*one, own, beside) for one, own in zip(found, held, strict=True)]


def cleaned(name: str) -> str:
    """A name without wrappers."""
    return _WRAPPERS.sub('', name)


def _layout(outer: str, names: Iterable[str]) -> tuple[str, Kind | None, Layout]:
    """The prefix, kind and layout of the network whose trunk begins with `outer`: of those that fit
    the one that knows most tensors of the head."""
    most = 0
    best: tuple[str, Kind | None, Layout] = (outer, None, BACKBONE.layouts[0])
    for kind, layout in ((k, layout) for k in KINDS for layout in k.layouts):
        trunk = layout.from_canonical('backbone.')
        if not outer.endswith(trunk):
            continue
        prefix = outer.removesuffix(trunk)
        inner = (key.removeprefix(prefix) for key in names if key.startswith(prefix))
        heads = sum(bool(kind.part(layout.to_canonical(key) or '')) for key in inner)
        if heads > most:
            most, best = heads, (prefix, kind, layout)
    return best


def _equal(
    tensors: Mapping[str, Any], one: Network, other: Network, values: Callable[[Any], np.ndarray]
) -> bool:
    if one.names.keys() != other.names.keys():
        return False
    pairs = [(tensors[one.names[key]], tensors[other.names[key]]) for key in one.names]
    if any(tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype for a, b in pairs):
        return False
    return all(values(a).tobytes() == values(b).tobytes() for a, b in pairs)
