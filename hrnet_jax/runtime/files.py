"""Output that is whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hrnet_jax.errors import UserError
from hrnet_jax.runtime.buckets import Bucket, is_url


def cache_folder() -> Path:
    """Where this program may keep what it can make again: $XDG_CACHE_HOME or ~/.cache, of the user.

    Raises:
        RuntimeError: without a home folder.
    """
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'hrnet_jax'


def refuse_existing(path: Path | str, force: bool, marker: str | None = None) -> None:
    """Raises UserError where `path` exists, unless `force` is set and it is of the kind to replace.

    Args:
        path: may be the URL of a folder.
        marker: for folders, a file that ours have in them; None if `path` is to be a file.
    """
    if is_url(path):
        held = Bucket(str(path)).sizes()
        exists, ours = bool(held), marker in held
    else:
        path = Path(path)
        exists = os.path.lexists(path)
        ours = (path / marker).is_file() if marker else path.is_file()
    if not exists:
        return
    if not ours and force:
        raise UserError(f'{path} is not of this program, so --force does not replace it; remove it')
    if not force:
        raise UserError(f'{path} exists; remove it or give --force')


def refuse_unwritable(path: Path) -> None:
    """Raises UserError, before long work, where a file could not be written after it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UserError(f'cannot write {path}: its folder does not exist')
    if path.exists() and not path.is_file():
        raise UserError(f'cannot write {path}: it is a folder or a device')
    try:
        with tempfile.TemporaryFile(dir=folder):  # who is root may write, but not into /proc
            pass
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from None


@contextlib.contextmanager
def replacing(path: Path, force: bool = False, marker: str | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error.

    What was there before is kept until the new is in its place, and comes back if that fails.
    """
    refuse_existing(path, force, marker)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    old = temporary.with_suffix('.old')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if marker and os.path.lexists(path):  # a folder cannot be renamed over another
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for left in (temporary, old):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except RecursionError:
        raise ValueError('it is nested too deeply') from None


def write(path: str | os.PathLike, text: str) -> None:
    """Writes a text file, over one that is there."""
    with replacing(Path(path), force=True) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Keeps Ctrl-C waiting: threads that still write would bring back what was cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt
