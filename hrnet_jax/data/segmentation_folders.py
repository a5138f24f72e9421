"""Where the images and label maps of segmentation data sets lie."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from hrnet_jax.data.listing import list_images, read_text
from hrnet_jax.data.opencv import Place, read_ids
from hrnet_jax.data.views import NOTHING
from hrnet_jax.errors import UserError, listed
from hrnet_jax.runtime.cli import progress

CLASSES = 'classes.txt'  # of a folder of one's own: a class a line
# Cityscapes' ids of objects -> the 19 classes of its benchmark.
TRAIN_IDS = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19), strict=True))
_Labels = tuple[tuple[str, str, Mapping[int, int] | None], ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the files of a data set are, below the folder that holds it.

    Attributes:
        images, suffix: their folder and how their names end; {split} stands for the split's.
        labels: (folder, suffix, ids -> classes or None where they are equal), in the order in
            which they are looked for; the name of a label begins as that of its image.
        inside: folders in which the user may have it.
        splits: the user's name of a split -> the folder's; the first is that of evaluation.
        lists: text file of the names of a split's images.
        from_one: zero means nothing, the classes are numbered from 1.
        prepared: its name as tfds prepares it.

    `ids` are those of the classes in the label maps, in their order; empty where they are equal.
    """

    images: str
    labels: _Labels
    suffix: str = '.jpg'
    inside: tuple[str, ...] = ()
    splits: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {'val': 'val', 'train': 'train'}
    )
    lists: str | None = None
    from_one: bool = False
    prepared: str | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        return next((tuple(mapping) for _, _, mapping in self.labels if mapping), ())


def _pairs(suffix: str = '.png', **more: Any) -> Layout:
    """The folders that mmsegmentation's scripts make."""
    return Layout('img_dir/{split}', (('ann_dir/{split}', suffix, None),), '.png', **more)


_CONTEXT = Layout(
    'JPEGImages',
    (('SegmentationClassContext', '.png', None),),
    inside=('VOCdevkit/VOC2010', 'VOC2010'),
    lists='ImageSets/SegmentationContext/{split}.txt',
)
_VOC = (('SegmentationClass', '.png', None), ('SegmentationClassAug', '.png', None))
LAYOUTS: dict[str, Layout] = {
    'cityscapes': Layout(
        'leftImg8bit/{split}',
        (
            ('gtFine/{split}', '_gtFine_labelTrainIds.png', None),
            ('gtFine/{split}', '_gtFine_labelIds.png', TRAIN_IDS),
        ),
        '_leftImg8bit.png',
        ('cityscapes',),
        {'val': 'val', 'train': 'train', 'test': 'test'},
        prepared='cityscapes/semantic_segmentation',
    ),
    'ade20k': Layout(
        'images/{split}',
        (('annotations/{split}', '.png', None),),
        inside=('ADEChallengeData2016', 'ade/ADEChallengeData2016'),
        splits={
            'val': 'validation', 'validation': 'validation', 'train': 'training',
            'training': 'training', 'test': 'testing',
        },
        from_one=True,
    ),
    'voc2012': Layout(
        'JPEGImages', _VOC,
        inside=('VOCdevkit/VOC2012', 'VOC2012'),
        splits={name: name for name in ('val', 'train', 'trainval', 'trainaug', 'aug')},
        lists='ImageSets/Segmentation/{split}.txt',
    ),
    'pascal_context': _CONTEXT,
    'pascal_context_59': dataclasses.replace(_CONTEXT, from_one=True),
    'loveda': _pairs(inside=('loveDA',), from_one=True),
    'potsdam': _pairs(inside=('potsdam',), from_one=True),
    'vaihingen': _pairs(inside=('vaihingen',), from_one=True),
    'isaid': _pairs('_instance_color_RGB.png', inside=('iSAID',)),
}  # fmt: skip


Pair = tuple[str, Place, Place]  # name of the image in the set, where it lies, and its labels


