"""Where a training run lives: a folder on a disk, or in a bucket with a copy on this machine.

A run in a bucket works in a local folder. Process 0 copies what is new there to the bucket while
training goes on; a checkpoint counts in the bucket once its JSON, which is copied last, is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import filelock

from hrnet_jax.checkpoints import workdir
from hrnet_jax.errors import UserError, first_line
from hrnet_jax.runtime.buckets import Bucket, is_url

_PATIENCE = 10  # seconds until a network file system shows what another host wrote
_EVERY = 60  # seconds between copies of metrics and curves
_SCRATCH = 'hrnet_jax_run_'
_LOCK = '.lock'  # held by the process whose copy it is; a killed one holds none


class Home:
    """The training folder `path` on a disk that all processes see."""

    held: frozenset[int] = frozenset()  # steps that must not be removed yet
    kept: Callable[[list[int]], Collection[int]] = staticmethod(lambda steps: steps)  # of these

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)

    def fetch(self, step: int) -> None:
        """Waits until the checkpoint is in `path`, or copies it there."""
        _appears(self.path / workdir.CHECKPOINTS / str(step) / workdir.META)

    def mark(self, token: str) -> None:
        """Writes an empty file that the other processes look for."""
        try:
            (self.path / token).touch()
        except OSError as error:
            raise UserError(f'cannot write {self.path}: {error.strerror}') from None

    def unmark(self, token: str) -> None:
        (self.path / token).unlink(missing_ok=True)

    def marked(self, token: str) -> bool:
        return _appears(self.path / token)

    def put_aside(self, step: int) -> None:
        """Moves a checkpoint that cannot be read to damaged/."""
        aside = self.path / workdir.DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.path / workdir.CHECKPOINTS / str(step), aside)

    def start(self, warn: Callable[[str], None]) -> None:
        """Process 0 begins to write."""

    def settle(self) -> None:
        """Raises UserError if what was written before cannot be kept."""

    def poke(self) -> None:
        """There is something new to be seen by others."""

    def close(self) -> None:
        """Raises UserError if not all could be kept."""

    def __enter__(self) -> Home:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.close()


def open_home(where: str) -> Home:
    """Of a folder, or of a URL that fsspec knows."""
    return BucketHome(where) if is_url(where) else Home(Path(where))


class BucketHome(Home):
    """A training folder in a bucket; `path` is this process's own copy of it.

    The copy has the record and, of each checkpoint, the JSON alone until `fetch` is called.
    """

    def __init__(self, url: str):
        self.bucket, self.name = Bucket(url), url
        _remove_left()
        self.path = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        self._own = filelock.FileLock(self.path / _LOCK)
        self._own.acquire()
        try:
            self._pull()
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        self._there = set(workdir.steps(self.path))  # whole in the bucket; of `_begun` something
        self._copied: dict[str, tuple[int, int]] = {}  # file -> time and size of the copy
        self._one = threading.Lock()  # copies at a time
        self._wake, self._end = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._problem: UserError | None = None

    def fetch(self, step: int) -> None:
        name = f'{workdir.CHECKPOINTS}/{step}'
        with self._there_still():
            self.bucket.download(name, self.path / name)

    def put_aside(self, step: int) -> None:
        super().put_aside(step)
        self._there.discard(step)

    def mark(self, token: str) -> None:
        self.bucket.write(token, b'')

    def unmark(self, token: str) -> None:
        self.bucket.remove([token])

    def marked(self, token: str) -> bool:
        try:
            return self.bucket.read(token) == b''
        except FileNotFoundError:
            return False

    def start(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._thread = threading.Thread(target=self._work, name='bucket', daemon=True)
        self._thread.start()

    def settle(self) -> None:
        if self._problem:
            with self._one:
                self._copy()

    def poke(self) -> None:
        self._wake.set()

    def close(self) -> None:
        try:
            if self._thread:
                self._end.set()
                self._wake.set()
                self._thread.join()
                with self._one:
                    self._copy()
        except UserError as error:
            # Under a name that the next run does not remove; until then it is locked.
            kept = self.path.rename(self.path.with_name(f'kept_{self.path.name}'))
            self._own.release()
            raise UserError(f'{error}; what is missing there is in {kept}') from error
        shutil.rmtree(self.path, ignore_errors=True)
        self._own.release()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Closes, and names the bucket in an error, not the copy."""
        try:
            self.close()
        except UserError as other:
            if error is None:
                raise
            self._warn(str(other))
        if isinstance(error, UserError):
            said = str(error).replace(str(self.path), self.name)
            raise type(error)(said) from error

    def _pull(self) -> None:
        """Copies the record, and the JSON of each whole checkpoint."""
        names = {k: size for k, size in self.bucket.sizes().items() if not k.startswith('.')}
        steps = [name.split('/')[1] for name in names if name.startswith(f'{workdir.CHECKPOINTS}/')]
        self._begun = {int(step) for step in steps if step.isdecimal()}
        if names and not any(_is_ours(name) for name in names):
            (self.path / next(iter(names)).partition('/')[0]).touch()  # `prepare` refuses it
            return
        with self._there_still():
            for name in names:
                if '/' not in name or name.endswith(f'/{workdir.META}'):
                    self.bucket.get(name, self.path / name, names[name])

    @contextlib.contextmanager
    def _there_still(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f'{self.name} changes while it is read: another run writes there; end that first'
            ) from error

    def _work(self) -> None:
        """Copies a checkpoint as soon as it is whole, and the record now and then."""
        due = 0.0
        while not self._end.is_set():
            if not self._wake.wait(1) and time.monotonic() < due and not self._new():
                continue
            self._wake.clear()
            with self._one, contextlib.suppress(UserError):
                self._copy()
            due = time.monotonic() + _EVERY

    def _new(self) -> bool:
        return not self._problem and bool(self._wanted() - self._there or self._outdated())

    def _wanted(self) -> set[int]:
        return set(self.kept(workdir.steps(self.path)))

    def _outdated(self) -> set[int]:
        """What is to go: newer ones have taken its place, or it was never whole. What has merely
        vanished here, as files in /tmp may after some days, stays in the bucket."""
        whole = self._there.union(workdir.steps(self.path))
        return self._begun - set(self.kept(sorted(whole)))

    def _copy(self) -> None:
        """Makes the bucket as the folder is: what a checkpoint needs to be taken, checkpoints, the
        rest, and at last what is to go.

        Raises:
            UserError: if the bucket refuses; `_problem` is that until a copy succeeds.
        """
        try:
            self._copy_file(workdir.CONFIG)
            for step in sorted(self._wanted() - self._there, reverse=True):
                self._copy_step(step)
            for name in sorted(self._record()):
                self._copy_file(name)
            for step in self._outdated():
                self.bucket.remove_folder(f'{workdir.CHECKPOINTS}/{step}', workdir.META)
                self._there.discard(step)
                self._begun.discard(step)
        except Exception as error:
            line = str(error) if isinstance(error, UserError) else first_line(error)
            new, self._problem = not self._problem, UserError(line)
            if new:
                with contextlib.suppress(OSError):  # of an output that nobody takes any more
                    self._warn(f'{line}; training goes on, but the next checkpoint must get there')
            raise self._problem from error
        self._problem = None

    def _record(self) -> Iterator[str]:
        """The files beside the checkpoints, in which Orbax makes and removes folders meanwhile."""
        for folder, below, names in os.walk(self.path):
            if folder == str(self.path):
                below[:] = [name for name in below if name != workdir.CHECKPOINTS]
                names = [name for name in names if not name.startswith('.')]
            files = (Path(folder) / name for name in names)
            yield from (x.relative_to(self.path).as_posix() for x in files if x.is_file())

    def _copy_step(self, step: int) -> None:
        name = f'{workdir.CHECKPOINTS}/{step}'
        self.held = frozenset({step})
        self._begun.add(step)
        try:
            self.bucket.upload(self.path / name, name, workdir.META)
        except (FileNotFoundError, UserError):
            if step in workdir.steps(self.path):
                raise
            return  # newer ones have taken its place meanwhile
        finally:
            self.held = frozenset()
        self._there.add(step)

    def _copy_file(self, name: str) -> None:
        path = self.path / name
        try:
            status = path.stat()
            version = status.st_mtime_ns, status.st_size
            if self._copied.get(name) != version:
                self.bucket.write(name, path.read_bytes())
                self._copied[name] = version
        except FileNotFoundError:  # a temporary one, or none yet
            return


def _is_ours(name: str) -> bool:
    return name == workdir.CONFIG or name.startswith(f'{workdir.CHECKPOINTS}/')


def _remove_left() -> None:
    """Removes the copies of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f'{_SCRATCH}*'):
        with contextlib.suppress(OSError, filelock.Timeout):  # of another user, or in use
            if time.time() - folder.stat().st_mtime > _PATIENCE and (folder / _LOCK).exists():
                with filelock.FileLock(folder / _LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


def _appears(file: Path) -> bool:
    """Waits for a file that another host has made: network file systems show it late."""
    deadline = time.monotonic() + _PATIENCE
    while not file.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
