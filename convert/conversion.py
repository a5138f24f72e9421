"""From PyTorch tensors to Flax variables and back: strict, exact, no PyTorch needed."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from convert import readers
from convert.layouts import LAYOUTS, canonical_key, flax_path
from convert.networks import Network, find
from convert.recognise import (
    TRUNK,
    WIDENED,
    Model,
    Parts,
    called,
    canonical,
    fills,
    flat_shapes,
    outputs,
    parts,
    recognise,
)
from hrnet_jax.archs import ARCHS, Arch, get_arch
from hrnet_jax.backbone import HRNet
from hrnet_jax.errors import UserError, listed
from hrnet_jax.models import create_model, flat
from hrnet_jax.runtime.cli import progress

Variables = dict[str, Any]
_SHOWN = 20  # names of a kind in an error message
_BESIDE = 6  # names in a note
_COUNTER = '.num_batches_tracked'
# Biases before BatchNorm, and counters: a file has all of a kind, or none.
_ALONE = 'missing beside others of their kind'
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a PyTorch checkpoint turned out to hold.

    Attributes:
        model: what the variables are of: a classifier or a backbone; its architecture is named
            'custom' if it is none of the table's.
        variables: {'params': ..., 'batch_stats': ...}, float32 NumPy arrays.
        layout: name of the layout; `head_bias` says whether the file had the head's biases.
        widened: whether the file has the widening layers of a classifier.
        network: which tensors of the file these are; `weights`: 'ema' or 'raw', see `from_torch`.
        notes: one-line remarks for the user.
    """

    model: Model
    variables: Variables
    layout: str
    head_bias: bool
    widened: bool
    notes: tuple[str, ...]
    network: Network
    weights: str | None = None

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


def from_torch(
    source: str | os.PathLike | Mapping[str, Any],
    arch: str | None = None,
    *,
    weights: str | None = None,
    prefix: str | None = None,
    backbone: bool | None = False,
) -> tuple[str | Arch, Variables]:
    """Converts a checkpoint file (or `hf:OWNER/REPO`), or a state dict in memory.

    Args:
        source: a path, or a mapping of names to PyTorch tensors or NumPy arrays, wrapped or not.
        arch: refused unless the file holds this architecture.
        weights: 'ema' or 'raw': of a file with averaged weights beside those of the last step; by
            default the averaged ones.
        prefix: what the names of the network begin with, where a file holds several networks.
        backbone: take the trunk alone, whatever lies around it; None: where there is no whole
            classifier.

    Returns:
        The architecture's name (an `Arch` if its widths are not in the table), and
        {'params': ..., 'batch_stats': ...} of float32 NumPy arrays: of a `Classifier`; with
        `backbone` of an `HRNet`, which has outputs=1 where the file is one of pose.

    Raises:
        UserError: naming everything that is missing, unexpected, misshapen or not finite.
    """
    if isinstance(source, Mapping):
        found: readers.Resolved | readers.Source = readers.resolve(source, weights=weights)
    else:
        found = readers.read(source, weights=weights)
    done = convert(found.tensors, arch, prefix=prefix, weights=weights, backbone=backbone)
    readers.require_weights(weights, found.weights or done.weights)
    return (done.arch.name if done.arch.name in ARCHS else done.arch), done.variables


