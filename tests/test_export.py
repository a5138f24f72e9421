"""Exported programs run with JAX alone, give the model's logits, and are whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
from typing import ClassVar

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from rules import close, image
from test_predict import DIGITS, TRANSFORM

import hrnet_jax
from convert import from_torch
from hrnet_jax import checkpoint
from hrnet_jax.commands import export as export_command
from hrnet_jax.data.preprocess import normalize
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.inference import export
from hrnet_jax.models import create_model
from hrnet_jax.tasks import classification

# In a process of its own: FILE INPUT OUTPUT, over and over.
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        others = ('hrnet_jax', 'flax', 'orbax', 'optax', 'tensorflow', 'tensorstore', 'etils')
        if name.split('.')[0] in others:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import jax.export, numpy, os
try:
    import hrnet_jax
except ModuleNotFoundError:
    pass
else:
    raise SystemExit('hrnet_jax can be imported')
for i in range(1, len(sys.argv), 3):
    file, images, out = sys.argv[i : i + 3]
    program = jax.export.deserialize(bytearray(open(file, 'rb').read()))
    arguments = [numpy.load(images)]
    if os.path.exists(file + '.npz'):
        arguments.insert(0, jax.device_put(dict(numpy.load(file + '.npz'))))
    numpy.save(out, jax.jit(program.call)(*arguments))
"""


@pytest.fixture(autouse=True)
def lines():
    """Operations know the lines that they come from, as for users: exported programs must not."""
    name = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, name)
    jax.config.update(name, 100)
    yield
    jax.config.update(name, before)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The converted digits checkpoint."""
    folder = tmp_path_factory.mktemp('digits')
    names = {'class_names': [f'digit {i}' for i in range(10)]}
    meta = checkpoint.describe(create_model('tiny', 10)) | {'transform': TRANSFORM.to_json()}
    meta |= names
    checkpoint.save(folder / 'tiny', from_torch(DIGITS)[1], meta)
    return folder


@pytest.fixture(scope='module')
def source(folder):
    model, variables = hrnet_jax.load(folder)
    return model, variables, jax.jit(model.apply)


def read(path):
    return jax.export.deserialize(bytearray(path.read_bytes()))


def test_runs_with_jax_alone(command, folder, source, tmp_path):
    model, variables, apply = source
    several = ('--platforms', 'cpu,cuda,tpu')
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    images = {
        'float': image(1, 5, 32, 32),
        'wide': image(3, 2, 64, 64),
        'pixels': pixels,
    }
    cases = {
        'plain': ((), 'float'),
        'fixed': (('--image-size', 64, '--batch', 2, *several), 'wide'),
        'both': (('--weights-beside', '--preprocess', *several), 'pixels'),
    }
    for name, values in images.items():
        np.save(tmp_path / f'{name}.npy', values)
    arguments, wanted = [], {}
    for name, (options, given) in cases.items():
        file = tmp_path / name
        code, out, err = command(export_command.main, '--ckpt', folder, '--out', file, *options)
        assert code == 0, err
        worst = re.search(r'on cpu, relative to the largest value: (\S+)\n', out)
        assert 0 < float(worst[1]) < 1e-5
        assert (tmp_path / f'{name}.npz').exists() == ('--weights-beside' in options)
        assert 'classes, in this order: digit 0, digit 1' in out
        told = json.loads((tmp_path / f'{name}.json').read_text())
        assert told['class_names'] == [f'digit {i}' for i in range(10)]
        assert told['sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert told['normalised_inside'] == ('--preprocess' in options)
        assert told['jax'] == jax.__version__
        assert f'written by JAX {jax.__version__}; JAX promises to read it for 6 months' in out
        size = 64 if '--image-size' in options else 32
        assert told['transform'] == TRANSFORM.at_size(size, size).to_json()
        result = tmp_path / f'{name}_logits.npy'
        arguments += [file, tmp_path / f'{given}.npy', result]
        x = images[given]
        x = normalize(x, TRANSFORM) if x.dtype == np.uint8 else x
        wanted[result] = np.asarray(apply(variables, x))
    done = subprocess.run(
        [sys.executable, '-c', ALONE, *map(str, arguments)],
        env=os.environ | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for result, logits in wanted.items():
        got = np.load(result)
        assert got.dtype == np.float32
        assert close(got, logits) < 1e-5, result.name
    assert (tmp_path / 'both').stat().st_size < (tmp_path / 'plain').stat().st_size / 5
    assert not re.search(rb'/\w+\.py', (tmp_path / 'plain').read_bytes())
    with np.load(tmp_path / 'both.npz') as stored:
        total = sum(array.size for array in stored.values())
        assert 'params/backbone/conv1/kernel' in stored
    plain = hrnet_jax.fold(model, variables, 'tpu').variables
    assert total == sum(leaf.size for leaf in jax.tree.leaves(plain))


SHARDED = """
import sys
import jax
jax.config.update('jax_num_cpu_devices', 8)
import jax.export
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ('data',))
everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ('data',)))
for program, images, weights in zip(*[iter(sys.argv[1:])] * 3):
    call = jax.jit(jax.export.deserialize(bytearray(open(program, 'rb').read())).call)
    images = np.load(images)
    weights = [dict(np.load(weights))] if weights else []
    one = np.asarray(call(*weights, images))
    several = call(*jax.device_put(weights, everywhere), jax.device_put(images, split))
    assert several.sharding.is_equivalent_to(split, 2), several.sharding
    assert np.abs(np.asarray(several) - one).max() <= 1e-5 * np.abs(one).max()
