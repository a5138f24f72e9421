"""From what the heads say to boxes: traced, of fixed shapes, as mmdetection 2 and 3 have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hrnet_jax.heads import boxes as box_math
from hrnet_jax.heads import ordering

Array = jax.Array
BEFORE = 1000  # boxes of a level that go into suppression
STDS = (0.1, 0.1, 0.2, 0.2)  # of the deltas of Faster R-CNN's second stage
_PROPOSAL_IOU = 0.7
Found = tuple[Array, Array, Array]  # boxes (N, M, 4), scores (N, M), labels int32 (N, M)


def of_places(
    maps: Mapping[str, Sequence[Array]],
    strides: Sequence[int],
    sizes: Array,
    threshold: float,
) -> Found:
    """FCOS's boxes: of each level the best pairs of a place and a class."""
    levels = zip(maps['classes'], maps['distances'], maps['centerness'], strides, strict=True)

    def of_level(classes: Array, distances: Array, centerness: Array, stride: int) -> Found:
        _, height, width, count = classes.shape
        there = jnp.asarray(box_math.places(height, width, stride))

        def one(classes: Array, distances: Array, centerness: Array) -> Found:
            scores = jax.nn.sigmoid(classes.reshape(-1))
            scores = jnp.where(scores > threshold, scores, box_math.NONE)
            scores, best = lax.top_k(scores, min(BEFORE, len(scores)))  # of equal ones the first
            place = best // count
            found = box_math.from_distances(there[place], distances.reshape((-1, 4))[place])
            # A product of NONE and a centre-ness of 0 would be no number, which argmax finds first.
            central = scores * jax.nn.sigmoid(centerness.reshape(-1)[place])
            scores = jnp.where(scores > box_math.NONE, central, box_math.NONE)
            return found, scores, best % count

        return jax.vmap(one)(classes, distances, centerness)

    return _joined([of_level(*level) for level in levels], sizes)


def _joined(levels: Sequence[Found], sizes: Array) -> Any:
    found, scores, labels = (jnp.concatenate(parts, 1) for parts in zip(*levels, strict=True))
    found = box_math.clip(found, sizes)
    scores = jnp.where(box_math.real(found), scores, box_math.NONE)
    return found, scores, labels


def proposals(
    maps: Mapping[str, Sequence[Array]],
    strides: Sequence[int],
    sizes: Array,
    before: int = BEFORE,
    most: int = 1000,
) -> dict[str, Array]:
    """Where Faster R-CNN looks for objects, best first.

    Args:
        maps: objectness and deltas; sizes: (N, 2), height and width of the images.
        before: of each level so many go into suppression.
        most: how many there are in the end.

    Returns:
        boxes (N, most, 4); scores (N, most); valid, bool (N, most).
    """
    levels = zip(maps['objectness'], maps['deltas'], strides, strict=True)

    def of_level(objectness: Array, deltas: Array, stride: int) -> tuple[Array, Array]:
        _, height, width, _ = objectness.shape
        base = jnp.asarray(box_math.anchors(height, width, stride), deltas.dtype)

        def one(objectness: Array, deltas: Array, sizes: Array) -> tuple[Array, Array]:
            scores, best = ordering.best(jax.nn.sigmoid(objectness.reshape(-1)), before)
            found = box_math.decode(base[best], deltas.reshape((-1, 4))[best])
            found = box_math.clip(found[None], sizes[None])[0]
            keep = box_math.survivors(found, box_math.real(found), _PROPOSAL_IOU)
            return found, jnp.where(keep, scores, box_math.NONE)

        return jax.vmap(one)(objectness, deltas, sizes)

    found, scores = (
        jnp.concatenate(parts, 1)
        for parts in zip(*(of_level(*level) for level in levels), strict=True)
    )
    count = scores.shape[1]
    if count < most:
        found = jnp.pad(found, ((0, 0), (0, most - count), (0, 0)))
        scores = jnp.pad(scores, ((0, 0), (0, most - count)), constant_values=box_math.NONE)
    scores, best = lax.top_k(scores, most)
    valid = scores > box_math.NONE
    found = jnp.take_along_axis(found, best[..., None], 1)
    return {
        'boxes': jnp.where(valid[..., None], found, 0),
        'scores': jnp.where(valid, scores, 0),
        'valid': valid,
    }


def of_regions(
    proposed: Mapping[str, Array],
    logits: Array,
    deltas: Array,
    sizes: Array,
    threshold: float,
) -> Found:
    """Faster R-CNN's boxes: each proposal as an object of each class."""
    n, regions, classes, _ = deltas.shape
    scores = jax.nn.softmax(logits)[..., :-1]
    there = proposed['valid'][..., None] & (scores > threshold)
    found = box_math.decode(proposed['boxes'][:, :, None], deltas, STDS)
    found = box_math.clip(found, sizes).reshape((n, -1, 4))
    labels = jnp.broadcast_to(jnp.arange(classes, dtype=jnp.int32)[None, None], scores.shape)
    scores = jnp.where(there, scores, box_math.NONE)
    return found, scores.reshape((n, -1)), labels.reshape((n, -1))


def best(found: Found, iou: float, most: int) -> dict[str, Array]:
    """The `most` best that suppression of each class leaves: see `Detector.detect`."""

    def one(boxes: Array, scores: Array, labels: Array) -> dict[str, Array]:
        chosen, valid = box_math.suppress(boxes, scores, labels, iou, most)
        return {
            'boxes': jnp.where(valid[:, None], boxes[chosen], 0),
            'scores': jnp.where(valid, scores[chosen], 0),
            'labels': jnp.where(valid, labels[chosen], 0),
            'valid': valid,
        }

    return jax.vmap(one)(*found)
