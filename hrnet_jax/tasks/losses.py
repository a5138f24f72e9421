"""Mixtures of images, and divergences: what losses of several tasks are made of."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def mix(
    key: Array, images: Array, targets: Array, mixup: float, cutmix: float, group: int = 32
) -> tuple[Array, Array]:
    """Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), or a coin's choice of the two.

    Images mix within groups of equal size, each group with its own draw: the result does not
    depend on the number of devices, and where these hold whole groups nothing travels. In a group
    of even size the i-th mixes with the i-th from the end; in one of odd size that would leave the
    middle as it is, and each mixes with the one before it.

    Args:
        images: (N, H, W, C) of any range.
        targets: (N, classes) probabilities.
        mixup, cutmix: alpha of the Beta distribution of each; 0 for none.
        group: the size of a group is the largest common divisor of this and N; where that is 1,
            the largest divisor of N from 2 to this, or 2; where there is none, N.
    """
    n, height, width = images.shape[:3]
    size = math.gcd(n, group)
    if size == 1:
        size = max((d for d in range(2, max(group, 2) + 1) if n % d == 0), default=n)
    groups = n // size
    keys = jax.random.split(key, 5)
    cut = jax.random.bernoulli(keys[0], 0.5 if mixup and cutmix else float(cutmix > 0), (groups,))
    kept = jax.random.beta(keys[1], mixup or 1.0, mixup or 1.0, (groups,))
    # The box has the area 1 - lambda around a uniform centre; what leaves the image is cut off.
    side = jnp.sqrt(1 - jax.random.beta(keys[2], cutmix or 1.0, cutmix or 1.0, (groups,)))
    inside = []
    for axis_key, edge in ((keys[3], height), (keys[4], width)):
        centre = jax.random.randint(axis_key, (groups, 1), 0, edge)
        half = (side[:, None] * edge).astype(jnp.int32) // 2
        at = jnp.arange(edge)[None]
        inside.append((at >= centre - half) & (at < centre + half))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    area = jnp.mean(box.astype(jnp.float32), (1, 2))
    pixel = jnp.where(cut[:, None, None], 1.0 - box.astype(jnp.float32), kept[:, None, None])
    label = jnp.where(cut, 1 - area, kept)

    def blend(x: Array, weight: Array) -> Array:
        grouped = x.reshape((groups, size, *x.shape[1:]))
        partner = jnp.roll(grouped, 1, 1) if size % 2 else grouped[:, ::-1]
        return (weight * grouped + (1 - weight) * partner).reshape(x.shape)

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
