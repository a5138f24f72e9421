"""The checkpoint format: Orbax arrays and, beside them, a JSON file that describes them.

    NAME/checkpoint.json    architecture, classes, evaluation transform, source, digests
    NAME/arrays/            an Orbax tree {'params': ..., 'batch_stats': ...}

The JSON is checked first, so that a wrong checkpoint is refused before an array is read. Orbax
does not notice a flipped bit in its files; the digest of each array does.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax.checkpoints import description, workdir
from hrnet_jax.checkpoints.description import REMEDY, with_digest
from hrnet_jax.errors import UserError, first_line, listed
from hrnet_jax.models import Variables, flat
from hrnet_jax.runtime.buckets import Bucket, is_url
from hrnet_jax.runtime.files import refuse_existing, replacing, uninterrupted
from hrnet_jax.tasks import get_task, task_of, task_of_model
from hrnet_jax.tasks.base import Task, Unknown

JSON = 'checkpoint.json'
ARRAYS = 'arrays'
_FLOATS = ('float32', 'bfloat16', 'float16', 'float64')


class Misfit(UserError):
    """The arrays are not those of the model or the optimiser."""


def save(
    path: str | os.PathLike[str], variables: Variables, meta: dict[str, Any], force: bool = False
) -> None:
    """Writes a checkpoint folder, whole or not at all.

    Args:
        path: the folder to make; may be in a bucket, such as gs://bucket/w18.
        variables: {'params': ..., 'batch_stats': ...}.
        meta: the JSON's content beside `version` and `arrays`; `describe` makes it.
        force: replace a checkpoint that exists; never a folder of another kind.

    Raises:
        UserError: if `path` exists and `force` is not set, or cannot be written.
    """
    import orbax.checkpoint as ocp

    if is_url(path):
        refuse_existing(os.fspath(path), force, JSON)
        with tempfile.TemporaryDirectory() as temporary:
            save(Path(temporary) / 'checkpoint', variables, meta)
            Bucket(os.fspath(path)).upload(Path(temporary) / 'checkpoint', '', JSON)
        return
    path = Path(path).absolute()
    arrays = entries(variables)
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
            raise UserError(f'cannot write {path}: {first_line(error)}') from error
        content = with_digest({**meta, 'arrays': arrays})
        (temporary / JSON).write_text(json.dumps(content, indent=1) + '\n')


def entries(tree: Variables) -> dict[str, Any]:
    """Path -> shape, type and digest of each array."""
    return {name: _entry(np.asarray(leaf)) for name, leaf in named(tree)}


def describe(model: Any, task: str | Task | None = None) -> dict[str, Any]:
    """The part of the JSON that says which model the arrays are of, and what it is for: by default
    what the model says.

    Raises:
        UserError: if neither says it.
    """
    found = task_of_model(model) if task is None else get_task(task)
    return {'task': found.name, **found.describe(model)}


def of_the_model(meta: dict[str, Any]) -> dict[str, Any]:
    """What the JSON says, without what it says of these arrays and of their training."""
    own = ('version', 'arrays', 'ema', 'rest', 'training')
    return {name: value for name, value in meta.items() if name not in own}


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The description of the checkpoint folder `path`.

    Raises:
        UserError: if it cannot be read or is not one of ours.
    """
    file = Path(path) / JSON
    if not file.is_file() and (Path(path) / workdir.META).is_file():
        return description.read(Path(path) / workdir.META, workdir.FIELDS)
    return description.read(file, (ARRAYS,))


def arch_name(meta: dict[str, Any]) -> str | None:
    """The architecture in a checkpoint's JSON, if its task says one."""
    arch = meta.get('arch')
    name = arch.get('name') if isinstance(arch, dict) else arch
    return name if isinstance(name, str) else None


