"""The checkpoint format: Orbax arrays and, beside them, a JSON file that describes them.

    NAME/checkpoint.json    architecture, classes, evaluation transform, source, digests
    NAME/arrays/            an Orbax tree {'params': ..., 'batch_stats': ...}

The JSON is checked first, so that a wrong checkpoint is refused before an array is read. Orbax
does not notice a flipped bit in its files; the digest of each array does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax.archs import ARCHS, Arch
from hrnet_jax.errors import UserError
from hrnet_jax.files import replacing, uninterrupted
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
        force: replace a checkpoint that exists; never a folder of another kind.

    Raises:
        UserError: if `path` exists and `force` is not set, or cannot be written.
    """
    import orbax.checkpoint as ocp

    path = Path(path).absolute()
    arrays = {name: _entry(np.asarray(leaf)) for name, leaf in _named(variables)}
    with replacing(path, force, JSON) as temporary:
        temporary.mkdir()
        try:
            # Synchronous, because StandardCheckpointer copies everything first; and in files of
            # 32 MB, because a file is held in memory until it is full.
            handler = ocp.PyTreeCheckpointHandler()
            with uninterrupted(), ocp.Checkpointer(handler) as checkpointer:
                checkpointer.save(
                    temporary / ARRAYS,
                    args=ocp.args.PyTreeSave(variables, ocdbt_target_data_file_size=32 * 2**20),
                )
        except Exception as error:  # TensorStore has its own kinds for a full disk and others
            raise UserError(f'cannot write {path}: {_first_line(error)}') from error
        content = {'version': VERSION, **meta, 'arrays': arrays}
        content['digest'] = _digest(content)
        (temporary / JSON).write_text(json.dumps(content, indent=1) + '\n')


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
    # A name with a dot first is one that was being written when its process was killed.
    held = sorted(p.parent for p in path.glob(f'[!.]*/{JSON}'))
    fit = [p for p in held if arch in (None, _arch_name(p))]
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
        version, digest = meta['version'], meta.pop('digest', None)
    except OSError as error:
        raise UserError(f'cannot read {file}: {error.strerror}') from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f'{file} is damaged or not of this program; convert again') from None
    if version != VERSION:
        raise UserError(f'{file} has format {version}, this program reads {VERSION}; convert again')
    if digest != _digest(meta):
        raise UserError(f'{file} is damaged or was edited: its digest differs; convert again')
    return meta


def _arch_name(folder: Path) -> str | None:
    try:
        return read_json(folder)['arch']['name']
    except UserError:  # a damaged neighbour must not hide the others
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    named = arch == folder.name and arch not in ARCHS  # such as w18_ssld
    if arch is not None and arch != model.arch.name and not named:
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


def _restore(folder: Path, shapes: Variables) -> Variables:
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)
    try:
        # Every process reads by itself: one that fails must not leave the others in a barrier.
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(process, {process}, f'process{process}')
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            arrays = (folder / ARRAYS).absolute()
            return checkpointer.restore(arrays, args=ocp.args.StandardRestore(target))
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing or cut files
        raise UserError(
            f'{folder / ARRAYS} is damaged ({_first_line(error)}); convert again'
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


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
    # Not every type, bfloat16 for one, gives its buffer away; bytes do.
    data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data
    digest = hashlib.sha256(data).hexdigest()[:16]
    return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': digest}
