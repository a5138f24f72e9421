"""Where a checkpoint is, in a folder or on the hub, and the model and variables in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax

from hrnet_jax.archs import ARCHS
from hrnet_jax.checkpoints import workdir
from hrnet_jax.checkpoints.format import (
    ARRAYS,
    JSON,
    arch_name,
    as_written,
    model_of,
    read_json,
    restore,
)
from hrnet_jax.checkpoints.hub_files import hint
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.models import Variables, variable_shapes
from hrnet_jax.runtime.buckets import is_url
from hrnet_jax.tasks import task_of
from hrnet_jax.weights import bucket_cache, hub_cache


def find(path: str | os.PathLike[str], arch: str | None = None, weights: str | None = None) -> Path:
    """The checkpoint folder: `path` itself, or the one of that name or architecture in it.

    A training folder gives the step with the best evaluation, or the last step if none was
    evaluated. `hf:OWNER/REPO` gives the folder that `hub_cache.fetch` makes for these `weights`, a
    URL such as gs://bucket/run a copy in the user's cache.

    Raises:
        UserError: if there is none, or several and nothing says which.
    """
    if weights not in (None, 'ema', 'raw'):
        raise UserError(f'weights are ema or raw, not {weights!r}')
    if os.fspath(path).startswith('hf:'):
        return hub_cache.fetch(os.fspath(path), weights)
    if is_url(path):
        return bucket_cache.fetch(os.fspath(path), lambda folder: find(folder, arch, weights))
    path = Path(path)
    if (path / JSON).is_file() or (path / workdir.META).is_file():
        return path
    if workdir.is_run(path):
        steps = workdir.steps(path)
        if not steps:
            raise UserError(f'{path} holds no checkpoint yet')
        step = workdir.best(steps, workdir.evaluations(path))
        return path / workdir.CHECKPOINTS / str(steps[-1] if step is None else step)
    if not path.is_dir():
        what = 'is not a converted checkpoint' if path.exists() else 'does not exist'
        raise UserError(f'{path} {what}; python -m convert writes one{hint(str(path))}')
    if arch and (path / arch / JSON).is_file():
        return path / arch
    # A name with a dot first is one that was being written when its process was killed.
    held = sorted(p.parent for p in path.glob(f'[!.]*/{JSON}'))
    fit = [p for p in held if arch in (None, _arch_name(p))]
    if len(fit) == 1:
        return fit[0]
    if not held:
        raise UserError(f'{path} holds no converted checkpoint; python -m convert writes one')
    names = ', '.join(p.name for p in fit or held)
    what = f'several checkpoints of {arch}' if fit and arch else 'several checkpoints'
    choose = ', or choose by --arch' if len(set(map(_arch_name, fit))) > 1 else ''
    if fit:
        raise UserError(f'{path} holds {what} ({names}); name one of these folders{choose}')
    raise UserError(f'{path} holds no checkpoint of {arch}; it holds {names}')


def described(
    path: str | os.PathLike[str], arch: str | None = None, weights: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """The checkpoint folder, see `find`, and the JSON in it."""
    folder = find(path, arch, weights)
    return folder, read_json(folder)


def _arch_name(folder: Path) -> str | None:
    try:
        return arch_name(read_json(folder))
    except UserError:  # a damaged neighbour must not hide the others
        return None


def _told(model: Any, meta: dict[str, Any]) -> Any:
    """The model with what the checkpoint says for `predict`, where it has fields for that."""
    names, transform = meta.get('class_names'), meta.get('transform')
    said = {
        'transform': task_of(meta).protocol.from_json(transform) if transform else None,
        'class_names': tuple(names) if names else None,
    }
    fields = {k: value for k, value in said.items() if k in type(model).__dataclass_fields__}
    return model.clone(**fields) if fields else model


def load(
    path: str | os.PathLike[str],
    arch: str | None = None,
    *,
    weights: str | None = None,
    **options: Any,
) -> tuple[Classifier, Variables]:
    """The model and the variables of a converted checkpoint, or of a training run.

    Args:
        path: a checkpoint folder, or a folder with checkpoint folders in it; or a training folder,
            or one step of it (WORKDIR/checkpoints/STEP); or `hf:OWNER/REPO[@REVISION]`, PyTorch's
            or of `push_to_hub`: downloaded and converted once, then in the user's cache. Folders
            may be in a bucket: gs://bucket/folder, s3://bucket/folder.
        arch: which one; refused where the checkpoint is of another architecture.
        weights: 'ema' or 'raw', of a training run or a repository on the hub that has both; by
            default the averaged ones if there are any.
        **options: for the model: dtype, remat, ...: see `create_model`.

    Returns:
        (model, {'params': ..., 'batch_stats': ...}), arrays on the default device.

    Raises:
        UserError: if it is missing, of another architecture, or damaged, naming the array.
    """
    folder, meta = described(path, arch, weights)
    model = _told(model_of(meta, **options), meta)
    named = arch == folder.name and arch not in ARCHS  # such as w18_ssld
    if arch not in (None, held := arch_name(meta)) and not named:
        raise UserError(f'{folder} is a checkpoint of {held or "another model"}, not {arch}')
    shapes = variable_shapes(model)
    converted = (meta.get('source') or {}).get('weights')  # which of a file's
    if weights == 'ema' and not meta.get('ema') and converted != 'ema':
        raise UserError(f'{folder} has no averaged weights')
    if weights == 'raw' and converted == 'ema' and 'training' not in meta:
        raise UserError(f'{folder} was converted from averaged weights: convert with --weights raw')
    averaged = bool(meta.get('ema')) and weights != 'raw'
    place = 'ema' if averaged else 'raw' if 'training' in meta else ARRAYS
    expected = meta['ema' if averaged else 'arrays']
    variables = restore(folder / place, as_written(shapes, expected), expected)
    typed = jax.tree.map(lambda x, s: x.astype(s.dtype, copy=False), variables, shapes)
    return model, jax.device_put(typed)