def restore(path: Path, target: Variables, expected: dict[str, Any]) -> Variables:
    """The Orbax tree in `path` as NumPy arrays, checked; every process reads by itself.

    Args:
        target: `jax.ShapeDtypeStruct` of each array.
        expected: their `entries` when they were written.

    Raises:
        UserError: if an array is missing, of another shape, or damaged, naming it.
    """
    _check_shapes(path.parent, expected, target)
    tree = _restore(path, target)
    damaged = [name for name, leaf in named(tree) if _entry(leaf) != expected[name]]
    if damaged:
        raise UserError(
            f'{path.parent} is damaged: {listed(damaged)} do not match their digests{REMEDY}'
        )
    return tree


def as_written(shapes: Variables, expected: dict[str, Any]) -> Variables:
    """`jax.ShapeDtypeStruct` of each array, of the type in its entry; float32 by default."""

    def one(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
        said = expected.get('/'.join(str(key.key) for key in path), {}).get('dtype')
        return jax.ShapeDtypeStruct(leaf.shape, said if said in _FLOATS else 'float32')

    return jax.tree_util.tree_map_with_path(one, shapes)


def model_of(meta: dict[str, Any], **options: Any) -> Any:
    """The model that a checkpoint's JSON describes."""
    try:
        model = task_of(meta).model_of(meta, **options)
        hash(model)  # of what is in no JSON of ours
        return model
    except Unknown as error:
        raise UserError(f'the checkpoint describes {error}{REMEDY}') from None
    except (AttributeError, LookupError, OverflowError, TypeError) as error:
        raise UserError(
            f'the checkpoint describes no model: {first_line(error)}{REMEDY}'
        ) from error


def _restore(path: Path, shapes: Variables) -> Variables:
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    try:
        _check_chunks(path, target)
        # Every process reads by itself: one that fails must not leave the others in a barrier.
        process = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(process, {process}, f'process{process}')
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            return checkpointer.restore(path.absolute(), args=ocp.args.StandardRestore(target))
    except Exception as error:  # Orbax and TensorStore raise many kinds for missing or cut files
        raise UserError(f'{path} is damaged ({first_line(error)}){REMEDY}') from error


def _check_chunks(path: Path, target: Variables) -> None:
    """Raises ValueError where the file of an array claims pieces that are larger than the array:
    to make room for them, TensorStore would end the process."""
    import tensorstore

    context = tensorstore.Context()
    base = {'driver': 'file', 'path': f'{path.absolute()}/'}
    opened = {}
    for name, _ in named(target):
        store = {'driver': 'ocdbt', 'base': base, 'path': f'{name.replace("/", ".")}/'}
        spec = {'driver': 'zarr', 'kvstore': store}
        opened[name] = tensorstore.open(spec, open=True, context=context)
    for name, leaf in named(target):
        array = opened[name].result()
        piece: Any = array.chunk_layout.read_chunk.shape or ()  # None of a scalar
        if math.prod(piece) * array.dtype.numpy_dtype.itemsize > max(leaf.nbytes, 8):
            raise ValueError(f'{name} claims pieces of {piece}')


def _check_shapes(folder: Path, arrays: dict[str, Any], shapes: Variables) -> None:
    if wrong := differing(arrays, shapes):
        raise Misfit(f'{folder} does not fit what it is read for: it differs at {listed(wrong)}')


def differing(arrays: dict[str, Any], shapes: Variables) -> list[str]:
    """Paths at which the `entries` are not of these shapes."""
    expected = {name: list(leaf.shape) for name, leaf in named(shapes)}
    got = {name: entry['shape'] for name, entry in arrays.items()}
    return sorted(k for k in got.keys() | expected.keys() if got.get(k) != expected.get(k))


def named(tree: Variables) -> list[tuple[str, Any]]:
    """Path, such as 'params/backbone/conv1/kernel', and array, in the order of the tree."""
    return [('/'.join(path), leaf) for path, leaf in flat(tree).items()]


def _entry(leaf: np.ndarray) -> dict[str, Any]:
    # Not every type, bfloat16 for one, gives its buffer away; bytes do.
    data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data
    digest = hashlib.sha256(data).hexdigest()[:16]
    return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype), 'digest': digest}
