"""From PyTorch's tensors to Flax variables: strict, exact, no PyTorch needed."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert import readers
from convert.differences import ALONE, COUNTER, SHOWN, counter_of, differences, refuse
from convert.heads import BACKBONE, TRUNKS
from convert.kinds import Kind
from convert.layouts import canonical_key, flax_path
from convert.networks import Network, find
from convert.recognise import (
    TRUNK,
    Model,
    Parts,
    called,
    canonical,
    fills,
    flat_shapes,
    parts,
    recognise,
)
from hrnet_jax.archs import ARCHS, Arch, get_arch
from hrnet_jax.errors import UserError, listed
from hrnet_jax.runtime.cli import progress

Variables = dict[str, Any]
_BESIDE = 6  # names in a note
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')
_INPLACE_EPS = 1e-5  # of InPlaceABN, which scales by |weight| + eps


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a PyTorch checkpoint turned out to hold.

    Attributes:
        model: what the variables are of, with the fields of `fields`; its architecture is named
            'custom' if it is none of the table's.
        kind: of the network.
        variables: {'params': ..., 'batch_stats': ...}, float32 NumPy arrays.
        head_bias: whether the file had biases before BatchNorm in the head.
        network: which tensors of the file these are.
        weights: 'ema' or 'raw'; inplace_abn: see `from_torch`.
        notes: one-line remarks for the user.
    """

    model: Model
    kind: Kind
    variables: Variables
    head_bias: bool
    notes: tuple[str, ...]
    network: Network
    weights: str | None = None
    inplace_abn: bool = False

    @property
    def arch(self) -> Any:
        return self.model.arch

    @property
    def num_classes(self) -> int | None:
        """None of a backbone."""
        return getattr(self.model, 'num_classes', None)

    @property
    def in_channels(self) -> int:
        return self.model.in_channels

    @property
    def fields(self) -> dict[str, Any]:
        """Of the model, those that no file shows, as networks with these names of tensors have
        them."""
        return unseen(self.model, self.network)


def from_torch(
    source: str | os.PathLike | Mapping[str, Any],
    arch: str | None = None,
    *,
    weights: str | None = None,
    prefix: str | None = None,
    backbone: bool | None = False,
    inplace_abn: bool | None = None,
) -> tuple[str | Arch, Variables]:
    """Converts a checkpoint file (or `hf:OWNER/REPO`), or a state dict in memory.

    Args:
        source: a path, or a mapping of names to PyTorch tensors or NumPy arrays, wrapped or not.
        arch: refused unless the file holds this architecture.
        weights: 'ema' or 'raw': of a file with averaged weights beside those of the last step; by
            default the averaged ones.
        prefix: what the names of the network begin with, where a file holds several networks.
        backbone: take the trunk alone, whatever lies around it; None: where there is no whole
            network of a kind that is known.
        inplace_abn: the norms are of InPlaceABN, which scales by |weight| + 1e-5. None: as the name
            of the file says, see `readers.is_inplace_abn`.

    Returns:
        The architecture's name (an `Arch` if its widths are not in the table), and
        {'params': ..., 'batch_stats': ...} of float32 NumPy arrays: of a `Classifier`; of a
        `Segmenter` or a `PoseNet`, whose head they show and whose upsampling they do not
        (`python -m convert` says what it takes); with `backbone` of an `HRNet`, which has outputs=1
        where the file is one of pose. `writing.model_of` makes the module.

    Raises:
        UserError: naming everything that is missing, unexpected, misshapen or not finite.
    """
    if isinstance(source, Mapping):
        found: readers.Resolved | readers.Source = readers.resolve(source, weights=weights)
    else:
        found = readers.read(source, weights=weights)
    if inplace_abn is None:
        inplace_abn = isinstance(found, readers.Source) and readers.is_inplace_abn(found)
    done = convert(
        found.tensors, arch, prefix=prefix, weights=weights, backbone=backbone,
        inplace_abn=inplace_abn,
    )  # fmt: skip
    readers.require_weights(weights, found.weights or done.weights)
    return (done.arch.name if done.arch.name in ARCHS else done.arch), done.variables


