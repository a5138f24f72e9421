"""Where annotations in the form of COCO lie, and their images: published sets, and one's own."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Mapping, Sequence

from hrnet_jax.errors import UserError, listed


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the files of a set are, below the folder that holds it; {split} stands for the split's.

    Attributes:
        annotations: in the order in which they are looked for.
        images: their folder.
        splits: the user's name of a split -> the files'; the first is that of evaluation.
        areas: the annotations say the areas that people have; else it is a part of the box.
    """

    annotations: tuple[str, ...]
    images: str
    splits: Mapping[str, str]
    areas: bool = True


def located(
    name: str, split: str | None, data_dir: str | None, layouts: Mapping[str, Layout], kind: str
) -> tuple[str, str, str, list[str]]:
    """Title, split, annotations, and folders in which the images may be.

    Args:
        name: of `layouts`, in the folder `data_dir`; or folder:PATH of one's own: PATH holds
            SPLIT.json, also in annotations/, or is that file; the images are in it, in images/,
            SPLIT/ or images/SPLIT/.
        kind: of sets, for messages.

    Raises:
        UserError: if there is no such set, split or file.
    """
    if name.startswith(('folder:', '/', '.', '~')):
        title = name.removeprefix('folder:')
        path, folders = _own(os.path.normpath(os.path.expanduser(title)), split)
        return title, split or '', path, folders
    if name not in layouts:
        known = f'known: {", ".join(layouts)}, or folder:PATH of COCO annotations and images'
        raise UserError(f'unknown {kind} data set {name!r}; {known}')
    if data_dir is None:
        raise UserError(f'{name}: --data-dir says where its files are')
    layout = layouts[name]
    split = split or next(iter(layout.splits))
    if split not in layout.splits:
        raise UserError(f'{name} has no split {split}; it has {", ".join(layout.splits)}')
    root, own = os.path.normpath(os.path.expanduser(data_dir)), layout.splits[split]
    split = next(name for name, files in layout.splits.items() if files == own)
    files = [os.path.join(root, file.format(split=own)) for file in layout.annotations]
    path = next(filter(os.path.isfile, files), files[0])
    return name, split, path, [os.path.join(root, layout.images.format(split=own))]


def _own(root: str, split: str | None) -> tuple[str, list[str]]:
    """The annotations of a folder of one's own, and folders in which the images may be."""
    if os.path.isfile(root):
        path, root = root, os.path.dirname(root)
    else:
        inside = [os.path.join(root, *place) for place in ((), ('annotations',))]
        held = [file for folder in inside for file in sorted(glob.glob(f'{folder}/*.json'))]
        stems = [os.path.splitext(os.path.basename(file))[0] for file in held]
        fit = [
            file
            for file, stem in zip(held, stems, strict=True)
            if split in (None, stem) or stem.endswith(f'_{split}')
        ]
        if len(fit) != 1:
            what = f'no {split}.json' if split and not fit else 'several files: name a split'
            what = what if held else 'no annotations, which are a JSON file in the form of COCO'
            raise UserError(f'{root} holds {what}; it holds {listed(stems) or "none"}')
        path = fit[0]
    around = os.path.dirname(path)
    folders = [os.path.join(root, 'images'), root, around, os.path.join(around, 'images')]
    return path, [*(os.path.join(x, split) for x in folders if split), *folders]


def paths_of(annotations: str, folders: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Of the images, in the first folder that has the first of them."""
    folder = next((x for x in folders if os.path.isfile(os.path.join(x, names[0]))), None)
    if folder is None:
        raise UserError(f'{annotations}: its first image {names[0]} is not in {folders[0]}')
    return tuple(os.path.join(folder, name) for name in names)
