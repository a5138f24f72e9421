"""FCOS in training: what it should say at each place, and how wrong it is; traced.

Tian et al., ICCV 2019, as mmdetection has it, without sampling of centres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hrnet_jax.heads import boxes as box_math
from hrnet_jax.heads.detection import STRIDES
from hrnet_jax.tasks.marked import Array, Maps, Marked, counted, joined, marked_of, shapes_of

# The largest distance from a place to an edge of its box, by level.
REACH = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, np.inf))
ALPHA, GAMMA = 0.25, 2  # of the focal loss
_EPSILON = 1e-6  # the least IoU of which the logarithm is taken


def of_places(shapes: Sequence[tuple[int, int]], strides: Sequence[int], marked: Marked) -> Marked:
    """What FCOS should say at each place of all levels, P in number.

    A place is of the smallest box that it is in, whose largest distance is within the level's
    reach.

    Args:
        shapes: height and width of the levels.

    Returns:
        label: int32 (N, P), -1 of what no object is at.
        counts: bool (N, P), False for a place in a crowd where no object is.
        distances: (N, P, 4), to the left, upper, right and lower edge; 1 without an object.
        centerness: (N, P), 0 without an object.
    """
    parts = [box_math.places(*hw, stride) for hw, stride in zip(shapes, strides, strict=True)]
    dtype = marked['boxes'].dtype
    places = jnp.asarray(np.concatenate(parts), dtype)
    reach = jnp.asarray(np.repeat(REACH, [len(part) for part in parts], 0), dtype)

    def one(boxes: Array, labels: Array, valid: Array, crowd: Array) -> Marked:
        edges = jnp.concatenate([places[:, None] - boxes[None, :, :2],
                                 boxes[None, :, 2:] - places[:, None]], -1)  # fmt: skip
        inside = (jnp.min(edges, -1) > 0) & valid[None]
        far = jnp.max(edges, -1)
        near = (far >= reach[:, :1]) & (far <= reach[:, 1:])
        fits = inside & near & ~crowd[None]
        areas = jnp.where(fits, box_math.area(boxes)[None], jnp.inf)
        best = jnp.argmin(areas, -1)
        found = jnp.any(fits, -1)
        own = jnp.take_along_axis(edges, best[:, None, None], 1)[:, 0]
        own = jnp.where(found[:, None], own, jnp.ones_like(own))
        across, down = own[:, 0::2], own[:, 1::2]
        ratio = (jnp.min(across, -1) / jnp.max(across, -1)) * (
            jnp.min(down, -1) / jnp.max(down, -1)
        )
        return {
            'label': jnp.where(found, labels[best], -1),
            'counts': found | ~jnp.any(inside & crowd[None], -1),
            'distances': own,
            'centerness': jnp.where(found, jnp.sqrt(ratio), jnp.zeros_like(ratio)),
        }

    return jax.vmap(one)(*(marked[name] for name in ('boxes', 'labels', 'valid', 'crowd')))


def fcos_loss(maps: Maps, batch: Mapping[str, Array]) -> Array:
    """(N,), whose mean over the images that count is the loss: the focal loss and the binary
    cross-entropy of the centre-ness by the number of places with an object, -log IoU by the sum of
    their centre-nesses.

    Args:
        maps: of the detector.
        batch: see `marked`, and weight (N,), 0 of an image that does not count.
    """
    classes, distances, centerness = (
        joined(maps[name]) for name in ('classes', 'distances', 'centerness')
    )
    marked, weight = marked_of(batch, distances.dtype), batch['weight']
    wanted = of_places(shapes_of(maps['classes']), STRIDES['fcos'], marked)
    found = wanted['label'] >= 0
    there = found & (weight > 0)[:, None]
    number = jnp.maximum(jnp.sum(there, dtype=classes.dtype), 1)
    central = wanted['centerness']
    sum_central = jnp.maximum(jnp.sum(jnp.where(there, central, 0)), _EPSILON)
    one_hot = jax.nn.one_hot(wanted['label'], classes.shape[-1], dtype=classes.dtype)
    focal = optax.sigmoid_focal_loss(classes, one_hot, alpha=ALPHA, gamma=GAMMA)
    focal = jnp.sum(jnp.where(wanted['counts'][..., None], focal, 0), (1, 2)) / number
    # From the same place, so that the overlap does not depend on where that is.
    overlap = jnp.maximum(_iou_of_distances(distances, wanted['distances']), _EPSILON)
    far = jnp.sum(jnp.where(found, -jnp.log(overlap) * central, 0), 1) / sum_central
    off = optax.sigmoid_binary_cross_entropy(centerness[..., 0], central)
    off = jnp.sum(jnp.where(found, off, 0), 1) / number
    return (focal + far + off) * counted(weight)


def _iou_of_distances(a: Array, b: Array) -> Array:
    zero = jnp.zeros((2,), a.dtype)
    return box_math.iou(*(box_math.from_distances(jnp.broadcast_to(zero, (*x.shape[:-1], 2)), x)
                          for x in (a, b)))  # fmt: skip
