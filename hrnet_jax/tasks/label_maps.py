"""Label maps that are written: one PNG file of class ids for each image."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from hrnet_jax.errors import UserError


def write(path: str, ids: np.ndarray) -> None:
    """A grey PNG file of class ids, of 16 bits where 8 are too few, complete or not at all."""
    from PIL import Image

    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    temporary = f'{path}.part'
    dtype = np.uint8 if ids.max(initial=0) < 256 else np.uint16
    Image.fromarray(ids.astype(dtype)).save(temporary, 'png')
    os.replace(temporary, path)


def written(count: int, folder: str) -> str:
    """What is said of label maps."""
    return f'label maps of {count:,} image{"s" * (count != 1)}: {folder}'


def files_of(images: Sequence[str]) -> tuple[str, ...]:
    """A name for the labels of each image: its stem; where stems are not unique, its path in the
    folder that holds all."""
    paths = [os.path.splitext(image)[0] for image in images]
    stems = [os.path.basename(path) for path in paths]
    if len(set(stems)) == len(stems):
        return tuple(stems)
    whole = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath([os.path.dirname(path) for path in whole])
    return tuple(os.path.relpath(path, common) for path in whole)


def check_folder(folder: str) -> None:
    """Raises UserError for a folder that cannot be written, or that holds PNG files: they might be
    somebody's own label maps."""
    try:
        os.makedirs(folder, exist_ok=True)
        held = [name for _, _, names in os.walk(folder) for name in names if name.endswith('.png')]
    except OSError as error:
        raise UserError(f'--labels {folder}: {error.strerror}') from None
    if held:
        raise UserError(f'--labels {folder} holds {len(held)} PNG files; name a new folder')
