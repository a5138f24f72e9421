"""Segmentation sets that tfds has prepared: where each image and label map lies in its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent import futures
from typing import Any

from hrnet_jax.data import segmentation_sets
from hrnet_jax.data.opencv import has_colours
from hrnet_jax.data.prepared import open_builder, require_features, require_whole, split_of
from hrnet_jax.data.records import Part, Span, examples
from hrnet_jax.data.segmentation_folders import TRAIN_IDS, Found, Pair
from hrnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the examples of a set hold.

    Attributes:
        image, label, name: their features; without `name` an example is named by its place.
        split: that of evaluation, also called val.
        classes: the set of `segmentation_sets` that it is a copy of, which names them.
        mapping: ids -> classes, where they differ.
        from_one: zero means nothing, the classes are numbered from 1.
        archives: what the user downloads, not tfds.
    """

    image: str
    label: str
    split: str
    classes: str
    name: str | None = None
    mapping: Mapping[int, int] = dataclasses.field(default_factory=dict)
    from_one: bool = False
    archives: str = ''


PREPARED = {
    'cityscapes/semantic_segmentation': Prepared(
        'image_left', 'segmentation_label', 'validation', 'cityscapes', 'image_id', TRAIN_IDS,
        archives='leftImg8bit_trainvaltest.zip AND gtFine_trainvaltest.zip',
    ),
    'scene_parse150': Prepared('image', 'annotation', 'test', 'ade20k', from_one=True),
}  # fmt: skip
# In colours, as tfds downloads them, scene_parse150's label maps are those of another challenge of
# ADE20K: red is the class of an object, green its number, and walls, sky or trees have no label.
_INSTANCES = 100
_NOTE = (
    'tfds has the label maps of 100 kinds of objects, not the 150 classes of scene parsing; for '
    'those --dataset ade20k reads the folder ADEChallengeData2016'
)


def prepared_set(name: str, split: str | None, data_dir: str | None) -> Found:
    """A split of `PREPARED`; `name` may have a version, `split` a part such as [:10%].

    Raises:
        UserError: if it is not prepared, or its files are damaged.
    """
    name, _, version = name.partition(':')
    row = PREPARED[name]
    info = open_builder(name, version, data_dir, row.archives).info
    split = row.split if split in (None, 'val') else split
    selected, base = split_of(info, name, split)
    require_features(info, name, filter(None, (row.image, row.label, row.name)))
    with futures.ThreadPoolExecutor(16) as pool:
        files = pool.map(lambda file: _pairs(row, file), selected.file_instructions)
        pairs = [pair for file in files for pair in file]
    require_whole(name, len(pairs), selected.num_examples)
    found = Found(
        name,
        split,
        pairs,
        segmentation_sets.classes(row.classes) or (),
        mapping=row.mapping,
        from_one=row.from_one,
        whole=(row.split, base.num_examples),
        version=str(info.version),
        published=(row.classes, 'val'),
    )
    if pairs and has_colours(pairs[0][2]):
        return dataclasses.replace(
            found, classes=_INSTANCES, red=True, notes=(_NOTE,), published=None
        )
    return found


def _pairs(row: Prepared, file: Any) -> list[Pair]:
    """Those that a split has of a file."""
    path = str(file.filename)
    title = path.split('/')[-1]
    try:
        found = examples(path)[file.skip :][: file.take]
        return [_pair(row, path, f'{title} example {i}', x) for i, x in enumerate(found, file.skip)]
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
    except ValueError as error:
        raise UserError(f'cannot read {path}: {error}; prepare the data set again') from None


def _pair(row: Prepared, path: str, place: str, spans: Mapping[str, Span]) -> Pair:
    wanted = (row.image, row.label, *((row.name,) if row.name else ()))
    if missing := [feature for feature in wanted if feature not in spans]:
        raise ValueError(f'{place} has no {" or ".join(missing)}')
    image, label, *names = (Part(path, spans[x], f'{x} of {place}') for x in wanted)
    # Without a dot, after which one would look for the ending of a file.
    name = names[0].read().decode() if names else place.replace('.', '_')
    return name, image, label
