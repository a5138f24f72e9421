"""Checkpoints on the Hugging Face hub: `load` reads hf:OWNER/REPO, `push_to_hub` puts them there.

A repository of ours holds the arrays by their path ('params/backbone/conv1/kernel'), and the JSON
of the checkpoint with the digest of each: the two `FILES`. Another is one of PyTorch, which the
package `convert` converts. Either way the result is an ordinary checkpoint folder in the cache.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import urllib.parse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax import checkpoint
from hrnet_jax.errors import UserError
from hrnet_jax.files import cache_folder
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.hub_files import PREFIX, NoFile, download, parse, reason_of
from hrnet_jax.models import Variables, variable_shapes
from hrnet_jax.preprocess import Transform

FILES = ('model.safetensors', checkpoint.JSON)


def fetch(origin: str) -> Path:
    """The checkpoint folder of `hf:OWNER/REPO[@REVISION]`, in the user's cache folder.

    What is there is not asked for again: for a newer commit name it, or remove the folder.

    Raises:
        UserError: if it cannot be downloaded or converted, or an array does not match its digest.
    """
    try:
        repository, revision = parse(origin)
        place = _place(repository, revision)
        if _whole(place):
            return place
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix='.') as temporary:
            made = Path(temporary) / 'checkpoint'
            try:
                described = download(origin, FILES[1:])
            except NoFile as missing:
                _converter(origin)(origin, made, missing.offline)
            else:
                meta = checkpoint.read_json(described.parent)
                # The arrays are those of the same commit.
                arrays = download(f'{PREFIX}{repository}@{described.parent.name}', FILES[:1])
                variables = _read(arrays, meta)
                checkpoint.save(made, variables, meta)
            if not _whole(place):  # otherwise another process was first
                _remove(place)
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


def push_to_hub(
    source: str | os.PathLike[str] | tuple[Classifier, Variables],
    repository: str,
    *,
    arch: str | None = None,
    weights: str | None = None,
    transform: Transform | None = None,
    class_names: list[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = 'Checkpoint of hrnet_jax',
) -> str:
    """Uploads a checkpoint in one commit, for `load('hf:OWNER/REPO')`; `hf auth login` before.

    Args:
        source: a converted checkpoint or training folder (`arch` and `weights` as for `load`); or
            a model and its variables.
        repository: OWNER/REPO; made if it is not there.
        transform: instead of the folder's; of a model, ImageNet's.
        class_names: instead of the folder's; of a model, none.
        private: of a repository that is made; None: the owner's default.
        revision: the branch; None: main.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        UserError: if the variables are not the model's, or the hub refuses.
    """
    try:
        repository, named = parse(PREFIX + repository.removeprefix(PREFIX))
    except UserError as error:
        raise UserError(f'{repository!r} {error}') from None
    if revision and named and revision != named:
        raise UserError(f'{repository}: push to {named} or to {revision}?')
    revision = revision or named
    cached = _place(repository, revision)
    try:
        import huggingface_hub as hub
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise UserError(f'push needs a package that is missing: pip install {error.name}') from None
    meta: dict[str, Any] = {'published': None, 'class_names': None}
    if isinstance(source, tuple):
        model, variables = source
        meta |= {'transform': Transform().to_json()}
        meta |= {'source': {'file': None, 'origin': 'memory', 'sha256': None}}
    else:
        folder = checkpoint.find(source, arch)
        model, variables = checkpoint.load(folder, arch, weights=weights)
        own = ('version', 'arrays', 'ema', 'rest', 'training')
        meta |= {k: v for k, v in checkpoint.read_json(folder).items() if k not in own}
    meta |= {'transform': transform.to_json()} if transform else {}
    meta |= {'class_names': list(class_names)} if class_names else {}
    if meta['class_names'] and len(meta['class_names']) != model.num_classes:
        raise UserError(f'{len(meta["class_names"])} class names for {model.num_classes} classes')
    described = checkpoint.model_of(checkpoint.describe(model))  # what `load` will make of it
    if model.folded or (model.upsample, model.align_corners) != ('nearest', False):
        raise UserError('a model that is folded or upsamples in another way cannot be pushed')
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), dict(variables))
    entries = checkpoint.entries(variables)
    if wrong := checkpoint.differing(entries, variable_shapes(described)):
        raise UserError(f'the variables are not of this model: they differ at {", ".join(wrong)}')
    content = checkpoint.seal({**meta, **checkpoint.describe(model), 'arrays': entries})
    with tempfile.TemporaryDirectory() as temporary:
        paths = [Path(temporary) / name for name in FILES]
        save_file(dict(checkpoint.named(variables)), paths[0])
        paths[1].write_text(json.dumps(content, indent=1) + '\n')
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            done = hub.create_commit(
                repository,
                [hub.CommitOperationAdd(path.name, path) for path in paths],
                commit_message=message,
                revision=revision,
            )
        except Exception as error:  # the hub's, and those of its HTTP library
            raise UserError(f'{repository} cannot be pushed: {reason_of(error)}') from error
    _remove(cached)
    return str(done.commit_url)


def _place(repository: str, revision: str | None) -> Path:
    name = f'{repository}@{revision or "main"}'
    try:
        return cache_folder() / 'checkpoints' / urllib.parse.quote(name, safe='@')
    except RuntimeError:
        raise UserError('there is no home folder for the cache; set XDG_CACHE_HOME') from None


def _remove(place: Path) -> None:
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


def _converter(origin: str) -> Any:
    try:
        return importlib.import_module('convert.folders').write
    except ModuleNotFoundError as error:
        if (error.name or '').split('.')[0] != 'convert':
            raise
        raise UserError(
            f'{origin} holds no checkpoint of hrnet_jax, and the package convert, which would '
            "convert PyTorch's, is missing: pip install 'hrnet_jax[convert,hub]'"
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
        raise UserError(f'is damaged ({checkpoint.first_line(error)})') from error
    expected = meta['arrays']
    wrong = checkpoint.differing(expected, variable_shapes(checkpoint.model_of(meta)))
    got = checkpoint.entries(flat)
    wrong = wrong or sorted(
        k for k in got.keys() | expected.keys() if got.get(k) != expected.get(k)
    )
    if wrong:
        raise UserError(
            f'is damaged: {", ".join(wrong[:5])} do not match their digests; push it again'
        )
    variables: Variables = {}
    for path, value in flat.items():
        node = variables
        *parents, leaf = path.split('/')
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = value
    return variables
