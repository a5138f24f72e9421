"""Predictions for images in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hrnet_jax.data import imagenet
from hrnet_jax.data.preprocess import Transform, normalize, resize_crop
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.inference.folding import Folded, apply, compiler_options, fold
from hrnet_jax.models import Variables, check_class_names


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One class for one image: its index, its name, and the softmax probability (0 to 1)."""

    index: int
    name: str
    probability: float


def predict(
    model: Classifier,
    variables: Variables,
    images: Sequence[Any],
    *,
    topk: int = 5,
    transform: Transform | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
) -> list[list[Prediction]]:
    """The `topk` most probable classes of each image, most probable first.

    Args:
        model: folded here, unless it is that of `hrnet_jax.fold`; give that for many calls.
        variables: the model's.
        images: uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or PIL images, of any
            sizes; a uint8 array (N, H, W, 3) will do. Not normalised: `transform` does that.
        topk: at most the number of classes.
        transform: as the checkpoint was evaluated; by default 256, 224, bilinear.
        class_names: by default ImageNet's for 1000 classes, numbers for others.
        batch_size: images at a time.

    Raises:
        UserError: for a `topk` or `class_names` that do not fit the model, images of another
            kind, or a `batch_size` below 1.
    """
    if isinstance(model, Folded):
        raise UserError('of a folded model, give predict its fields: fast.model, fast.variables')
    transform = transform or Transform()
    names = list(class_names or default_class_names(model.num_classes))
    check_class_names(names, model.num_classes)
    if not 1 <= topk <= model.num_classes:
        raise UserError(f'topk {topk} is not between 1 and the {model.num_classes} classes')
    if batch_size < 1:
        raise UserError(f'batch_size must be at least 1, not {batch_size}')
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(f'images are a list, or an array (N, H, W, 3), not of shape {images.shape}')
    size = min(batch_size, len(images))
    if not len(images):
        return []
    if not model.folded:
        fast = fold(model, variables)
        model, variables = fast.model, fast.variables
    top = _make_top(model, topk, transform)
    found: list[list[Prediction]] = []
    for start in range(0, len(images), size):
        pixels = np.stack([resize_crop(image, transform) for image in images[start : start + size]])
        count = len(pixels)
        pixels = np.pad(pixels, ((0, size - count), (0, 0), (0, 0), (0, 0)))
        values, indices = map(np.asarray, top(variables, pixels))
        for row, best in zip(values[:count], indices[:count], strict=True):
            found.append(
                [Prediction(int(i), names[i], float(p)) for p, i in zip(row, best, strict=True)]
            )
    return found


@functools.lru_cache(maxsize=8)
def _make_top(model: Classifier, topk: int, transform: Transform) -> Callable[..., Any]:
    """The compiled function (variables, pixels) -> the best probabilities and their indices."""

    def top(variables: Variables, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply(model, variables, normalize(pixels, transform, model.dtype))
        values, indices = jax.lax.top_k(jax.nn.softmax(logits), topk)
        return values, indices

    return jax.jit(top, compiler_options=compiler_options(model))


def default_class_names(num_classes: int) -> list[str]:
    """ImageNet's class names (WordNet 3.0) for 1000 classes, '0', '1', ... for other numbers."""
    if num_classes != 1000:
        return [str(i) for i in range(num_classes)]
    return list(imagenet.classes().values())
