"""What a network says of the views of an image, averaged at the image's own size; traced."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.upsampling import resize_bilinear, resize_each

Array = jax.Array
Sizes = Array | None  # int32 (N, 2): what is valid of each image; None: all of it
Ask = Callable[[Array, Sizes], Array]


def answer(views: Any, forward: Callable[..., Any], batch: Mapping[str, Any]) -> Array:
    """See `Views.outputs`."""
    asked = _Asked(views, forward, 'small' in batch)
    images = [batch['image'], *(batch[f'image_{i}'] for i in range(1, len(views.scales)))]
    sizes, image_hw = batch.get('sizes'), batch.get('image_hw')
    to = batch['label'].shape[1:3]
    each = [
        asked.view(image, None if sizes is None else sizes[:, i], to, image_hw)
        for i, image in enumerate(images)
    ]
    return sum(each[1:], each[0]) / len(each)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """`views`: of `data.views`; `small`: some images may be smaller than a window."""

    views: Any
    forward: Callable[..., Any]
    small: bool

    def view(self, image: Array, valid: Sizes, to: tuple[int, int], image_hw: Sizes) -> Array:
        """Of one view, at the size of the image."""
        views = self.views
        official = views.several and views.average == 'exp'

        def window(image: Array, valid: Sizes) -> Array:
            return jnp.exp(self._both(self._logits, image, valid))

        def whole(image: Array, valid: Sizes, image_hw: Sizes) -> Array:
            ask = window if official else self._logits
            found = self._resized(self._cut(ask, image, valid), to, valid, image_hw)
            return jax.nn.softmax(found) if views.several and not official else found

        if official:
            return whole(image, valid, image_hw)
        return self._both(whole, image, valid, image_hw)

    def _logits(self, image: Array, valid: Sizes) -> Array:
        """At the size of the view or window."""
        logits = self.forward(image, sizes=valid)
        before = None if valid is None else -(-valid // 4)
        return self._resized(logits, image.shape[1:3], before, valid)

    def _resized(self, x: Array, to: Any, before: Sizes, after: Sizes) -> Array:
        align = self.forward.model.align_corners  # type: ignore[attr-defined]
        if before is None or after is None:
            return resize_bilinear(x, to, align)
        return resize_each(x, to, before, after, align)

    def _both(self, ask: Callable[..., Array], image: Array, *sizes: Sizes) -> Array:
        """`ask` of the image; or the mean with its mirror image. The last of `sizes` is that of
        the result."""
        if not self.views.flip:
            return ask(image, *sizes)
        # Side by side in one batch: the network is compiled once, not twice.
        both = jnp.concatenate([image, mirrored(image, sizes[0])])
        found = ask(both, *(x if x is None else jnp.concatenate([x, x]) for x in sizes))
        n = image.shape[0]
        return (found[:n] + mirrored(found[n:], sizes[-1])) / 2

    def _cut(self, ask: Ask, image: Array, valid: Sizes) -> Array:
        """`ask` of the whole, or the mean of what it says of the windows over each pixel."""
        if self.views.mode == 'whole':
            return ask(image, valid)
        full = np.array(image.shape[1:3])
        pair = (self.views.window, self.views.stride)
        window, stride = (np.array(size, np.int32)[None] for size in pair)
        cut = tuple(int(n) for n in np.minimum(window[0], full))
        sizes = jnp.asarray(full, jnp.int32)[None] if valid is None else valid
        sizes = jnp.broadcast_to(sizes, (image.shape[0], 2))

        def crop(image: Array, at: Array) -> Array:
            return jax.lax.dynamic_slice(image, (at[0], at[1], 0), (*cut, image.shape[2]))

        def add(total: Array, at: Array, part: Array) -> Array:
            part = part + crop(total, at)
            return jax.lax.dynamic_update_slice(total, part, (at[0], at[1], 0))

        def step(sums: tuple[Array, Array], place: Array) -> tuple[tuple[Array, Array], None]:
            # The last window of a row or column is moved back inside.
            end = jnp.minimum(place[None] * stride + window, sizes)
            start = jnp.maximum(end - window, 0)
            inside = jnp.minimum(sizes, window) if self.small else None
            found = ask(jax.vmap(crop)(image, start), inside)
            there = jnp.all(place[None] < _count(jnp, sizes, window, stride), -1)
            counts = filled(inside, cut) if inside is not None else jnp.ones((1, *cut, 1), bool)
            counts = jnp.broadcast_to(counts & there[:, None, None, None], (*found.shape[:3], 1))
            total = jax.vmap(add)(sums[0], start, jnp.where(counts, found, 0))
            return (total, jax.vmap(add)(sums[1], start, counts.astype(found.dtype))), None

        places = list(itertools.product(*map(range, _count(np, full[None], window, stride)[0])))
        first = image[:, : cut[0], : cut[1]]
        like = jax.eval_shape(ask, first, sizes if self.small else None)
        zeros = [jnp.zeros((*image.shape[:3], c), like.dtype) for c in (like.shape[-1], 1)]
        (total, times), _ = jax.lax.scan(step, (zeros[0], zeros[1]), jnp.array(places, jnp.int32))
        return total / jnp.maximum(times, 1)


def _count(lib: Any, sizes: Any, window: Any, stride: Any) -> Any:
    """How many windows cover each edge."""
    return lib.maximum(sizes - window + stride - 1, 0) // stride + 1


def filled(sizes: Array, full: tuple[int, ...]) -> Array:
    """bool (N, *full, 1): where the images of these sizes are."""
    rows, columns = (jnp.arange(n)[None] < sizes[:, i, None] for i, n in enumerate(full))
    return rows[:, :, None, None] & columns[:, None, :, None]


def mirrored(x: Array, sizes: Sizes) -> Array:
    """(N, H, W, C) mirrored; of each only the part that is valid, which stays where it is."""
    if sizes is None:
        return x[:, :, ::-1]
    places = jnp.arange(x.shape[2])[None]
    widths = sizes[:, 1, None]
    places = jnp.where(places < widths, widths - 1 - places, places)
    return jnp.take_along_axis(x, places[:, None, :, None], 2)
