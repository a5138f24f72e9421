"""Average precision of boxes: COCO's own counting."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from hrnet_jax.data.boxes import write_json
from hrnet_jax.data.coco_boxes import Truth
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.metric import Batch, Metric, Result, Totals

# In pycocotools' order; ar1 and ar10: of the 1 and 10 best boxes of an image.
NAMES = ('ap', 'ap50', 'ap75', 'aps', 'apm', 'apl', 'ar1', 'ar10', 'ar', 'ars', 'arm', 'arl')
_SHOWN = 30  # classes that are printed


@dataclasses.dataclass(frozen=True)
class BoxPrecision(Metric):
    """AP and AR by pycocotools, from 0 to 1; -1 where there is no box of that size.

    A batch has, beside what the network finds in it,
        image_hw: int32 (N, 2), the size of the resized image.
        full_hw: int32 (N, 2), that of the image itself.

    Attributes:
        truth: of the set.
        class_names: of the classes.
        predictions: file in which the boxes are written, as COCO's results.
    """

    truth: Truth
    class_names: tuple[str, ...]
    predictions: str | None = None

    def update(self, outputs: Any, batch: Batch) -> Totals:
        import jax.numpy as jnp

        dtype = outputs['boxes'].dtype
        factor = batch['image_hw'].astype(dtype) / batch['full_hw'].astype(dtype)
        height, width = factor[:, :1, None], factor[:, 1:, None]
        boxes = outputs['boxes'] / jnp.concatenate([width, height, width, height], -1)
        kept = {name: outputs[name] for name in ('scores', 'labels', 'valid')}
        return {'examples': {'boxes': boxes, **kept, 'mask': batch['mask']}}

    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        if not examples['mask'].any():
            raise UserError('no image could be read')
        found = rows(self.truth, examples)
        numbers = np.flatnonzero(examples['mask'])
        whole = len(numbers) == len(self.truth.image_ids)
        images = None if whole else {self.truth.image_ids[i] for i in numbers}
        metrics, each = precision(self.truth.content, found, images)
        of_class = {
            name: each[identity]
            for name, identity in zip(self.class_names, self.truth.category_ids, strict=True)
            if identity is not None
        }
        lines = _lines(of_class)
        if self.predictions and not totals['not_finite']:  # else the evaluation is refused
            write_json(self.predictions, found)
            lines.append(f'written: {self.predictions}')
        return Result(
            int(totals['num_examples']),
            int(totals['seen']),
            int(totals['not_finite']),
            metrics,
            details={'class_ap': of_class},
            lines=lines,
        )


def rows(truth: Truth, examples: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """As COCO's results, of the images that were read; without classes that the set has not."""
    found = []
    for i in np.flatnonzero(examples['mask']):
        for j in np.flatnonzero(examples['valid'][i]):
            category = truth.category_ids[examples['labels'][i, j]]
            if category is None:
                continue
            x1, y1, x2, y2 = examples['boxes'][i, j].tolist()
            found.append(
                {
                    'image_id': truth.image_ids[i],
                    'category_id': category,
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'score': float(examples['scores'][i, j]),
                }
            )
    return found


def precision(
    content: Mapping[str, Any], found: Sequence[Mapping[str, Any]], images: Set[Any] | None = None
) -> tuple[dict[str, float], dict[Any, float]]:
    """The twelve figures of pycocotools, and the first of each category.

    Args:
        content: annotations in COCO's form.
        found: as COCO's results.
        images: ids of those that are evaluated; None: all.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(content))  # pycocotools changes it
        truth.createIndex()
        answer = COCO()
        answer.dataset = dict(truth.dataset, annotations=[])
        answer.createIndex()
        if found:  # pycocotools takes no empty list
            answer = truth.loadRes(json.loads(json.dumps(found)))
        evaluation = COCOeval(truth, answer, 'bbox')
        if images is not None:
            evaluation.params.imgIds = [x for x in truth.getImgIds() if x in images]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, categories, sizes, numbers of boxes); -1 where there is no box.
    table = evaluation.eval['precision'][:, :, :, 0, -1]
    each = {
        identity: float(np.mean(values)) if (values := table[:, :, k][table[:, :, k] > -1]).size
        else -1.0
        for k, identity in enumerate(evaluation.params.catIds)
    }  # fmt: skip
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True)), each


def _lines(of_class: Mapping[str, float]) -> list[str]:
    """A table of the classes, if they are few."""
    if not 1 < len(of_class) <= _SHOWN:
        return []
    return ['', f'{"":20}{"AP":>8}', *(f'{name:20}{ap:>8.3f}' for name, ap in of_class.items())]
