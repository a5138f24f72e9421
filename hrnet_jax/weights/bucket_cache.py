"""Checkpoints in buckets, in the user's cache: copied once for each content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hrnet_jax.checkpoints import workdir
from hrnet_jax.checkpoints.format import JSON
from hrnet_jax.errors import UserError
from hrnet_jax.runtime.buckets import Bucket
from hrnet_jax.runtime.files import cache_folder

_SAID = (JSON, f'/{workdir.META}', workdir.CONFIG)  # the ends of what is read to choose


def fetch(url: str, choose: Callable[[Path], Path]) -> Path:
    """The checkpoint folder that `choose` finds in `url`, on this machine.

    Args:
        choose: gets a folder with the JSON files of `url` alone; returns a folder in it.

    Raises:
        UserError: if `choose` does, or the bucket cannot be read.
    """
    bucket = Bucket(url)
    sizes = bucket.sizes()
    with tempfile.TemporaryDirectory() as view:
        for name in [name for name in sizes if name.endswith(_SAID)]:
            bucket.get(name, Path(view) / name)
        if any(name.startswith(f'{workdir.CHECKPOINTS}/') for name in sizes):
            (Path(view) / workdir.CHECKPOINTS).mkdir(exist_ok=True)
        try:
            found = choose(Path(view))
        except UserError as error:
            raise type(error)(str(error).replace(view, bucket.url)) from None
        name = found.relative_to(view).as_posix().removeprefix('.')
        digest = _digest(found)
    return _copied(bucket, name, digest)


def _digest(folder: Path) -> str:
    """Of the JSON of a checkpoint; raises FileNotFoundError where there is none."""
    file = folder / JSON if (folder / JSON).is_file() else folder / workdir.META
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _copied(bucket: Bucket, name: str, digest: str) -> Path:
    try:
        place = cache_folder() / 'buckets' / digest
        place.mkdir(parents=True, exist_ok=True)
        last = (name or bucket.url).rpartition('/')[2]
        if not (place / last).is_dir():
            with tempfile.TemporaryDirectory(dir=place, prefix='.') as temporary:
                made = Path(temporary) / last
                bucket.download(name, made)
                if _digest(made) != digest:  # what is in the cache counts as whole
                    raise FileNotFoundError
                _rename(made, place / last)
    except FileNotFoundError as error:
        raise UserError(f'{bucket.url}: {name or last} was changed meanwhile; try again') from error
    except (OSError, RuntimeError) as error:
        raise UserError(f'{bucket.url}: cannot write the cache: {error}') from error
    return place / last


def _rename(made: Path, place: Path) -> None:
    try:
        os.replace(made, place)
    except OSError:  # another process was first
        if not place.is_dir():
            raise
