"""The metric of segmentation: a confusion matrix of pixels, and what follows from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from hrnet_jax.data.views import NOTHING
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import label_maps
from hrnet_jax.tasks.base import Array, Batch, Metric, Result, Totals


@dataclasses.dataclass(frozen=True)
class Confusion(Metric):
    """Counts of pixels by label and prediction: a row for each label.

    Attributes:
        class_names: of the classes.
        labels: folder in which the predicted class ids are written.
        files: for each image the name of the file there, without its ending.
        ids: what is written of each class; empty: its number.
    """

    class_names: tuple[str, ...]
    labels: str | None = None
    files: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()

    def update(self, outputs: Array, batch: Batch) -> Totals:
        import jax.numpy as jnp

        count, label = len(self.class_names), batch['label'].astype(jnp.int32)
        predicted = jnp.argmax(outputs, -1)
        counts = (label != NOTHING) & batch['mask'][:, None, None]
        place = jnp.where(counts, label * count + predicted, count * count).reshape(-1)
        pixels = jnp.zeros(count * count + 1, jnp.int32).at[place].add(1)[:-1]
        totals: Totals = {'confusion': pixels.reshape((count, count))}
        if self.labels:
            kept = {name: batch[name] for name in ('mask', 'index', 'image_hw') if name in batch}
            totals['collected'] = {**kept, 'labels': predicted.astype(jnp.uint8)}
        return totals

    def collect(self, arrays: Mapping[str, np.ndarray]) -> None:
        assert self.labels
        for i in np.flatnonzero(arrays['mask']):
            ids = arrays['labels'][i]
            if 'image_hw' in arrays:
                height, width = arrays['image_hw'][i]
                ids = ids[:height, :width]
            if self.ids:
                ids = np.array(self.ids)[ids]
            label_maps.write(
                os.path.join(self.labels, self.files[arrays['index'][i]] + '.png'), ids
            )

    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        matrix = np.asarray(totals['confusion'], np.int64)
        right, labelled, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        with np.errstate(invalid='ignore', divide='ignore'):
            iou = 100 * right / (labelled + predicted - right)
            accuracy = 100 * right / labelled
        if not labelled.any() and not self.labels:
            raise UserError(
                'no pixel of the data has a label: there is no mean IoU; --labels DIR writes what '
                'the network predicts'
            )
        metrics = {}
        if labelled.any():
            metrics = {
                'miou': float(np.nanmean(iou)),
                'mean_accuracy': float(np.nanmean(accuracy)),
                'pixel_accuracy': float(100 * right.sum() / labelled.sum()),
            }

        def by_class(values: np.ndarray) -> dict[str, float | None]:
            each = zip(self.class_names, values, strict=True)
            return {name: None if np.isnan(x) else float(x) for name, x in each}

        details = {
            'iou': by_class(iou),
            'accuracy': by_class(accuracy),
            'confusion': matrix.tolist(),
        }
        count = int(totals['num_examples'])
        lines = _lines(self.class_names, iou, accuracy)
        if self.labels:
            lines += ['', label_maps.written(count, self.labels)]
        return Result(
            count,
            int(totals['seen']),
            int(totals['not_finite']),
            metrics,
            {},
            details,
            lines=lines,
        )


def _lines(names: Sequence[str], iou: np.ndarray, accuracy: np.ndarray) -> list[str]:
    """A table of the classes."""
    width = max(14, *map(len, names))

    def cell(value: float) -> str:
        return f'{"-" if np.isnan(value) else format(value, ".3f"):>12}'

    rows = zip(names, iou, accuracy, strict=True)
    head = f'{"":{width}}{"IoU":>12}{"accuracy":>12}'
    return ['', head, *(f'{name:{width}}{cell(a)}{cell(b)}' for name, a, b in rows)]
