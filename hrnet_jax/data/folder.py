"""Image files as a data set: a folder of class folders, or any list of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hrnet_jax.data import imagenet
from hrnet_jax.data.sources import LABEL, Dataset, Facts, Field, Source, check_labels, tensorflow
from hrnet_jax.errors import UserError, listed

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')


def open_folder(path: str, split: str | None) -> Source:
    whole = os.path.normpath(os.path.expanduser(path))
    root = os.path.join(whole, split) if split else whole
    if not os.path.isdir(root):
        hint = 'it should hold a folder of images for each class'
        if split and _holds_classes(whole):
            parent, name = os.path.split(os.path.abspath(whole))
            hint = (
                f'{path} holds the classes themselves: name the folder above it, folder:{parent}, '
                f'in which {name} is a split'
            )
        raise UserError(f'{root} is not a folder; {hint}')
    classes = sorted(x.name for x in os.scandir(root) if x.is_dir() and x.name[0] != '.')
    # Folders named by WordNet ids are ImageNet's classes, however many of the 1000 there are.
    known = list(imagenet.classes())
    names = known if set(classes) <= set(known) else classes
    number = {name: i for i, name in enumerate(names)}
    files = [
        (os.path.join(root, name, file), number[name])
        for name in classes
        for file in sorted(os.listdir(os.path.join(root, name)))
        if file.lower().endswith(EXTENSIONS)
    ]
    if not files:
        inner = [name for name in classes if any(x.is_dir() for x in os.scandir(f'{root}/{name}'))]
        hint = f'; name a split: {", ".join(inner)}' if inner else ''
        raise UserError(f'{root} holds no folders of images, one for each class{hint}')

    paths, labels = zip(*files, strict=True)
    number_of = np.array(labels, np.int32)
    empty = sorted(set(classes) - {names[label] for label in set(labels)})
    notes = []
    if len(classes) < len(names):
        notes.append(f'{len(classes)} of the {len(names)} classes of ImageNet; all compete')
    if empty:
        notes.append(f'{root}: no images of {", ".join(empty)}, which counts as a class')
    return open_files(
        Dataset(path, split or '', len(files)),
        paths,
        {'label': number_of, 'original': number_of},
        num_classes=len(names),
        class_names=tuple(names),
        notes=tuple(notes),
        check=check_labels,
    )


def _holds_classes(folder: str) -> bool:
    """Whether there are images in the folders of this one."""
    return os.path.isdir(folder) and any(
        file.name.lower().endswith(EXTENSIONS)
        for inner in os.scandir(folder)
        if inner.is_dir()
        for file in os.scandir(inner)
    )


def open_files(
    dataset: Dataset,
    paths: Sequence[str],
    targets: Mapping[str, np.ndarray],
    *,
    fields: tuple[Field, ...] = (LABEL,),
    num_classes: int | None = None,
    class_names: tuple[str, ...] | None = None,
    notes: tuple[str, ...] = (),
    check: Callable[[Facts, Mapping[str, np.ndarray]], None] = lambda source, batch: None,
) -> Source:
    """Image files and what belongs to each as a data set.

    Args:
        dataset: its name and split.
        paths: of the images.
        targets: an array (len(paths), ...) for each of the `fields`, and for what `check` looks at.

    Raises:
        UserError: if files are not there.
    """
    held: dict[str, set[str]] = {}  # a folder is listed once: to ask for each file takes longer
    for folder in {os.path.dirname(path) for path in paths}:
        held[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
    split = ((path, *os.path.split(path)) for path in paths)
    if absent := [path for path, folder, name in split if name not in held[folder]]:
        raise UserError(f'{dataset.name}: these images are not there: {listed(absent)}')
    names = np.array(paths)

    def pick(numbers):
        tf = tensorflow()
        chosen = {key: tf.constant(value[numbers]) for key, value in targets.items()}
        slices = (tf.constant(names[numbers], tf.string), chosen)
        return tf.data.Dataset.from_tensor_slices(slices)

    def parse(path, chosen):
        return {'image': tensorflow().io.read_file(path), 'name': path, **chosen}

    return Source(
        dataset=dataset,
        split=dataset.split,
        num_examples=len(paths),
        num_classes=num_classes,
        class_names=class_names,
        is_partial=False,
        notes=notes,
        official={},
        fields=fields,
        raw=lambda first, stop: pick(np.arange(first, stop)),
        pick=pick,
        parse=parse,
        check=check,
    )
