"""Making models and their variables."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.core
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax.archs import Arch
from hrnet_jax.backbone import HRNet, check_own
from hrnet_jax.errors import UserError, listed
from hrnet_jax.heads.classification import Classifier, classifier_arch
from hrnet_jax.heads.features import FeatureMaps
from hrnet_jax.introspection import Path as Path
from hrnet_jax.introspection import Variables as Variables
from hrnet_jax.introspection import last_layers as last_layers
from hrnet_jax.introspection import layers_of as layers_of
from hrnet_jax.introspection import variable_shapes as variable_shapes

_OF_A_BACKBONE = {'conv1', 'conv2', 'layer1_0', 'stage2_0', 'stage3_0', 'stage4_0'}


def create_model(
    arch: str | Arch,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    channels: tuple[int, int, int, int] | None = None,
    head: tuple[int, int, int, int] | None = None,
    features: int | None = None,
    **options: Any,
) -> Classifier:
    """A classifier; variables come from `init` or `load`.

    Args:
        arch: a name of `list_models()` or an `Arch`.
        num_classes: length of the logits.
        in_channels: channels of the images.
        channels: instead of the architecture's four branch widths.
        head: instead of the channels that the head widens the maps to; multiples of 4.
        features: instead of the length of the pooled features.
        **options: dtype, param_dtype, remat, bn_group_size, ...: see `hrnet_jax.HRNet`.

    Raises:
        UserError: for an unknown architecture or sizes that make no network.
    """
    table = classifier_arch(arch)
    arch = dataclasses.replace(
        table,
        channels=table.channels if channels is None else channels,
        head=table.head if head is None else head,
        features=table.features if features is None else features,
    )
    if arch != table:
        arch = dataclasses.replace(arch, name='custom')
    return Classifier(arch, num_classes, in_channels=in_channels, **options)


def flat(tree: Variables) -> dict[Path, Any]:
    """Path -> leaf, in the order of JAX's trees."""
    leaves = jax.tree_util.tree_flatten_with_path(dict(tree))[0]
    return {tuple(str(key.key) for key in path): leaf for path, leaf in leaves}


def check_class_names(names: Sequence[str], num_classes: int) -> None:
    """Raises UserError unless there is a name for each class."""
    if len(names) != num_classes:
        raise UserError(f'{len(names)} class names for {num_classes} classes')


def fitting(model: Any, variables: Variables) -> Variables:
    """What one of our models has of `variables`: `FeatureMaps` take a classifier's.

    Raises:
        UserError: if an array is missing, of another shape, or belongs to another backbone.
    """
    wanted = flatten_dict(variable_shapes(model))
    given = flatten_dict(flax.core.unfreeze(variables))
    wrong = [k for k, leaf in wanted.items() if k not in given or np.shape(given[k]) != leaf.shape]
    head = isinstance(model, FeatureMaps)  # which has a part of it
    wrong += [k for k in given if k not in wanted and not (head and k[1:2] == ('head',))]
    if wrong:
        if isinstance(model, HRNet):
            check_own(variables.get('params', {}))
        names = listed(['/'.join(path) for path in sorted(wrong)])
        raise UserError(f'these variables are not those of the model: they differ at {names}')
    return unflatten_dict({path: given[path] for path in wanted})


def backbones(variables: Variables) -> list[Path]:
    """Where in params the HRNet backbones are: () where the root is one."""
    children: dict[Path, set[str]] = {}
    for path in flatten_dict(variables.get('params', {})):
        for i in range(len(path) - 1):
            children.setdefault(path[:i], set()).add(path[i])
    return [path for path, names in children.items() if names >= _OF_A_BACKBONE]