@dataclasses.dataclass(frozen=True)
class Found:
    """A split whose images and label maps have been found.

    Attributes:
        title: of the set.
        split, pairs, notes: of `Facts`, and its images.
        classes: their names, or their number.
        mapping: ids -> classes; empty where they are equal.
        ids: of the classes, as a test server wants them; empty where they are as `mapping` or
            `from_one` say.
        from_one: zero means nothing, the classes are numbered from 1.
        red: the ids are the red values of the label maps.
        whole: the split that published figures are of, and its number of examples, if the split
            may be a part.
        version: of the copy that tfds has prepared.
        published: the set and split that the split of `whole` is a copy of.
    """

    title: str
    split: str
    pairs: Sequence[Pair]
    classes: tuple[str, ...] | int
    notes: tuple[str, ...] = ()
    mapping: Mapping[int, int] = dataclasses.field(default_factory=dict)
    from_one: bool = False
    red: bool = False
    whole: tuple[str, int] | None = None
    version: str | None = None
    published: tuple[str, str] | None = None
    ids: tuple[int, ...] = ()


def find_root(data_dir: str, layout: Layout) -> str:
    """The folder of the set in the one that the user names, or that itself."""
    _require(data_dir)
    top = layout.images.split('/')[0]
    places = [os.path.join(data_dir, inner) for inner in ('', *layout.inside)]
    found = next((place for place in places if os.path.isdir(os.path.join(place, top))), None)
    if found is None:
        other = layout.prepared
        if other and os.path.isdir(os.path.join(data_dir, other)):
            raise UserError(f'{data_dir} holds what tfds has prepared: --dataset {other}')
        raise UserError(f'{data_dir} holds no {top}, nor does {listed(layout.inside)} in it')
    return os.path.normpath(found)


def _require(folder: str) -> None:
    if not os.path.isdir(folder):
        what = 'is not a folder' if os.path.exists(folder) else 'does not exist'
        raise UserError(f'{folder} {what}')


def published_pairs(
    root: str, layout: Layout, split: str
) -> tuple[Sequence[Pair], Mapping[int, int], tuple[str, ...]]:
    """The pairs of a split, ids -> classes, and remarks."""
    folder = os.path.join(root, layout.images.format(split=split))
    notes: tuple[str, ...] = ()
    if layout.lists:
        stems = _listed(root, layout.lists, split)
    else:
        _require(folder)
        found = list_images(folder)
        notes = found.notes
        stems = [x.removesuffix(layout.suffix) for x in found.images if x.endswith(layout.suffix)]
    candidates = [
        (os.path.join(root, place.format(split=split)), suffix, mapping)
        for place, suffix, mapping in layout.labels
    ]
    if not any(os.path.isdir(place) for place, _, _ in candidates):
        note = f'{folder}: its split has no label maps; nothing is measured'
        names = [stem + layout.suffix for stem in stems]
        return [(x, os.path.join(folder, x), '') for x in names], {}, (*notes, note)
    used = next(
        (x for x in candidates if stems and os.path.isfile(_path(x, stems[0]))), candidates[0]
    )
    same = [x for x in candidates if x[2] == used[2]]  # one kind of ids for the whole split
    pairs, missing = [], []
    for stem in stems:
        label = next(
            (_path(x, stem) for x in (used, *same) if os.path.isfile(_path(x, stem))), None
        )
        image = os.path.join(folder, stem + layout.suffix)
        missing += [path for path in (image,) if layout.lists and not os.path.isfile(path)]
        missing += [_path(used, stem)] * (label is None)
        pairs.append((stem + layout.suffix, image, label or ''))
    if missing:
        raise UserError(
            f'{len(missing)} files are missing for {len(pairs)} images: {listed(missing)}'
        )
    return pairs, used[2] or {}, notes


def _path(place: tuple[str, str, Any], stem: str) -> str:
    return os.path.join(place[0], stem + place[1])


