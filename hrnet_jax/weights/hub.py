"""Checkpoints put on the Hugging Face hub, for `load('hf:OWNER/REPO')`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax.checkpoints import description
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints.hub_files import PREFIX, parse, reason_of
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError, listed
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.models import Variables, check_class_names, variable_shapes
from hrnet_jax.tasks import task_of
from hrnet_jax.weights import loading
from hrnet_jax.weights.hub_cache import FILES, place_of, remove


def push_to_hub(
    source: str | os.PathLike[str] | tuple[Classifier, Variables],
    repository: str,
    *,
    arch: str | None = None,
    weights: str | None = None,
    transform: Protocol | None = None,
    class_names: Sequence[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    message: str = 'Checkpoint of hrnet_jax',
) -> str:
    """Uploads a checkpoint to the Hugging Face hub in one commit; `load('hf:OWNER/REPO')` loads it.

    Log in before: `hf auth login` in a shell.

    Args:
        source: a folder as for `load`, with a converted checkpoint or a training run; or a model
            and its variables, such as `load` and `init` give.
        repository: 'OWNER/REPO', or 'OWNER/REPO@BRANCH'; made if it is not there.
        arch, weights: of a folder: which checkpoint in it, and which weights; as for `load`.
        transform: how images are resized, cropped and normalised; None: as the folder says; for a
            model, as its task has it without options (a classifier: as for ImageNet, 256 and 224
            pixels, bilinear).
        class_names: one for each class, in order; None: those of the folder; for a model, none.
        private: whether a repository that is made is private; None: as its owner has set it. One
            that is there stays as it is.
        revision: the branch, which must be there; None: the one in `repository`, or main.
        message: the commit's message.

    Returns:
        The web address of the commit.

    Raises:
        UserError: if variables or names do not fit the model, a checkpoint cannot describe the
            model, or the hub refuses.
    """
    try:
        repository, named = parse(PREFIX + repository.removeprefix(PREFIX))
    except UserError as error:
        raise UserError(f'{repository!r} {error}') from None
    if revision and named and revision != named:
        raise UserError(
            f'{repository} is followed by @{named}, and revision says {revision!r}: leave one out'
        )
    revision = revision or named
    cached = [place_of(repository, revision, kind) for kind in (None, 'ema', 'raw')]
    try:
        import huggingface_hub as hub
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise UserError(
            f'push_to_hub needs a package that is missing: pip install {error.name}'
        ) from None
    meta: dict[str, Any] = {'published': None, 'class_names': None}
    if isinstance(source, tuple):
        model, variables = source
        meta |= {'source': {'file': None, 'origin': 'memory', 'sha256': None}}
    else:
        folder, found = loading.described(source, arch, weights)
        model, variables = loading.load(folder, arch, weights=weights)
        meta |= checkpoint.of_the_model(found)
    if class_names is not None and len(class_names):
        meta['class_names'] = [str(name) for name in class_names]
    if meta['class_names']:
        check_class_names(meta['class_names'], model.num_classes)
    content = checkpoint.describe(model, meta.get('task'))
    if transform or 'transform' not in meta:
        meta['transform'] = (transform or task_of(content).protocol()).to_json()
    described = checkpoint.model_of(content)  # what `load` will make of it
    if getattr(model, 'folded', False):
        raise UserError('a folded model cannot be pushed: push the model that it was made of')
    fields = ('upsample', 'align_corners')
    if lost := [f for f in fields if getattr(model, f, None) != getattr(described, f, None)]:
        raise UserError(
            f'a checkpoint does not say {" and ".join(lost)}, which this model has changed: it '
            'cannot be pushed'
        )
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), dict(variables))
    entries = checkpoint.entries(variables)
    if wrong := checkpoint.differing(entries, variable_shapes(described)):
        raise UserError(f'the variables are not of this model: they differ at {listed(wrong)}')
    content = description.with_digest({**meta, **content, 'arrays': entries})
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
    for place in cached:
        remove(place)
    return str(done.commit_url)
