"""Faster R-CNN in training: which boxes are objects, which are drawn, and how wrong it is; traced.

Ren et al., NeurIPS 2015, as mmdetection has it, but for crowds, which are no background here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hrnet_jax.heads import boxes as box_math
from hrnet_jax.heads import detections
from hrnet_jax.heads.detection import STRIDES
from hrnet_jax.tasks.marked import Array, Maps, Marked, counted, joined, marked_of, shapes_of

Stage = tuple[float, float, float | None, int, float]
# IoU from which on a box is an object, below which it is none, and that the best box of an object
# needs; how many are drawn, and which part of them are objects at most.
FIRST: Stage = (0.7, 0.3, 0.3, 256, 0.5)
SECOND: Stage = (0.5, 0.5, None, 512, 0.25)
_BEFORE = 2000  # boxes of a level that go into suppression
_CROWDED = 0.5  # part of a box that lies in a crowd


def answers(
    maps: Maps, classify: Callable[..., Any], batch: Mapping[str, Array], key: Array
) -> dict[str, Any]:
    """What `faster_rcnn_loss` compares: the maps of the first stage, what was drawn by the key, and
    what the second stage says of that.

    Args:
        maps: of the detector.
        classify: (pyramid, boxes) -> logits and deltas.
        batch: see `marked`.
    """
    first, second = jax.random.split(key)
    fixed = jax.lax.stop_gradient({name: maps[name] for name in ('objectness', 'deltas')})
    sizes = batch['image_hw']
    proposed = detections.proposals(fixed, STRIDES['faster_rcnn'], sizes, _BEFORE)
    marked = marked_of(batch, proposed['boxes'].dtype)
    count = len(sizes), marked['boxes'].shape[1] + proposed['boxes'].shape[1]
    drawn = regions(proposed, marked, jax.random.uniform(second, count))
    logits, deltas = classify(maps['pyramid'], drawn['boxes'])
    anchors = sum(x[0].size for x in maps['objectness'])
    noise = jax.random.uniform(first, (len(sizes), anchors))
    return {'maps': maps, 'noise': noise, 'drawn': drawn, 'logits': logits, 'deltas': deltas}


def faster_rcnn_loss(found: Mapping[str, Any], batch: Mapping[str, Array]) -> Array:
    """(N,), whose mean over the images that count is the loss of both stages.

    Args:
        found: of `answers`.
        batch: see `place_losses.fcos_loss`.
    """
    marked = marked_of(batch, found['deltas'].dtype)
    first = first_loss(
        found['maps'], STRIDES['faster_rcnn'], marked, found['noise'], batch['weight']
    )
    return first + second_loss(found['logits'], found['deltas'], found['drawn'], batch['weight'])


def matched(boxes: Array, there: Array, marked: Marked, kind: Stage) -> tuple[Array, Array, Array]:
    """Which boxes of one image are objects.

    A box is of the object that it overlaps most, if by enough; so are the boxes that overlap an
    object most of all, if `kind` wants them. What lies in a crowd and is no object is left out.

    Args:
        boxes: (A, 4); there: bool (A,), which of them count.
        marked: of the image.
        kind: `FIRST` or `SECOND`.

    Returns:
        int32 (A,), the row of the object; bool (A,), is one; bool (A,), is none.
    """
    from_on, below, least, *_ = kind
    objects = marked['valid'] & ~marked['crowd']
    overlap = box_math.iou(boxes[:, None], marked['boxes'][None])
    overlap = jnp.where(objects[None] & there[:, None], overlap, -1)
    row, most = jnp.argmax(overlap, 1).astype(jnp.int32), jnp.max(overlap, 1)
    positive = most >= from_on
    negative = there & (most < below)
    if least is not None:
        best = jnp.max(overlap, 0)
        equal = 1 - 4 * jnp.finfo(overlap.dtype).eps  # a program may compute it more than once
        of_best = (overlap >= equal * best[None]) & (best >= least)[None]
        chosen = jnp.any(of_best, 1)
        # Of several objects the last, as in mmdetection.
        last = overlap.shape[1] - 1 - jnp.argmax(of_best[:, ::-1], 1).astype(jnp.int32)
        row = jnp.where(chosen, last, row)
        positive, negative = positive | chosen, negative & ~chosen
    crowds = marked['valid'] & marked['crowd']
    part = _part_inside(boxes, marked['boxes'])
    crowded = jnp.any((part > _CROWDED) & crowds[None], 1)
    return row, positive, negative & ~crowded


def _part_inside(boxes: Array, others: Array) -> Array:
    """(A, G): how much of each of the boxes lies in each of the others."""
    a, b = boxes[:, None], others[None]
    size = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    whole = box_math.area(a)
    return jnp.prod(jnp.maximum(size, 0), -1) / jnp.where(whole > 0, whole, 1)


def drawn(
    positive: Array, negative: Array, noise: Array, count: int, share: float
) -> tuple[Array, Array]:
    """`count` of the boxes by chance, at most the part `share` of them positive: those of each kind
    with the least noise (A,). Which positive ones, which negative ones: bool (A,)."""

    def least(these: Array, number: Array | int, most: int) -> Array:
        """As many of these as `number`, which is at most `most`."""
        values = jnp.where(these, noise, jnp.inf)
        order = -jax.lax.top_k(-values, min(most, len(values)))[0]
        border = order[jnp.clip(jnp.asarray(number) - 1, 0, len(order) - 1)]
        return these & (values <= border) & (jnp.asarray(number) > 0)

    objects = least(positive, int(count * share), int(count * share))
    left = count - jnp.sum(objects, dtype=jnp.int32)
    return objects, least(negative, left, count)


def number_of(objects: Array, others: Array) -> Array:
    """By how many boxes a loss is divided: as in mmdetection at least one of each kind an image."""
    return jnp.maximum(jnp.sum(objects, -1), 1) + jnp.maximum(jnp.sum(others, -1), 1)


def there_anchors(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], sizes: Array
) -> tuple[np.ndarray, Array]:
    """The anchors (A, 4) of all levels, and which of them are within images of `sizes` (N, 2), when
    these are padded to multiples of 32: bool (N, A)."""
    parts, inside = [], []
    padded = -(-sizes // 32) * 32
    for (height, width), stride in zip(shapes, strides, strict=True):
        parts.append(box_math.anchors(height, width, stride))
        filled = -(-padded // stride)
        rows = jnp.arange(height)[None, :, None] < filled[:, 0, None, None]
        columns = jnp.arange(width)[None, None] < filled[:, 1, None, None]
        each = (rows & columns).reshape((len(sizes), -1, 1))
        each = jnp.broadcast_to(each, (*each.shape[:2], len(box_math.RATIOS)))
        inside.append(each.reshape((len(sizes), -1)))
    return np.concatenate(parts), jnp.concatenate(inside, 1)


def first_loss(
    maps: Maps,
    strides: Sequence[int],
    marked: Marked,
    noise: Array,
    weight: Array,
) -> Array:
    """(N,), whose mean over the images that count is the loss of the network that proposes: the
    binary cross-entropy of the anchors drawn, and L1 of the deltas of those that are objects, by
    the number drawn.

    Args:
        noise: (N, A), in 0 to 1, which decides what is drawn.
        weight: see `fcos_loss`.
    """
    objectness, deltas = joined(maps['objectness'], 1)[..., 0], joined(maps['deltas'], 4)
    anchors, there = there_anchors(shapes_of(maps['objectness']), strides, marked['image_hw'])
    base = jnp.asarray(anchors, deltas.dtype)

    def one(there: Array, marked: Marked, noise: Array) -> tuple[Array, Array, Array]:
        row, positive, negative = matched(base, there, marked, FIRST)
        objects, others = drawn(positive, negative, noise, *FIRST[3:])
        wanted = box_math.encode(base, _own(marked['boxes'], row, objects, base))
        return objects, others, wanted

    objects, others, wanted = jax.vmap(one)(there, marked, noise)
    entropy = optax.sigmoid_binary_cross_entropy(objectness, objects.astype(objectness.dtype))
    entropy = jnp.where(objects | others, entropy, 0)
    apart = jnp.where(objects[..., None], jnp.abs(deltas - wanted), 0)
    each = jnp.sum(entropy, 1) + jnp.sum(apart, (1, 2))
    number = jnp.where(weight > 0, number_of(objects, others), 0).astype(each.dtype)
    return each / jnp.maximum(jnp.sum(number), 1) * counted(weight)


def _own(boxes: Array, row: Array, objects: Array, instead: Array) -> Array:
    """The object of each box; in the place of none the box itself, whose deltas are 0."""
    return jnp.where(objects[:, None], boxes[row], instead)


def regions(proposed: Mapping[str, Array], marked: Marked, noise: Array) -> dict[str, Array]:
    """What the second stage is trained with: some of the boxes that are marked or proposed.

    Args:
        proposed: boxes (N, R, 4) and valid (N, R).
        noise: (N, G + R), in 0 to 1, which decides what is drawn.

    Returns:
        boxes: (N, M, 4), M at most 512.
        label: int32 (N, M), -1 of the background.
        deltas: (N, M, 4), by which the head should move them.
        counts: bool (N, M), which of them there are.
    """

    def one(proposed: Array, valid: Array, marked: Marked, noise: Array) -> dict[str, Array]:
        boxes = jnp.concatenate([marked['boxes'], proposed])
        there = jnp.concatenate([marked['valid'] & ~marked['crowd'], valid])
        row, positive, negative = matched(boxes, there, marked, SECOND)
        own_rows = jnp.arange(len(marked['boxes']), dtype=row.dtype)
        row = row.at[: len(own_rows)].set(own_rows)  # also where two are marked with one box
        objects, others = drawn(positive, negative, noise, *SECOND[3:])
        rank = 2 * objects.astype(jnp.int32) + others.astype(jnp.int32)
        place = jax.lax.top_k(rank, min(SECOND[3], len(rank)))[1]
        is_object, own = objects[place], boxes[place]
        wanted = _own(marked['boxes'], row[place], is_object, own)
        empty = ~box_math.real(own)[:, None]  # in the place of a box that is not there
        deltas = box_math.encode(jnp.where(empty, jnp.arange(4, dtype=own.dtype)[None], own),
                                 jnp.where(empty, jnp.arange(4, dtype=own.dtype)[None], wanted),
                                 detections.STDS)  # fmt: skip
        label = jnp.where(is_object, marked['labels'][row[place]], -1)
        return {'boxes': own, 'label': label, 'deltas': deltas, 'counts': (rank > 0)[place]}

    return jax.vmap(one)(proposed['boxes'], proposed['valid'], marked, noise)


def second_loss(logits: Array, deltas: Array, drawn: Mapping[str, Array], weight: Array) -> Array:
    """(N,), whose mean over the images that count is the loss of the second stage: cross-entropy,
    and L1 of the deltas of objects for their class, by the number of `regions`.

    Args:
        logits: (N, M, classes + 1); deltas: (N, M, classes, 4).
        drawn: of `regions`.
        weight: see `place_losses.fcos_loss`.
    """
    label, counts = drawn['label'], drawn['counts']
    classes = deltas.shape[-2]
    wanted = jnp.where(label < 0, classes, label)
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
    own = jnp.take_along_axis(deltas, jnp.maximum(label, 0)[..., None, None], 2)[:, :, 0]
    apart = jnp.where((label >= 0)[..., None], jnp.abs(own - drawn['deltas']), 0)
    each = jnp.sum(jnp.where(counts, entropy, 0), 1) + jnp.sum(apart, (1, 2))
    number = jnp.sum(counts & (weight > 0)[:, None], dtype=each.dtype)
    return each / jnp.maximum(number, 1) * counted(weight)
