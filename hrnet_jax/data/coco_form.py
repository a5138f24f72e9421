"""Annotations of people in the form of COCO: what is read of them, and who is evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hrnet_jax.data import boxes as box_files
from hrnet_jax.data import keypoint_sets
from hrnet_jax.data.crops import between
from hrnet_jax.data.measured import scaled_box
from hrnet_jax.errors import UserError, listed

MORE = ('foot_kpts', 'face_kpts', 'lefthand_kpts', 'righthand_kpts')  # of COCO-WholeBody
CROWDED = {'easy': 0.2, 'medium': 0.8, 'hard': math.inf}  # below these crowd indices of CrowdPose
_AREA = 0.53  # of a person, in parts of its box, where the set measures none
_SIGMA = 0.05  # of a keypoint of which nobody has measured it
Row = tuple[int, np.ndarray, int]  # place of the image, row of `Boxes`, number of the person
Found = tuple[list[Row], list[np.ndarray], tuple[str, ...]]


def parsed(content: Any, path: str, title: str) -> tuple[dict[Any, Any], list[Any], dict[str, Any]]:
    """id -> image; people with keypoints; their category, whose keypoints a published set need not
    name."""
    known = keypoint_sets.sets().get(title)
    try:
        categories = content['categories']
        if known and not any(x.get('keypoints') for x in categories):
            categories = [{**x, 'keypoints': list(known.names)} for x in categories]
        category = next(x for x in categories if x.get('keypoints'))
        images = {image['id']: image for image in content['images']}
        people = [x for x in content['annotations'] if x['category_id'] == category['id']]
        strangers = {x['image_id'] for x in people} - images.keys()
        named = all(isinstance(image.get('file_name'), str) for image in images.values())
        words = all(isinstance(name, str) for name in category['keypoints'])
        wrong = [said for image in images.values() for said in odd('image', image, OF_IMAGES)]
        wrong += [said for person in people for said in odd('annotation', person, _OF_PEOPLE)]
        if len(set(map(type, images))) > 1 or not _is_id(next(iter(images), 0)):
            wrong.append('ids of images are all numbers, or all texts')
        if not _is_id(category['id']) or not isinstance(category['keypoints'], list):
            wrong.append('a category has a number or a text as id, and a list of keypoints')
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise UserError(
            f'{path} is not in the form of COCO: images, annotations, and a category with keypoints'
        ) from None
    if not words:
        raise UserError(f'{path}: "keypoints" of the category are names')
    if wrong:
        raise UserError(f'{path} is not in the form of COCO: {listed(wrong)}')
    if strangers:
        ids = listed(sorted(map(str, strangers)))
        raise UserError(f'{path}: people are in images {ids}, which it does not list')
    if not images or not named:
        raise UserError(f'{path} lists no images with a file_name')
    return images, people, category


# Field -> how many numbers it has.
OF_IMAGES = {'width': (1,), 'height': (1,)}
_OF_PEOPLE = {
    'area': (1,), 'iscrowd': (1,), 'center': (2,), 'scale': (1, 2), 'box_size': (1,)
}  # fmt: skip
_MOST = 1e12  # of a number; NaN is not below it, either


def odd(kind: str, held: Mapping[str, Any], fields: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What to say of fields that are not so many numbers."""
    for name, lengths in fields.items():
        value = held.get(name)
        row = value if isinstance(value, list) and lengths != (1,) else [value]
        good = len(row) in lengths and all(
            isinstance(x, int | float) and abs(x) <= _MOST for x in row
        )
        if value is not None and not good:
            yield f'the {name} of {kind} {held.get("id")!r:.20} cannot be {value!r:.40}'


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def whole_bodies(people: list[Any]) -> tuple[list[Any], tuple[str, ...], dict[str, Any]]:
    """People of COCO-WholeBody with all their keypoints, the names of these, and the parts."""
    joined = [{**x, 'keypoints': sum((x[m] for m in MORE), x['keypoints'])} for x in people]
    ends = np.cumsum([0, *(len(people[0][name]) // 3 for name in ('keypoints', *MORE))]).tolist()
    names = ('body', 'foot', 'face', 'lefthand', 'righthand')
    parts = {name: (ends[i], ends[i + 1]) for i, name in enumerate(names)}
    return joined, keypoint_sets.sets()['coco_wholebody'].names, parts


def crowds(images: Mapping[Any, Any]) -> dict[str, frozenset[Any]]:
    """Level -> ids of the images that are so crowded; none of a set that does not say it of all."""
    if not all('crowdIndex' in image for image in images.values()):
        return {}
    found: dict[str, set[Any]] = {level: set() for level in CROWDED}
    for identity, image in images.items():
        level = next(name for name, below in CROWDED.items() if image['crowdIndex'] < below)
        found[level].add(identity)
    return {level: frozenset(ids) for level, ids in found.items()}


def marked(person: Mapping[str, Any], count: int, path: str) -> np.ndarray:
    """float64 (K, 3)."""
    try:
        found = np.array(person.get('keypoints') or [0] * 3 * count, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (3 * count,):
        raise UserError(
            f'{path}: the keypoints of annotation {person.get("id")} are not {count} times x, y '
            'and visibility'
        )
    return found.reshape(count, 3)


def box_of(person: Mapping[str, Any], path: str) -> list[float] | None:
    """x, y, width and height; None where the annotation has none."""
    box = person.get('bbox')
    if box is None:
        return None
    try:
        found = np.array(box, np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (4,) or not np.isfinite(found).all():
        raise UserError(
            f'{path}: the bbox of annotation {person.get("id")} is not [x, y, width, height]'
        )
    return found.tolist()


def annotated(
    people: Sequence[Any],
    marked: list[np.ndarray],
    images: Mapping[Any, Any],
    path: str,
    scaled: bool,
) -> Found:
    """The people that are evaluated: no crowds, with a keypoint, and with a box in the image."""
    place = {identity: i for i, identity in enumerate(images)}
    rows, left_out = [], 0
    for number, (person, points) in enumerate(zip(people, marked, strict=True)):
        image, box = images[person['image_id']], box_of(person, path)
        if scaled and (whole := scaled_box(person)):
            rows.append((place[person['image_id']], np.array([*whole, 1.0]), number))
            continue
        if box is None or person.get('iscrowd') or not points[:, 2].any():
            left_out += 1
            continue
        corners = np.array(box, np.float64).reshape(2, 2)
        corners[1] += corners[0]
        if (width := image.get('width')) and (height := image.get('height')):
            corners = np.clip(corners, 0, np.array([width, height]) - 1)
        size = corners[1] - corners[0]
        if size.min() <= 0:
            left_out += 1
            continue
        rows.append((place[person['image_id']], np.append(between(*corners), 1.0), number))
    if not rows:
        raise UserError(f'{path} has no person with a box and a keypoint')
    note = f'{left_out} people without a keypoint or a box in their image, or crowds: not evaluated'
    return rows, marked, (note,) * (left_out > 0)


def detected(boxes: str, images: Mapping[Any, Any]) -> Found:
    """The people of a detector, in the images that there are."""
    place = {identity: i for i, identity in enumerate(images)}
    found = box_files.detections(boxes)
    rows = []
    for image, row in found:
        if image in place and min(row[2:4]) > 0:
            low, size = row[:4].astype(np.float32).reshape(2, 2)
            rows.append((place[image], np.append(between(low, low + size), row[4]), 0))
    if not rows:
        raise UserError(
            f'{boxes} has no box of a person in these images; it has {len(found)} boxes of people'
        )
    left_out = len(found) - len(rows)
    note = f'{left_out} boxes of {boxes} are empty or of images that are not in the set: left out'
    return rows, [], (note,) * (left_out > 0)


def sigmas(
    title: str, names: tuple[str, ...], category: Mapping[str, Any], path: str
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """And a remark where nobody has said them."""
    sets = keypoint_sets.sets()
    known = title if title in sets else keypoint_sets.known(names)
    for sigmas in (category.get('sigmas'), sets[known].sigmas if known else None):
        if not sigmas:
            continue
        try:
            found = tuple(map(float, sigmas))
        except (TypeError, ValueError):
            found = ()
        if len(found) != len(names) or min(found) <= 0:
            raise UserError(f'{path}: "sigmas" are not {len(names)} numbers above 0')
        return found, ()
    note = f'OKS with sigma {_SIGMA} for each keypoint; "sigmas" of the category says others'
    return (_SIGMA,) * len(names), (note,)


def keypoints(
    title: str, names: tuple[str, ...], category: Mapping[str, Any], path: str
) -> keypoint_sets.KeypointSet:
    """Those of a published set, or those that the category describes."""
    sets = keypoint_sets.sets()
    known = keypoint_sets.known(names) or title
    if known in sets and len(sets[known].names) == len(names):
        return sets[known]
    try:
        lines = [(a - 1, b - 1) for a, b in category.get('skeleton') or ()]
        wrong = not all(0 <= end < len(names) for line in lines for end in line)
    except (TypeError, ValueError):
        wrong = True
    if wrong:
        raise UserError(f'{path}: "skeleton" is not pairs of numbers from 1 to {len(names)}')
    upper = category.get('upper_body')
    if upper is not None and not (isinstance(upper, list) and all(x in names for x in upper)):
        raise UserError(f'{path}: "upper_body" is not a list of keypoints, but {upper!r:.80}')
    return keypoint_sets.described(names, lines, upper)


def content(
    ids: Sequence[Any],
    people: Sequence[Any],
    marked: Sequence[np.ndarray],
    category: Mapping[str, Any],
    path: str,
    areas: bool,
    counted: bool,
) -> dict[str, Any]:
    """What pycocotools needs.

    Args:
        areas: people have those of the file; else they are parts of the boxes.
        counted: people without a keypoint that counts are those of whom the file says so.
    """
    boxes = [box_of(person, path) or [0.0] * 4 for person in people]
    annotations = [
        {
            'id': number,
            'image_id': person['image_id'],
            'category_id': category['id'],
            'iscrowd': int(bool(person.get('iscrowd'))),
            'bbox': box,
            'area': person['area']
            if areas and person.get('area') is not None
            else box[2] * box[3] * _AREA,
            'keypoints': points.ravel().tolist(),
            'num_keypoints': int(
                person['num_keypoints']
                if counted and 'num_keypoints' in person
                else (points[:, 2] > 0).sum()
            ),
        }
        for number, (person, points, box) in enumerate(zip(people, marked, boxes, strict=True), 1)
    ]
    images = [{'id': identity} for identity in ids]
    return {'images': images, 'annotations': annotations, 'categories': [dict(category)]}
