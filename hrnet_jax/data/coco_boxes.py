"""Data sets of boxes with a class, in COCO's form: COCO itself, and folders of one's own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from hrnet_jax.data import boxes as box_files
from hrnet_jax.data import coco_tfds, opencv
from hrnet_jax.data.coco_folders import Layout, located, paths_of
from hrnet_jax.data.coco_form import OF_IMAGES, box_of, odd
from hrnet_jax.data.indexed import Example, Indexed
from hrnet_jax.data.opencv import Place
from hrnet_jax.data.sources import NAMED, Dataset, too_many
from hrnet_jax.errors import UserError, listed

_SPLITS = {'val2017': 'val', 'val': 'val', 'train2017': 'train', 'train': 'train'}
_OF_BOXES = {'area': (1,), 'iscrowd': (1,)}  # as `coco_form.OF_IMAGES`
LAYOUTS = {'coco': Layout(('annotations/instances_{split}2017.json',), '{split}2017', _SPLITS)}


@dataclasses.dataclass(frozen=True)
class Marked:
    """What is marked in one image.

    Attributes:
        boxes: float64 (G, 4): x1, y1, x2, y2.
        labels: int32 (G,), class indices.
        crowd: bool (G,): a box around many objects, of which nobody says where each is.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray

    def in_classes(self, table: np.ndarray) -> Marked:
        """With other class indices, by a table of them."""
        return dataclasses.replace(self, labels=table[self.labels].astype(np.int32))


@dataclasses.dataclass(frozen=True)
class Boxes:
    """Reads examples, one an image; can be pickled.

    Attributes:
        images: their places.
        marked: of each image.
    """

    images: tuple[Place, ...]
    marked: tuple[Marked, ...]

    def __call__(self, number: int) -> Example:
        return {'image': opencv.read_rgb(self.images[number]), **vars(self.marked[number])}

    def image_hw(self, numbers: Sequence[int]) -> np.ndarray:
        """int32 (n, 2): heights and widths; 0 of an image that cannot be read."""

        def one(number: int) -> tuple[int, int]:
            for read in (opencv.image_hw, _decoded_hw):  # PIL's headers, else OpenCV
                with contextlib.suppress(UserError):
                    return read(self.images[number])
            return 0, 0

        with futures.ThreadPoolExecutor(16) as pool:  # remote storage answers late
            return np.array(list(pool.map(one, numbers)), np.int32).reshape(-1, 2)

    def chosen(self, numbers: Sequence[int]) -> Boxes:
        """Those of some images."""
        images = tuple(self.images[i] for i in numbers)
        return Boxes(images, tuple(self.marked[i] for i in numbers))


def check_images(source: Indexed, allowed: int, *flag: str) -> np.ndarray:
    """The sizes of all images, as of `Boxes.image_hw`.

    Args:
        flag: as of `too_many`.

    Raises:
        UserError: if more than `allowed` cannot be read; names some, and says why.
    """

    def reason(number: int) -> str:
        try:
            source.read(number)
        except UserError as error:
            return str(error)
        return source.names[number]  # now it can

    sizes = source.image_hw(range(source.num_examples))
    missing = np.flatnonzero(~sizes.all(1)).tolist()
    if len(missing) > allowed:
        found = [reason(i) if k < NAMED else source.names[i] for k, i in enumerate(missing)]
        raise too_many(source, f'{len(missing)} of {len(sizes)} images', found, *flag)
    return sizes


def _decoded_hw(place: Place) -> tuple[int, int]:
    height, width, _ = opencv.read_rgb(place).shape
    return height, width


@dataclasses.dataclass(frozen=True)
class Truth:
    """What an evaluation must know of the set.

    Attributes:
        content: in COCO's form: ids of images, their boxes, and categories.
        image_ids: in the order of the set.
        category_ids: of each class; None for a class that the set has not.
    """

    content: Mapping[str, Any]
    image_ids: tuple[Any, ...]
    category_ids: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class OpenedBoxes(Indexed):
    """Attributes beside those of `Indexed`:

    truth: for the metric, which is on the host of process 0.
    """

    truth: Truth = dataclasses.field(repr=False, kw_only=True)

    def renumbered(self, table: np.ndarray, names: Sequence[str]) -> OpenedBoxes:
        """With its classes as in `names`; `table`: the number there of each."""
        ids: list[int | None] = [None] * len(names)
        for place, own in zip(table, self.truth.category_ids, strict=True):
            ids[place] = own
        read: Any = self.read
        return dataclasses.replace(
            self,
            num_classes=len(names),
            class_names=tuple(names),
            read=Boxes(read.images, tuple(x.in_classes(table) for x in read.marked)),
            truth=dataclasses.replace(self.truth, category_ids=tuple(ids)),
        )

    def with_boxes(self) -> OpenedBoxes:
        """Without the images in which nothing is marked.

        Raises:
            UserError: if there are no others.
        """
        read: Any = self.read
        numbers = [i for i, marked in enumerate(read.marked) if len(marked.boxes)]
        if not numbers:
            raise UserError(f'{self.dataset.name}: no image of {self.split or "it"} has a box')
        ids = self.truth.image_ids
        return dataclasses.replace(
            self,
            num_examples=len(numbers),
            read=read.chosen(numbers),
            names=[self.names[i] for i in numbers],
            image_hw=read.chosen(numbers).image_hw,
            truth=dataclasses.replace(self.truth, image_ids=tuple(ids[i] for i in numbers)),
        )


