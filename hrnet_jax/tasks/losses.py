"""Mixtures of images, and divergences: what losses of several tasks are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def mix(
    key: Array, images: Array, targets: Array, mixup: float, cutmix: float, group: int = 32
) -> tuple[Array, Array]:
    """Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), or a coin's choice of the two.

    Images mix within groups of equal size, each with the one before it, each group with its own
    draw: the result does not depend on the number of devices, and where these hold whole groups
    nothing travels.

    Args:
        images: (N, H, W, C) of any range.
        targets: (N, classes) probabilities.
        mixup, cutmix: alpha of the Beta distribution of each; 0 for none.
        group: largest size of a group, if N has a divisor from 2 to it; otherwise all are one.
    """
    n, height, width = images.shape[:3]
    groups = n // max((d for d in range(2, max(group, 2) + 1) if n % d == 0), default=n)
    keys = jax.random.split(key, 5)
    cut = jax.random.bernoulli(keys[0], 0.5 if mixup and cutmix else float(cutmix > 0), (groups,))
    kept = jax.random.beta(keys[1], mixup or 1.0, mixup or 1.0, (groups,))
    # The box has the area 1 - lambda around a uniform centre; what leaves the image is cut off.
    side = jnp.sqrt(1 - jax.random.beta(keys[2], cutmix or 1.0, cutmix or 1.0, (groups,)))
    inside = []
    for axis_key, size in ((keys[3], height), (keys[4], width)):
        centre = jax.random.randint(axis_key, (groups, 1), 0, size)
        half = (side[:, None] * size).astype(jnp.int32) // 2
        at = jnp.arange(size)[None]
        inside.append((at >= centre - half) & (at < centre + half))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    area = jnp.mean(box.astype(jnp.float32), (1, 2))
    pixel = jnp.where(cut[:, None, None], 1.0 - box.astype(jnp.float32), kept[:, None, None])
    label = jnp.where(cut, 1 - area, kept)

    def blend(x: Array, weight: Array) -> Array:
        grouped = x.reshape((groups, n // groups, *x.shape[1:]))
        return (weight * grouped + (1 - weight) * jnp.roll(grouped, 1, 1)).reshape(x.shape)

    return blend(images, pixel[:, None, :, :, None]), blend(targets, label[:, None, None])


def divergence(kind: str, logits: Array, teacher: Array, temperature: float) -> Array:
    """(N, C) logits of both -> (N,): Jensen-Shannon, or KL(teacher || student) * temperature^2."""
    ours, theirs = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher))
    p = jnp.exp(theirs)
    if kind == 'kl':
        return jnp.sum(p * (theirs - ours), -1) * temperature**2
    q = jnp.exp(ours)
    middle = jnp.log((p + q) / 2 + 1e-30)
    return jnp.sum(p * (theirs - middle) + q * (ours - middle), -1) / 2
