"""Data sets of people with keypoints, in COCO's form: published ones, and folders of one's own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hrnet_jax.data import boxes as box_files
from hrnet_jax.data import coco_form, keypoint_sets, opencv
from hrnet_jax.data.coco_folders import Layout, located, paths_of
from hrnet_jax.data.indexed import Example, Indexed
from hrnet_jax.data.keypoint_sets import KeypointSet
from hrnet_jax.data.measured import FACES, Measured, face_sizes, read_mpii
from hrnet_jax.data.sources import Dataset
from hrnet_jax.errors import UserError


def _faces(file: str, **splits: str) -> Layout:
    return Layout((file,), 'images', {**(splits or {'test': 'test'}), 'train': 'train'})


_COCO = {'val2017': 'val', 'val': 'val', 'train2017': 'train', 'train': 'train'}
_AIC = 'ai_challenger_keypoint_{split}_20170911/keypoint_{split}_images_20170911'
LAYOUTS: dict[str, Layout] = {
    'coco': Layout(('annotations/person_keypoints_{split}2017.json',), '{split}2017', _COCO),
    'coco_wholebody': Layout(
        ('annotations/coco_wholebody_{split}_v1.0.json',), '{split}2017', _COCO
    ),
    'crowdpose': Layout(
        ('annotations/mmpose_crowdpose_{split}.json', 'annotations/crowdpose_{split}.json'),
        'images',
        {name: name for name in ('test', 'val', 'train', 'trainval')},
        areas=False,
    ),
    'aic': Layout(
        ('annotations/aic_{split:.5}.json', 'annotations/aic_{split:.3}.json'),
        _AIC,
        {'val': 'validation', 'validation': 'validation', 'train': 'train'},
        areas=False,
    ),
    'wflw': _faces('annotations/face_landmarks_wflw_{split}.json'),
    'cofw': _faces('annotations/cofw_{split}.json'),
    '300w': _faces('annotations/face_landmarks_300w_{split}.json', valid='valid', test='test'),
    'aflw': _faces('annotations/face_landmarks_aflw_{split}.json'),
    'mpii': Layout(
        ('annotations/mpii_{split}.json',),
        'images',
        {name: name for name in ('val', 'train', 'trainval')},
    ),
}


@dataclasses.dataclass(frozen=True)
class People:
    """Reads examples, one a person; can be pickled.

    Attributes:
        images: paths.
        places: int32 (N,), the image of each person, rising.
        boxes: float64 (N, 5): x, y, width, height, score of the detector or 1.
        keypoints: float32 (N, K, 3): x, y, and 0 where it is not marked; None of a detector's.
    """

    images: tuple[str, ...]
    places: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray | None = None

    def image(self, number: int) -> np.ndarray:
        """The image that the person is in."""
        return opencv.read_rgb(self.images[self.places[number]])

    def __call__(self, number: int) -> Example:
        example = {'image': self.image(number), 'box': self.boxes[number]}
        if self.keypoints is not None:
            example['keypoints'] = self.keypoints[number]
        return example

    def image_hw(self, numbers: Sequence[int]) -> np.ndarray:
        sizes = [opencv.image_hw(self.images[self.places[number]]) for number in numbers]
        return np.array(sizes, np.int32).reshape(-1, 2)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What an evaluation must know of the set.

    Attributes:
        content: in COCO's form: ids of images, people with their keypoints, and one category.
        image_ids: of each person that is evaluated.
        boxes: of `People`.
        sigmas: of the keypoints.
        parts: name -> the keypoints of a part of the body that is evaluated by itself, too.
        crowds: see `coco_form.crowds`; each level is evaluated by itself, too.
    """

    content: dict[str, Any]
    image_ids: tuple[Any, ...]
    boxes: np.ndarray
    sigmas: tuple[float, ...]
    parts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    crowds: Mapping[str, frozenset[Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class OpenedPeople(Indexed):
    """Attributes beside those of `Indexed`:

    truth: for the metric, which is on the host of process 0.
    keypoints: what is known of them.
    """

    truth: Truth | Measured = dataclasses.field(repr=False, kw_only=True)
    keypoints: KeypointSet = dataclasses.field(repr=False, kw_only=True)


def open_people(
    name: str, split: str | None, data_dir: str | None, boxes: str | None = None
) -> OpenedPeople:
    """A set of `LAYOUTS` in the folder `data_dir`, or folder:PATH of one's own.

    PATH holds annotations in COCO's form (SPLIT.json, also in annotations/; or PATH is that file),
    and their images, in it, in images/, SPLIT/ or images/SPLIT/.

    Args:
        boxes: file of a detector whose boxes are taken instead of those of the annotations; its
            name is in the split's, as in the published table.

    Raises:
        UserError: if files are missing or are not of this form.
    """
    title, split, path, folders = located(name, split, data_dir, LAYOUTS, 'pose')
    areas = LAYOUTS[title].areas if title in LAYOUTS else True
    if boxes and (title in FACES or title == 'mpii'):
        raise UserError(f'{title} is evaluated in the boxes of its annotations, without --boxes')
    if title == 'mpii':
        files, regions, measured = read_mpii(os.path.dirname(folders[0]), split)
        order = {name: i for i, name in enumerate(dict.fromkeys(files))}
        places = np.array([order[name] for name in files], np.int32)
        reader = People(paths_of(path, folders, list(order)), places, regions, measured.keypoints)
        return _opened(title, split, reader, measured, keypoint_sets.sets()['mpii'])
    content = box_files.read_json(path)
    images, people, category = coco_form.parsed(content, path, title)
    keypoint_names = tuple(category['keypoints'])
    parts: dict[str, tuple[int, int]] = {}
    if people and all(more in people[0] for more in coco_form.MORE):
        people, keypoint_names, parts = coco_form.whole_bodies(people)
    marked = [coco_form.marked(person, len(keypoint_names), path) for person in people]
    ids = list(images)
    if boxes:
        rows, keypoints, notes = coco_form.detected(boxes, images)
        split = f'{split} with {os.path.basename(boxes)}'
    else:
        rows, keypoints, notes = coco_form.annotated(people, marked, images, path, title in FACES)
    rows.sort(key=lambda row: row[0])  # stable: one image after another
    places = np.array([row[0] for row in rows], np.int32)
    regions = np.array([row[1] for row in rows]).reshape(-1, 5)
    chosen = [row[2] for row in rows]
    truth: Truth | Measured
    if title in FACES:
        points = np.array([marked[i] for i in chosen])
        sizes = face_sizes(title, [people[i] for i in chosen], points, path)
        truth = Measured(points, sizes, tuple(range(len(keypoint_names))))
    else:
        sigmas, remark = coco_form.sigmas(title, keypoint_names, category, path)
        notes = (*notes, *remark)
        crowds = coco_form.crowds(images)
        held = coco_form.content(ids, people, marked, category, path, areas, bool(crowds))
        truth = Truth(held, tuple(ids[i] for i in places), regions, sigmas, parts, crowds)
    reader = People(
        paths_of(path, folders, [str(images[i]['file_name']) for i in ids]),
        places,
        regions,
        np.array([keypoints[i] for i in chosen], np.float32) if keypoints else None,
    )
    known = coco_form.keypoints(title, keypoint_names, category, path)
    return _opened(title, split, reader, truth, known, notes)


def _opened(
    title: str,
    split: str,
    reader: People,
    truth: Truth | Measured,
    keypoints: KeypointSet,
    notes: tuple[str, ...] = (),
) -> OpenedPeople:
    count = len(reader.places)
    return OpenedPeople(
        Dataset(title, split, count),
        split,
        count,
        len(keypoints.names),
        None,
        False,
        notes,
        {},
        (),
        read=reader,
        names=[os.path.basename(reader.images[i]) for i in reader.places],
        image_hw=reader.image_hw,
        truth=truth,
        keypoints=keypoints,
    )