def to_torch(
    variables: Variables, arch: str | Arch, layout: str = 'timm', *, head_bias: bool | None = None
) -> dict[str, np.ndarray]:
    """The state dict of a classifier or a backbone: name -> float32 array (counters int64).

    Args:
        variables: as `load`, `init` or `from_torch` return them.
        arch: what the variables are of; checked.
        layout: 'official', 'timm' or 'mmpretrain'.
        head_bias: whether to write the (zero) biases before BatchNorm in the head. None: as the
            layout has them. timm's and the official `ssld` models have none.
    """
    if layout not in LAYOUTS:
        raise UserError(f'unknown layout {layout!r}; known: {", ".join(LAYOUTS)}')
    names = LAYOUTS[layout]
    arrays = {path: np.asarray(leaf) for path, leaf in flat(variables).items()}
    backbone = ('params', 'conv1', 'kernel') in arrays
    if backbone:
        arrays = {(path[0], 'backbone', *path[1:]): leaf for path, leaf in arrays.items()}
    kernels = (('backbone', 'conv1'), ('head', 'classifier'))
    images, logits = (arrays.get(('params', *path, 'kernel')) for path in kernels)
    if images is None or (logits is None and not backbone):
        raise UserError('these are not the variables of a classifier or a backbone')
    if logits is None:
        keys = [canonical_key(path, leaf.ndim)[0] for path, leaf in arrays.items()]
        model: Model = HRNet(get_arch(arch), outputs=outputs(keys), in_channels=images.shape[-2])
    else:
        model = create_model(arch, logits.shape[-1], in_channels=images.shape[-2])
    expected = flat_shapes(model)
    _refuse(_differences({p: a.shape for p, a in arrays.items()}, expected), called(model.arch))

    state: dict[str, np.ndarray] = {}
    for path, value in arrays.items():
        key, order = canonical_key(path, value.ndim)
        state[names.from_canonical(key)] = np.ascontiguousarray(
            np.transpose(value.astype(np.float32), order)
        )
        if path[-1] == 'mean':
            state[names.from_canonical(_counter_of(key))] = np.zeros((), np.int64)
            if names.head_bias if head_bias is None else head_bias:
                bias = _bias_before(key)
                if bias:
                    state[names.from_canonical(bias)] = np.zeros(value.shape, np.float32)
    return state


def convert(
    tensors: Mapping[str, Any],
    arch: str | None = None,
    *,
    prefix: str | None = None,
    weights: str | None = None,
    backbone: bool | None = False,
) -> Converted:
    """Converts a flat state dict whose values have `.shape` and `.numpy()`: see `from_torch`."""
    what = functools.partial(_what, tensors)
    network, notes, kind = find(tensors, prefix, weights, what, array)
    found = parts(network)
    backbone = bool(found.lacking) if backbone is None else backbone
    if found.lacking and not backbone:
        raise _not_whole(tensors, found)
    if backbone:
        named, unexpected = found.known[TRUNK], list[str]()
        if left := found.text(trunk=False):
            notes.append(f'took the trunk alone, without the tensors of {left}')
    else:
        named, unexpected = canonical(network)
        if network.beside:
            notes.append(
                f'ignored {len(network.beside)} tensors beside the network, whose names begin with '
                f'{network.prefix}: {listed(network.beside, _BESIDE)}'
            )
    layout = network.layout or LAYOUTS['official']
    if arch is not None:
        get_arch(arch)
    own = {key: name for key, name in named.items() if not key.endswith(_COUNTER)}
    shapes = _shapes(tensors, named)
    model = recognise(shapes, backbone)
    if arch is not None and get_arch(model.arch).name != arch:
        raise UserError(
            f'the file holds {called(model.arch)}, not {arch}; leave --arch out, or give that'
        )
    expected = flat_shapes(model)

    biases = {key: key.removesuffix('0.bias') + '1.running_mean' for key in shapes}
    biases = {k: mean for k, mean in biases.items() if _bias_before(mean) == k}
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
    problems = _differences(got, expected, own, layout.from_canonical)
    means = [key for key in shapes if key.endswith('.running_mean')]
    for of_a_kind in (_bias_before, _counter_of):
        group = {key for key in map(of_a_kind, means) if key}
        if group & named.keys():
            problems[_ALONE] += [layout.from_canonical(k) for k in sorted(group - named.keys())]
    counters = named.keys() - own.keys() - {_counter_of(mean) for mean in means}
    problems['unexpected'] += unexpected + [named[key] for key in sorted(counters)]
    _refuse(problems, f'{"the trunk of " * backbone}{called(model.arch)}')

    kinds = {name: str(tensors[name].dtype).removeprefix('torch.') for name in own.values()}
    if wrong := [f'{name} ({kind})' for name, kind in kinds.items() if kind not in _FLOATS]:
        raise UserError(f'weights must be floating-point numbers, unlike {listed(wrong, _SHOWN)}')

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
            value = np.ascontiguousarray(np.transpose(value, order), np.float32)
        if not np.isfinite(value).all():
            not_finite.append(own[key])
        if path[-1] == 'var' and (value < 0).any():
            negative.append(own[key])
        node = variables
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    if not_finite:
        raise UserError(f'the weights hold NaN or infinity: {listed(not_finite, _SHOWN)}')
    if negative:
        raise UserError(f'a variance cannot be negative: {listed(negative, _SHOWN)}')
    other = sorted(set(kinds.values()) - {'float32'})
    if backbone:
        variables = {collection: tree['backbone'] for collection, tree in variables.items()}
    return Converted(
        model,
        variables,
        layout.name,
        bool(biases),
        WIDENED in found.known,
        (*notes, *[f'stored as {", ".join(other)}; converted to float32'] * bool(other)),
        network,
        kind,
    )


