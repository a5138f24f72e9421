"""Predictions for images in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError
from hrnet_jax.inference.folding import Folded, compiler_options, fold
from hrnet_jax.inference.forward import Forward
from hrnet_jax.models import Variables
from hrnet_jax.tasks import get_task, task_of_model
from hrnet_jax.tasks.base import Prediction, Task

__all__ = ['Prediction', 'predict']


def predict(
    model: Any,
    variables: Variables,
    images: Sequence[Any],
    *,
    task: str | Task | None = None,
    transform: Protocol | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[list[Prediction]]:
    """What the network finds in each image: one result an image, of the type that its task has.

    Args:
        model: folded here, unless it is that of `hrnet_jax.fold`; give that for many calls.
        variables: the model's.
        images: uint8 arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or PIL images, of any
            sizes; a uint8 array (N, H, W, 3) will do. Not normalised: `transform` does that.
        task: what the model is for; None: what it says. The result of 'classification' is a list
            of the `topk` (default: 5) most probable classes as `Prediction`s, most probable first;
            of 'multilabel' one of all labels with at least the probability `threshold` (0.5); of
            'detection' one of the objects with a score above `score` (0.3) as `Found`s of
            `hrnet_jax.tasks.detection`, best first; of 'pose' one of the people in `boxes`, a list
            for each image of [x, y, width, height], as `Person`s in this order (without `boxes` the
            whole image is one person).
        transform: by default that of the checkpoint, where the model is of `hrnet_jax.load`; else
            the task's: 256, 224, bilinear.
        class_names: by default likewise; else ImageNet's for 1000 classes, numbers for others.
        batch_size: images, or people of 'pose', at a time.
        **options: of the task, as named above.

    Raises:
        UserError: for options or `class_names` that do not fit the model, images of another
            kind, or a `batch_size` below 1.
    """
    if isinstance(model, Folded):
        raise UserError(
            'of a folded model give both parts: predict(fast.model, fast.variables, ...)'
        )
    kind = task_of_model(model) if task is None else get_task(task)
    transform = transform or getattr(model, 'transform', None) or kind.protocol()
    chosen = kind.prediction_options(model, class_names, **options) | {'transform': transform}
    if batch_size < 1:
        raise UserError(f'batch_size must be at least 1, not {batch_size}')
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise UserError(f'images are a list, or an array (N, H, W, 3), not of shape {images.shape}')
    if not len(images):
        return []
    if not model.folded:
        fast = fold(model, variables)
        model, variables = fast.model, fast.variables
    step = _make_step(model, kind.decoder(chosen), transform)
    decoded: dict[tuple[int, int], Any] = {}  # image and part
    facts: list[list[Any]] = []
    waiting: dict[Any, list[tuple[tuple[int, int], dict[str, np.ndarray]]]] = {}  # by shapes

    sizes: dict[Any, int] = {}  # of the batches, by shapes: that of the first

    def most(arrays: dict[str, np.ndarray]) -> int:
        return kind.at_once(batch_size, arrays, chosen)

    def compute(shapes: Any) -> None:
        places, parts = zip(*waiting.pop(shapes), strict=True)
        first = parts[0]
        # A power of two: calls with other numbers of images shall not compile a program each.
        rounded = 1 << (len(parts) - 1).bit_length()
        missing = sizes.setdefault(shapes, min(rounded, most(first))) - len(parts)
        batch = {k: np.stack([*(p[k] for p in parts), *[first[k]] * missing]) for k in first}
        arrays = jax.device_get(step(variables, batch))
        for i, place in enumerate(places):
            decoded[place] = jax.tree.map(lambda x, i=i: x[i], arrays)

    for number, parts in enumerate(kind.every_part(transform, images, chosen)):
        facts.append([fact for _, fact in parts])
        for part, (arrays, _) in enumerate(parts):
            shapes = tuple((name, array.shape) for name, array in arrays.items())
            same = waiting.setdefault(shapes, [])
            same.append(((number, part), arrays))
            if len(same) == most(arrays):
                compute(shapes)
    for shapes in list(waiting):
        compute(shapes)
    return [
        kind.joined([(decoded.pop((number, i)), fact) for i, fact in enumerate(known)], chosen)
        for number, known in enumerate(facts)
    ]


@functools.lru_cache(maxsize=8)
def _make_step(model: Any, decode: Callable[[Any], Any], transform: Protocol) -> Callable[..., Any]:
    """The compiled function (variables, batch) -> the decoded outputs."""

    def step(variables: Variables, batch: dict[str, jax.Array]) -> Any:
        return decode(transform.outputs(Forward(model, variables, transform), batch))

    return jax.jit(step, compiler_options=compiler_options(model))
