"""Any of our Linen modules, with its variables, as a module of Flax NNX; imported on request only.

    from flax import nnx
    from hrnet_jax.nnx import from_linen

    module = from_linen(*hrnet_jax.load('converted/', arch='w18'))
    logits = nnx.jit(lambda module, images: module(images))(module, images)

Every array is an `nnx.Variable` of its own, so that filters reach it: `nnx.PathContains('head')`.
`nnx.jit` looks at each of them in Python at each call; `benchmarks/nnx_call.py` measures that
beside the faster ways.
"""

from __future__ import annotations

from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from hrnet_jax.layers import Array, Configured
from hrnet_jax.models import Variables, fitting


class Network(nnx.Module):
    """A Linen module and its variables; made by `from_linen`.

    Attributes:
        model: the Linen module.
        params: the tree of `variables['params']`, an `nnx.Param` for each array.
        batch_stats: that of `variables['batch_stats']`, of `nnx.BatchStat`; {} of a folded model.
        use_running_average: what `train=None` stands for; set by `nnx.Module.train` and `eval`, and
            by `nnx.view`. True at first.
    """

    def __init__(self, model: nn.Module, variables: Variables):
        self.model = model
        self.use_running_average = True
        self.params = nnx.data(jax.tree.map(nnx.Param, variables['params']))
        self.batch_stats = nnx.data(jax.tree.map(nnx.BatchStat, variables.get('batch_stats', {})))

    def __call__(self, images: Array, train: bool | None = None, method: str = '__call__') -> Any:
        """What the Linen module's method of that name returns: logits, or a backbone's maps.

        Args:
            images: (N, H, W, in_channels), normalised RGB.
            train: statistics of the batch, which also move the running ones in `batch_stats`.
        """
        variables = self.variables()
        if train is None:
            train = not self.use_running_average
        if not train:
            return self.model.apply(variables, images, method=method)
        out, new = self.model.apply(variables, images, True, method=method, mutable=['batch_stats'])
        jax.tree.map(_set, self.batch_stats, new['batch_stats'], is_leaf=_is)
        return out

    def features(self, images: Array, train: bool | None = None) -> tuple[Array, ...]:
        """-> four maps, as `Classifier.features`."""
        return self(images, train, 'features')

    def embed(self, images: Array, train: bool | None = None) -> Array:
        """-> (N, arch.features) pooled features, as `Classifier.embed`."""
        return self(images, train, 'embed')

    def variables(self) -> Variables:
        """The arrays as they are now, for `model.apply`, `hrnet_jax.fold`, `hrnet_jax.predict`."""
        trees = {'params': self.params}
        if self.batch_stats:
            trees['batch_stats'] = self.batch_stats
        return jax.tree.map(lambda variable: variable[...], trees, is_leaf=_is)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """For `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average


def from_linen(model: nn.Module, variables: Variables) -> Network:
    """The NNX module that computes what `model` does, starting from `variables`.

    `FeatureMaps` take a classifier's variables, as everywhere. The arrays are shared, not copied,
    and never changed in place: training replaces them. What is donated to a program is gone from
    `variables`, too.

    Args:
        model: one of ours, folded or not, or a module of your own that is called as ours are.
        variables: {'params': ..., 'batch_stats': ...} of it, of `init`, `load` or training.

    Raises:
        UserError: if the variables are not those of the model.
    """
    known = isinstance(model, Configured)
    variables = fitting(model, variables) if known else flax.core.unfreeze(variables)
    return Network(model, jax.tree.map(jnp.asarray, variables))


def _is(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _set(variable: nnx.Variable, value: Array) -> None:
    if hasattr(variable, 'set_value'):  # later releases; there the other writes into NumPy arrays
        variable.set_value(value)
    else:
        variable[...] = value
