"""Sets that are evaluated by distances: faces in COCO's form, and MPII."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hrnet_jax.data import boxes as box_files
from hrnet_jax.data import keypoint_sets
from hrnet_jax.errors import UserError, first_line

PIXELS = 200  # of a scale of 1 in such annotations
# Set -> the two keypoints whose distance is the size of a face, or the annotation that is it.
FACES: dict[str, tuple[int, int] | str] = {
    'wflw': (60, 72),
    '300w': (36, 45),
    'cofw': (8, 9),
    'aflw': 'box_size',
}
_MPII_HEAD = 0.6  # of the diagonal of the head's box
_MPII_LEFT_OUT = (6, 7)  # pelvis and thorax


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an evaluation must know of the set.

    Attributes:
        keypoints: (N, K, 3): x, y, and 0 where it is not marked.
        sizes: (N,), by which the distances are divided; 0 where they are not known.
        counted: the keypoints that count.
        heads: 'pckh', the part of the keypoints that are near; else 'nme', the mean distance.
    """

    keypoints: np.ndarray
    sizes: np.ndarray
    counted: tuple[int, ...]
    heads: bool = False


def face_sizes(
    title: str, people: Sequence[Mapping[str, Any]], marked: np.ndarray, path: str
) -> np.ndarray:
    """Of each person; raises UserError where there is none."""
    by = FACES[title]
    if isinstance(by, str):
        sizes = np.array([float(person.get(by) or 0) for person in people])
    else:
        sizes = np.linalg.norm(marked[:, by[0], :2] - marked[:, by[1], :2], axis=-1)
    if not np.all(sizes > 0):
        raise UserError(f'{path}: {np.sum(~(sizes > 0))} faces have no size to divide by')
    return sizes


def scaled_box(person: Mapping[str, Any]) -> list[float] | None:
    """The box of an annotation that says a centre and a scale; None of another."""
    if 'center' not in person or 'scale' not in person:
        return None
    centres = np.array([person['center']], np.float32)
    sides = np.array([np.max(person['scale'])], np.float32) * np.float32(PIXELS)
    return _around(centres, sides)[0].tolist()


def _around(centres: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """float64 (N, 4): squares; exact, as mmpose has their centres (N, 2) and sides in float32."""
    sides = np.repeat(sides.astype(np.float64)[:, None], 2, 1)
    return np.concatenate([centres - sides / 2, sides], -1)


def read_mpii(root: str, split: str) -> tuple[list[str], np.ndarray, Measured]:
    """Names of the images, boxes (N, 5) and truth of MPII, from the annotations in mmpose's form.

    Heads have sizes in the split 'val' alone.

    Raises:
        UserError: if files are missing or of another form.
    """
    path = os.path.join(root, 'annotations', f'mpii_{split}.json')
    heads_path = os.path.join(root, 'annotations', f'mpii_gt_{split}.mat')
    content = box_files.read_json(path)
    count = len(keypoint_sets.sets()['mpii'].names)
    try:
        names = [person['image'] for person in content]
        points = np.array([person['joints'] for person in content], np.float64)
        seen = np.array([person['joints_vis'] for person in content], np.float64)
        centres = np.array([person['center'] for person in content], np.float32)
        scales = np.array([person['scale'] for person in content], np.float32)
        n = len(names)
        shapes = [array.shape for array in (points, seen, centres, scales)]
        good = n > 0 and shapes == [(n, count, 2), (n, count), (n, 2), (n,)]
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f'{path} is not a list of people with {count} joints, center and scale')
    # Annotations count from 1; the box lies a little lower, so that no foot is cut off.
    sides = scales * np.float32(PIXELS)
    centres[:, 1] += np.float32(15 / PIXELS) * sides
    boxes = np.column_stack([_around(centres - 1, sides), np.ones(len(names))])
    sizes = np.zeros(len(names))
    if split == 'val':
        heads = _heads(heads_path, len(names), path)
        sizes = _MPII_HEAD * np.linalg.norm(heads[1] - heads[0], axis=0)
    counted = tuple(i for i in range(count) if i not in _MPII_LEFT_OUT)
    keypoints = np.concatenate([points - 1, seen[..., None]], -1)
    return names, boxes, Measured(keypoints, sizes, counted, heads=True)


def _heads(path: str, count: int, people: str) -> np.ndarray:
    """(2, 2, N): two corners, x and y, of the box of each head."""
    from scipy.io import loadmat, whosmat

    name = 'headboxes_src'
    try:
        held = {key: (shape, kind) for key, shape, kind in whosmat(path)}
        shape, kind = held.get(name, ((), ''))
        if shape == (2, 2, count) and kind.startswith(
            ('double', 'single', 'int', 'uint')
        ):  # nothing larger is unpacked
            return np.asarray(loadmat(path, variable_names=[name])[name], np.float64)
    except FileNotFoundError:
        raise UserError(f'{path} is missing; it has the sizes of the heads') from None
    except Exception as error:  # SciPy raises almost anything on a damaged file
        raise UserError(f'cannot read {name} of {path}: {first_line(error)}') from None
    raise UserError(f'{path} does not hold the heads of the {count} people of {people}: {name}')
