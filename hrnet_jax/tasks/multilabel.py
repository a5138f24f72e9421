"""Multi-label classification: several labels an image, or none; mean average precision and F1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from hrnet_jax.data import classes
from hrnet_jax.data.sources import Facts, Source, tensorflow
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import Array, Batch, Figure, Metric, Prediction, Result, Totals
from hrnet_jax.tasks.classification import Classification, mixed, names_of
from hrnet_jax.tasks.metric import percent
from hrnet_jax.tasks.multilabel_data import open_multilabel
from hrnet_jax.tasks.recipe import LabelRecipe, Pair, Schedule, setting

if TYPE_CHECKING:
    import jax

THRESHOLD = 0.5


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """The area under the stepwise precision-recall curve, sum of (R_n - R_(n-1)) P_n over the
    distinct scores from high to low (scikit-learn's `average_precision_score`); 0 to 1.

    Args:
        labels: (N,) bool.
        scores: (N,) of any scale; equal ones are one step.
    """
    order = np.argsort(-scores.astype(np.float64), kind='stable')
    hits, scores = labels[order].astype(bool), scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    found = np.cumsum(hits)[last]
    precision, recall = found / (last + 1.0), found / max(int(hits.sum()), 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


@dataclasses.dataclass(frozen=True)
class Precision(Metric):
    """Mean average precision over the classes that occur; F1 of all labels at probability 0.5."""

    def update(self, outputs: Array, batch: Batch) -> Totals:
        import jax.numpy as jnp

        label, mask = batch['label'] > 0, batch['mask'][:, None]
        named = outputs >= 0  # the sigmoid of 0 is 0.5

        def count(where: Array) -> Array:
            return jnp.sum(where & mask, dtype=jnp.int32)

        return {
            'true_positives': count(named & label),
            'false_positives': count(named & ~label),
            'false_negatives': count(~named & label),
            'examples': {'score': outputs, 'label': batch['label']},
        }

    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        counts = {name: int(value) for name, value in totals.items()}
        counted, seen = counts.pop('num_examples'), counts.pop('seen')
        not_finite, right = counts.pop('not_finite'), counts['true_positives']
        wrong = counts['false_positives'] + counts['false_negatives']
        label, score = examples['label'] > 0, examples['score']
        occurs = np.flatnonzero(label.any(0))
        each = [average_precision(label[:, c], score[:, c]) for c in occurs]
        counts['classes_that_occur'] = len(each)
        if not each:
            raise UserError(
                f'none of the {counted} images has a label: there is no mean average precision'
            )
        metrics = {
            'map': 100 * float(np.mean(each)),
            'f1': percent(2 * right, 2 * right + wrong),
        }
        return Result(counted, seen, not_finite, metrics, counts)


@dataclasses.dataclass(frozen=True)
class Multilabel(LabelRecipe):
    """Several labels an image, or none: from a classifier or from nothing.

        python train.py --recipe multilabel --init converted/w18 \\
            --dataset folder:photos --split train --eval-split val --workdir runs/photos

    `photos/train.csv` and `photos/val.csv` name the images and their labels (docs/multilabel.md).
    Without --init, --arch says which network, and more epochs are needed. The values are ours. Run
    by us on small sets only.
    """

    task = 'multilabel'
    unused = ('distill_loss', 'temperature')  # each label is compared with the teacher's

    dataset: str = setting('', 'folder:PATH with SPLIT.csv in it, or a tfds set with label lists')
    split: str = setting('train', 'split to train on: of tfds, or PATH/SPLIT.csv')
    eval_split: str | None = setting(
        None, 'split to evaluate on: of tfds, or PATH/SPLIT.csv', True, 'the usual one of tfds'
    )
    epochs: float = 30
    batch_size: int = 64
    learning_rate: float = 0.05
    base_batch: int = 64
    schedule: Schedule = 'cosine'
    warmup_epochs: float = 1
    crop_scale: Pair = (0.25, 1.0)
    positive_weights: tuple[float, ...] = setting(
        (1.0,), 'factor on the loss of labels that are there: one for all classes, or one for each'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.positive_weights or min(self.positive_weights) <= 0:
            raise UserError(f'positive_weights are above 0, not {self.positive_weights}')


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """Logits -> probabilities, (N, classes)."""

    def __call__(self, logits: jax.Array) -> jax.Array:
        import jax

        return jax.nn.sigmoid(logits)


class MultilabelClassification(Classification):
    """The same network and files as a classifier's; every logit is a question of its own."""

    name = 'multilabel'
    recipes = {'multilabel': Multilabel}
    figures = (Figure('map', 'mAP'), Figure('f1', 'F1'))
    default_dataset = None
    one_class = False
    training_figures: ClassVar[tuple[str, ...]] = ()

    def open_dataset(self, name: str, split: str | None, data_dir: str | None) -> Source:
        return open_multilabel(name, split, data_dir)

    def renumbered(self, source: Source, names: Sequence[str]) -> Source:
        if len(names) != source.num_classes:
            raise UserError(
                f'{source.dataset.name} has {source.num_classes} labels, but {len(names)} are '
                'needed: nothing says which images have the others'
            )

        def change(labels: Any, place: np.ndarray) -> Any:
            return tensorflow().gather(labels, np.argsort(place))

        return classes.renumbered(source, names, change)

    def check_training(self, source: Facts) -> None:
        """Every set that `open_dataset` opens will do."""

    def context(self, source: Source, data_dir: str | None) -> dict[str, Any]:
        return {}

    def check_recipe(self, recipe: Any, outputs: int) -> None:
        if (given := len(recipe.positive_weights)) not in (1, outputs):
            raise UserError(f'positive_weights are one number or {outputs}, not {given}')

    def check_evaluation(self, meta: Mapping[str, Any], source: Facts) -> None:
        ours, theirs = meta.get('class_names'), source.class_names
        if ours and theirs and list(ours) != list(theirs):
            raise UserError(
                f'{source.dataset.name}: its labels are not those of the checkpoint, or in another '
                'order; give them in a file classes.txt beside the CSV, one a line'
            )

    def figures_of(self, model: Any, metric: Metric) -> tuple[Figure, ...]:
        return self.figures

    def metric(self, model: Any, **context: Any) -> Metric:
        return Precision()

    def prepare(
        self, batch: dict[str, Array], key: Array, recipe: Any, model: Any
    ) -> dict[str, Array]:
        import jax.numpy as jnp

        self.check_recipe(recipe, model.num_classes)
        smooth = recipe.label_smoothing
        targets = batch['label'].astype(jnp.float32) * (1 - smooth) + smooth / 2
        return mixed(batch, targets, key, recipe)

    def loss(
        self, outputs: Array, batch: dict[str, Array], recipe: Any
    ) -> tuple[Array, dict[str, Array]]:
        """Binary cross-entropy, the mean over the classes."""
        import jax
        import jax.numpy as jnp

        weights = jnp.asarray(recipe.positive_weights, jnp.float32)[None]
        there = weights * batch['targets'] * jax.nn.log_sigmoid(outputs)
        absent = (1 - batch['targets']) * jax.nn.log_sigmoid(-outputs)
        return -jnp.mean(there + absent, -1), {}

    def distance(self, outputs: Array, teacher: Array, recipe: Any) -> Array:
        """Binary cross-entropy with the teacher's probabilities."""
        import jax
        import jax.numpy as jnp

        p = jax.nn.sigmoid(teacher)
        return -jnp.mean(
            p * jax.nn.log_sigmoid(outputs) + (1 - p) * jax.nn.log_sigmoid(-outputs), -1
        )

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, *, threshold: float | None = None,
        **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        if others:
            raise UserError(f'{self.name} has no option {", ".join(others)} to predict with')
        threshold = THRESHOLD if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise UserError(f'threshold must be from 0 to 1, not {threshold}')
        return {'threshold': threshold, 'names': names_of(model, class_names)}

    def decoder(self, options: Mapping[str, Any]) -> Callable[[Any], Any]:
        return Sigmoid()

    def found(self, decoded: Any, options: Mapping[str, Any]) -> list[Prediction]:
        order = [i for i in np.argsort(-decoded) if decoded[i] >= options['threshold']]
        return [Prediction(int(i), options['names'][i], float(decoded[i])) for i in order]

    def lines(self, found: Any, options: Mapping[str, Any]) -> list[str]:
        return super().lines(found, options) or ['  no label reaches the threshold']

    def draw(
        self, images: Sequence[Any], titles: Sequence[str], found: Sequence[Any], path: Path,
        form: str, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        from hrnet_jax.tasks.pictures import draw

        draw(images, titles, found, path, form, right=None)

    def add_prediction_flags(self, group: Any) -> None:
        text = f'smallest probability of a label that is named (default: {THRESHOLD})'
        group.add_argument('--threshold', type=float, metavar='P', help=text)


TASK = MultilabelClassification()
