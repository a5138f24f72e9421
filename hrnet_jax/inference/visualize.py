"""What the network sees: its four maps, and where in them the evidence for a class lies.

    python -m hrnet_jax.visualize photo.jpg --arch w18 --ckpt converted/ --out picture.png

Grad-CAM: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017, equations (1) and (2).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.data.preprocess import Transform, normalize, resize_crop
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.inference.folding import apply, compiler_options, fold, traced
from hrnet_jax.layers import Array, matmul_precision
from hrnet_jax.models import Variables
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.base import Prediction, Task
from hrnet_jax.tasks.classification import names_of

STRIDES = (4, 8, 16, 32)
FORMATS = ('.png', '.pdf', '.svg', '.jpg')
_BEST = 5  # classes named in the picture
Look = Callable[..., tuple[Array, list[Array], list[Array]]]


@dataclasses.dataclass(frozen=True)
class View:
    """One image inside the network.

    Attributes:
        image: uint8 (H, W, 3), as the network sees it.
        best: the most probable classes.
        target: the class that `heats` is about.
        maps: stride -> float32 (H / s, W / s, C).
        heats: stride -> the Grad-CAM of `target`, (H / s, W / s) in [0, 1].
    """

    image: np.ndarray
    best: tuple[Prediction, ...]
    target: Prediction
    maps: dict[int, np.ndarray]
    heats: dict[int, np.ndarray]


def grad_cam(
    model: Classifier,
    variables: Variables,
    images: Array | np.ndarray,
    classes: int | Sequence[int] | None = None,
    stride: int = 4,
) -> Array:
    """Where in the map of that stride the evidence for a class lies (Grad-CAM).

    Each channel is weighted by the mean over the map of the logit's derivative; the weighted sum,
    without what is negative, is divided by its maximum. An image without any evidence has zeros.

    Args:
        model: as of `load`, or that of `hrnet_jax.fold`'s result.
        variables: the model's.
        images: (N, H, W, in_channels), normalised.
        classes: one for all images or one for each; by default that with the largest logit.
        stride: 4, 8, 16 or 32.

    Returns:
        (N, H / stride, W / stride) in [0, 1].

    Raises:
        UserError: for another stride, or classes or images that do not fit.
    """
    if stride not in STRIDES:
        raise UserError(f'stride must be one of {STRIDES}, not {stride}')
    count = len(images)
    chosen = np.asarray(-1 if classes is None else classes)
    if chosen.shape not in ((), (count,)) or chosen.dtype.kind not in 'iu':
        raise UserError(f'classes are one number, or one for each of the {count} images')
    if classes is not None and not ((chosen >= 0) & (chosen < model.num_classes)).all():
        raise UserError(f'classes must be between 0 and {model.num_classes - 1}')
    chosen = np.broadcast_to(chosen, (count,)).astype(np.int32)
    images = jnp.asarray(images)
    found = _compiled(model, traced(variables, images))(variables, images, chosen)
    return found[2][STRIDES.index(stride)]


@functools.lru_cache(maxsize=8)
def _compiled(model: Classifier, inside: bool) -> Look:
    return jax.jit(_look(model), compiler_options=None if inside else compiler_options(model))


def _look(model: Classifier) -> Look:
    """(variables, images, classes or -1) -> logits, maps and heats, fine to coarse."""

    def look(variables: Variables, images: Array, classes: Array) -> tuple[Any, Any, Any]:
        maps = apply(model, variables, images, 'features')

        def head(maps: tuple[Array, ...]) -> Any:
            return model.apply(variables, maps, method=lambda m, maps: m.head(maps, False))

        with matmul_precision(model):
            logits, backward = jax.vjp(head, maps)
            classes = jnp.where(classes < 0, jnp.argmax(logits, -1).astype(jnp.int32), classes)
            (slopes,) = backward(jax.nn.one_hot(classes, model.num_classes, dtype=logits.dtype))
            heats = [_heat(m, s, logits.dtype) for m, s in zip(maps, slopes, strict=True)]
        return logits, list(maps), heats

    return look


def _heat(features: Array, slope: Array, dtype: Any) -> Array:
    features, slope = features.astype(dtype), slope.astype(dtype)
    weights = jnp.mean(slope, (1, 2), keepdims=True)
    heat = jax.nn.relu(jnp.sum(features * weights, -1))
    most = jnp.max(heat, (1, 2), keepdims=True)
    return heat / jnp.where(most > 0, most, jnp.ones_like(most))


def require_classifier(task: Task) -> None:
    """Raises UserError for a task that does not give one class an image."""
    if not task.one_class:
        raise UserError(f'the model is for {task.name}; views are of classifiers')


def view(
    model: Classifier,
    variables: Variables,
    image: Any,
    *,
    target: int | None = None,
    transform: Transform | None = None,
    class_names: Sequence[str] | None = None,
) -> View:
    """One image inside the network, for `draw`.

    Args:
        model: as of `hrnet_jax.predict`.
        variables: the model's.
        image: one, as of `hrnet_jax.predict`.
        transform: as of `hrnet_jax.predict`.
        class_names: as of `hrnet_jax.predict`.
        target: the class to look for; by default the most probable.

    Raises:
        UserError: for an image, a crop or a target that does not fit.
    """
    transform = transform or getattr(model, 'transform', None) or Transform()
    require_classifier(get_task(model.task))
    names = names_of(model, class_names)
    if target is not None and not 0 <= target < model.num_classes:
        raise UserError(f'class {target} is not between 0 and {model.num_classes - 1}')
    if not model.folded:
        fast = fold(model, variables)
        model, variables = fast.model, fast.variables
    pixels = resize_crop(image, transform)
    images = normalize(pixels[None], transform, model.dtype)
    chosen = np.array([-1 if target is None else target], np.int32)
    logits, maps, heats = _compiled(model, False)(variables, images, chosen)
    probabilities = np.asarray(jax.nn.softmax(logits))[0]
    order = np.argsort(-probabilities, kind='stable')

    def prediction(i: int) -> Prediction:
        return Prediction(i, names[i], float(probabilities[i]))

    def by_stride(arrays: list[Array]) -> dict[int, np.ndarray]:
        values = (np.asarray(x[0], np.float32) for x in arrays)
        return dict(zip(STRIDES, values, strict=True))

    best = tuple(prediction(int(i)) for i in order[:_BEST])
    wanted = best[0] if target is None else prediction(target)
    return View(pixels, best, wanted, by_stride(maps), by_stride(heats))


def components(features: np.ndarray) -> np.ndarray:
    """(h, w, C) -> (h, w, 3): the first three principal components as colours in [0, 1].

    A component that is not there (a map of one place, or one without contrast) is 0.5.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    colours = np.full((len(flat), 3), 0.5)
    for i in range(min(3, len(values))):
        if values[i] > 1e-6 * max(values[0], np.abs(features).max()):
            # The sign is arbitrary: the channel that weighs most has a positive weight.
            scores = left[:, i] * np.sign(right[i, np.abs(right[i]).argmax()])
            low, high = np.percentile(scores, (1, 99))
            colours[:, i] = np.clip((scores - low) / max(high - low, 1e-12), 0, 1)
    return colours.reshape(*features.shape[:2], 3)


def find_class(wanted: str, names: Sequence[str]) -> int:
    """The index of a class by its name (any case), or else by its number.

    Raises:
        UserError: if there is none, or several of that name.
    """
    folded = [name.casefold() for name in names]
    found = [i for i, name in enumerate(folded) if name == wanted.casefold()]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise UserError(f'class {wanted!r} is not one but {found}; give the number')
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    near = [name for name in folded if wanted.casefold() in name]
    near = near or difflib.get_close_matches(wanted.casefold(), folded, 3)
    hint = f'perhaps {", ".join(names[folded.index(name)] for name in near[:3])}; ' if near else ''
    raise UserError(f'unknown class {wanted!r}; {hint}or a number from 0 to {len(names) - 1}')
