"""From Flax variables to PyTorch's tensors: strict, exact, no PyTorch needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.differences import counter_of, differences, refuse
from convert.heads import kind_of
from convert.kinds import Kind, length
from convert.layouts import canonical_key
from convert.recognise import Model, called, flat_shapes
from hrnet_jax.archs import Arch
from hrnet_jax.errors import UserError
from hrnet_jax.models import Variables, flat


def to_torch(
    variables: Variables, arch: str | Arch, layout: str = 'timm', *, head_bias: bool | None = None
) -> dict[str, np.ndarray]:
    """The state dict of a network's variables: name -> float32 array (counters int64).

    Args:
        variables: as `load`, `init` or `from_torch` return them, of a `Classifier`, a `Segmenter`,
            a `PoseNet` or an `HRNet` alone.
        arch: what the variables are of; checked.
        layout: 'official', 'timm' or 'mmpretrain'; of a `Segmenter` 'official' or 'mmseg';
            of a `PoseNet` 'official', 'mmpose' or 'mmpose0' (0.x); of an `HRNet` 'official'.
        head_bias: whether to write the (zero) biases before BatchNorm in the head. None: as the
            layout has them. timm's and the official `ssld` models have none.
    """
    arrays = _arrays(variables)
    kind = _kind_of(arrays)
    names = kind.layout(layout)
    model = model_of(variables, arch)
    expected = flat_shapes(model)
    got = {path: array.shape for path, array in arrays.items()}
    refuse(differences(got, expected, names.from_canonical), called(model.arch))

    state: dict[str, np.ndarray] = {}
    for path, value in arrays.items():
        key, order = canonical_key(path, value.ndim)
        state[names.from_canonical(key)] = np.asarray(
            np.transpose(value, order), np.float32, order='C'
        )
        if path[-1] == 'mean':
            state[names.from_canonical(counter_of(key))] = np.zeros((), np.int64)
            if names.head_bias if head_bias is None else head_bias:
                bias = kind.bias_before(key)
                if bias:
                    state[names.from_canonical(bias)] = np.zeros(value.shape, np.float32)
    return state


def model_of(variables: Variables, arch: str | Arch, **fields: Any) -> Model:
    """The module of a network's variables, such as `from_torch` returns them.

    Args:
        fields: of the module, such as dtype, upsample or align_corners.
    """
    arrays = _arrays(variables)
    shapes = {}
    for path, value in arrays.items():
        key, order = canonical_key(path, value.ndim)
        shapes[key] = tuple(value.shape[axis] for axis in order)
    channels = length(shapes, 'backbone.conv1.weight', 1) or 3
    return _kind_of(arrays).model(arch, shapes, in_channels=channels, **fields)


def _arrays(variables: Variables) -> dict[tuple[str, ...], np.ndarray]:
    """By path; those of an `HRNet` alone are put under the name of the backbone."""
    arrays = {path: np.asarray(leaf) for path, leaf in flat(variables).items()}
    if ('params', 'conv1', 'kernel') not in arrays:
        return arrays
    return {(path[0], 'backbone', *path[1:]): leaf for path, leaf in arrays.items()}


def _kind_of(arrays: Mapping[tuple[str, ...], Any]) -> Kind:
    kind = kind_of(canonical_key(path, np.ndim(leaf))[0] for path, leaf in arrays.items())
    if kind is None:
        raise UserError('these are not the variables of a network that is converted')
    return kind
