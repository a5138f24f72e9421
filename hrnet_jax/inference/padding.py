"""Networks whose branches have channels of zeros, and their variables.

GPUs multiply matrices in pieces of 8 or 16 channels: 18 channels cost them more than 32. A channel
of zeros stays zero through convolution, BatchNorm and ReLU, adds nothing to what follows, and gets
a gradient of zero, so that the function and its gradients stay the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.layers import Blocks
from hrnet_jax.models import variable_shapes


@dataclasses.dataclass(frozen=True)
class Padded(Blocks):
    """Blocks for branches whose channels are rounded up to `channel_multiple`."""

    channel_multiple: int = 1

    def widths(self, channels: Sequence[int]) -> tuple[int, ...]:
        unit = self.channel_multiple
        return tuple(-(-width // unit) * unit for width in channels)


def widened(tree: Any, shapes: Any) -> Any:
    """The arrays with zeros at the end of their axes, up to the shapes of those in `shapes`.

    NumPy arrays stay NumPy arrays.
    """

    def widen(x: Any, wanted: Any) -> Any:
        if np.shape(x) == wanted.shape:
            return x
        pad = np.pad if isinstance(x, np.ndarray) else jnp.pad
        return pad(x, [(0, new - old) for new, old in zip(wanted.shape, np.shape(x), strict=True)])

    return jax.tree.map(widen, tree, shapes)


def cut(tree: Any, shapes: Any) -> Any:
    """The opposite of `widened`: the first elements of each axis."""
    return jax.tree.map(lambda x, wanted: x[tuple(map(slice, wanted.shape))], tree, shapes)


def computed_wide(
    model: Any, multiple: int
) -> tuple[Any, Callable[[Any], Any], Callable[[Any], Any]]:
    """The model with its branches' channels rounded up to `multiple`; variables -> the wide
    model's; the wide model's batch_stats -> the model's."""
    if multiple == 1:
        return model, lambda variables: variables, lambda batch_stats: batch_stats
    wide = model.clone(blocks=Padded(multiple))
    shapes, stats = variable_shapes(wide), variable_shapes(model)['batch_stats']
    return wide, lambda variables: widened(variables, shapes), lambda wider: cut(wider, stats)
