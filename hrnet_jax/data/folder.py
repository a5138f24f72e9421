"""Image files as a data set: a folder of class folders, or any list of them."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hrnet_jax.data import imagenet
from hrnet_jax.data.classes import in_order
from hrnet_jax.data.listing import Listing, is_image, list_images, read_text
from hrnet_jax.data.sources import LABEL, Dataset, Facts, Field, Source, check_labels, tensorflow
from hrnet_jax.data.tfds import official_labels
from hrnet_jax.errors import UserError, listed

# Names of splits, of which none is a class, and of folders that hold images of any class.
SPLITS = frozenset(
    ('train', 'training', 'val', 'valid', 'validation', 'test', 'testing', 'dev', 'eval')
)
GENERIC = frozenset(('images', 'image', 'imgs', 'img', 'pictures', 'photos', 'jpegimages', 'data'))
ANNOTATIONS = 'val_annotations.txt'  # of Tiny ImageNet: a file name, a tab, its class, a box
NUMBERED = re.compile(r'ILSVRC2012_val_(\d{8})\.', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a folder says what is in its images.

    Attributes:
        labels: path in the folder -> class.
        classes: in their order, also those without images.
        notes: what was assumed or left out, a line each.
    """

    labels: Mapping[str, str]
    classes: Sequence[str]
    notes: tuple[str, ...] = ()


def open_folder(path: str, split: str | None) -> Source:
    """Images in a folder for each class, at any depth; or as ImageNet and Tiny ImageNet come.

    Raises:
        UserError: if there are no images, or their classes are not to be found.
    """
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
        elif split and (there := _splits(whole)):
            hint = f'there are {", ".join(there)}'
        raise UserError(f'{root} is not a folder; {hint}')
    found = list_images(root)
    layout = _annotated(root, found) or _numbered(root, found) or _folders(root, found)
    number = {name: i for i, name in enumerate(layout.classes)}
    ordered = sorted(layout.labels, key=lambda file: (number[layout.labels[file]], file))
    labels = np.array([number[layout.labels[file]] for file in ordered], np.int32)
    counts = np.bincount(labels, minlength=len(number))
    present = [name for name, count in zip(layout.classes, counts, strict=True) if count]
    return open_files(
        Dataset(path, split or '', len(ordered)),
        [os.path.join(root, file) for file in ordered],
        {'label': labels, 'original': labels},
        num_classes=len(number),
        class_names=tuple(layout.classes),
        present=tuple(present),
        notes=(*found.notes, *layout.notes),
        check=check_labels,
    )


def _folders(root: str, found: Listing) -> Layout:
    """The class of an image is the folder in `root` that it is in, at any depth."""
    labels = {file: file.split(os.sep)[0] for file in found.images if os.sep in file}
    direct = {name for file, name in labels.items() if file.count(os.sep) == 1}
    below = {name: os.path.dirname(file) for file, name in labels.items() if name not in direct}
    nothing = f'{root} holds no folders of images, one for each class'
    splits = [name for name in found.folders if name.lower() in SPLITS]
    if labels and (below.keys() & splits or splits == list(found.folders)):
        raise UserError(f'{nothing}; name a split: {", ".join(splits)}')
    if not labels:
        raise UserError(nothing)
    if set(found.folders) == {'images', 'labels'}:
        raise UserError(
            f'{root} holds images and label maps, for segmentation; a network that classifies '
            'whole images needs a folder of images for each class'
        )
    if len(found.folders) == 1 and found.folders[0].lower() in GENERIC:
        raise UserError(
            f'{root} holds one folder, {found.folders[0]}, which would be the only class; the '
            'class of an image is the name of its folder: make one for each class'
        )
    classes, notes = in_order(found.folders)
    if below:
        notes += (
            f'{root}: images in folders of a class belong to it: {listed(sorted(below.values()))}',
        )
    if loose := len(found.images) - len(labels):
        notes += (f'{root}: {loose} images left out, which are in no folder of a class',)
    if empty := sorted(set(classes) - set(labels.values())):
        notes += (f'{root}: no images of {", ".join(empty)}, which counts as a class',)
    return Layout(labels, classes, notes)


def _numbered(root: str, found: Listing) -> Layout | None:
    """The files of ILSVRC2012_img_val.tar as they are: their names tell the classes."""
    folders = {os.path.dirname(file).lower() for file in found.images}
    numbers = {
        file: match[1]
        for file in found.images
        if (match := NUMBERED.match(os.path.basename(file))) and folders <= {'', *GENERIC}
    }
    if not numbers or len(numbers) < len(found.images):
        return None
    official, ids = official_labels(), list(imagenet.classes())
    known = {file: official.get(f'ILSVRC2012_val_{x}.JPEG') for file, x in numbers.items()}
    labels = {file: ids[label] for file, label in known.items() if label is not None}
    if unknown := sorted(numbers.keys() - labels.keys()):
        raise UserError(f'{root}: no class is known for {listed(unknown)}')
    note = f"{root}: labels by file name, of ImageNet's list for ILSVRC2012_img_val.tar"
    classes = sorted(set(labels.values())) if len(labels) < len(official) else ids
    return Layout(labels, classes, (note,))


def _annotated(root: str, found: Listing) -> Layout | None:
    """Tiny ImageNet's val: a folder `images`, and a list of their classes beside it."""
    file = os.path.join(root, ANNOTATIONS)
    if found.folders != ('images',) or not os.path.isfile(file):
        return None
    rows = [line.split('\t') for line in read_text(file).split('\n') if line.strip()]
    if short := [row[0] for row in rows if len(row) < 2]:
        raise UserError(f'{file}: no class for {listed(short)}')
    named = {os.path.join('images', row[0]): row[1].strip() for row in rows}
    if unknown := sorted(set(found.images) - named.keys()):
        raise UserError(f'{file} names no class for {listed(unknown)}')
    classes, notes = in_order(sorted(set(named.values())))
    notes = (f'{root}: labels of {ANNOTATIONS}', *notes)
    return Layout({image: named[image] for image in found.images}, classes, notes)


def _splits(folder: str) -> list[str]:
    if not os.path.isdir(folder):
        return []
    inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return [name for name in inner if _holds_classes(os.path.join(folder, name))]


def _holds_classes(folder: str) -> bool:
    """Whether there are images in the folders of this one."""
    return os.path.isdir(folder) and any(
        is_image(file.name)
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
    present: tuple[str, ...] | None = None,
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
    names = np.array([os.fsencode(path) for path in paths], object)  # perhaps no Unicode

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
        present=present,
        paths=tuple(paths),
        raw=lambda first, stop: pick(np.arange(first, stop)),
        pick=pick,
        parse=parse,
        check=check,
    )
