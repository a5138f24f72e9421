"""Image files by OpenCV: the pixels that mmsegmentation and mmpose have evaluated with."""

from __future__ import annotations

import os

import numpy as np

from hrnet_jax.errors import UserError

_ORIENTATION, _TURNED = 274, range(5, 9)  # EXIF: the tag, and its values for a quarter turn


def read_rgb(path: str) -> np.ndarray:
    """uint8 (H, W, 3) RGB, turned as the EXIF tag says.

    Raises:
        UserError: if it cannot be read as an image.
    """
    import cv2

    image = cv2.imdecode(np.frombuffer(_bytes(path), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f'cannot read {path} as an image')
    return np.ascontiguousarray(image[..., ::-1])


def read_ids(path: str) -> np.ndarray:
    """uint8 (H, W) of a label map: grey values, or the indices of a palette, as they are stored.

    Raises:
        UserError: if it cannot be read, or holds colours.
    """
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(_bytes(path))) as image:
            mode, ids = image.mode, np.asarray(image)
    except UserError:
        raise
    except Exception as error:  # PIL's decoders raise almost anything on a damaged file
        raise UserError(f'cannot read {path} as a label map: {error}') from error
    if mode not in ('1', 'L', 'P', 'I', 'I;16', 'I;16B'):
        raise UserError(f'{path} holds colours ({mode}); a label map holds a class id a pixel')
    if ids.size and ids.max() > 255:
        raise UserError(f'{path} holds the value {ids.max()}; class ids are from 0 to 255')
    return ids.astype(np.uint8)


def image_hw(path: str, turn: bool = True) -> tuple[int, int]:
    """Height and width of what `read_rgb` (without `turn`: `read_ids`) gives, from the header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = turn and image.getexif().get(_ORIENTATION) in _TURNED
    except FileNotFoundError:
        raise UserError(f'{path} does not exist') from None
    except Exception as error:
        raise UserError(f'cannot read {path} as an image: {error}') from error
    return (width, height) if turned else (height, width)


def _bytes(path: str) -> bytes:
    try:
        with open(os.path.expanduser(path), 'rb') as file:
            return file.read() or b'\0'  # OpenCV takes no empty array
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
