"""Files with weights, and what reads them, for `strangers`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jax
import mutants
import numpy as np

JSON = 'checkpoint.json'


def torch(kind: str, folder: Path) -> list[str]:
    import collections

    import torch
    from checkpoints import save

    state = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2).half())
    trees = {
        'plain': state,
        'held': {'state_dict': state, 'meta': {'CLASSES': ('x', 'y')}, 'epoch': 3},
    }
    if kind == 'safetensors':
        trees = {'plain': state}
    for name, tree in trees.items():
        save(tree, folder / f'{name}.pth', kind)
    return [f'{name}.pth' for name in trees]


def tensors(path: Path) -> None:
    from convert.readers import read

    for tensor in read(path).tensors.values():
        tensor.numpy()


@functools.cache
def _state() -> dict[str, np.ndarray]:
    """A PyTorch state dict of `tiny`."""
    import hrnet_jax
    from convert import to_torch

    return to_torch(
        hrnet_jax.init(hrnet_jax.create_model('tiny', 4), jax.random.key(0), 32), 'tiny'
    )


def network(folder: Path) -> list[str]:
    """Names and shapes of a whole network, without its numbers."""
    state = _state()
    (folder / 'tiny.json').write_text(json.dumps({k: list(v.shape) for k, v in state.items()}))
    return ['tiny.json']


def convert(path: Path) -> None:
    from convert import from_torch
    from hrnet_jax.errors import UserError

    shapes = mutants.loads(path.read_bytes())
    if not isinstance(shapes, dict):
        raise UserError('of another form')
    try:
        state = {k: np.zeros(v, np.float32) for k, v in shapes.items()}
    except (TypeError, ValueError, MemoryError):
        raise UserError('no shapes') from None
    from_torch(state)


def checkpoint(folder: Path, tasks=('classification', 'segmentation', 'pose')) -> list[str]:
    import hrnet_jax
    from hrnet_jax.checkpoints import format as checkpoint
    from hrnet_jax.models import variable_shapes
    from hrnet_jax.tasks import get_task

    for task in tasks:
        model = hrnet_jax.create_model('tiny', None if task == 'pose' else 4, task=task)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(model))
        meta = checkpoint.describe(model) | {
            'transform': get_task(task).protocol().to_json(),
            'class_names': None if task == 'pose' else ['ant', 'bee', 'cow', 'dog'],
            'published': None,
            'source': {'file': 'a.pth', 'origin': 'a.pth', 'sha256': '0', 'layout': 'timm'},
            'arrays': checkpoint.entries(zeros),
        }
        (folder / task).mkdir()
        (folder / task / JSON).write_text(json.dumps(checkpoint.with_digest(meta)))
    return [f'{task}/{JSON}' for task in tasks]


def arrays(folder: Path) -> list[str]:
    """The files of a checkpoint's arrays, which Orbax and TensorStore read."""
    import hrnet_jax
    from hrnet_jax import checkpoint

    model = hrnet_jax.create_model('tiny', 4)
    variables = hrnet_jax.init(model, jax.random.key(0), 32)
    checkpoint.save(folder / 'tiny', variables, checkpoint.describe(model))
    found = [x for x in (folder / 'tiny/arrays').rglob('*') if x.is_file() and x.stat().st_size]
    return sorted(str(file.relative_to(folder)) for file in found)


def loaded(path: Path) -> None:
    import hrnet_jax

    hrnet_jax.load(next(x for x in path.parents if x.name == 'tiny'))


def signed(content: bytes) -> bytes:
    """With the digest that is right for it, which a stranger can compute as well."""
    from hrnet_jax.checkpoints.description import _digest

    try:
        meta = json.loads(content)
        del meta['digest']
        return json.dumps({**meta, 'digest': _digest(meta)}).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return content


