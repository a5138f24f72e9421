"""From PyTorch tensors to Flax variables and back: strict, exact, no PyTorch needed."""

from __future__ import annotations

import contextlib
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
from hrnet_jax.archs import ARCHS, Arch, get_arch
from hrnet_jax.errors import UserError, listed
from hrnet_jax.heads.classification import ClassifierArch, classifier_arch
from hrnet_jax.models import create_model, flat, variable_shapes
from hrnet_jax.runtime.cli import progress

Variables = dict[str, Any]
_SHOWN = 20  # names of a kind in an error message
_COUNTER = '.num_batches_tracked'
# Biases before BatchNorm, and counters: a file has all of a kind, or none.
_ALONE = 'missing beside others of their kind'
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


@dataclasses.dataclass(frozen=True)
class Converted:
    """What a PyTorch checkpoint turned out to hold.

    Attributes:
        arch: the architecture; named 'custom' if it is none of the table's.
        variables: {'params': ..., 'batch_stats': ...}, float32 NumPy arrays.
        layout: name of the layout; `head_bias` says whether the file had the head's biases.
        network: which tensors of the file these are; `weights`: 'ema' or 'raw', see `from_torch`.
        notes: one-line remarks for the user.
    """

    arch: Arch
    num_classes: int
    in_channels: int
    variables: Variables
    layout: str
    head_bias: bool
    notes: tuple[str, ...]
    network: Network
    weights: str | None = None


def from_torch(
    source: str | os.PathLike | Mapping[str, Any],
    arch: str | None = None,
    *,
    weights: str | None = None,
    prefix: str | None = None,
) -> tuple[str | Arch, Variables]:
    """Converts a checkpoint file (or `hf:OWNER/REPO`), or a state dict in memory.

    Args:
        source: a path, or a mapping of names to PyTorch tensors or NumPy arrays, wrapped or not.
        arch: refused unless the file holds this architecture.
        weights: 'ema' or 'raw': of a file with averaged weights beside those of the last step; by
            default the averaged ones.
        prefix: what the names of the network begin with, where a file holds several networks.

    Returns:
        The architecture's name (an `Arch` if its widths are not in the table), and
        {'params': ..., 'batch_stats': ...} of float32 NumPy arrays.

    Raises:
        UserError: naming everything that is missing, unexpected, misshapen or not finite.
    """
    if isinstance(source, Mapping):
        found: readers.Resolved | readers.Source = readers.resolve(source, weights=weights)
    else:
        found = readers.read(source, weights=weights)
    done = convert(found.tensors, arch, prefix=prefix, weights=weights)
    readers.require_weights(weights, found.weights or done.weights)
    return (done.arch.name if done.arch.name in ARCHS else done.arch), done.variables


