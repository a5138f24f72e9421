"""Checkpoints put on the Hugging Face hub, for `load('hf:OWNER/REPO')`."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import loading
from hrnet_jax.checkpoints.hub_cache import FILES, place_of, remove
from hrnet_jax.checkpoints.hub_files import PREFIX, parse, reason_of
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.models import Variables, check_class_names, variable_shapes


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
    cached = place_of(repository, revision)
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
        folder = loading.find(source, arch)
        model, variables = loading.load(folder, arch, weights=weights)
        own = ('version', 'arrays', 'ema', 'rest', 'training')
        meta |= {k: v for k, v in checkpoint.read_json(folder).items() if k not in own}
    meta |= {'transform': transform.to_json()} if transform else {}
    meta |= {'class_names': list(class_names)} if class_names else {}
    if meta['class_names']:
        check_class_names(meta['class_names'], model.num_classes)
    content = checkpoint.describe(model)
    described = checkpoint.model_of(content)  # what `load` will make of it
    if model.folded or (model.upsample, model.align_corners) != ('nearest', False):
        raise UserError('a model that is folded or upsamples in another way cannot be pushed')
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), dict(variables))
    entries = checkpoint.entries(variables)
    if wrong := checkpoint.differing(entries, variable_shapes(described)):
        raise UserError(f'the variables are not of this model: they differ at {", ".join(wrong)}')
    content = checkpoint.with_digest({**meta, **content, 'arrays': entries})
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
    remove(cached)
    return str(done.commit_url)