def signed_json(data: bytes, rng: Any) -> bytes:
    """The arrays are many, so that changes of the rest are made more often."""
    meta = json.loads(data)
    rest = {k: v for k, v in meta.items() if k not in ('arrays', 'ema', 'rest')}
    whole = mutants.of_json(data, rng) if rng.random() < 0.2 else None
    if whole is None:
        changed = mutants.loads(mutants.of_json(json.dumps(rest).encode(), rng))
        whole = json.dumps(meta | changed if isinstance(changed, dict) else changed).encode()
    return signed(whole) if rng.random() < 0.95 else whole


def described(path: Path) -> None:
    from hrnet_jax.checkpoints import beside
    from hrnet_jax.checkpoints import format as checkpoint
    from hrnet_jax.models import variable_shapes
    from hrnet_jax.tasks import task_of
    from hrnet_jax.weights import loading

    folder = path.parents[1] if path.name == 'metadata' else path.parent
    meta = loading.described(folder)[1]
    model = loading._told(checkpoint.model_of(meta), meta)
    checkpoint._check_shapes(path.parent, meta['arrays'], variable_shapes(model))
    task_of(meta).protocol.from_json(meta.get('transform'))
    beside.lines(meta, None)


def run(folder: Path) -> list[str]:
    from hrnet_jax.checkpoints import workdir
    from hrnet_jax.tasks.classification_recipes import Digits
    from hrnet_jax.training import saving

    [name] = checkpoint(folder, ('classification',))
    meta = json.loads((folder / name).read_text())
    meta |= {'training': {'step': 6, 'scores': {'6': 50.0}}, 'ema': None, 'rest': meta['arrays']}
    file = folder / workdir.CHECKPOINTS / '6' / workdir.META
    file.parent.mkdir(parents=True)
    file.write_bytes(signed(json.dumps(meta).encode()))
    saving.write_config(folder, {'arch': 'tiny', 'recipe': Digits().to_json()})
    return [str(file.relative_to(folder)), workdir.CONFIG]


def run_json(data: bytes, rng: Any) -> bytes:
    return (signed_json if b'"arrays"' in data else mutants.of_json)(data, rng)


def read_run(path: Path) -> None:
    from hrnet_jax.checkpoints import workdir
    from hrnet_jax.training import saving
    from hrnet_jax.weights import loading

    run = path.parent if path.name == workdir.CONFIG else path.parents[3]
    workdir.recipe(run)
    workdir.evaluations(run)
    saving.read_config(run)
    saving.prepare(run, {'arch': 'tiny', 'recipe': {'seed': 0}}, force=True)
    saving.require_classes(run, ['ant', 'bee', 'cow', 'dog'])
    if path.name != workdir.CONFIG:
        described(loading.find(run) / workdir.META)


@functools.cache
def _small() -> Any:
    """A file of `tiny` that was converted."""
    from convert.conversion import convert

    return convert(_state())


def beside(folder: Path) -> list[str]:
    [name] = checkpoint(folder, ('classification',))
    meta = json.loads((folder / name).read_text())
    del meta['arrays'], meta['digest'], meta['version']
    (folder / 'a.pth.json').write_text(json.dumps(meta | {'sha256': '0', 'layout': 'timm'}))
    config = {
        'architecture': 'hrnet_w18_small', 'num_classes': 4, 'num_features': 2048,
        'label_names': ['a', 'b', 'c', 'd'],
        'pretrained_cfg': {
            'input_size': [3, 224, 224], 'interpolation': 'bicubic', 'crop_pct': 0.875,
            'crop_mode': 'center', 'mean': [0.5, 0.5, 0.5], 'std': [0.2] * 3, 'num_classes': 4,
        },
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(config))
    return ['a.pth.json', 'config.json']


def told(path: Path) -> None:
    from unittest import mock

    from convert import folders, readers, timm

    file = path.with_name('other.pth' if path.name == timm.CONFIG else 'a.pth')
    source = readers.Source(file, 'a.pth', '0', {}, '', ())
    with mock.patch.dict(timm.models(), hrnet_w18_small=('tiny', False)):
        told, notes = folders._told(source, _small(), True)
    folders.describe(folders.File(source, _small(), None, told, tuple(notes)))
