"""Detection: the objects in an image, each with its box, its class and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.data import box_augment, box_batches, classes, coco_boxes, coco_tfds, opencv
from hrnet_jax.data import boxes as box_files
from hrnet_jax.data.coco_boxes import OpenedBoxes
from hrnet_jax.data.evaluation import Batches, Share
from hrnet_jax.data.keep_ratio import KeepRatio, coco
from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.data.sources import Facts
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import (
    Array,
    Figure,
    Metric,
    TrainingData,
    Variables,
    options_of,
)
from hrnet_jax.tasks.box_metrics import BoxPrecision
from hrnet_jax.tasks.dense import AsTheyAre, DenseTask
from hrnet_jax.tasks.detection_recipes import RECIPES, BoxRecipe
from hrnet_jax.tasks.recipe import Group

SCORE = 0.3  # of an object that is shown: above it


@dataclasses.dataclass(frozen=True)
class Found:
    """One object in an image.

    Attributes:
        box: (x, y, width, height) in pixels of the image.
        score: how sure it is, 0 to 1.
        index, name: of its class.
        category: the data set's id of the class.
    """

    box: tuple[float, float, float, float]
    score: float
    index: int
    name: str
    category: int


class Detection(DenseTask):
    name = 'detection'
    heads = ('fcos', 'faster_rcnn')
    figures = (
        Figure('ap', 'AP', unit=''),
        Figure('ap50', 'AP at 0.5', unit=''),
        Figure('ap75', 'AP at 0.75', unit=''),
        Figure('aps', 'AP, small', unit=''),
        Figure('apm', 'AP, medium', unit=''),
        Figure('apl', 'AP, large', unit=''),
    )
    protocol = KeepRatio
    recipes = RECIPES
    datasets = (*coco_boxes.LAYOUTS, *coco_tfds.NAMES)
    tensorflow = False
    fields = (
        *('num_classes', 'in_channels', 'head', 'channels', 'pooling', 'threshold', 'iou', 'most'),
        *('upsample', 'align_corners'),
    )

    # The model

    def create_model(self, arch: Any, num_classes: int = 80, **options: Any) -> Any:
        """A `Detector`."""
        from hrnet_jax.heads.detection import Detector

        return Detector(arch, num_classes=num_classes, **options)

    def build(self, arch: Any, recipe: Any, source: Any) -> Any:
        own = {'head': recipe.head, 'channels': recipe.pyramid, 'frozen_norm': recipe.frozen_norm}
        return self.create_model(arch, self.num_outputs(source), **own, **options_of(recipe))

    def protocol_of_file(
        self, model: Any, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Protocol, list[str]]:
        """mmdetection's FCOS gets BGR."""
        usual = {'channels': 'bgr' if model.head == 'fcos' else 'rgb'}
        given = {name: value for name, value in flags.items() if value is not None}
        return super().protocol_of_file(model, meta, multiple, **usual | given)

    def class_names(self, dataset: str) -> tuple[str, ...] | None:
        return tuple(coco().values()) if dataset == 'coco' else None

    def usual_names(self, protocol: KeepRatio) -> tuple[str, ...] | None:
        return self.class_names('coco') if protocol.categories == tuple(coco()) else None

    # Data

    def open_dataset(self, name: str, split: str | None, data_dir: str | None) -> Any:
        return coco_boxes.open_boxes(name, split, data_dir)

    def renumbered(self, source: Any, names: Sequence[str]) -> Any:
        return source.renumbered(classes.places(source, names), names)

    def check_files(self, source: Any, transform: Any, max_corrupt: float) -> None:
        coco_boxes.check_images(source, math.floor(max_corrupt * source.num_examples))

    def batches(self, source: Any, transform: Any, share: Share) -> Batches:
        return box_batches.batches(source, transform, share)

    def context(self, source: Any, data_dir: str | None) -> dict[str, Any]:
        return {'truth': source.truth, 'class_names': source.class_names}

    def check_evaluation(self, meta: Mapping[str, Any], source: Facts) -> None:
        names = meta.get('class_names')
        if names and source.class_names and tuple(names) != tuple(source.class_names):
            raise UserError(
                f'{source.dataset.name}: the categories of {source.split or "it"} have other ids '
                'than those that are trained on; give each category one id in all files'
            )

    # Evaluation

    def metric(self, model: Any, **context: Any) -> Metric:
        if file := context.get('predictions'):
            box_files.check_writable(file)
        return BoxPrecision(**context)

    def add_evaluation_flags(self, group: Any) -> None:
        group.add_argument(
            '--predictions', metavar='FILE', help="write the boxes there, as COCO's results (JSON)"
        )

    # Training

    def parameter_groups(self, model: Any, recipe: Any) -> Sequence[Group]:
        """`head_lr` is for all that is not the backbone."""
        parts = ('neck', 'rpn_head', 'bbox_head')[:: 1 if model.head == 'faster_rcnn' else 2]
        return recipe.parameter_groups(tuple((part,) for part in parts))

    def transform(self, recipe: BoxRecipe, source: OpenedBoxes) -> KeepRatio:
        ids = tuple(i for i in source.truth.category_ids if i is not None)
        usual = ids == tuple(range(1, len(ids) + 1))
        own = None if usual or len(ids) < len(source.truth.category_ids) else ids
        return dataclasses.replace(recipe.transform, categories=own)

    def training_data(self, source: OpenedBoxes, recipe: BoxRecipe, *share: int) -> TrainingData:
        from hrnet_jax.data.indexed_training import IndexedData

        source = source if recipe.empty else source.with_boxes()
        allowed = math.ceil(recipe.max_corrupt * source.num_examples)
        flag = f'--max-corrupt, which is {recipe.max_corrupt:g}'
        every = coco_boxes.check_images(source, allowed, flag)
        kinds = np.array([box_augment.kind(tuple(size)) for size in every], np.int64)
        sizes, (few, *_) = recipe.sizes, sorted(np.bincount(kinds, minlength=2))
        if 0 < few < recipe.batch_size:  # of which there would be no batch
            sizes = ((max(recipe.size),) * 2,) * 2
        read: Any = source.read
        room = max(1, *(len(marked.boxes) for marked in read.marked))
        protocol = self.transform(recipe, source)
        return IndexedData(
            source,
            recipe,
            *share,
            augment=box_augment.Augmentation(protocol, sizes, room, recipe.resize, recipe.flip),
            size=sizes[0],
            outputs=box_augment.fields(room),
            kinds=None if sizes[0] == sizes[1] else kinds,
            sizes=sizes,
        )

    def forward(
        self, apply: Callable[..., Any], images: Array, batch: dict[str, Array], key: Array
    ) -> tuple[Any, Variables]:
        """Faster R-CNN is asked for the classes of regions, too: see `region_losses.answers`."""
        from hrnet_jax.tasks.region_losses import answers

        maps, new = apply(images, sizes=batch['image_hw'])
        if 'objectness' not in maps:
            return maps, new
        return answers(maps, lambda *x: apply(*x, method='classify')[0], batch, key), new

    def loss(
        self, outputs: Any, batch: dict[str, Array], recipe: Any
    ) -> tuple[Array, dict[str, Array]]:
        from hrnet_jax.tasks import place_losses, region_losses

        losses = {'fcos': place_losses.fcos_loss, 'faster_rcnn': region_losses.faster_rcnn_loss}
        return losses[recipe.head](outputs, batch), {}

    # Prediction

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, *, score: float | None = None,
        **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        super().prediction_options(model, class_names, **others)
        names = class_names or getattr(model, 'class_names', None) or range(model.num_classes)
        if len(names) != model.num_classes:
            raise UserError(f'{len(names)} class names for {model.num_classes} classes')
        score = SCORE if score is None else score
        if not 0 <= score <= 1:
            raise UserError(f'score must be from 0 to 1, not {score!r}')
        return {'names': tuple(map(str, names)), 'score': score}

    def open_image(self, path: str, **flags: Any) -> np.ndarray:
        return opencv.read_rgb(path)

    def parts(
        self, transform: KeepRatio, image: Any, index: int, options: Mapping[str, Any]
    ) -> list[tuple[dict[str, np.ndarray], Any]]:
        array = np.asarray(rgb_image(image))
        return [(transform.arrays(array), array.shape[:2])]

    def at_once(
        self, batch_size: int, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> int:
        height, width, _ = arrays['image'].shape
        return box_batches.at_once((height, width), batch_size)

    def decoder(self, options: Mapping[str, Any]) -> Callable[[Any], Any]:
        return AsTheyAre()

    def joined(self, parts: Sequence[tuple[Any, Any]], options: Mapping[str, Any]) -> list[Found]:
        """Best first; those with a score above `score`."""
        [(decoded, image_hw)] = parts
        if not np.isfinite(decoded['scores']).all():
            raise UserError(
                'the outputs are not finite: the weights are damaged, or the computation overflows'
            )
        transform, names = options['transform'], options['names']
        height, width = np.divide(transform.size(image_hw), image_hw)
        boxes = decoded['boxes'].astype(np.float64) / [width, height, width, height]
        kept = np.flatnonzero(decoded['valid'] & (decoded['scores'] > options['score']))
        found = []
        for x1, y1, x2, y2, i in np.column_stack([boxes[kept], kept]).tolist():
            index = int(decoded['labels'][int(i)])
            about = float(decoded['scores'][int(i)]), index, names[index], transform.category(index)
            found.append(Found((x1, y1, x2 - x1, y2 - y1), *about))
        return found

    def lines(self, found: Sequence[Found], options: Mapping[str, Any]) -> list[str]:
        lines = []
        for one in found:
            box = ' '.join(f'{value:.1f}' for value in one.box)
            lines.append(f'  {one.score:.3f}  {one.name}: {box}')
        return lines or [f'  nothing with a score above {options["score"]:g}']

    def json_rows(
        self, paths: Sequence[str], found: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """As COCO's results: a list of objects, image after image, best first."""
        return [
            {
                'file': name,
                'category_id': one.category,
                'label': one.name,
                'bbox': list(one.box),
                'score': one.score,
            }
            for name, held in zip(box_files.names_of(paths), found, strict=True)
            for one in held
        ]

    def draw(
        self, images: Sequence[Any], titles: Sequence[str], found: Sequence[Any], path: Path,
        form: str, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        from hrnet_jax.tasks.frames import draw

        draw(images, titles, found, options['names'], path, form)

    def add_prediction_flags(self, group: Any) -> None:
        text = f'only objects with a score above this one (default: {SCORE})'
        group.add_argument('--score', type=float, metavar='P', help=text)


TASK = Detection()