def official_names(network: Network, backbone: bool = False) -> dict[str, str]:
    """Official key -> name in the file, without the counters."""
    spell = LAYOUTS['official'].from_canonical
    named = parts(network).known[TRUNK] if backbone else canonical(network)[0]
    return {spell(key): name for key, name in named.items() if not key.endswith(_COUNTER)}


def array(tensor: Any) -> np.ndarray:
    """The values of a NumPy array, a PyTorch tensor or one of `readers`."""
    if str(getattr(tensor, 'dtype', '')) == 'torch.bfloat16':  # NumPy has no such type
        tensor = tensor.float()
    tensor = tensor.detach().cpu() if hasattr(tensor, 'detach') else tensor
    return np.asarray(tensor.numpy() if hasattr(tensor, 'numpy') else tensor)


def _what(tensors: Mapping[str, Any], network: Network) -> str:
    """Architecture and classes of a network, for messages."""
    found = parts(network)
    shapes = _shapes(tensors, found.known[TRUNK] if found.lacking else canonical(network)[0])
    model = recognise(shapes, bool(found.lacking))
    ending = 'no whole classifier' if found.lacking else f'{model.num_classes} classes'
    return f'{called(model.arch)}, {ending}'


def _not_whole(tensors: Mapping[str, Any], found: Parts) -> UserError:
    """What it is that is no whole classifier, and how to convert it."""
    shapes = _shapes(tensors, found.known[TRUNK])
    model = recognise(shapes, backbone=True)
    near = '' if fills(shapes, model) else 'nearest to '
    return UserError(
        f'this is {near}HRNet {called(model.arch)}, but no whole classifier: it has tensors of '
        f'{found.text()}, and no {", no ".join(found.lacking)}; --backbone (in Python '
        'backbone=True) takes the trunk alone'
    )


def _shapes(tensors: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Of canonical keys; without counters."""
    return {k: tuple(tensors[v].shape) for k, v in names.items() if not k.endswith(_COUNTER)}


def _bias_before(mean: str) -> str | None:
    """The head's convolution bias that the BatchNorm with this running mean takes away."""
    if re.fullmatch(r'head\.(downsamp_modules\.\d+|final_layer)\.1\.running_mean', mean):
        return mean.removesuffix('1.running_mean') + '0.bias'
    return None


def _counter_of(mean: str) -> str:
    """The counter of the BatchNorm with this running mean."""
    return mean.removesuffix('.running_mean') + _COUNTER


def _differences(
    got: Mapping,
    expected: Mapping,
    own: Mapping[str, str] | None = None,
    spell: Callable[[str], str] = LAYOUTS['official'].from_canonical,
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
        _ALONE: [],
        'misshapen': [
            f'{name(p, s)}: {sizes(p, s)} instead of {sizes(p, expected[p])}'
            for p, s in got.items()
            if s != expected.get(p, s)
        ],
    }


def _refuse(problems: Mapping[str, list[str]], called: str) -> None:
    """Raises UserError with all the differences, if there are any."""
    if any(problems.values()):
        found = (
            f'{len(names)} {kind} ({listed(names, _SHOWN)})'
            for kind, names in problems.items()
            if names
        )
        raise UserError(f'compared with {called}, the nearest architecture: {"; ".join(found)}')
