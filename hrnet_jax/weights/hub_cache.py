"""What the hub's repositories are in the user's cache: ordinary checkpoint folders.

A repository of ours holds the arrays by their path ('params/backbone/conv1/kernel'), and the JSON
of the checkpoint with the digest of each: the two `FILES`. Another is one of PyTorch, which the
package `convert` converts.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints.hub_files import PREFIX, NoFile, download, parse
from hrnet_jax.errors import UserError, first_line, listed
from hrnet_jax.models import Variables, variable_shapes
from hrnet_jax.runtime.files import cache_folder

FILES = ('model.safetensors', checkpoint.JSON)


def fetch(origin: str, weights: str | None = None) -> Path:
    """The checkpoint folder of `hf:OWNER/REPO[@REVISION]`, in the user's cache folder.

    `weights`: 'ema' or 'raw', of PyTorch's file with both.

    What is there is not asked for again: for a newer commit name it, or remove the folder.

    Raises:
        UserError: if it cannot be downloaded or converted, or an array does not match its digest.
    """
    try:
        repository, revision = parse(origin)
        place = place_of(repository, revision, weights)
        if _whole(place):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix='.') as temporary:
            made = Path(temporary) / 'checkpoint'
            try:
                described = download(origin, FILES[1:])
            except NoFile as missing:
                _converter(origin)(origin, made, missing.offline, weights)
            else:
                meta = checkpoint.read_json(described.parent)
                # The arrays are those of the same commit.
                arrays = download(f'{PREFIX}{repository}@{described.parent.name}', FILES[:1])
                variables = _read(arrays, meta)
                checkpoint.save(made, variables, meta)
            if not _whole(place):  # otherwise another process was first
                remove(place)
            try:
                os.replace(made, place)
            except OSError:
                if not _whole(place):
                    raise
    except OSError as error:
        raise UserError(f'{origin}: cannot write {place}: {error.strerror or error}') from error
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(origin) else f'{origin} {text}') from error
    return place


def place_of(repository: str, revision: str | None, weights: str | None = None) -> Path:
    name = f'{repository}@{revision or "main"}{f"@{weights}" if weights else ""}'
    try:
        return cache_folder() / 'checkpoints' / urllib.parse.quote(name, safe='@')
    except RuntimeError:
        raise UserError('there is no home folder for the cache; set XDG_CACHE_HOME') from None


def remove(place: Path) -> None:
    """Aside first, so that nobody reads one that is half gone."""
    if place.exists():
        with tempfile.TemporaryDirectory(dir=place.parent, prefix='.') as aside:
            os.replace(place, Path(aside) / 'old')


def _whole(place: Path) -> bool:
    """Whether a checkpoint of this version is there; each of its arrays is checked when loaded."""
    try:
        checkpoint.read_json(place)
    except UserError:
        return False
    return True


def _converter(origin: str) -> Callable[[str, Path, bool, str | None], None]:
    with converting(origin):
        from convert.folders import write
    return write


@contextlib.contextmanager
def converting(origin: str) -> Iterator[None]:
    """Raises UserError where the package convert is not there to be imported."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != 'convert':
            raise
        raise UserError(
            f'{origin} holds no checkpoint of hrnet_jax, and the package convert, which '
            "converts PyTorch's files, is missing: pip install 'hrnet_jax[convert,hub]'"
        ) from None


def _read(file: Path, meta: dict[str, Any]) -> Variables:
    """The arrays of `model.safetensors` as a tree, checked."""
    try:
        from safetensors.numpy import load_file
    except ModuleNotFoundError:
        raise UserError('needs a package that is missing: pip install safetensors') from None
    try:
        flat = load_file(file)
    except Exception as error:  # safetensors has one kind of its own
        raise UserError(f'is damaged ({first_line(error)})') from error
    expected = meta['arrays']
    wrong = checkpoint.differing(expected, variable_shapes(checkpoint.model_of(meta)))
    got = checkpoint.entries(flat)
    wrong = wrong or sorted(
        k for k in got.keys() | expected.keys() if got.get(k) != expected.get(k)
    )
    if wrong:
        raise UserError(f'is damaged: {listed(wrong)} do not match their digests; push it again')
    variables: Variables = {}
    for path, value in flat.items():
        node = variables
        *parents, leaf = path.split('/')
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return variables
