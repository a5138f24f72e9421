"""Pose: the keypoints of each person, top-down, from the person's box."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.data import boxes as box_files
from hrnet_jax.data import opencv, people, people_batches, topdown
from hrnet_jax.data.evaluation import Batches, Share
from hrnet_jax.data.measured import Measured
from hrnet_jax.data.people import OpenedPeople
from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import (
    Array,
    Figure,
    Metric,
    Task,
    TrainingData,
    options_of,
)
from hrnet_jax.tasks.dense import AsTheyAre, DenseTask
from hrnet_jax.tasks.keypoint_metrics import Distances, Precision
from hrnet_jax.tasks.pose_recipes import RECIPES, PoseRecipe
from hrnet_jax.tasks.recipe import Group
from hrnet_jax.tasks.similarity import person_score

# Of recipes, as `Augmentation` has them.
_AUGMENTATION = (
    *('flip', 'shift', 'shift_share', 'scale', 'rotation', 'rotation_share', 'noise'),
    *('half_body', 'half_body_least', 'half_body_upper'),
)
_PERSON = 'person'  # what detectors call their class
THRESHOLD = 0.3  # score of a keypoint that is drawn
_BOXES = (
    "JSON with people's boxes: COCO's detections or, for predict.py, {file name: [[x, y, width, "
    'height], ...]} (default: the boxes of the data set; for predict.py, the whole image)'
)


@dataclasses.dataclass(frozen=True)
class Person:
    """One person in an image.

    Attributes:
        keypoints: float64 (K, 2), x and y in pixels of the image.
        scores: float32 (K,), of the keypoints.
        score: of the person: the detector's times the mean of the keypoints' scores above 0.2.
        box: (x, y, width, height) in which the person was looked for.
    """

    keypoints: np.ndarray
    scores: np.ndarray
    score: float
    box: tuple[float, float, float, float]


class Pose(DenseTask):
    name = 'pose'
    heads = ('finest', 'joined')
    figures = (
        Figure('ap', 'AP', unit=''),
        Figure('ap50', 'AP at 0.5', unit=''),
        Figure('ap75', 'AP at 0.75', unit=''),
        Figure('apm', 'AP, medium', unit=''),
        Figure('apl', 'AP, large', unit=''),
        Figure('ar', 'AR', unit=''),
        Figure('ap_easy', 'AP, easy', unit=''),
        Figure('ap_medium', 'AP, medium', unit=''),
        Figure('ap_hard', 'AP, hard', unit=''),
        Figure('pckh', 'PCKh at 0.5', unit=''),
        Figure('pckh10', 'PCKh at 0.1', unit=''),
        Figure('nme', 'NME', higher_is_better=False),
    )
    protocol = TopDown
    recipes = RECIPES
    outputs = 'keypoints'
    helpers = ('detector',)
    tensorflow = False
    fields = ('in_channels', 'head', 'upsample', 'align_corners')

    # The model

    def create_model(
        self, arch: Any, num_classes: int = 17, *, num_keypoints: int | None = None, **options: Any
    ) -> Any:
        """A `PoseNet`; `num_classes` is the number of keypoints, too."""
        from hrnet_jax.heads.pose import PoseNet

        if options.get('head') == 'joined':
            options = {'upsample': 'bilinear'} | options
        number = num_classes if num_keypoints is None else num_keypoints
        return PoseNet(arch, num_keypoints=number, **options)

    def build(self, arch: Any, recipe: Any, source: Any) -> Any:
        own = {'head': recipe.head, 'frozen_norm': recipe.frozen_norm}
        return self.create_model(arch, self.num_outputs(source), **own, **options_of(recipe))

    def describe(self, model: Any) -> dict[str, Any]:
        return super().describe(model) | {'num_classes': model.num_keypoints}

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        return super().model_of(meta, num_classes=meta['num_classes'], **options)

    # Data

    def open_dataset(
        self, name: str, split: str | None, data_dir: str | None, boxes: str | None = None
    ) -> Any:
        return people.open_people(name, split, data_dir, boxes)

    def batches(self, source: Any, transform: Any, share: Share) -> Batches:
        return people_batches.batches(source, transform, share)

    def context(self, source: Any, data_dir: str | None) -> dict[str, Any]:
        return {'truth': source.truth}

    def add_data_flags(self, group: Any) -> None:
        group.add_argument('--boxes', metavar='FILE', help=_BOXES)

    # Evaluation

    def metric(self, model: Any, **context: Any) -> Metric:
        if file := context.get('predictions'):
            box_files.check_writable(file)
        if isinstance(context.get('truth'), Measured):
            if file:
                raise UserError('--predictions is for sets that are evaluated by AP')
            return Distances(**context)
        return Precision(**context)

    def figures_of(self, model: Any, metric: Any) -> tuple[Figure, ...]:
        return tuple(figure for figure in self.figures if figure.name in metric.names)

    def output_names(self, meta: Mapping[str, Any]) -> Sequence[str] | None:
        return (meta.get('transform') or {}).get('keypoints')

    def add_evaluation_flags(self, group: Any) -> None:
        group.add_argument(
            '--predictions', metavar='FILE', help="write the people there, as COCO's results (JSON)"
        )

    # Training

    def parameter_groups(self, model: Any, recipe: Any) -> Sequence[Group]:
        """`head_lr` is for the whole head."""
        return recipe.parameter_groups([('head',)])

    def transform(self, recipe: PoseRecipe, source: OpenedPeople) -> TopDown:
        held = source.keypoints
        return dataclasses.replace(
            recipe.transform, keypoints=held.names, pairs=held.pairs, skeleton=held.skeleton
        )

    def training_data(self, source: OpenedPeople, recipe: PoseRecipe, *share: int) -> TrainingData:
        from hrnet_jax.data.indexed_training import IndexedData
        from hrnet_jax.data.pose_augment import Augmentation, fields

        own = {name: getattr(recipe, name) for name in _AUGMENTATION}
        augment = Augmentation(self.transform(recipe, source), source.keypoints.upper, **own)
        size, count = recipe.input_size, self.num_outputs(source)
        outputs = fields(size, count)
        return IndexedData(source, recipe, *share, augment=augment, size=size, outputs=outputs)

    def loss(
        self, outputs: Array, batch: dict[str, Array], recipe: Any
    ) -> tuple[Array, dict[str, Array]]:
        """The mean of squares over pixels and keypoints; 0 for a keypoint that is not marked."""
        import jax.numpy as jnp

        wanted = batch['rows'][:, :, None] * batch['columns'][:, None]
        apart = jnp.square(outputs - wanted) * batch['seen'][:, None, None]
        return recipe.loss_weight * jnp.mean(apart, (1, 2, 3)), {}

    # Prediction

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, *, boxes: Any = None,
        threshold: float | None = None, **others: Any,
    ) -> dict[str, Any]:  # fmt: skip
        super().prediction_options(model, class_names, **others)
        if class_names:
            raise UserError('keypoints are named by the transform, not by class_names')
        if boxes is not None:
            boxes = [box_files.checked_boxes(rows) for rows in boxes]
        return {'boxes': boxes, 'threshold': THRESHOLD if threshold is None else threshold}

    def check_helper(self, flag: str, task: Task, meta: Mapping[str, Any]) -> None:
        if _PERSON not in (meta.get('class_names') or ()):
            raise UserError(f'--{flag}: this checkpoint does not find persons')

    def helped(self, flag: str, found: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """The boxes of persons."""
        people = ([x for x in objects if x.name == _PERSON] for objects in found)
        return {**options, 'boxes': [[(*x.box, x.score) for x in each] for each in people]}

    def file_options(self, paths: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        if options.get('boxes') and options.get('detector'):
            raise UserError('--boxes and --detector are two ways to say the same')
        if file := options.get('boxes'):
            options = {**options, 'boxes': box_files.boxes_of_files(file, paths)}
        return options

    def open_image(self, path: str, **flags: Any) -> np.ndarray:
        return opencv.read_rgb(path)

    def every_part(
        self, transform: TopDown, images: Sequence[Any], options: Mapping[str, Any]
    ) -> Iterator[list[tuple[dict[str, np.ndarray], Any]]]:
        boxes = options['boxes']
        if boxes is not None and len(boxes) != len(images):
            raise UserError(f'there are boxes for {len(boxes)} images, but {len(images)} images')
        for i, image in enumerate(images):
            array = np.asarray(rgb_image(image))
            rows = (
                [[*map(float, topdown.whole(array)), 1.0]] if boxes is None else boxes[i].tolist()
            )
            yield [({'image': transform.crop(array, row[:4])}, row) for row in rows]

    def decoder(self, options: Mapping[str, Any]) -> Callable[[Any], Any]:
        return AsTheyAre()

    def joined(self, parts: Sequence[tuple[Any, Any]], options: Mapping[str, Any]) -> list[Person]:
        if not all(np.isfinite(decoded['scores']).all() for decoded, _ in parts):
            raise UserError(
                'the heatmaps are not finite: the weights are damaged, or the computation overflows'
            )
        return [
            Person(
                options['transform'].placed(decoded['keypoints'], row[:4]),
                decoded['scores'],
                float(person_score(row[4], decoded['scores'])),
                (row[0], row[1], row[2], row[3]),
            )
            for decoded, row in parts
        ]

    def lines(self, found: Sequence[Person], options: Mapping[str, Any]) -> list[str]:
        lines = []
        for person in found:
            box = ' '.join(f'{value:g}' for value in person.box)
            seen = int(np.sum(person.scores >= options['threshold']))
            lines.append(
                f'  {person.score:.3f}  box {box}: {seen} of {len(person.scores)} keypoints'
            )
        return lines or ['  no person']

    def json_rows(
        self, paths: Sequence[str], found: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """As COCO's results: a list of people, in the order of the boxes."""
        return [
            {
                'file': name,
                'category_id': box_files.PERSON,
                'keypoints': np.column_stack([person.keypoints, person.scores]).ravel().tolist(),
                'score': person.score,
                'bbox': list(person.box),
            }
            for name, held in zip(box_files.names_of(paths), found, strict=True)
            for person in held
        ]

    def draw(
        self, images: Sequence[Any], titles: Sequence[str], found: Sequence[Any], path: Path,
        form: str, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        from hrnet_jax.tasks.skeletons import draw

        draw(images, titles, found, options['transform'], options['threshold'], path, form)

    def add_prediction_flags(self, group: Any) -> None:
        group.add_argument('--boxes', metavar='FILE', help=_BOXES)
        group.add_argument(
            '--detector', metavar='DIR',
            help='a checkpoint of a detector, which finds the people: a score above 0.3 counts',
        )  # fmt: skip
        text = f'smallest score of a keypoint that is drawn (default: {THRESHOLD})'
        group.add_argument('--threshold', type=float, metavar='P', help=text)


TASK = Pose()
