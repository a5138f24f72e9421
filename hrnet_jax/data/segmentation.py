"""Segmentation data sets as people have them: in folders, or prepared by tfds."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from concurrent import futures

import numpy as np

from hrnet_jax.data import segmentation_sets
from hrnet_jax.data.indexed import Example, Indexed
from hrnet_jax.data.opencv import Place, WrongLabel, image_hw, read_ids, read_rgb
from hrnet_jax.data.segmentation_folders import (
    LAYOUTS,
    Found,
    class_names,
    find_root,
    own_pairs,
    published_pairs,
)
from hrnet_jax.data.segmentation_tfds import PREPARED, prepared_set
from hrnet_jax.data.sources import Dataset, Field
from hrnet_jax.data.views import NOTHING, SMALLEST
from hrnet_jax.errors import UserError
from hrnet_jax.runtime.cli import progress

LABEL = Field('label', 'uint8', padding=NOTHING)
_LOOKED = 500


@dataclasses.dataclass(frozen=True)
class Files:
    """Reads examples; can be pickled.

    Attributes:
        images, labels: where they lie.
        classes: int16 (256,), the class of each value; -1 of one that is none.
        allowed: what the values may be, for the message.
        ids: int16 (256,), the value of each class in the published label maps, which need not be
            those that are read; -1 where there is none.
        red: they are the red ones of the label maps.
    """

    images: tuple[Place, ...]
    labels: tuple[Place, ...]
    classes: np.ndarray
    allowed: str
    ids: np.ndarray
    red: bool = False

    def __call__(self, number: int) -> Example:
        image, path = read_rgb(self.images[number]), self.labels[number]
        if path == '':  # of a test split
            return {'image': image, 'label': np.full(image.shape[:2], NOTHING, np.uint8)}
        label = self._label(path)
        if label.shape != image.shape[:2]:
            raise _misfit(path, label.shape, image.shape)
        return {'image': image, 'label': label}

    def _label(self, path: Place) -> np.ndarray:
        ids = read_ids(path, self.red)
        label = self.classes[ids]
        if label.min(initial=0) < 0:
            raise WrongLabel(
                f'{path} holds the value {ids[label < 0].min()}; its values are {self.allowed}'
            )
        return label.astype(np.uint8)

    def renumbered(self, places: np.ndarray) -> Files:
        """With class i as places[i]."""
        table = self.classes.copy()
        counts = (table >= 0) & (table != NOTHING)
        table[counts] = places[table[counts]]
        ids = np.full_like(self.ids, -1)
        ids[places] = self.ids[: len(places)]
        return dataclasses.replace(self, classes=table, ids=ids)

    def image_hw(self, numbers: Sequence[int]) -> np.ndarray:
        """Of an image that cannot be read those of its labels: it will be counted as such."""

        def one(number: int) -> tuple[int, int]:
            image, label = self.images[number], self.labels[number]
            return _size(image) or _size(label, turn=False) or (SMALLEST, SMALLEST)

        with futures.ThreadPoolExecutor(16) as pool:  # remote storage answers late
            return np.array(list(pool.map(one, numbers)), np.int32).reshape(-1, 2)

    def check_values(self) -> None:
        """Raises UserError at a value that is no class, in up to `_LOOKED` label maps."""
        count = len(self.labels)
        paths = [self.labels[i * count // _LOOKED] for i in range(_LOOKED)]
        paths = [path for path in dict.fromkeys(paths) if path != '']

        def look(path: Place) -> None:
            try:
                self._label(path)
            except WrongLabel:
                raise
            except UserError:  # unreadable ones are counted when it is their turn
                return

        with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in progress(pool.map(look, paths), total=len(paths), desc='labels'):
                pass

    def check(self) -> None:
        """Raises UserError at a label map of another size than its image."""
        numbers = range(len(self.images))
        with futures.ThreadPoolExecutor(16) as pool:
            sizes = pool.map(functools.partial(_size, turn=False), self.labels)
            pairs = zip(self.labels, sizes, self.image_hw(numbers), strict=True)
            for path, size, wanted in progress(pairs, total=len(numbers), desc='sizes'):
                if size not in (None, tuple(wanted)):
                    raise _misfit(path, size, wanted)


def _size(path: Place, turn: bool = True) -> tuple[int, int] | None:
    """None of a file that cannot be read."""
    try:
        return image_hw(path, turn)
    except UserError:
        return None


def _misfit(path: Place, size: Sequence[int], wanted: Sequence[int]) -> UserError:
    return WrongLabel(
        f'{path} has {size[0]} x {size[1]} pixels (height x width), its image '
        f'{wanted[0]} x {wanted[1]}'
    )


def open_segmentation(name: str, split: str | None, data_dir: str | None) -> Indexed:
    """A data set of `LAYOUTS` in the folder `data_dir`, of `PREPARED` in that of tfds, or
    folder:PATH of one's own.

    folder:PATH holds images/ and labels/ (in them, or around them, a folder for each split) with
    files of the same stem, and perhaps classes.txt. Label maps are PNG files of class ids, grey or
    with a palette; 255 is no class.

    Raises:
        UserError: if files are missing or do not fit together.
    """
    if name.startswith(('folder:', '/', '.', '~')):
        found = _own_set(name.removeprefix('folder:'), split)
    elif name in LAYOUTS:
        found = _published_set(name, split, data_dir)
    elif name.partition(':')[0] in PREPARED:
        found = prepared_set(name, split, data_dir)
    else:
        known = ', '.join((*LAYOUTS, *PREPARED))
        known = f'known: {known}, or folder:PATH of images/ and labels/'
        raise UserError(f'unknown segmentation data set {name!r}; {known}')
    if not found.pairs:
        raise UserError(f'{found.title}: split {found.split or "-"} has no images')
    names = None if isinstance(found.classes, int) else found.classes
    count = found.classes if isinstance(found.classes, int) else len(found.classes)
    stems, images, labels = zip(*found.pairs, strict=True)
    files = Files(images, labels, *_table(count, found), _ids(count, found), found.red)
    files.check()
    split, whole = found.whole or (found.split, len(stems))
    return Indexed(
        dataset=Dataset(found.title, split, whole, published=found.published),
        split=found.split,
        num_examples=len(stems),
        num_classes=count,
        class_names=names,
        is_partial=len(stems) != whole,
        notes=found.notes,
        official={},
        fields=(LABEL,),
        version=found.version,
        read=files,
        names=stems,
        image_hw=files.image_hw,
    )


def _own_set(title: str, split: str | None) -> Found:
    root = os.path.normpath(os.path.expanduser(title))
    split, pairs, notes = own_pairs(root, split)
    return Found(title, split, pairs, class_names(root), notes)


def _published_set(name: str, split: str | None, data_dir: str | None) -> Found:
    if data_dir is None:
        raise UserError(f'{name}: --data-dir says where its files are')
    layout = LAYOUTS[name]
    root = find_root(os.path.expanduser(data_dir), layout)
    split = split or next(iter(layout.splits))
    if split not in layout.splits:
        raise UserError(f'{name} has no split {split}; it has {", ".join(layout.splits)}')
    folder = layout.splits[split]
    split = next(name for name, known in layout.splits.items() if known == folder)
    pairs, mapping, notes = published_pairs(root, layout, folder)
    names = segmentation_sets.classes(name) or ()
    return Found(name, split, pairs, names, notes, mapping, layout.from_one, ids=layout.ids)


def _table(count: int, found: Found) -> tuple[np.ndarray, str]:
    """For each of 256 values the class, -1 where there is none; and the values in words."""
    table = np.full(256, -1, np.int16)
    values = f'0 to {count - 1}, and {NOTHING} for none'
    if found.mapping:
        table[: max(found.mapping) + 1] = NOTHING
        table[list(found.mapping)] = list(found.mapping.values())
        values = f"those of {found.title}'s label ids"
    elif found.from_one:
        table[0], table[1 : count + 1] = NOTHING, np.arange(count)
        values = f'1 to {count}, and 0 for none'
    else:
        table[:count] = np.arange(count)
    table[NOTHING] = NOTHING
    return table, values


def _ids(count: int, found: Found) -> np.ndarray:
    """See `Files`."""
    ids = np.full(256, -1, np.int16)
    ids[:count] = found.ids or tuple(found.mapping) or np.arange(count) + found.from_one
    return ids