"""


def test_images_on_eight_devices(source, tmp_path):
    """Normalised inside or not, the weights inside or beside."""
    model, variables, _ = source
    pixels = np.random.default_rng(1).integers(0, 256, (16, 32, 32, 3), np.uint8)
    arguments = []
    for name, inside, weights_beside in (('a', True, False), ('b', False, True)):
        transform = TRANSFORM if inside else None
        program = export.export(
            model, variables, image_size=32, transform=transform, weights_beside=weights_beside
        )
        (tmp_path / name).write_bytes(program.serialize())
        np.save(tmp_path / f'{name}.npy', pixels if inside else normalize(pixels, TRANSFORM))
        if weights_beside:
            fast = export.fold_for(model, variables, export.known_platforms(None))
            np.savez(tmp_path / f'{name}.npz', **export.flat_weights(fast.variables))
        weights = tmp_path / f'{name}.npz' if weights_beside else ''
        arguments += [tmp_path / name, tmp_path / f'{name}.npy', weights]
    command = [sys.executable, '-c', SHARDED, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_form_and_precision(source):
    """The platform's own form for one, the plain one for several; float32 products are exact."""
    model, variables, _ = source
    programs = {
        names: export.export(model, variables, image_size=32, platforms=names)
        for names in (('cpu',), ('cpu', 'cuda', 'tpu'), ('cuda', 'rocm'))
    }
    for names, program in programs.items():
        assert program.platforms == names
        products = [
            line
            for line in program.mlir_module().splitlines()
            if re.search(r'stablehlo\.(convolution|dot_general)', line)
        ]
        assert len(products) > 50
        assert all(line.count('HIGHEST') == 2 for line in products)
        tiled = any('tensor<36x' in line for line in products)
        assert tiled == (names == ('cpu',))
    assert str(programs['cpu',].in_avals[0].shape) == '(batch, 32, 32, 3)'


def test_library(source):
    model, variables, apply = source
    x = image(4, 2, 32, 64)
    fast = export.fold_for(model, variables, ['cpu'])
    options = {'image_size': (32, 64), 'platforms': ['cpu', 'cpu'], 'weights_beside': True}
    program = export.export(fast.model, fast.variables, **options)
    assert program.platforms == ('cpu',)
    weights = export.flat_weights(fast.variables)
    call = jax.jit(program.call)
    assert close(call(weights, x), apply(variables, x)) < 1e-5
    zeros = jax.tree.map(jnp.zeros_like, weights)
    assert not np.any(call(zeros, x))  # the weights are nowhere else

    grey = create_model('tiny', 10, in_channels=1)
    for changed, options, message in (
        (model, {'platforms': ['gpu']}, "'gpu'; known: cpu, cuda, rocm, tpu"),
        (model, {'platforms': []}, 'no platform'),
        (model, {'image_size': 40}, 'multiple of 32'),
        (model, {'image_size': -32}, 'at least 1'),
        (model, {'image_size': (32, 32, 3)}, 'neither one integer nor two'),
        (model, {'image_size': 32.0}, 'neither one integer nor two'),
        ('tiny', {}, 'a Flax module can be exported, not str'),
        (model, {'batch': 0}, 'at least 1'),
        (model, {'batch': '2'}, 'at least 1'),
        (grey, {'transform': TRANSFORM}, '1 channels'),
    ):
        with pytest.raises(hrnet_jax.UserError, match=message):
            export.export(changed, variables, **options)


