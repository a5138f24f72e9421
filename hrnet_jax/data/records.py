"""Examples in tfrecord files, read one by one and without TensorFlow.

A record is the length of its content (8 bytes, little-endian), a checksum (4), the content, and
another checksum (4). The content is a `tf.train.Example`, a protocol buffer, whose features of
bytes hold files.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import IO

_LENGTH, _CHECKSUM = 8, 4
Span = tuple[int, int]  # first byte in the file, and the one after the last


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A file that lies within another.

    Attributes:
        path: of the other.
        span: the bytes there.
        name: for messages.
    """

    path: str
    span: Span
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Its content; raises OSError."""
        from etils import epath

        with epath.Path(self.path).open('rb') as file:
            file.seek(self.span[0])
            return file.read(self.span[1] - self.span[0])


def examples(path: str) -> list[dict[str, Span]]:
    """For each example in a file, where the bytes of its features are, by the feature's name; of
    numbers those of the whole list, little-endian floats or `integers`. An empty one is not there.

    Only a few bytes of each are read. An example that is cut off is left out, with all after it.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if an example is damaged.
    """
    from etils import epath

    found = []
    with epath.Path(path).open('rb') as file:
        size = file.seek(0, 2)
        for start, stop in _records(file, size):
            try:
                found.append(_features(file, start, stop))
            except ValueError:
                raise ValueError(f'example {len(found)} is damaged') from None
    return found


def _records(file: IO[bytes], size: int) -> Iterator[Span]:
    place = 0
    while place < size:
        file.seek(place)
        start = place + _LENGTH + _CHECKSUM
        stop = start + int.from_bytes(file.read(_LENGTH), 'little')
        place = stop + _CHECKSUM
        if place <= size:
            yield start, stop


def _features(file: IO[bytes], start: int, stop: int) -> dict[str, Span]:
    """Example.features (1) holds entries (1) of a name (1) and a feature (2), whose bytes_list (1),
    float_list (2) or int64_list (3) has the values (1)."""
    found = {}
    for features in _inside(file, start, stop, 1):
        for entry in _inside(file, *features, 1):
            [(first, last)] = _inside(file, *entry, 1)
            file.seek(first)
            name = file.read(last - first).decode()
            for feature in _inside(file, *entry, 2):
                for values in (x for kind in (1, 2, 3) for x in _inside(file, *feature, kind)):
                    for value in _inside(file, *values, 1):
                        found[name] = value
    return found


def _inside(file: IO[bytes], start: int, stop: int, number: int) -> list[Span]:
    """Where the fields of this number are, those that have a length, of a message."""
    found = []
    while start < stop:
        file.seek(start)
        tag = _varint(file)
        kind, length = tag & 7, 0
        if kind == 0:
            _varint(file)
        elif kind == 2:
            length = _varint(file)
        else:
            length = {1: 8, 5: 4}.get(kind, stop)
        first = file.tell()
        start = first + length
        if start > stop:
            raise ValueError
        if tag == number << 3 | 2:
            found.append((first, start))
    return found


def _varint(file: IO[bytes]) -> int:
    """Seven bits a byte, the lowest first; the last has no eighth."""
    value = 0
    for shift in range(0, 64, 7):
        (byte,) = file.read(1) or [0]
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError


def integers(content: bytes) -> list[int]:
    """Those of a list; all are 0 or more."""
    file, found = io.BytesIO(content), []
    while file.tell() < len(content):
        found.append(_varint(file))
    return found
