"""Exact evaluation: integer counts over every image, on any number of devices and hosts."""

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

from hrnet_jax.data.preprocess import Transform, normalize
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.inference.folding import apply, compiler_options
from hrnet_jax.models import Variables
from hrnet_jax.runtime import distributed

TOP = 5
AHEAD = 2  # steps: devices stay busy, images do not fill their memory, and Ctrl-C is answered soon
Counts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Result:
    """Integer counts over a set, summed over all hosts.

    Attributes:
        num_examples: images counted; for several labels an image, those that have one.
        top1_correct, top5_correct: how many had a label of theirs among the first 1 and 5.
        seen: images that went through the network, counted or not.
        not_finite: images with NaN or infinity among their logits; `evaluate` refuses them.
    """

    num_examples: int
    top1_correct: int
    top5_correct: int
    seen: int
    not_finite: int = 0

    def check(self, total: int) -> None:
        """Raises RuntimeError unless `total` images went through the network."""
        if self.seen != total:
            raise RuntimeError(f'counted {self.seen} of {total} images')

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.top1_correct / max(self.num_examples, 1)

    @property
    def top5(self) -> float:
        """Percent."""
        return 100 * self.top5_correct / max(self.num_examples, 1)


class NotFinite(UserError):
    """The weights give no numbers."""


def data_mesh() -> Mesh:
    """All devices of all hosts along one axis, 'data', those of a host side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))


def count_correct(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> Counts:
    """Counts of one batch.

    Args:
        logits: (N, classes).
        labels: (N,) or (N, L) class indices; -1 for none. An image without a label is not counted.
        mask: (N,) False for padding.

    Returns:
        int32 scalars `num_examples`, `top1_correct`, `top5_correct` and `seen`.
    """
    labels = labels.reshape((labels.shape[0], -1))
    top = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))[1]
    hit = jnp.any(top[:, :, None] == labels[:, None, :], -1)
    counted = mask & jnp.any(labels >= 0, -1)
    return {
        'num_examples': jnp.sum(counted, dtype=jnp.int32),
        'top1_correct': jnp.sum(hit[:, 0] & counted, dtype=jnp.int32),
        'top5_correct': jnp.sum(jnp.any(hit, -1) & counted, dtype=jnp.int32),
        'seen': jnp.sum(mask, dtype=jnp.int32),
    }


def make_eval_step(
    model: Classifier, transform: Transform, mesh: Mesh, classes: np.ndarray | None = None
) -> Callable[[Variables, Counts, Counts], Counts]:
    """The compiled step (variables, totals, batch) -> totals.

    Args:
        transform: its mean and standard deviation; the images come resized and cropped.
        mesh: with an axis 'data', over which batches are split; variables are on every device.
        classes: the class indices that compete; None for all.

    A batch is {'image': uint8 (N, H, W, 3), 'label': int32 (N,) or (N, L), 'mask': bool (N,)}.
    """
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
    allowed = np.ones(model.num_classes, bool)
    if classes is not None:
        allowed = np.isin(np.arange(model.num_classes), classes)

    def step(variables: Variables, totals: Counts, batch: Counts) -> Counts:
        images = normalize(batch['image'], transform, model.dtype)
        logits = apply(model, variables, images, in_pieces=mesh.size == 1)
        finite = jnp.all(jnp.isfinite(logits), -1)
        logits = jnp.where(jnp.asarray(allowed)[None], logits, -jnp.inf)
        counts = count_correct(logits, batch['label'], batch['mask'])
        counts['not_finite'] = jnp.sum(batch['mask'] & ~finite, dtype=jnp.int32)
        return jax.tree.map(jnp.add, totals, counts)

    return jax.jit(
        step,
        in_shardings=(whole, whole, split),
        out_shardings=whole,
        compiler_options=compiler_options(model),
    )


def evaluate(
    model: Classifier,
    variables: Variables,
    batches: Iterable[dict[str, np.ndarray]],
    transform: Transform,
    *,
    classes: np.ndarray | None = None,
    mesh: Mesh | None = None,
    step: Callable[[Variables, Counts, Counts], Counts] | None = None,
) -> Result:
    """Counts over all batches of all hosts.

    Args:
        batches: this host's part: NumPy batches as of `make_eval_step`, equally many on every host.
        classes: see `make_eval_step`.
        mesh: see `make_eval_step`; by default all devices.
        step: what `make_eval_step` made of the same arguments, to compile it once for many calls.

    Raises:
        NotFinite: if logits are not finite.
        UserError: on every host, if the batches of one raise it.
    """
    mesh = mesh or data_mesh()
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P('data'))
    step = step or make_eval_step(model, transform, mesh, classes)
    variables = jax.device_put(variables, whole)
    names = [field.name for field in dataclasses.fields(Result)]
    totals = jax.device_put(dict.fromkeys(names, np.int32(0)), whole)
    fed = 0
    running: collections.deque[Counts] = collections.deque()
    for batch in _agreed(batches):
        fed += int(batch['mask'].sum())
        arrays = {
            k: jax.make_array_from_process_local_data(split, batch[k])
            for k in ('image', 'label', 'mask')
        }
        totals = step(variables, totals, arrays)
        running.append(totals)
        if len(running) > AHEAD:
            jax.block_until_ready(running.popleft())
    result = Result(**{name: int(value) for name, value in totals.items()})
    if jax.process_count() == 1:
        result.check(fed)
    if result.not_finite:
        raise NotFinite(
            f'the logits of {result.not_finite} of {result.seen} images are not finite: '
            'the weights are damaged, or the computation overflows'
        )
    return result


def _agreed(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """The batches; all hosts stop when those of one fail, where the others would wait for it."""
    iterator, ended = iter(batches), False
    while not ended:
        with distributed.fail_together():
            batch = next(iterator, None)
        if batch is not None:
            yield batch
        ended = batch is None
