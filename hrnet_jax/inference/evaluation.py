"""Exact evaluation: sums over every example, on any number of devices and hosts."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError
from hrnet_jax.inference.folding import compiler_options
from hrnet_jax.inference.forward import Forward
from hrnet_jax.models import Variables
from hrnet_jax.runtime import distributed
from hrnet_jax.tasks.base import Batch, Metric, Result, Totals

AHEAD = 2  # steps: devices stay busy, images do not fill their memory, and Ctrl-C is answered soon


class NotFinite(UserError):
    """The weights give no numbers."""


def data_mesh() -> Mesh:
    """All devices of all hosts along one axis, 'data', those of a host side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def make_eval_step(
    model: Any, transform: Protocol, mesh: Mesh, metric: Metric
) -> Callable[[Variables, Batch], Totals]:
    """The compiled step (variables, batch) -> the sums of the batch, over all devices.

    Args:
        transform: normalises the images, which come prepared, and asks the network.
        mesh: with an axis 'data', over which batches are split; variables are on every device.
        metric: what is summed; beside it num_examples, seen and not_finite.

    A batch has image, uint8 (N, H, W, 3), the fields of the data set, mask, bool (N,), and index,
    int32 (N,), where the metric keeps examples.
    """
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))

    def step(variables: Variables, batch: Batch) -> Totals:
        forward = Forward(model, variables, transform, in_pieces=mesh.size == 1)
        outputs = transform.outputs(forward, batch)
        mask = batch['mask']
        finite = jax.tree.map(
            lambda x: jnp.all(jnp.isfinite(x), tuple(range(1, x.ndim))), jax.tree.leaves(outputs)
        )
        bad = mask & ~jnp.all(jnp.stack(finite), 0)
        seen = jnp.sum(mask, dtype=jnp.int32)
        sums = {'num_examples': seen, **metric.update(outputs, batch)}
        if 'unreadable' in batch:
            sums['unreadable'] = jnp.sum(batch['unreadable'], dtype=jnp.int32)
        if 'examples' in sums:
            sums['examples'] = {**sums['examples'], 'index': batch['index']}
        not_finite = jnp.sum(bad, dtype=jnp.int32)
        return {**sums, 'seen': seen, 'not_finite': not_finite}

    return jax.jit(
        step,
        in_shardings=(whole, split),
        out_shardings=whole,
        compiler_options=compiler_options(model),
    )


def evaluate(
    model: Any,
    variables: Variables,
    batches: Iterable[Batch],
    transform: Protocol,
    metric: Metric,
    *,
    mesh: Mesh | None = None,
    step: Callable[[Variables, Batch], Totals] | None = None,
) -> Result:
    """Sums over all batches of all hosts.

    Args:
        batches: this host's part: NumPy batches as of `make_eval_step`, equally many on every host.
        metric: of the task: `hrnet_jax.tasks.get_task('classification').metric(model)`.
        mesh: see `make_eval_step`; by default all devices.
        step: what `make_eval_step` made of the same arguments, to compile it once for many calls.

    Raises:
        NotFinite: if the outputs are not finite.
        UserError: on every host, if the batches of one raise it.
    """
    mesh = mesh or data_mesh()
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
    step = step or make_eval_step(model, transform, mesh, metric)
    variables = jax.device_put(variables, whole)
    sums, fed = _Sums(metric.collect), 0
    running: collections.deque[Totals] = collections.deque()
    for batch in _agreed(batches):
        fed += int(batch['mask'].sum())
        arrays = {k: jax.make_array_from_process_local_data(split, v) for k, v in batch.items()}
        running.append(step(variables, arrays))
        if len(running) > AHEAD:
            sums.add(running.popleft())
    while running:
        sums.add(running.popleft())
    result = None
    with distributed.fail_together():
        if distributed.is_main():
            unreadable = int(sums.totals.pop('unreadable', 0))
            result = metric.result(sums.totals, sums.whole())
            result = dataclasses.replace(result, unreadable=unreadable)
    result = distributed.broadcast_object(result)
    if jax.process_count() == 1 and result.seen != fed:
        raise RuntimeError(f'counted {result.seen} of {fed} images')
    if result.not_finite:
        raise NotFinite(
            f'the outputs for {result.not_finite} of {result.seen} images are not finite: '
            'the weights are damaged, or the computation overflows'
        )
    return result


class _Sums:
    """Totals of all steps, int64 or float64; on process 0 the examples, too."""

    def __init__(self, collect: Callable[[dict[str, np.ndarray]], None]) -> None:
        self.collect = collect
        self.totals: dict[str, Any] = dict.fromkeys(('num_examples', 'seen', 'not_finite'), 0)
        self.examples: list[dict[str, np.ndarray]] = []

    def add(self, step: Totals) -> None:
        examples, collected = step.pop('examples', None), step.pop('collected', None)
        if collected is not None:
            with distributed.fail_together():
                if distributed.is_main():
                    self.collect(jax.device_get(collected))
        for name, value in jax.device_get(step).items():
            wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
            self.totals[name] = self.totals.get(name, 0) + np.asarray(value, wide)
        if examples is not None and distributed.is_main():
            self.examples.append(jax.device_get(examples))

    def whole(self) -> dict[str, np.ndarray]:
        """The examples in the order of the set, without padding, each once."""
        if not self.examples:
            return {}
        names = self.examples[0]
        joined = {name: np.concatenate([part[name] for part in self.examples]) for name in names}
        index = joined.pop('index')
        order = np.argsort(index, kind='stable')
        order = order[index[order] >= 0]
        return {name: values[order] for name, values in joined.items()}


def _agreed(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches; all hosts stop when those of one fail, where the others would wait for it."""
    iterator, ended = iter(batches), False
    while not ended:
        with distributed.fail_together():
            batch = next(iterator, None)
        if batch is not None:
            yield batch
        ended = batch is None
