"""Average precision of people: rescoring, suppression, and COCO's own counting; distances."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from hrnet_jax.data.boxes import write_json
from hrnet_jax.data.crops import placed
from hrnet_jax.data.measured import Measured
from hrnet_jax.data.people import Truth
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import Array, Batch, Metric, Result, Totals
from hrnet_jax.tasks.similarity import person_score, suppressed

BY_AREA = ('apm', 'apl', 'arm', 'arl')  # of medium and of large people
NAMES = ('ap', 'ap50', 'ap75', 'apm', 'apl', 'ar', 'ar50', 'ar75', 'arm', 'arl')  # COCO's order
PCKH = {'pckh': 0.5, 'pckh10': 0.1}  # parts of the head within which a keypoint is near


@dataclasses.dataclass(frozen=True)
class Precision(Metric):
    """AP and AR by pycocotools, from 0 to 1; -1 where there is no person of that size.

    Attributes:
        truth: of the set.
        predictions: file in which the people are written, as COCO's results.
    """

    truth: Truth
    predictions: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics; of CrowdPose, as its own code, levels of crowds instead of sizes."""
        if not self.truth.crowds:
            return NAMES
        levels = (f'ap_{level}' for level in self.truth.crowds)
        return (*(name for name in NAMES if name not in BY_AREA), *levels)

    def metrics(
        self, people: Sequence[Mapping[str, Any]], images: Set[Any] | None = None
    ) -> dict[str, float]:
        """`names` -> values; see `precision` for the arguments."""

        def found(images: Set[Any] | None) -> dict[str, float]:
            return precision(self.truth.content, people, self.truth.sigmas, images)

        values = found(images)
        for level, ids in self.truth.crowds.items():
            values[f'ap_{level}'] = found(ids if images is None else ids & images)['ap']
        return {name: values[name] for name in self.names}

    def update(self, outputs: Any, batch: Batch) -> Totals:
        return {'examples': kept(outputs, batch)}

    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        if not examples['mask'].any():
            raise UserError('no image of a person could be read')
        people = _people(self.truth, examples)
        numbers = np.flatnonzero(examples['mask'])
        whole = len(numbers) == len(self.truth.image_ids)
        images = None if whole else {self.truth.image_ids[i] for i in numbers}
        parts = {
            name: precision(*_part(self.truth, people, *ends), images)
            for name, ends in self.truth.parts.items()
        }
        lines = _lines(parts)
        if self.predictions and not totals['not_finite']:  # else the evaluation is refused
            write_json(self.predictions, people)
            lines.append(f'written: {self.predictions}')
        return Result(
            int(totals['num_examples']),
            int(totals['seen']),
            int(totals['not_finite']),
            self.metrics(people, images),
            details={'parts': parts} if parts else {},
            lines=lines,
        )


def kept(outputs: Any, batch: Batch) -> dict[str, Array]:
    """What must be known of each person, traced; keypoints in parts of the crop."""
    import jax.numpy as jnp

    height, width = batch['image'].shape[1:3]
    size = jnp.array([width, height], outputs['keypoints'].dtype)[None, None]
    found = {'keypoints': outputs['keypoints'] / size, 'scores': outputs['scores']}
    return found | {name: batch[name] for name in ('centre', 'scale', 'mask')}


def in_images(examples: Mapping[str, np.ndarray]) -> np.ndarray:
    """float64 (N, K, 2): the keypoints of `kept` in their images."""
    centre, scale = (examples[name].astype(np.float64)[:, None] for name in ('centre', 'scale'))
    return placed(examples['keypoints'], centre, scale, (1, 1))


def _people(truth: Truth, examples: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """As COCO's results, without those who are too like a better one of their image."""
    keypoints = in_images(examples)
    scores = person_score(truth.boxes[: len(keypoints), 4], examples['scores'])
    areas = np.prod(examples['scale'].astype(np.float64), -1)
    by_image: dict[Any, list[int]] = {}
    for i in np.flatnonzero(examples['mask']):
        by_image.setdefault(truth.image_ids[i], []).append(int(i))
    category = truth.content['categories'][0]['id']
    found = []
    for image, numbers in by_image.items():
        chosen = np.array(numbers)
        same = suppressed(keypoints[chosen], scores[chosen], areas[chosen], truth.sigmas)
        found += [
            {
                'image_id': image,
                'category_id': category,
                'keypoints': np.column_stack([keypoints[i], examples['scores'][i]])
                .ravel()
                .tolist(),
                'score': float(scores[i]),
            }
            for i in chosen[same]
        ]
    return found


def precision(
    content: Mapping[str, Any],
    people: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    images: Set[Any] | None = None,
) -> dict[str, float]:
    """The ten figures of pycocotools.

    Args:
        content: annotations in COCO's form, of one category.
        people: as COCO's results.
        images: ids of those that are evaluated; None: all.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(content))  # pycocotools changes it
        truth.createIndex()
        found = truth.loadRes(json.loads(json.dumps(people)))
        evaluation = COCOeval(truth, found, 'keypoints')
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        if images is not None:
            evaluation.params.imgIds = [x for x in truth.getImgIds() if x in images]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, map(float, evaluation.stats), strict=True))


def _part(truth: Truth, people: Sequence[Any], start: int, stop: int) -> tuple[Any, Any, Any]:
    """The arguments of `precision` for a part of the keypoints."""

    def cut(person: Mapping[str, Any]) -> dict[str, Any]:
        points = person['keypoints'][3 * start : 3 * stop]
        count = {'num_keypoints': sum(x > 0 for x in points[2::3])}
        return {**person, 'keypoints': points} | (count if 'num_keypoints' in person else {})

    annotations = list(map(cut, truth.content['annotations']))
    content = {**truth.content, 'annotations': annotations}
    return content, list(map(cut, people)), truth.sigmas[start:stop]


def _lines(parts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A table of the parts."""
    if not parts:
        return []
    rows = [f'{name:14}{found["ap"]:>12.3f}{found["ar"]:>12.3f}' for name, found in parts.items()]
    return ['', f'{"":14}{"AP":>12}{"AR":>12}', *rows]


@dataclasses.dataclass(frozen=True)
class Distances(Metric):
    """Of keypoints from where they are marked, in parts of the size of a head or of a face.

    Attributes:
        truth: of the set.

    Raises:
        UserError: if it has no sizes.
    """

    truth: Measured

    def __post_init__(self) -> None:
        if not self.truth.sizes.all():
            raise UserError('nobody has published the sizes of the heads in this split')

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics."""
        return tuple(PCKH) if self.truth.heads else ('nme',)

    def update(self, outputs: Any, batch: Batch) -> Totals:
        return {'examples': kept(outputs, batch)}

    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        """PCKh at 0.5 and 0.1, from 0 to 1; or the mean of the distances, in percent."""
        found, truth = in_images(examples), self.truth
        marked, sizes = truth.keypoints[: len(found)], truth.sizes[: len(found)]
        counts = (marked[..., 2] > 0) & examples['mask'][:, None]
        parts = np.linalg.norm(found - marked[..., :2], axis=-1) / sizes[:, None]
        parts = parts[:, truth.counted][counts[:, truth.counted]]
        if not len(parts):
            raise UserError('no keypoint of the images that were read is marked')
        metrics = {'nme': 100 * float(parts.mean())}
        if truth.heads:
            metrics = {name: float((parts <= at).mean()) for name, at in PCKH.items()}
        return Result(
            int(totals['num_examples']), int(totals['seen']), int(totals['not_finite']), metrics
        )
