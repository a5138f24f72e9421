"""Boxes of people in files: of a detector in COCO's form, or by the names of images."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.data.crops import checked_box
from hrnet_jax.errors import UserError
from hrnet_jax.runtime import files

PERSON = 1  # COCO's category
Boxes = np.ndarray  # float64 (people, 5): x, y, width, height, score of the detector


def checked_boxes(boxes: Any) -> Boxes:
    """The boxes of one image, rows of four numbers, or of five with a score (else 1).

    Raises:
        UserError: for a row of another kind.
    """
    boxes = boxes.tolist() if isinstance(boxes, np.ndarray) else boxes
    rows = [list(row) if isinstance(row, Sequence | np.ndarray) else [row] for row in boxes]
    found = [[*checked_box(row[:4]), *(row[4:] or [1.0])] for row in rows]
    try:
        array = np.array(found, np.float64).reshape(len(found), 5)
    except (TypeError, ValueError):
        array = np.full((1, 5), np.nan)
    if not np.isfinite(array).all():
        raise UserError('a box is [x, y, width, height], or these and a score')
    return array


def read_json(path: str) -> Any:
    """The content of a JSON file; raises UserError."""
    try:
        return files.read_json(os.path.expanduser(path))
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    except ValueError as error:
        raise UserError(f'{path} is no JSON: {error}') from None


def detections(path: str) -> list[tuple[Any, np.ndarray]]:
    """The people of a detector's file, in its order: id of the image, and row of `Boxes`.

    The file is a list of `image_id`, `category_id`, `bbox`, `score`; other categories are left out.

    Raises:
        UserError: if it is another.
    """
    content = read_json(path)
    wanted = 'a list of {"image_id", "category_id", "bbox", "score"}, as COCO detections are'
    if not isinstance(content, list):
        raise UserError(f'{path} is not {wanted}')
    return [
        (_image_of(row, path, wanted), _row(row, path))
        for row in content
        if not isinstance(row, dict) or row.get('category_id', PERSON) == PERSON
    ]


def _image_of(row: Any, path: str, wanted: str) -> Any:
    for name in ('image_id', 'file'):
        if isinstance(row, dict) and 'bbox' in row and isinstance(row.get(name), int | str):
            return row[name]
    raise UserError(f'{path} is not {wanted}')


def _row(row: Mapping[str, Any], path: str) -> np.ndarray:
    """A box may be empty, as those of detectors are at times."""
    try:
        found = np.array([*row['bbox'], row.get('score', 1.0)], np.float64)
    except (TypeError, ValueError):
        found = np.zeros(0)
    if found.shape != (5,) or not np.isfinite(found).all():
        raise UserError(f'{path}: a bbox is [x, y, width, height], not {row["bbox"]!r:.80}')
    return found


def boxes_of_files(path: str, images: Sequence[str]) -> list[Boxes]:
    """The boxes of each of these images, in the order of the file `path`.

    It holds `detections`, whose image_id is a file's name, with or without its ending, or the
    number in it (139 for 000000000139.jpg); or {file: [[x, y, w, h], ...]} by the base name. An
    image that it does not name has no box. Detections without a size are left out.

    Raises:
        UserError: if it is another, or names none of the images.
    """
    content = read_json(path)
    if isinstance(content, dict):
        try:
            pairs = [(name, row) for name, rows in content.items() for row in checked_boxes(rows)]
        except (UserError, TypeError) as error:
            raise UserError(f'{path}: {error}') from None
        named = set(content)
    else:
        pairs = detections(path)
        named = {name for name, _ in pairs}
        pairs = [(name, box) for name, box in pairs if box[2] > 0 and box[3] > 0]  # as eval.py
    found, known = [], False
    for image in images:
        base = os.path.basename(image)
        stem = os.path.splitext(base)[0]
        names = {image, base, stem} | ({int(stem)} if stem.isdecimal() else set())
        known = known or bool(names & named)
        found.append(np.array([x for name, x in pairs if name in names]).reshape(-1, 5))
    if named and not known:
        raise UserError(
            f'{path} has no boxes of {os.path.basename(images[0])} or others given here'
        )
    return found


def names_of(paths: Sequence[str]) -> list[str]:
    """What results call these files: the base names, or the paths where two have the same."""
    names = [os.path.basename(path) for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def check_writable(path: str) -> None:
    """Raises UserError, before long work, where a file could not be written after it."""
    files.refuse_unwritable(Path(path))


def write_json(path: str, content: Any) -> None:
    """A JSON file, complete or not at all."""
    files.write(path, json.dumps(content) + '\n')