def to_torch(
    variables: Variables, arch: str | Arch, layout: str = 'timm', *, head_bias: bool | None = None
) -> dict[str, np.ndarray]:
    """The state dict of a classifier's variables: name -> float32 array (counters int64).

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
    kernels = (('backbone', 'conv1'), ('head', 'classifier'))
    images, logits = (arrays.get(('params', *path, 'kernel')) for path in kernels)
    if images is None or logits is None:
        raise UserError('these are not the variables of a classifier')
    expected = _flat_shapes(get_arch(arch), logits.shape[-1], images.shape[-2])
    _refuse(_differences({p: a.shape for p, a in arrays.items()}, expected), get_arch(arch))

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
) -> Converted:
    """Converts a flat state dict whose values have `.shape` and `.numpy()`: see `from_torch`."""
    network, notes, kind = network_of(tensors, prefix, weights)
    named, unexpected = _canonical(network)
    layout = network.layout or LAYOUTS['official']
    if arch is not None:
        get_arch(arch)
    canonical = {key: name for key, name in named.items() if not key.endswith(_COUNTER)}
    shapes = {key: tuple(tensors[name].shape) for key, name in canonical.items()}
    found, num_classes, in_channels = recognise_arch(shapes)
    if arch is not None and found.name != arch:
        raise UserError(
            f'the file holds {_called(found)}, not {arch}; leave --arch out, or give that'
        )
    expected = _flat_shapes(found, num_classes, in_channels)

    biases = {key: key.removesuffix('0.bias') + '1.running_mean' for key in shapes}
    biases = {k: mean for k, mean in biases.items() if _bias_before(mean) == k}
    paths: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    got: dict[tuple[str, ...], tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if key in biases:
            if shape != shapes.get(biases[key]):
                unexpected.append(canonical[key])
            continue
        rule = flax_path(key, len(shape))
        # `layer1_0` for `layer1.0` would reach the same path: a name must be its own inverse.
        if rule is None or canonical_key(rule[0], len(shape))[0] != key:
            unexpected.append(canonical[key])
        else:
            paths[key] = rule
            got[rule[0]] = tuple(shape[axis] for axis in rule[1])
    problems = _differences(got, expected, canonical, layout.from_canonical)
    means = [key for key in shapes if key.endswith('.running_mean')]
    for of_a_kind in (_bias_before, _counter_of):
        group = {key for key in map(of_a_kind, means) if key}
        if group & named.keys():
            problems[_ALONE] += [layout.from_canonical(k) for k in sorted(group - named.keys())]
    counters = named.keys() - canonical.keys() - {_counter_of(mean) for mean in means}
    problems['unexpected'] += unexpected + [named[key] for key in sorted(counters)]
    _refuse(problems, found)

    kinds = {name: str(tensors[name].dtype).removeprefix('torch.') for name in canonical.values()}
    if wrong := [f'{name} ({kind})' for name, kind in kinds.items() if kind not in _FLOATS]:
        raise UserError(f'weights must be floating-point numbers, unlike {listed(wrong, _SHOWN)}')

    variables: Variables = {}
    not_finite, negative = [], []
    folded = {mean: bias for bias, mean in biases.items()}
    for key, (path, order) in progress(paths.items(), desc='converting', total=len(paths)):
        value = array(tensors[canonical[key]])
        if key in folded:
            # BatchNorm takes a bias before it away again; exact, in one rounding.
            bias = array(tensors[canonical[folded[key]]]).astype(np.float64)
            value = value.astype(np.float64) - bias
        with np.errstate(over='ignore'):
            value = np.ascontiguousarray(np.transpose(value, order), np.float32)
        if not np.isfinite(value).all():
            not_finite.append(canonical[key])
        if path[-1] == 'var' and (value < 0).any():
            negative.append(canonical[key])
        node = variables
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    if not_finite:
        raise UserError(f'the weights hold NaN or infinity: {listed(not_finite, _SHOWN)}')
    if negative:
        raise UserError(f'a variance cannot be negative: {listed(negative, _SHOWN)}')
    other = sorted(set(kinds.values()) - {'float32'})
    return Converted(
        found,
        num_classes,
        in_channels,
        variables,
        layout.name,
        bool(biases),
        (*notes, *[f'stored as {", ".join(other)}; converted to float32'] * bool(other)),
        network,
        kind,
    )


def official_names(network: Network) -> dict[str, str]:
    """Official key -> name in the file, without the counters."""
    spell = LAYOUTS['official'].from_canonical
    named = _canonical(network)[0]
    return {spell(key): name for key, name in named.items() if not key.endswith(_COUNTER)}


def recognise_arch(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Arch, int, int]:
    """(architecture, classes, input channels) from canonical keys and PyTorch shapes.

    The numbers of modules and blocks must be those of the table; the widths may be anyone's.
    Where nothing fits, the nearest architecture is returned, for the error message to compare with.
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
        'head': tuple(out(f'head.incre_modules.{i}.0.conv3.weight') for i in range(4)),
        'features': out('head.final_layer.0.weight'),
    }
    sizes = out('head.classifier.weight') or 1000, out('backbone.conv1.weight', 1) or 3

    def likeness(arch: Arch) -> int:
        return sum(getattr(arch, name) == value for name, value in found.items())

    best = max(map(classifier_arch, ARCHS), key=likeness)
    if likeness(best) == len(found):
        return best, *sizes
    structure = (best.layer1[0], best.modules, best.blocks)
    if structure == (found['layer1'][0], found['modules'], found['blocks']):
        with contextlib.suppress(UserError):  # of widths that make no network
            custom = ClassifierArch('custom', **found)
            rules = {key: flax_path(key, len(shape)) for key, shape in shapes.items()}
            got = {
                rule[0]: tuple(shapes[key][axis] for axis in rule[1])
                for key, rule in rules.items()
                if rule
            }
            expected = _flat_shapes(custom, *sizes)
            if all(got.get(path) == shape for path, shape in expected.items()):
                return custom, *sizes
    return best, *sizes


