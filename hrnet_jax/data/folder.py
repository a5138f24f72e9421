"""A folder of class folders as a data set."""

from __future__ import annotations

import os

import numpy as np

from hrnet_jax.data import imagenet
from hrnet_jax.data.sources import Dataset, Source, tensorflow
from hrnet_jax.errors import UserError

_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


def open_folder(path: str, split: str | None) -> Source:
    root = os.path.join(os.path.expanduser(path), split or '')
    if not os.path.isdir(root):
        raise UserError(f'{root} is not a folder; it should hold a folder of images for each class')
    classes = sorted(x.name for x in os.scandir(root) if x.is_dir() and x.name[0] != '.')
    # Folders named by WordNet ids are ImageNet's classes, however many of the 1000 there are.
    known = list(imagenet.classes())
    names = known if set(classes) <= set(known) else classes
    number = {name: i for i, name in enumerate(names)}
    files = [
        (os.path.join(root, name, file), number[name])
        for name in classes
        for file in sorted(os.listdir(os.path.join(root, name)))
        if file.lower().endswith(_EXTENSIONS)
    ]
    if not files:
        inner = [name for name in classes if any(x.is_dir() for x in os.scandir(f'{root}/{name}'))]
        hint = f'; name a split: {", ".join(inner)}' if inner else ''
        raise UserError(f'{root} holds no folders of images, one for each class{hint}')

    paths, labels = (np.array(column) for column in zip(*files, strict=True))

    def pick(numbers):
        tf = tensorflow()
        slices = (tf.constant(paths[numbers], tf.string), tf.constant(labels[numbers], tf.int32))
        return tf.data.Dataset.from_tensor_slices(slices)

    def parse(path, label):
        image = tensorflow().io.read_file(path)
        return {'image': image, 'label': label, 'original': label, 'name': path}

    row = Dataset(path, split or '', len(files))
    empty = sorted(set(classes) - {names[label] for label in set(labels.tolist())})
    notes = []
    if len(classes) < len(names):
        notes.append(f'{len(classes)} of the {len(names)} classes of ImageNet; all compete')
    if empty:
        notes.append(f'{root}: no images of {", ".join(empty)}, which counts as a class')
    return Source(
        dataset=row,
        split=row.split,
        num_examples=len(files),
        num_classes=len(names),
        class_names=tuple(names),
        is_partial=False,
        notes=tuple(notes),
        official={},
        raw=lambda first, stop: pick(np.arange(first, stop)),
        pick=pick,
        parse=parse,
    )