def convert(
    tensors: Mapping[str, Any],
    arch: str | None = None,
    *,
    prefix: str | None = None,
    weights: str | None = None,
    backbone: bool | None = False,
    inplace_abn: bool = False,
) -> Converted:
    """Converts a flat state dict whose values have `.shape` and `.numpy()`: see `from_torch`."""
    what = functools.partial(_what, tensors)
    network, notes, chosen = find(tensors, prefix, weights, what, array)
    found = parts(network)
    backbone = not found.whole if backbone is None else backbone
    if not found.whole and not backbone:
        raise _not_whole(tensors, found)
    kind = found.trunk if backbone else found.kind
    if backbone:
        named, unexpected = found.names(kind), list[str]()
        if left := found.text((TRUNK, *kind.parts)):
            taken = 'trunk alone' if kind is BACKBONE else kind.title
            notes.append(f'took the {taken}, without the tensors of {left}')
    else:
        named, unexpected = canonical(network)
        if network.beside:
            notes.append(
                f'ignored {len(network.beside)} tensors beside the network, whose names begin with '
                f'{network.prefix}: {listed(network.beside, _BESIDE)}'
            )
    if arch is not None:
        get_arch(arch)
    own = {key: name for key, name in named.items() if not key.endswith(COUNTER)}
    shapes = _shapes(tensors, named)
    model = recognise(shapes, kind)
    model = model.clone(**unseen(model, network))
    if arch is not None and get_arch(model.arch).name != arch:
        raise UserError(f'the file holds {called(model.arch)}, not {arch}; leave --arch out')
    expected = flat_shapes(model)

    biases = {key: key.removesuffix('0.bias') + '1.running_mean' for key in shapes}
    biases = {k: mean for k, mean in biases.items() if kind.bias_before(mean) == k}
    paths: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    got: dict[tuple[str, ...], tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if key in biases:
            if shape != shapes.get(biases[key]):
                unexpected.append(own[key])
            continue
        rule = flax_path(key, len(shape))
        # `layer1_0` for `layer1.0` would reach the same path: a name must be its own inverse.
        if rule is None or canonical_key(rule[0], len(shape))[0] != key:
            unexpected.append(own[key])
        else:
            paths[key] = rule
            got[rule[0]] = tuple(shape[axis] for axis in rule[1])
    spell = network.layout.from_canonical
    problems = differences(got, expected, spell, own)
    means = [key for key in shapes if key.endswith('.running_mean')]
    for of_a_kind in (kind.bias_before, counter_of):
        group = {key for key in map(of_a_kind, means) if key}
        if group & named.keys():
            problems[ALONE] += [spell(k) for k in sorted(group - named.keys())]
    counters = named.keys() - own.keys() - {counter_of(mean) for mean in means}
    problems['unexpected'] += unexpected + [named[key] for key in sorted(counters)]
    refuse(problems, f'{"the trunk of " * backbone}{called(model.arch)}')

    kinds = {name: str(tensors[name].dtype).removeprefix('torch.') for name in own.values()}
    if wrong := [f'{name} ({kind})' for name, kind in kinds.items() if kind not in _FLOATS]:
        raise UserError(f'weights must be floating-point numbers, unlike {listed(wrong, SHOWN)}')

    variables: Variables = {}
    not_finite, negative = [], []
    folded = {mean: bias for bias, mean in biases.items()}
    for key, (path, order) in progress(paths.items(), desc='converting', total=len(paths)):
        value = array(tensors[own[key]])
        if key in folded:
            # BatchNorm takes a bias before it away again; exact, in one rounding.
            bias = array(tensors[own[folded[key]]]).astype(np.float64)
            value = value.astype(np.float64) - bias
        with np.errstate(over='ignore'):
            value = np.asarray(np.transpose(value, order), np.float32, order='C')
        if inplace_abn and path[-1] == 'scale':
            value = _inplace(value)
        if not np.isfinite(value).all():
            not_finite.append(own[key])
        if path[-1] == 'var' and (value < 0).any():
            negative.append(own[key])
        node = variables
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    if not_finite:
        raise UserError(f'the weights hold NaN or infinity: {listed(not_finite, SHOWN)}')
    if negative:
        raise UserError(f'a variance cannot be negative: {listed(negative, SHOWN)}')
    other = sorted(set(kinds.values()) - {'float32'})
    if kind is BACKBONE:
        variables = {collection: tree['backbone'] for collection, tree in variables.items()}
    if other:
        notes.append(f'stored as {", ".join(other)}; converted to float32')
    if inplace_abn:
        notes.append(f'BatchNorm scales by |weight| + {_INPLACE_EPS}, as InPlaceABN does')
    return Converted(
        model, kind, variables, bool(biases), tuple(notes), network, chosen, inplace_abn
    )


def unseen(model: Model, network: Network) -> dict[str, Any]:
    """See `Converted.fields`."""
    return {k: v for k, v in network.layout.fields.items() if hasattr(model, k)}


def official(done: Converted, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The network's tensors by the names of its reference in PyTorch, without the counters."""
    spell = done.kind.layouts[0].from_canonical
    whole = done.kind not in TRUNKS
    named = canonical(done.network)[0] if whole else parts(done.network).names(done.kind)
    state = {k: array(tensors[name]) for k, name in named.items() if not k.endswith(COUNTER)}
    if done.inplace_abn:
        norms = (k.removesuffix('running_mean') + 'weight' for k in state if k.endswith('_mean'))
        state |= {key: _inplace(state[key]) for key in norms}
    return {spell(key): value for key, value in state.items()}


def _inplace(scale: np.ndarray) -> np.ndarray:
    """What InPlaceABN multiplies by."""
    return np.abs(scale) + np.asarray(_INPLACE_EPS, scale.dtype)


def array(tensor: Any) -> np.ndarray:
    """The values of a NumPy array, a PyTorch tensor or one of `readers`."""
    if str(getattr(tensor, 'dtype', '')) == 'torch.bfloat16':  # NumPy has no such type
        tensor = tensor.float()
    tensor = tensor.detach().cpu() if hasattr(tensor, 'detach') else tensor
    return np.asarray(tensor.numpy() if hasattr(tensor, 'numpy') else tensor)


def _what(tensors: Mapping[str, Any], network: Network) -> str:
    """Architecture and classes of a network, for messages."""
    found = parts(network)
    whole = found.whole
    shapes = _shapes(tensors, canonical(network)[0] if whole else found.names(BACKBONE))
    model = recognise(shapes, found.kind if whole else BACKBONE)
    ending = f'{model.num_classes} classes' if whole else f'no whole {found.kind.title}'
    return f'{called(model.arch)}, {ending}'


def _not_whole(tensors: Mapping[str, Any], found: Parts) -> UserError:
    """What it is that is no whole network, and how to convert it."""
    shapes = _shapes(tensors, found.names(BACKBONE))
    model = recognise(shapes, BACKBONE)
    near = '' if fills(shapes, model) else 'nearest to '
    arch = f'{near}HRNet {called(model.arch)}'
    what = 'trunk alone' if found.trunk is BACKBONE else found.trunk.title
    remedy = f'--backbone (in Python backbone=True) takes the {what}'
    if found.another:
        return UserError(f'this is {found.another} on {arch}, and not converted whole; {remedy}')
    return UserError(
        f'this is {arch}, but no whole {found.kind.title}: it has tensors of {found.text()}, and '
        f'no {", no ".join(found.lacking)}; {remedy}'
    )


def _shapes(tensors: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Of canonical keys; without counters."""
    return {k: tuple(tensors[v].shape) for k, v in names.items() if not k.endswith(COUNTER)}