def open_boxes(name: str, split: str | None, data_dir: str | None) -> OpenedBoxes:
    """'coco' in the folder `data_dir`, or 'coco/2017' as tfds has prepared it there; or folder:PATH
    of one's own, as `coco_folders.located` says.

    The classes are the categories of the file, in the order of their ids.

    Raises:
        UserError: if files are missing or are not of this form.
    """
    if name.partition(':')[0] in coco_tfds.NAMES:
        return opened(**coco_tfds.prepared_boxes(name, split, data_dir))
    title, split, path, folders = located(name, split, data_dir, LAYOUTS, 'detection')
    images, annotations, categories = parsed(box_files.read_json(path), path)
    places = paths_of(path, folders, [str(image['file_name']) for image in images.values()])
    return opened(title, split, places, images, annotations, categories, path)


def parsed(content: Any, path: str) -> tuple[dict[Any, Any], list[Any], dict[Any, str]]:
    """id -> image; annotations; id of a category, rising -> its name.

    Raises:
        UserError: if the file is of another form.
    """
    try:
        rows = [(row['id'], row['name']) for row in content['categories']]
        categories = dict(sorted(rows))
        listing, annotations = list(content['images']), list(content['annotations'])
        images = {image['id']: image for image in listing}
        strangers = {str(x['image_id']) for x in annotations if x['image_id'] not in images}
        unknown = {str(x['category_id']) for x in annotations if x['category_id'] not in categories}
        good = all(isinstance(i, int) and isinstance(name, str) for i, name in rows)
        good = good and all(isinstance(i, int | str) for i in images)
        named = all(isinstance(image['file_name'], str) for image in images.values())
        wrong = [said for image in listing for said in odd('image', image, OF_IMAGES)]
        wrong += [said for row in annotations for said in odd('annotation', row, _OF_BOXES)]
        if len(set(map(type, images))) > 1:
            wrong.append('ids of images are all numbers, or all texts')
    except (KeyError, TypeError, AttributeError):
        good = named = False
    if not good:
        raise UserError(
            f'{path} is not in the form of COCO: images, annotations, and categories with a name'
        )
    if not images or not named:
        raise UserError(f'{path} lists no images with a file_name')
    if wrong:
        raise UserError(f'{path} is not in the form of COCO: {listed(wrong)}')
    if len(images) < len(listing):
        raise UserError(f'{path}: every image needs an id of its own')
    twice = len(categories) < len(rows) or len(set(categories.values())) < len(rows)
    if twice or not categories:
        raise UserError(f'{path}: every category needs an id and a name of its own')
    if strangers:
        raise UserError(f'{path}: boxes are in images {listed(sorted(strangers))}, not listed')
    if unknown:
        raise UserError(f'{path}: boxes are of categories {listed(sorted(unknown))}, not listed')
    return images, annotations, categories


def opened(
    title: str,
    split: str,
    places: Sequence[Place],
    images: Mapping[Any, Any],
    annotations: Sequence[Any],
    categories: Mapping[Any, str],
    path: str,
    whole: tuple[str, int] | None = None,
    **facts: Any,
) -> OpenedBoxes:
    """The set of these annotations.

    Args:
        places: of the images.
        path: for messages.
        whole: the split that this is a part of, and how many images that has.
        facts: of `Dataset`, and version.
    """
    base, count = whole or (split, len(images))
    version = facts.pop('version', None)
    number = {identity: i for i, identity in enumerate(categories)}
    by_image: dict[Any, list[Any]] = {identity: [] for identity in images}
    truth = []
    for i, row in enumerate(annotations, 1):
        box = box_of(row, path) or [0.0] * 4
        crowd = int(bool(row.get('iscrowd')))
        area = box[2] * box[3] if row.get('area') is None else row['area']
        held = {'id': i, 'image_id': row['image_id'], 'category_id': row['category_id']}
        truth.append({**held, 'bbox': box, 'area': float(area), 'iscrowd': crowd})
        if _is_inside(box, images[row['image_id']]) and area > 0:
            by_image[row['image_id']].append((box, number[row['category_id']], crowd))
    reader = Boxes(tuple(places), tuple(map(_marked, by_image.values())))
    left_out = len(truth) - sum(len(x.boxes) for x in reader.marked)
    note = f'{left_out} boxes without a size or outside of their image: not trained on'
    names = tuple(categories.values())
    content = {
        'images': [{'id': identity} for identity in images],
        'annotations': truth,
        'categories': [{'id': i, 'name': name} for i, name in categories.items()],
    }
    return OpenedBoxes(
        Dataset(title, base, count, **facts),
        split,
        len(images),
        len(names),
        names,
        len(images) != count,
        (note,) * (left_out > 0),
        {},
        (),
        version,
        read=reader,
        names=[str(image['file_name']) for image in images.values()],
        image_hw=reader.image_hw,
        truth=Truth(content, tuple(images), tuple(categories)),
    )


def _is_inside(box: Sequence[float], image: Mapping[str, Any]) -> bool:
    """A pixel of the box or more, some of it in the image, where the file says the image's size."""
    x, y, width, height = box
    right, below = image.get('width') or np.inf, image.get('height') or np.inf
    seen = x < right and y < below and x + width > 0 and y + height > 0
    return bool(width >= 1 and height >= 1 and seen)


def _marked(rows: Sequence[tuple[Sequence[float], int, int]]) -> Marked:
    boxes = np.array([box for box, _, _ in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([label for _, label, _ in rows], np.int32)
    return Marked(boxes, labels, np.array([crowd for *_, crowd in rows], bool))