def _listed(root: str, lists: str, split: str) -> list[str]:
    """The names in a split's list; of VOC's `trainaug` also those of its two parts."""
    parts = [split]
    if split == 'trainaug' and not os.path.isfile(os.path.join(root, lists.format(split=split))):
        parts = ['train', 'aug']
    names: dict[str, None] = {}
    for part in parts:
        path = os.path.join(root, lists.format(split=part))
        lines = read_text(path).split('\n')
        names |= dict.fromkeys(line.split()[0] for line in lines if line.strip())
    return list(names)


def own_pairs(root: str, split: str | None) -> tuple[str, Sequence[Pair], tuple[str, ...]]:
    """The split, its pairs, and remarks, of a folder of one's own."""
    _require(root)
    forms = ('{kind}/{split}', '{split}/{kind}') if split else ('{kind}',)
    for form in forms:
        folders = [
            os.path.join(root, *form.format(kind=kind, split=split).split('/'))
            for kind in ('images', 'labels')
        ]
        if all(map(os.path.isdir, folders)):
            break
    else:
        place = os.path.join(root, split or '')
        hint = _splits_of(root)
        raise UserError(
            f'{place} has no folders images and labels, or is not there'
            + (f'; its splits are {", ".join(sorted(hint))}' if hint else '')
        )
    images, labels = map(list_images, folders)

    def stem(name: str) -> str:
        return os.path.splitext(name)[0]

    label_of = {stem(name): name for name in labels.images}
    found = [name for name in images.images if stem(name) in label_of]
    hint = _splits_of(root) & set(images.folders) if found else _splits_of(root)
    if not split and hint and all(os.sep in name for name in found):
        raise UserError(f'{root}: name a split: {", ".join(sorted(hint))}')
    if missing := sorted(set(images.images) - set(found)):
        raise UserError(
            f'{len(missing)} of {len(images.images)} images have no label map of the same name in '
            f'{folders[1]}: {listed(missing)}'
        )
    if len(set(map(stem, found))) < len(found):
        raise UserError(f'{folders[0]}: two images have the same name but for their endings')
    notes = (*images.notes, *labels.notes)
    if alone := len(labels.images) - len(found):
        notes += (f'{folders[1]}: {alone} label maps left out, which have no image',)
    paths = (
        (os.path.join(folders[0], x), os.path.join(folders[1], label_of[stem(x)])) for x in found
    )
    pairs = [(name, *both) for name, both in zip(found, paths, strict=True)]
    return split or '', pairs, notes


def _splits_of(root: str) -> set[str]:
    """Names of folders that may be splits."""

    def inside(*place: str) -> set[str]:
        path = os.path.join(root, *place)
        held = os.listdir(path) if os.path.isdir(path) else []
        return {name for name in held if os.path.isdir(os.path.join(path, name))}

    around = {name for name in inside() if 'images' in inside(name)}
    return inside('images') & inside('labels') | around


def class_names(root: str) -> tuple[str, ...] | int:
    """The classes in classes.txt; without it their number, of all label maps in the folder."""
    path = os.path.join(root, CLASSES)
    if os.path.isfile(path):
        lines = read_text(path).split('\n')
        names = tuple(line.strip() for line in lines if line.strip())
        if not names or len(names) > NOTHING or len(set(names)) < len(names):
            raise UserError(f'{path} must have 1 to {NOTHING} different names, one a line')
        return names
    found = [os.path.join(root, name) for name in list_images(root).images]
    every = [path for path in found if 'labels' in os.path.relpath(path, root).split(os.sep)]
    largest = 0
    with futures.ThreadPoolExecutor() as pool:
        for values in progress(pool.map(_values, every), total=len(every), desc='classes'):
            largest = max(largest, *values)
    if largest == 0:
        raise UserError(
            f'{root}: its label maps hold no class but 0; they are PNG files of class ids 0, '
            f'1, ..., where {NOTHING} is no class; {CLASSES} may name the classes, one a line'
        )
    return largest + 1


def _values(path: str) -> list[int]:
    """The classes in a label map; 0 is always there."""
    values = np.flatnonzero(np.bincount(read_ids(path).reshape(-1), minlength=256))
    return [0, *(int(value) for value in values if value != NOTHING)]
