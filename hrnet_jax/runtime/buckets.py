"""Folders in object storage: gs://, s3://, and what else fsspec has.

An object appears whole or not at all, a folder does not: of `upload` one file comes last, and a
folder counts where that file is. Each call is tried again for a while; then one line says what the
storage does not do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from hrnet_jax.errors import UserError, first_line

# gcsfs would ask another service first whether the bucket has folders; names are enough here.
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
WAITS = (1, 4, 16)  # seconds before the second, third and fourth try
_ANSWER = 20  # seconds to wait for the storage, and for each 2 MB
_AT_ONCE = 8
_OPTIONS: dict[str, dict[str, Any]] = {  # the tries of the library itself would add up with ours
    's3': {'config_kwargs': {'retries': {'max_attempts': 0}}},
}


class Refused(UserError):
    """The storage does not do what it is asked, or cannot be reached."""


def is_url(path: str | os.PathLike[str]) -> bool:
    return '://' in os.fspath(path)


class Bucket:
    """The objects whose names begin with `url`, as files of a folder.

    Raises:
        UserError: for a kind of storage that fsspec does not know, or whose package is missing.
        Refused: in all methods, where the storage cannot be reached or refuses.
    """

    def __init__(self, url: str):
        self.url = url.rstrip('/')
        try:
            import fsspec
        except ModuleNotFoundError:
            raise UserError(f"{url} needs a package: pip install '.[buckets]'") from None
        kind = self.url.partition('://')[0]
        options = _OPTIONS.get(kind, {})
        try:
            self._files, self._root = fsspec.url_to_fs(
                self.url, use_listings_cache=False, **options
            )
        except (ImportError, ValueError) as error:
            raise UserError(f'{url}: {first_line(error)}') from None
        except Exception as error:  # no credentials, for example
            raise Refused(f'cannot open {url}: {first_line(error)}') from error
        if hasattr(self._files, 'retries'):
            self._files.retries = 1
        for library in ('gcsfs', 's3fs'):  # one line says what came of all tries
            logging.getLogger(library).setLevel(logging.CRITICAL)

    def sizes(self, under: str = '') -> dict[str, int]:
        """Name -> bytes, of all files below `under`.

        Raises:
            UserError: for a name that would lead out of a folder: anyone may write such names.
        """
        place = self._path(under) if under else self._root
        try:
            found = self._call('list', under, 'find', place, detail=True)
        except FileNotFoundError:
            return {}
        sizes = {
            path[len(self._root) :].lstrip('/'): int(info['size'] or 0)
            for path, info in found.items()
            # s3fs gives the folder itself where its first file appears while it looks.
            if info.get('type') != 'directory' and not path.endswith('/')
        }
        if outside := [name for name in sizes if '..' in PurePosixPath(name).parts]:
            raise UserError(f'{self.url} holds {outside[0]}, which would lie outside of its folder')
        return sizes

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is no such file."""
        return self._call('read', name, 'cat_file', self._path(name))

    def write(self, name: str, data: bytes) -> None:
        self._change('write', name, 'pipe_file', self._path(name), data, size=len(data))

    def get(self, name: str, local: Path, size: int = 0) -> None:
        """Copies a file to `local`. Raises FileNotFoundError where it is not there."""
        part = local.with_name(f'.{local.name}.part')
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            self._call('read', name, 'get_file', self._path(name), str(part), size=size)
            os.replace(part, local)
        except FileNotFoundError:
            raise
        except OSError as error:  # a name may be too long for a disk, or that of a folder, too
            raise UserError(f'cannot copy {self.url}/{name}: {error.strerror}') from error

    def put(self, local: Path, name: str) -> None:
        """Copies a file from `local`."""
        size = local.stat().st_size
        arguments = 'put_file', str(local), self._path(name)
        self._change('write', name, *arguments, size=size)

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, in this order; those that are not there are no error."""
        for name in names:
            try:
                self._call('remove', name, 'rm_file', self._path(name))
            except FileNotFoundError:
                continue

    def upload(self, folder: Path, name: str, last: str) -> None:
        """Copies a local folder to `name`, in the place of what is there.

        Args:
            last: the file without which the folder does not count.

        Raises:
            FileNotFoundError: if the local folder is not whole, or is being removed.
        """
        under = f'{name}/' if name else ''
        local = {str(p.relative_to(folder)): p for p in folder.rglob('*') if p.is_file()}
        sizes = {file: path.stat().st_size for file, path in local.items()}
        if last not in local:
            raise FileNotFoundError(folder / last)
        self.remove_folder(name, last)
        lost = [file for file in local if file != last]
        for wait in (*WAITS, None):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(lambda file: self.put(local[file], under + file), lost))
            there = self.sizes(name)
            lost = [file for file in lost if there.get(under + file) != sizes[file]]
            if not lost:
                break
            if wait is None:
                place = f'{self.url}/{under}{lost[0]}'
                raise Refused(f'cannot write {place}: it is not there afterwards')
            time.sleep(wait)
        self.put(local[last], under + last)

    def remove_folder(self, name: str, last: str) -> None:
        """Removes all files below `name`; from the first on the folder does not count."""
        marker = f'{name}/{last}' if name else last
        self.remove(sorted(self.sizes(name), key=lambda file: file != marker))

    def download(self, name: str, folder: Path) -> None:
        """Copies all files below `name` that the local folder does not have."""
        found = self.sizes(name)
        start = len(name) + 1 if name else 0
        wanted = {file: folder / file[start:] for file in found}
        missing = [file for file, path in wanted.items() if not path.exists()]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda file: self.get(file, wanted[file], found[file]), missing))

    def _path(self, name: str) -> str:
        return f'{self._root}/{name}'

    def _bounded(self, method: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        """The coroutine as a function. One that takes too long is ended: going on, it could undo
        what a later call does."""
        from fsspec.asyn import sync

        async def ended(*arguments: Any, **options: Any) -> Any:
            return await asyncio.wait_for(method(*arguments, **options), seconds)

        return lambda *arguments, **options: sync(self._files.loop, ended, *arguments, **options)

    def _change(self, verb: str, name: str, *arguments: Any, size: int) -> None:
        try:
            self._call(verb, name, *arguments, size=size)
        except FileNotFoundError as error:
            raise Refused(f'cannot {verb} {self.url}/{name}: there is no such bucket') from error

    def _call(
        self, verb: str, name: str, method: str, *arguments: Any, size: int = 0, **options: Any
    ) -> Any:
        function = getattr(self._files, method)
        if getattr(self._files, 'async_impl', False):
            seconds = _ANSWER * (1 + size // 2_000_000)
            function = self._bounded(getattr(self._files, f'_{method}'), seconds)
        for wait in (*WAITS, None):
            try:
                return function(*arguments, **options)
            except FileNotFoundError:
                raise
            except Exception as error:  # each library has its own
                if wait is None:
                    line = 'no answer' if isinstance(error, TimeoutError) else first_line(error)
                    where = f'{self.url}/{name}'.rstrip('/')
                    raise Refused(f'cannot {verb} {where}: {line}') from error
                time.sleep(wait)
        return None


def joined(folder: str | os.PathLike[str], name: str) -> Path | str:
    return f'{os.fspath(folder).rstrip("/")}/{name}' if is_url(folder) else Path(folder) / name


@contextlib.contextmanager
def output(file: str, force: bool) -> Iterator[Path]:
    """A local path for a file and what is written beside it; copied where `file` is a URL.

    Raises:
        UserError: if one of them is there and `force` is not set.
    """
    if not is_url(file):
        yield Path(file)
        return
    folder, _, name = file.rstrip('/').rpartition('/')
    bucket = Bucket(folder)
    before = bucket.sizes()
    if name in before and not force:
        raise UserError(f'{file} exists; remove it or give --force')
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary) / name
        made = sorted(Path(temporary).iterdir(), key=lambda path: path.name == name)
        if not force and (held := [path.name for path in made if path.name in before]):
            raise UserError(f'{folder}/{held[0]} exists; remove it or give --force')
        for path in made:
            bucket.put(path, path.name)