def array(tensor: Any) -> np.ndarray:
    """The values of a NumPy array, a PyTorch tensor or one of `readers`."""
    if str(getattr(tensor, 'dtype', '')) == 'torch.bfloat16':  # NumPy has no such type
        tensor = tensor.float()
    tensor = tensor.detach().cpu() if hasattr(tensor, 'detach') else tensor
    return np.asarray(tensor.numpy() if hasattr(tensor, 'numpy') else tensor)


def network_of(
    tensors: Mapping[str, Any], prefix: str | None = None, weights: str | None = None
) -> tuple[Network, list[str], str | None]:
    """The classifier of a state dict: see `networks.find`."""
    what = functools.partial(_what, tensors)
    found, notes, kind = find(tensors, prefix, weights, what, array)
    if found.layout is None:
        raise UserError(
            'the file holds an HRNet without a classification head, such as a pose, segmentation '
            f'or detection model; its last tensors are {listed(list(tensors)[-3:], _SHOWN)}'
        )
    return found, notes, kind


def _canonical(network: Network) -> tuple[dict[str, str], list[str]]:
    """Canonical key -> name in the file; names that the layout does not know."""
    canonical, unknown = {}, []
    for key, name in network.names.items():
        known = network.layout.to_canonical(key) if network.layout else None
        if known is None:
            unknown.append(name)
        else:
            canonical[known] = name
    return canonical, unknown


def _what(tensors: Mapping[str, Any], network: Network) -> str:
    """Architecture and classes of a network, for messages."""
    if network.layout is None:
        return 'without a classification head'
    canonical = _canonical(network)[0]
    arch, classes, _ = recognise_arch({k: tuple(tensors[v].shape) for k, v in canonical.items()})
    return f'{_called(arch)}, {classes} classes'


def _bias_before(mean: str) -> str | None:
    """The head's convolution bias that the BatchNorm with this running mean takes away."""
    if re.fullmatch(r'head\.(downsamp_modules\.\d+|final_layer)\.1\.running_mean', mean):
        return mean.removesuffix('1.running_mean') + '0.bias'
    return None


def _counter_of(mean: str) -> str:
    """The counter of the BatchNorm with this running mean."""
    return mean.removesuffix('.running_mean') + _COUNTER


def _flat_shapes(arch: Arch, classes: int, channels: int) -> dict[tuple[str, ...], tuple[int, ...]]:
    shapes = variable_shapes(create_model(arch, classes, in_channels=channels))
    return {path: leaf.shape for path, leaf in flat(shapes).items()}


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


def _refuse(problems: Mapping[str, list[str]], arch: Arch) -> None:
    """Raises UserError with all the differences, if there are any."""
    if any(problems.values()):
        found = (
            f'{len(names)} {kind} ({listed(names, _SHOWN)})'
            for kind, names in problems.items()
            if names
        )
        raise UserError(
            f'compared with {_called(arch)}, the nearest architecture: {"; ".join(found)}'
        )


def _called(arch: Arch) -> str:
    return arch.name if arch.name in ARCHS else f'a custom architecture of widths {arch.channels}'
