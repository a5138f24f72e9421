"""Semantic segmentation: a class for each pixel, mean intersection over union."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hrnet_jax.data import classes, evaluation, opencv, segmentation, segmentation_sets
from hrnet_jax.data.buckets import buckets
from hrnet_jax.data.indexed import Indexed
from hrnet_jax.data.indexed_batches import at_once, batches, example_arrays
from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.segmentation_folders import LAYOUTS
from hrnet_jax.data.segmentation_tfds import PREPARED
from hrnet_jax.data.sources import Facts
from hrnet_jax.data.views import Views
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import label_maps
from hrnet_jax.tasks.base import (
    Array,
    Figure,
    Metric,
    TrainingData,
    Variables,
    options_of,
)
from hrnet_jax.tasks.confusion import Confusion
from hrnet_jax.tasks.dense import DenseTask
from hrnet_jax.tasks.recipe import Group
from hrnet_jax.tasks.segmentation_recipes import RECIPES, PixelRecipe


@dataclasses.dataclass(frozen=True)
class Decoded:
    """The outputs of `views` -> labels, (N, H, W), and float32 probabilities if asked."""

    views: Views
    probabilities: bool

    def __call__(self, outputs: Array) -> dict[str, Array]:
        import jax
        import jax.numpy as jnp

        dtype = jnp.uint8 if outputs.shape[-1] <= 256 else jnp.uint16
        found = {'labels': jnp.argmax(outputs, -1).astype(dtype)}
        if self.probabilities:
            # The average over several views holds probabilities already, up to a factor.
            whole = outputs / jnp.sum(outputs, -1, keepdims=True)
            found['probabilities'] = whole if self.views.several else jax.nn.softmax(outputs)
        return found


class Segmentation(DenseTask):
    name = 'segmentation'
    recipes = RECIPES
    figures = (
        Figure('miou', 'mIoU'),
        Figure('mean_accuracy', 'mean accuracy'),
        Figure('pixel_accuracy', 'pixel accuracy'),
    )
    heads = ('fcn', 'ocr')
    training_figures: ClassVar[tuple[str, ...]] = ('pixel_accuracy',)
    protocol = Views
    tensorflow = False
    datasets = (*LAYOUTS, *PREPARED)
    fields = (
        *('num_classes', 'in_channels', 'head', 'ocr_channels', 'key_channels', 'dropout'),
        *('upsample', 'align_corners'),
    )

    # The model

    def create_model(self, arch: Any, num_classes: int = 19, **options: Any) -> Any:
        """A `Segmenter`."""
        from hrnet_jax.heads.segmentation import Segmenter

        return Segmenter(arch, num_classes=num_classes, **options)

    def class_names(self, dataset: str) -> tuple[str, ...] | None:
        return segmentation_sets.classes(dataset)

    def build(self, arch: Any, recipe: Any, source: Facts) -> Any:
        fields = ('head', 'dropout', 'frozen_norm')
        own = {name: getattr(recipe, name) for name in fields} | recipe.filled()
        return self.create_model(arch, self.num_outputs(source), **own, **options_of(recipe))

    # Data

    def open_dataset(self, name: str, split: str | None, data_dir: str | None) -> Any:
        return segmentation.open_segmentation(name, split, data_dir)

    def renumbered(self, source: Any, names: Sequence[str]) -> Any:
        read = source.read.renumbered(classes.places(source, names))
        return dataclasses.replace(
            source, num_classes=len(names), class_names=tuple(names), read=read
        )

    def check_training(self, source: Facts) -> None:
        _check_values(source)

    def check_files(self, source: Any, transform: Any, max_corrupt: float) -> None:
        _check_values(source)

    def batches(self, source: Any, transform: Any, share: evaluation.Share) -> evaluation.Batches:
        return batches(source, transform, share)

    def context(self, source: Any, data_dir: str | None) -> dict[str, Any]:
        names = source.class_names or tuple(map(str, range(source.num_classes)))
        ids = tuple(map(int, source.read.ids[: source.num_classes]))
        return {'class_names': names, 'files': label_maps.files_of(source.names), 'ids': ids}

    # Evaluation

    def metric(
        self, model: Any, *, label_ids: bool = False, ids: tuple[int, ...] = (), **context: Any
    ) -> Metric:
        if label_ids:
            if not context.get('labels'):
                raise UserError('--label-ids is for --labels DIR')
            if min(ids, default=-1) < 0:
                raise UserError('--label-ids: the data set has no id for some of the classes')
            context['ids'] = ids
        if context.get('labels'):
            label_maps.check_folder(context['labels'])
        names = context.pop('class_names', None) or tuple(map(str, range(model.num_classes)))
        return Confusion(tuple(names), **context)

    def add_evaluation_flags(self, group: Any) -> None:
        self._add_labels(group)
        group.add_argument(
            '--label-ids', action='store_const', const=True,
            help="with --labels: write the ids of the data set's own label maps, such as 7 for a "
            'road of Cityscapes; test servers want these',
        )  # fmt: skip

    def _add_labels(self, group: Any) -> None:
        group.add_argument(
            '--labels', metavar='DIR', help='write the predicted class ids there, a PNG an image'
        )

    # Training

    def parameter_groups(self, model: Any, recipe: Any) -> Sequence[Group]:
        """`head_lr` is for the whole head."""
        return recipe.parameter_groups([('head',)])

    def check_recipe(self, recipe: Any, outputs: int) -> None:
        if (given := len(recipe.class_weights)) not in (0, outputs):
            raise UserError(f'class_weights are {outputs} numbers or none, not {given}')

    def training_data(self, source: Indexed, recipe: PixelRecipe, *share: int) -> TrainingData:
        from hrnet_jax.data.indexed_training import IndexedData
        from hrnet_jax.data.label_augment import Augmentation

        size, kinds = recipe.crop_size, (recipe.scale, recipe.class_share, recipe.flip)
        augment = Augmentation(size, recipe.transform, *kinds, recipe.distort)
        fields = tuple(dataclasses.replace(field, shape=size) for field in source.fields)
        return IndexedData(source, recipe, *share, augment=augment, size=size, outputs=fields)

    def forward(
        self, apply: Callable[..., Any], images: Array, batch: dict[str, Array], key: Array
    ) -> tuple[Any, Variables]:
        return apply(images, method='heads', rngs={'dropout': key})

    def loss(
        self, outputs: Any, batch: dict[str, Array], recipe: Any
    ) -> tuple[Array, dict[str, Array]]:
        """That of the last logits, and of those before `recipe.aux_weight` times."""
        from hrnet_jax.tasks import pixel_losses

        label, align = batch['label'], bool(recipe.align_corners)
        *rough, logits = (pixel_losses.at_labels(x, label, align) for x in outputs)
        ohem = (recipe.ohem_threshold, recipe.ohem_kept) if recipe.ohem else None
        loss = pixel_losses.pixel_loss(logits, label, recipe.class_weights, ohem)
        for guess in rough:
            each = pixel_losses.pixel_loss(guess, label, recipe.class_weights)
            loss = loss + recipe.aux_weight * each
        return loss, {'pixel_accuracy': pixel_losses.pixel_accuracy(logits, label)}

    # Prediction

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, *, labels: str | None = None,
        probabilities: bool = False, **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        super().prediction_options(model, class_names, **others)
        names = class_names or getattr(model, 'class_names', None) or range(model.num_classes)
        if len(names) != model.num_classes:
            raise UserError(f'{len(names)} class names for {model.num_classes} classes')
        names = tuple(map(str, names))
        if labels:
            label_maps.check_folder(labels)
        return {'names': names, 'labels': labels, 'probabilities': probabilities}

    def open_image(self, path: str, **flags: Any) -> np.ndarray:
        return opencv.read_rgb(path)

    def every_part(
        self, transform: Views, images: Sequence[Any], options: Mapping[str, Any]
    ) -> Iterator[list[tuple[dict[str, np.ndarray], Any]]]:
        arrays = [np.asarray(rgb_image(image)) for image in images]
        sizes = [image.shape[:2] for image in arrays]
        place = {i: bucket for bucket in buckets(sizes, transform) for i in bucket.numbers}
        for i, image in enumerate(arrays):
            yield [(example_arrays(image, place[i], transform), image.shape[:2])]

    def at_once(
        self, batch_size: int, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> int:
        shapes = [x.shape[:2] for name, x in arrays.items() if name.startswith(('image', 'label'))]
        shapes = [(shape[0], shape[1]) for shape in shapes if len(shape) == 2]
        return at_once(batch_size, shapes, options['transform'], len(options['names']))

    def decoder(self, options: Mapping[str, Any]) -> Callable[[Any], Any]:
        return Decoded(options['transform'], options['probabilities'])

    def joined(self, parts: Sequence[tuple[Any, Any]], options: Mapping[str, Any]) -> Any:
        """Labels, uint8 (H, W), or uint16 of more than 256 classes; with `probabilities` these,
        too, float32 (H, W, classes)."""
        [(decoded, (height, width))] = parts
        labels, *more = (
            decoded[name][:height, :width]
            for name in ('labels', 'probabilities')
            if name in decoded
        )
        return (labels, *more) if more else labels

    def lines(self, found: Any, options: Mapping[str, Any]) -> list[str]:
        return [f'  {100 * part:6.2f} %  {options["names"][i]}' for i, part in present(found)]

    def to_json(self, found: Any, options: Mapping[str, Any]) -> Any:
        names = options['names']
        return [{'index': i, 'name': names[i], 'part': part} for i, part in present(found)]

    def write(self, paths: Sequence[str], found: Sequence[Any], options: Mapping[str, Any]) -> None:
        if options['labels']:
            for name, labels in zip(label_maps.files_of(paths), found, strict=True):
                label_maps.write(os.path.join(options['labels'], name + '.png'), labels)
            print(label_maps.written(len(paths), options['labels']))

    def draw(
        self, images: Sequence[Any], titles: Sequence[str], found: Sequence[Any], path: Path,
        form: str, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        from hrnet_jax.tasks.overlay import draw

        draw(images, titles, found, options['names'], path, form)

    def add_prediction_flags(self, group: Any) -> None:
        self._add_labels(group)


def _check_values(source: Facts) -> None:
    """Of a user's own source there is nothing to check."""
    if isinstance(source, Indexed) and isinstance(source.read, segmentation.Files):
        source.read.check_values()


def present(labels: np.ndarray) -> list[tuple[int, float]]:
    """The classes in a label map and their parts of the pixels, largest first."""
    counts = np.bincount(labels.reshape(-1))
    order = sorted(np.flatnonzero(counts), key=lambda i: -counts[i])
    return [(int(i), float(counts[i] / labels.size)) for i in order]


TASK = Segmentation()
