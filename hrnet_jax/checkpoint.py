"""The checkpoint format: Orbax arrays and, beside them, a JSON file that describes them.

    NAME/checkpoint.json    architecture, classes, evaluation transform, source, digests
    NAME/arrays/            an Orbax tree {'params': ..., 'batch_stats': ...}

The JSON is checked first, so that a wrong checkpoint is refused before an array is read. Orbax
does not notice a flipped bit in its files; the digest of each array does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax.archs import ARCHS, Arch
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.models import Variables, create_model, variable_shapes

JSON = 'checkpoint.json'
ARRAYS = 'arrays'
VERSION = 1


def save(
    path: str | os.PathLike, variables: Variables, meta: dict[str, Any], force: bool = False
) -> None:
    """Writes a checkpoint folder, whole or not at all.

    Args:
        path: the folder to make.
        variables: {'params': ..., 'batch_stats': ...}.
        meta: the JSON's content beside `version` and `arrays`; `describe` makes it.
        force: replace a folder that exists.

    Raises:
        UserError: if `path` exists and `force` is not set, or cannot be written.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    arrays = {name: _entry(np.asarray(leaf)) for name, leaf in _named(variables)}
    with replacing(path, force) as temporary:
        temporary.mkdir()
        # Synchronous, because StandardCheckpointer copies everything first; and in files of 32 MB,
        # because a file is held in memory until it is full.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(
                temporary / ARRAYS,
                args=ocp.args.PyTreeSave(variables, ocdbt_target_data_file_size=32 * 2**20),
            )
        text = json.dumps({'version': VERSION, **meta, 'arrays': arrays}, indent=1)
        (temporary / JSON).write_text(text + '\n')


def describe(model: Classifier) -> dict[str, Any]:
    """The part of the JSON that says which model the arrays are of."""
    return {
        'arch': dataclasses.asdict(model.arch),
        'num_classes': model.num_classes,
        'in_channels': model.in_channels,
    }


def find(path: str | os.PathLike, arch: str | None = None) -> Path:
    """The checkpoint folder: `path` itself, or the one of that name or architecture in it.

    Raises:
        UserError: if there is none, or several and nothing says which.
    """
    path = Path(path)
    if (path / JSON).is_file():
        return path
    if not path.is_dir():
        what = 'is not a converted checkpoint' if path.exists() else 'does not exist'
        raise UserError(f'{path} {what}; python -m convert writes one')
    if arch and (path / arch / JSON).is_file():
        return path / arch
    held = sorted(p.parent for p in path.glob(f'*/{JSON}'))
    fit = [p for p in held if arch is None or read_json(p)['arch']['name'] == arch]
    if len(fit) == 1:
        return fit[0]
    if not held:
        raise UserError(f'{path} holds no converted checkpoint; python -m convert writes one')
    names = ', '.join(p.name for p in fit or held)
    what = f'several checkpoints of {arch}' if fit and arch else 'several checkpoints'
    if fit:
        raise UserError(f'{path} holds {what} ({names}); name one of these folders')
    raise UserError(f'{path} holds no checkpoint of {arch}; it holds {names}')


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The description of the checkpoint folder `path`.

    Raises:
        UserError: if it cannot be read or is not one of ours.
    """
    file = Path(path) / JSON
    try:
        meta = json.loads(file.read_text())
        version = meta['version']
        missing = {'arch', 'num_classes', 'in_channels', 'arrays'} - meta.keys()
    except OSError as error:
        raise UserError(f'cannot read {file}: {error.strerror}') from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f'{file} is damaged or not of this program; convert again') from None
    if version != VERSION or missing:
        raise UserError(f'{file} has format {version}, this program reads {VERSION}; convert again')
    return meta


def load(
    path: str | os.PathLike, arch: str | None = None, **options: Any
) -> tuple[Classifier, Variables]:
    """The model and the variables of a converted checkpoint.

    Args:
        path: a checkpoint folder, or a folder with checkpoint folders in it.
        arch: which one; refused where the checkpoint is of another architecture.
        **options: for the model: dtype, remat, ...: see `create_model`.

    Returns:
        (model, {'params': ..., 'batch_stats': ...}), arrays on the default device.

    Raises:
        UserError: if it is missing, of another architecture, or damaged, naming the array.
    """
    folder = find(path, arch)
    meta = read_json(folder)
    model = model_of(meta, **options)
    if arch is not None and arch not in (model.arch.name, folder.name):
        raise UserError(f'{folder} is a checkpoint of {model.arch.name}, not {arch}')
    shapes = variable_shapes(model)
    _check_shapes(folder, meta['arrays'], shapes)
    variables = _restore(folder, shapes)
    damaged = [name for name, leaf in _named(variables) if _entry(leaf) != meta['arrays'][name]]
    if damaged:
        raise UserError(
            f'{folder} is damaged: {", ".join(damaged[:5])}'
            f'{" and others" if len(damaged) > 5 else ""} do not match their digests; convert again'
        )
    return model, jax.tree.map(lambda x, s: jax.numpy.asarray(x, s.dtype), variables, shapes)


def model_of(meta: dict[str, Any], **options: Any) -> Classifier:
    """The model that a checkpoint's JSON describes."""
    try:
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in meta['arch'].items()
        }
        arch = Arch(**values)
    except (AttributeError, TypeError):
        raise UserError(
            'the checkpoint describes an architecture this program does not know'
        ) from None
    if arch.name in ARCHS and arch != ARCHS[arch.name]:
        raise UserError(
            f'the checkpoint describes another {arch.name} than this program; convert again'
        )
    return create_model(arch, meta['num_classes'], in_channels=meta['in_channels'], **options)


@contextlib.contextmanager
def replacing(path: Path, force: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without error."""
    if path.exists() and not force:
        raise UserError(f'{path} exists; remove it or give --force')
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    old = temporary.with_suffix('.old')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error
    finally:
        for left in (temporary, old):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    left.unlink()


def _restore(folder: Path, shapes: Variables) -> Variables:
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore((folder / ARRAYS).absolute(), target)
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing or cut files
        first = str(error).strip().splitlines()[:1]
        raise UserError(
            f'{folder / ARRAYS} is damaged ({"".join(first)[:200]}); convert again'
        ) from error


def _check_shapes(folder: Path, arrays: dict[str, Any], shapes: Variables) -> None:
    expected = {name: list(leaf.shape) for name, leaf in _named(shapes)}
    got = {name: entry['shape'] for name, entry in arrays.items()}
    if got != expected:
        wrong = sorted(k for k in got.keys() | expected.keys() if got.get(k) != expected.get(k))
        raise UserError(
            f'{folder} does not fit its architecture at {", ".join(wrong[:5])}; convert again'
        )


def _named(tree: Variables) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(dict(tree))[0]
    return [('/'.join(str(k.key) for k in path), leaf) for path, leaf in flat]


def _entry(leaf: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(leaf).data).hexdigest()[:16]
    return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': digest}
