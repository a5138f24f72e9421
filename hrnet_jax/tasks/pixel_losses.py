"""Cross-entropy of label maps, with the pixels and classes that count more: mmsegmentation's."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hrnet_jax.data.views import NOTHING
from hrnet_jax.upsampling import resize_bilinear

Array = jax.Array


def at_labels(logits: Array, label: Array, align_corners: bool) -> Array:
    """(N, h, w, C) -> (N, H, W, C), of the size of the labels, (N, H, W)."""
    return resize_bilinear(logits, (label.shape[1], label.shape[2]), align_corners)


def cross_entropy(logits: Array, label: Array) -> Array:
    """(N, H, W, C), (N, H, W) -> (N, H, W); 0 where the label is 255."""
    # Compared, not gathered: XLA joins it with the sum, and the gradient needs no scatter.
    classes = jnp.arange(logits.shape[-1]).reshape((1, 1, 1, -1))
    own = jnp.sum(jnp.where(classes == label[..., None].astype(jnp.int32), logits, 0), -1)
    return jnp.where(label != NOTHING, jax.nn.logsumexp(logits, -1) - own, 0)


def hard_pixels(losses: Array, label: Array, threshold: float, kept: int) -> Array:
    """Which pixels online hard example mining keeps, (N, H, W) bool.

    Those whose class has a probability below `threshold`; if these are fewer than `kept` times N,
    so many of the least probable.

    Args:
        losses: of `cross_entropy`.
    """
    counted = label != NOTHING
    hardest = -jnp.sort(jnp.where(counted, -losses, jnp.inf).ravel())
    most = min(kept * len(label), label.size)
    place = jnp.minimum(most, jnp.sum(counted, dtype=jnp.int32) - 1)
    limit = jnp.minimum(hardest[jnp.maximum(place, 0)], -math.log(threshold))
    return counted & (losses > limit)


def pixel_loss(
    logits: Array,
    label: Array,
    class_weights: Sequence[float] = (),
    ohem: tuple[float, int] | None = None,
) -> Array:
    """(N,) mean of the cross-entropy over the pixels of each image.

    All pixels are in the mean, the ignored and the easy ones with a loss of 0; with class weights
    it is a weighted one, over the batch, where ignored pixels have the weight 1.

    Args:
        logits: (N, H, W, C); label: (N, H, W).
        class_weights: one for each class, or none.
        ohem: threshold and kept pixels an image, of `hard_pixels`; None for all pixels.
    """
    losses = cross_entropy(logits, label)
    if ohem:
        losses = jnp.where(hard_pixels(losses, label, *ohem), losses, 0)
    if not class_weights:
        return jnp.mean(losses, (1, 2))
    table = [*class_weights] + [1.0] * (NOTHING + 1 - len(class_weights))
    weights = jnp.asarray(table, losses.dtype)[label.astype(jnp.int32)]
    return jnp.sum(weights * losses, (1, 2)) * (len(label) / jnp.sum(weights))


def pixel_accuracy(logits: Array, label: Array) -> Array:
    """(N,) part of each image's labelled pixels whose class has the largest logit."""
    counted = label != NOTHING
    hit = counted & (jnp.argmax(logits, -1) == label.astype(jnp.int32))
    right, all_ = (jnp.sum(x, (1, 2), dtype=jnp.int32) for x in (hit, counted))
    return right.astype(jnp.float32) / jnp.maximum(all_, 1).astype(jnp.float32)
