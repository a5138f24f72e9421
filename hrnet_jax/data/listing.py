"""The images in a folder and below it, without what systems and editors leave there."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import NoReturn

from hrnet_jax.errors import UserError, listed

EXTENSIONS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm',
    '.pgm',
)  # fmt: skip
# Beside all that begins with a dot; in lower case.
SYSTEM = frozenset(
    (
        '__macosx', 'icon\r',  # macOS
        'thumbs.db', 'ehthumbs.db', 'desktop.ini', '$recycle.bin', 'system volume information',
        '@eadir', '@tmp', '#recycle', '#snapshot', '@recycle',  # Synology, QNAP
        'lost+found', '__pycache__',
    )
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a folder holds; paths are relative to it.

    Attributes:
        folders: those directly in it, sorted.
        images: files at any depth, sorted.
        notes: what was left out, a line each.
    """

    folders: tuple[str, ...]
    images: tuple[str, ...]
    notes: tuple[str, ...]


def is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def is_system(name: str) -> bool:
    """A file or folder that no person has put there."""
    return name.startswith('.') or name.lower() in SYSTEM


def list_images(root: str) -> Listing:
    """Links are followed, but not back to a folder that holds them; raises UserError."""
    folders: list[str] = []
    images, skipped, others = [], [], Counter[str]()
    for path, inner, files in os.walk(root, onerror=_refuse, followlinks=True):
        inside = os.path.relpath(path, root)
        skipped += [os.path.join(inside, name) for name in (*inner, *files) if is_system(name)]
        inner[:] = sorted(x for x in inner if not is_system(x) and not _holds(path, x))
        if inside == '.':
            folders = inner[:]
        for name in files:
            if is_image(name) and not is_system(name):
                images.append(os.path.normpath(os.path.join(inside, name)))
            elif not is_system(name):
                others[os.path.splitext(name)[1].lower() or 'without an ending'] += 1
    notes = []
    if skipped:
        names = listed(sorted(map(os.path.normpath, skipped)), 3)
        notes.append(f'{root}: {len(skipped)} hidden or system files and folders skipped: {names}')
    if others:
        order = sorted(others, key=lambda kind: (-others[kind], kind))
        kinds = listed([f'{others[kind]} {kind}' for kind in order])
        notes.append(f'{root}: {others.total()} other files left out: {kinds}')
    return Listing(tuple(folders), tuple(sorted(images)), tuple(notes))


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file in UTF-8; raises UserError if it cannot be read."""
    try:
        return Path(path).read_text(encoding='utf-8-sig')
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from None
    except ValueError as error:
        raise UserError(f'cannot read {path}: {error}') from None


def _holds(path: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in."""
    link = os.path.join(path, name)
    if not os.path.islink(link):
        return False
    here, there = os.path.realpath(path), os.path.realpath(link)
    return os.path.commonpath((here, there)) == there


def _refuse(error: OSError) -> NoReturn:
    raise UserError(f'cannot read {error.filename}: {error.strerror}')