class Own(nn.Module):
    """Of a user's task: two results, and nothing of ours inside."""

    @nn.compact
    def __call__(self, images, train=False):
        pooled = nn.Conv(4, (3, 3), name='conv')(images).mean((1, 2))
        return {'angle': nn.Dense(2)(pooled), 'pooled': pooled}


def test_a_module_of_the_users():
    images = image(5, 2, 32, 64)
    variables = Own().init(jax.random.key(0), images)
    for options in ({}, {'transform': TRANSFORM}, {'weights_beside': True}):
        program = export.export(Own(), variables, image_size=(32, 64), **options)
        weights = export.flat_weights(variables) if 'weights_beside' in options else None
        assert export.difference(program, weights, Own(), variables, TRANSFORM) < 1e-5
    assert [aval.shape[1:] for aval in program.out_avals] == [(2,), (4,)]
    changed = jax.tree.map(lambda x: 1.01 * x, variables)
    assert export.difference(program, weights, Own(), changed, TRANSFORM) > 1e-3


def test_weights_too_large_for_one_file(source, monkeypatch):
    model, variables, _ = source
    monkeypatch.setattr(export, 'LIMIT', 1000)
    options = {'image_size': 32, 'platforms': ['tpu']}
    with pytest.raises(hrnet_jax.UserError, match='beside'):
        export.export(model, variables, **options)
    export.export(model, variables, weights_beside=True, **options)


def test_other_platforms_are_not_compared(command, folder, tmp_path):
    out = tmp_path / 'tpu'
    code, text, err = command(
        export_command.main, '--ckpt', folder, '--out', out, '--platforms', 'tpu', '--batch', 8
    )
    assert code == 0, err
    assert 'float32[8,32,32,3] -> float32[8,10], for tpu' in text
    assert 'note: not compared with the model, because this machine runs cpu' in text
    assert read(out).platforms == ('tpu',)


@pytest.mark.parametrize('factor', [1.0001, np.nan])
def test_a_program_that_differs_is_not_kept(refused, folder, tmp_path, monkeypatch, factor):
    """Neither it nor its weights; what was there stays."""

    def wrong(model, variables, platforms):
        fast = fold_for(model, variables, platforms)
        kernel = fast.variables['params']['head']['classifier']['kernel']
        fast.variables['params']['head']['classifier']['kernel'] = kernel * factor
        return fast

    fold_for = export.fold_for
    monkeypatch.setattr(export, 'fold_for', wrong)
    out, beside = tmp_path / 'out', tmp_path / 'out.npz'
    out.write_text('old')
    beside.write_text('old')
    arguments = ('--ckpt', folder, '--out', out, '--weights-beside', '--force')
    assert 'differs from the model' in refused(export_command.main, *arguments, '--batch', 1)
    assert (out.read_text(), beside.read_text()) == ('old', 'old')
    assert sorted(tmp_path.iterdir()) == [out, beside]


