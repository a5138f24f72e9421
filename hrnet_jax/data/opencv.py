"""Images by OpenCV: the pixels that mmsegmentation and mmpose have evaluated with."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from hrnet_jax.data.encoded import opened
from hrnet_jax.data.records import Part
from hrnet_jax.errors import UserError, first_line

Place = str | Part  # of an image: its path, or where it lies in another file
_LOSSY = ('JPEG', 'MPO', 'WEBP')
_ORIENTATION, _TURNED = 274, range(5, 9)  # EXIF: the tag, and its values for a quarter turn


class WrongLabel(UserError):
    """A label map is no such; no damage, and not to be left out."""


def read_rgb(place: Place) -> np.ndarray:
    """uint8 (H, W, 3) RGB, turned as the EXIF tag says.

    Raises:
        UserError: if it cannot be read as an image.
    """
    import cv2
    from PIL import Image

    data = _bytes(place)
    try:
        _refuse_large(data)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except (cv2.error, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f'cannot read {place} as an image: {first_line(error)}') from error
    if image is None:
        raise UserError(f'cannot read {place} as an image')
    return np.ascontiguousarray(image[..., ::-1])


def _refuse_large(data: bytes) -> None:
    """Raises what PIL raises for too many pixels; OpenCV's own limit lets 3 GB pass."""
    from PIL import Image

    try:
        opened(io.BytesIO(data)).close()
    except Image.DecompressionBombError:
        raise
    except Exception:  # OpenCV may read what PIL does not
        return


def read_ids(place: Place, red: bool = False) -> np.ndarray:
    """uint8 (H, W) of a label map: grey values, or the indices of a palette, as they are stored.

    Args:
        red: it holds colours, and the ids are the red values.

    Raises:
        UserError: if it cannot be read, or if it holds colours where it should not, or none.
    """
    try:
        with opened(io.BytesIO(_bytes(place))) as image:
            mode, ids, lossy = image.mode, np.asarray(image), image.format in _LOSSY
    except UserError:
        raise
    except Exception as error:  # PIL's decoders raise almost anything on a damaged file
        raise UserError(f'cannot read {place} as a label map: {error}') from error
    if lossy:
        raise WrongLabel(f'{place} is a JPEG file, which changes values; label maps are PNG files')
    if red:
        if mode != 'RGB':
            raise WrongLabel(f'{place} holds no colours ({mode}); its red values are the class ids')
        return ids[..., 0]
    if mode not in ('1', 'L', 'P', 'I', 'I;16', 'I;16B'):
        raise WrongLabel(f'{place} holds colours ({mode}); a label map holds a class id a pixel')
    if ids.size and ids.max() > 255:
        raise WrongLabel(f'{place} holds the value {ids.max()}; class ids are from 0 to 255')
    return ids.astype(np.uint8)


def has_colours(place: Place) -> bool:
    """Whether it is an RGB image, from the header."""
    with _header(place) as image:
        return bool(image.mode == 'RGB')


def image_hw(place: Place, turn: bool = True) -> tuple[int, int]:
    """Height and width of what `read_rgb` (without `turn`: `read_ids`) gives, from the header."""
    with _header(place) as image:
        width, height = image.size
        turn = turn and image.format != 'TIFF'  # of which PIL gives the size after it is turned
        if turn and image.format == 'PNG':  # whose tags PIL looks for behind the pixels, decoded
            turn = _has_chunk(place, b'eXIf')
        turned = turn and image.getexif().get(_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def _has_chunk(place: Place, name: bytes) -> bool:
    """Whether a PNG file has such a chunk: length, name and a checksum around each are skipped."""
    with _file(place) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] != name:
            file.seek(int.from_bytes(head[:4]) + 4, os.SEEK_CUR)
        return head[4:] == name


def _file(place: Place) -> Any:
    return io.BytesIO(_bytes(place)) if isinstance(place, Part) else open(place, 'rb')


@contextlib.contextmanager
def _header(place: Place) -> Iterator[Any]:
    """PIL's image, not decoded."""
    try:
        with _file(place) as file, opened(file) as image:
            yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f'{place} does not exist') from None
    except Exception as error:
        raise UserError(f'cannot read {place} as an image: {error}') from error


def _bytes(place: Place) -> bytes:
    try:
        if isinstance(place, Part):
            return place.read() or b'\0'  # OpenCV takes no empty array
        with open(os.path.expanduser(place), 'rb') as file:
            return file.read() or b'\0'
    except (OSError, ValueError) as error:  # the latter: a name that no file can have
        said = getattr(error, 'strerror', None) or first_line(error)
        raise UserError(f'cannot read {place}: {said}') from None
