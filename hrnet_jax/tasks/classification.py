"""Classification: one class an image, top-1 and top-5."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hrnet_jax.data import evaluation, imagenet
from hrnet_jax.data.sources import Facts, Source
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import (
    Array,
    Batch,
    Figure,
    Metric,
    Prediction,
    Result,
    Task,
    Totals,
)
from hrnet_jax.tasks.classification_recipes import RECIPES
from hrnet_jax.tasks.metric import percent

if TYPE_CHECKING:
    import jax

TOP = 5


def count_correct(logits: Array, labels: Array, mask: Array) -> Totals:
    """Counts of one batch.

    Args:
        logits: (N, classes).
        labels: (N,) or (N, L) class indices; -1 for none. An image without a label is not counted.
        mask: (N,) False for padding.

    Returns:
        int32 scalars `num_examples`, `top1_correct` and `top5_correct`.
    """
    import jax
    import jax.numpy as jnp

    labels = labels.reshape((labels.shape[0], -1))
    top = jax.lax.top_k(logits, min(TOP, logits.shape[-1]))[1]
    hit = jnp.any(top[:, :, None] == labels[:, None, :], -1)
    counted = mask & jnp.any(labels >= 0, -1)
    return {
        'num_examples': jnp.sum(counted, dtype=jnp.int32),
        'top1_correct': jnp.sum(hit[:, 0] & counted, dtype=jnp.int32),
        'top5_correct': jnp.sum(jnp.any(hit, -1) & counted, dtype=jnp.int32),
    }


@dataclasses.dataclass(frozen=True)
class Accuracy(Metric):
    """Top-1 and top-5; of several labels an image, one among the first 1 and 5 is enough.

    Attributes:
        num_classes: of the model.
        classes: the class indices that compete; None for all.
    """

    num_classes: int
    classes: np.ndarray | None = None

    def update(self, outputs: Array, batch: Batch) -> Totals:
        import jax.numpy as jnp

        allowed = np.ones(self.num_classes, bool)
        if self.classes is not None:
            allowed = np.isin(np.arange(self.num_classes), self.classes)
        logits = jnp.where(jnp.asarray(allowed)[None], outputs, -jnp.inf)
        return count_correct(logits, batch['label'], batch['mask'])

    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        counts = {name: int(value) for name, value in totals.items()}
        counted, seen = counts.pop('num_examples'), counts.pop('seen')
        correct = {name: counts[f'{name}_correct'] for name in ('top1', 'top5')}
        metrics = {name: percent(value, counted) for name, value in correct.items()}
        not_finite = counts.pop('not_finite')
        return Result(counted, seen, not_finite, metrics, counts)


@dataclasses.dataclass(frozen=True)
class TopK:
    """Logits -> the k best probabilities and their indices, (N, k) each."""

    k: int

    def __call__(self, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        import jax

        values, indices = jax.lax.top_k(jax.nn.softmax(logits), self.k)
        return values, indices


class Classification(Task):
    name = 'classification'
    recipes = RECIPES
    figures = (
        Figure('top1', 'top-1', count='top1_correct'),
        Figure('top5', 'top-5', count='top5_correct'),
    )
    training_figures: ClassVar[tuple[str, ...]] = ('top1',)
    default_dataset: ClassVar[str | None] = 'imagenet2012'
    one_class: ClassVar[bool] = True
    heads = ('classifier',)

    def open_dataset(self, name: str, split: str | None, data_dir: str | None) -> Source:
        path = Path(name.removeprefix('folder:')).expanduser()
        table = path if path.suffix == '.csv' else path / f'{split}.csv'
        try:
            return super().open_dataset(name, split, data_dir)
        except UserError:
            if table == path or table.is_file():
                raise UserError(
                    f'{table}: a CSV file is for several labels an image (train.py --recipe '
                    'multilabel); for one class an image, name a folder that holds a folder of '
                    'images for each class'
                ) from None
            raise

    def check_training(self, source: Facts) -> None:
        if source.fields[0].shape:
            raise UserError(
                f'{source.dataset.name} has several labels an image, which are not for training'
            )

    def facts(self, source: Facts) -> dict[str, Any]:
        if source.class_names == tuple(imagenet.classes()):
            return {'class_names': None}  # what a checkpoint of 1000 classes has by default
        return super().facts(source)

    def context(self, source: Source, data_dir: str | None) -> dict[str, Any]:
        return {'classes': evaluation.competing_classes(source, data_dir)}

    def figures_of(self, model: Any, metric: Metric) -> tuple[Figure, ...]:
        return self.figures if model.num_classes > TOP else self.figures[:1]

    def metric(self, model: Any, **context: Any) -> Metric:
        return Accuracy(model.num_classes, **context)

    def prepare(
        self, batch: dict[str, Array], key: Array, recipe: Any, model: Any
    ) -> dict[str, Array]:
        import jax
        import jax.numpy as jnp

        targets = jax.nn.one_hot(batch['label'], model.num_classes, dtype=jnp.float32)
        smooth = recipe.label_smoothing
        targets = targets * (1 - smooth) + smooth / model.num_classes
        return mixed(batch, targets, key, recipe)

    def loss(
        self, outputs: Array, batch: dict[str, Array], recipe: Any
    ) -> tuple[Array, dict[str, Array]]:
        import jax
        import jax.numpy as jnp

        hit = jnp.argmax(outputs, -1) == batch['label']  # the unmixed one
        each = -jnp.sum(batch['targets'] * jax.nn.log_softmax(outputs), -1)
        return each, {'top1': hit.astype(jnp.float32)}

    def distance(self, outputs: Array, teacher: Array, recipe: Any) -> Array:
        from hrnet_jax.tasks.losses import divergence

        return divergence(recipe.distill_loss, outputs, teacher, recipe.temperature)

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, *, topk: int | None = None,
        **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        super().prediction_options(model, class_names, **others)
        topk = min(TOP, model.num_classes) if topk is None else topk
        if not isinstance(topk, int) or not 1 <= topk <= model.num_classes:
            raise UserError(f'topk {topk} is not between 1 and the {model.num_classes} classes')
        return {'topk': topk, 'names': names_of(model, class_names)}

    def decoder(self, options: Mapping[str, Any]) -> Callable[[Any], Any]:
        return TopK(options['topk'])

    def found(self, decoded: Any, options: Mapping[str, Any]) -> list[Prediction]:
        names = options['names']
        return [Prediction(int(i), names[i], float(p)) for p, i in zip(*decoded, strict=True)]

    def lines(self, found: Any, options: Mapping[str, Any]) -> list[str]:
        return label_lines(found)

    def to_json(self, found: Any, options: Mapping[str, Any]) -> Any:
        return [dataclasses.asdict(one) for one in found]

    def draw(
        self, images: Sequence[Any], titles: Sequence[str], found: Sequence[Any], path: Path,
        form: str, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        from hrnet_jax.tasks.pictures import draw

        draw(images, titles, found, path, form)

    def add_prediction_flags(self, group: Any) -> None:
        group.add_argument(
            '--topk', type=int, help='classes an image (default: 5, or all if there are fewer)'
        )


def mixed(batch: dict[str, Array], targets: Array, key: Array, recipe: Any) -> dict[str, Array]:
    """The batch with targets, (N, classes); both mixed as a `LabelRecipe` says."""
    import jax.numpy as jnp

    from hrnet_jax.tasks.losses import mix

    images = batch['image']
    if recipe.mixup or recipe.cutmix:
        pixels, group = images.astype(jnp.float32), recipe.bn_group_size or 32
        images, targets = mix(key, pixels, targets, recipe.mixup, recipe.cutmix, group)
    return {**batch, 'image': images, 'targets': targets}


def names_of(model: Any, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """The classes' names, or the usual ones; raises UserError for a wrong number of them."""
    from hrnet_jax.models import check_class_names

    given = getattr(model, 'class_names', None) if class_names is None else class_names
    given = () if given is None else tuple(map(str, given))
    names = tuple(imagenet.readable(given)) or tuple(
        imagenet.default_class_names(model.num_classes)
    )
    check_class_names(names, model.num_classes)
    return names


def label_lines(found: Sequence[Prediction]) -> list[str]:
    return [f'  {100 * one.probability:6.2f} %  {one.name}' for one in found]


TASK = Classification()