def test_wrong_arguments(refused, command, folder, tmp_path):
    there, out = tmp_path / 'there', tmp_path / 'out'
    (tmp_path / 'out2.npz').write_text('mine')
    there.write_text('mine')
    right = ('--ckpt', folder, '--out', out)
    for arguments, part in (
        (('--out', out), '--ckpt'),
        ((*right, '--platforms', 'cpu,abacus'), "unknown platform 'abacus'; known: cpu, cuda"),
        ((*right, '--platforms', ''), 'unknown platform'),
        ((*right, '--batch', 0), '--batch 0'),
        ((*right, '--batch', 'many'), '--batch many'),
        ((*right, '--image-size', 100), '--image-size 100: '),
        ((*right, '--image-size', 100), 'the next sizes that fit: 96 and 128'),
        ((*right, '--image-size', 0), '--image-size 0: images must be at least 1 high'),
        ((*right, '--image-size', 64, 32), '--image-size 64 32: the crop is a square'),
        ((*right, '--image-size', 32, 32, 32), '--image-size is needed: one number, or height'),
        ((*right, '--weights', 'ema'), 'no averaged weights'),
        ((*right, '--arch', 'w18'), 'no checkpoint of w18'),
        (('--ckpt', folder, '--out', there), 'there exists; remove it or give --force'),
        (('--ckpt', folder, '--out', tmp_path / 'out2', '--weights-beside'), 'out2.npz exists'),
        (('--ckpt', folder, '--out', tmp_path), f'cannot write {tmp_path}'),
        (('--ckpt', folder, '--out', tmp_path / 'no' / 'out'), 'does not exist'),
        (('--ckpt', tmp_path / 'none', '--out', out), 'does not exist'),
    ):
        assert part in refused(export_command.main, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out2.npz', 'there']
    assert there.read_text() == 'mine'
    assert command(export_command.main, *right[:3], there, '--force', '--platforms', 'tpu')[0] == 0
    assert read(there).out_avals[0].shape[1:] == (10,)


@pytest.mark.parametrize(
    ('before', 'size', 'after'),
    [((256, 224), 128, (146, 128)), ((256, 224), 448, (512, 448)), ((224, 256), 128, (112, 128))],
)
def test_the_resize_follows_the_size(before, size, after):
    transform = hrnet_jax.Transform(*before, 'bicubic', flip=True)
    assert transform.at_size(*transform.image_size) == transform
    assert transform.at_size(size, size) == hrnet_jax.Transform(*after, 'bicubic', flip=True)


def test_the_json_of_a_smaller_size(command, source, tmp_path):
    model, variables, _ = source
    meta = checkpoint.describe(model) | {'transform': hrnet_jax.Transform(256, 224).to_json()}
    checkpoint.save(tmp_path / 'tiny', variables, meta)
    flags = ('--out', tmp_path / 'out', '--platforms', 'tpu', '--image-size', 128)
    assert command(export_command.main, '--ckpt', tmp_path / 'tiny', *flags)[0] == 0
    said = json.loads((tmp_path / 'out.json').read_text())['transform']
    assert (said['resize'], said['crop']) == (146, 128)


@dataclasses.dataclass(frozen=True)
class Whole(Protocol):
    """Images of any size, as they are."""

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.2, 0.2, 0.2)
    text = 'whole'
    from_text = prepare = None


class WholeTask(classification.Classification):
    name = 'whole'
    recipes: ClassVar = {}
    protocol = Whole


def test_images_that_are_no_squares(command, refused, source, tmp_path, monkeypatch):
    """The task's own protocol describes them."""
    monkeypatch.setattr('hrnet_jax.tasks._REGISTERED', {'whole': WholeTask()})
    model, variables, _ = source
    meta = checkpoint.describe(model, 'whole') | {'transform': Whole().to_json()}
    checkpoint.save(tmp_path / 'tiny', variables, meta)
    out = tmp_path / 'out'
    flags = ('--ckpt', tmp_path / 'tiny', '--out', out, '--platforms', 'tpu', '--preprocess')
    assert 'error: --image-size is needed: one number' in refused(export_command.main, *flags)
    code, _, err = command(export_command.main, *flags, '--image-size', 64, 32)
    assert code == 0, err
    assert read(out).in_avals[0].shape[1:] == (64, 32, 3)
    assert json.loads((tmp_path / 'out.json').read_text())['transform'] == Whole().to_json()


def test_damaged_checkpoint(refused, source, tmp_path):
    model, variables, _ = source
    meta = checkpoint.describe(model) | {'transform': TRANSFORM.to_json()}
    checkpoint.save(tmp_path / 'tiny', variables, meta)
    data = max((tmp_path / 'tiny').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    out = tmp_path / 'out'
    assert 'damaged' in refused(export_command.main, '--ckpt', tmp_path / 'tiny', '--out', out)
    assert not out.exists()
