"""One flipped bit, anywhere: refused where there is a digest, and never another array there."""

from __future__ import annotations

import hashlib
import json
import random
import shutil

import jax
import numpy as np
import pytest
import torch
from checkpoints import save
from runs import digests, finish, launch

import hrnet_jax
from convert import from_torch, to_torch
from convert.files import Written
from convert.readers import read
from hrnet_jax import checkpoint, export
from hrnet_jax.checkpoints import beside, workdir
from hrnet_jax.errors import UserError

POSITIONS = 200


def flips(folder_or_file, seed=0, count=POSITIONS):
    """Flips a bit of a file, or of any file in a folder, and flips it back."""
    rng = random.Random(seed)
    found = [x for x in sorted(folder_or_file.rglob('*')) if x.is_file()] or [folder_or_file]
    files = [file for file in found if file.stat().st_size]
    for number in range(count):
        file = files[number % len(files)]
        whole = file.read_bytes()
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        yield file
        file.write_bytes(whole)


@pytest.fixture(scope='module')
def converted(once):
    """A checkpoint of `tiny`."""

    def make(folder):
        model = hrnet_jax.create_model('tiny', 10)
        meta = checkpoint.describe(model) | {'transform': hrnet_jax.Transform(40, 32).to_json()}
        checkpoint.save(folder / 'tiny', hrnet_jax.init(model, jax.random.key(0), 32), meta)

    return once('flipped', make) / 'tiny'


@pytest.mark.faults
def test_a_converted_checkpoint(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / 'tiny')
    expected, refused = hrnet_jax.load(folder)[1], 0
    for _ in flips(folder):
        try:
            found = hrnet_jax.load(folder)[1]
        except UserError:
            refused += 1
        else:  # of a byte that says nothing of the arrays
            jax.tree.map(np.testing.assert_array_equal, found, expected)
    print(f'{refused} of {POSITIONS} refused, the others with the right arrays')
    assert refused > POSITIONS // 4


@pytest.mark.faults
def test_a_training_checkpoint(digits_data, tmp_path):
    """Read by the step, and as a run: which then goes on from the step before, or from this one."""
    run = tmp_path / 'run'
    flags = ('--epochs', '1', '--ema', '0.9', '--checkpoint-steps', '9', '--stop-at', '9')
    [(code, _, err)] = finish(launch(run, digits_data, *flags, quick=True))
    assert code == 0, err
    step = run / workdir.CHECKPOINTS / str(workdir.steps(run)[-1])
    expected = {x: hrnet_jax.load(step, weights=x)[1] for x in ('ema', 'raw')}
    whole, refused = digests(run), 0
    for file in flips(step):
        weights = 'raw' if 'raw' in file.parts else 'ema'
        try:
            assert digests(run) == whole
            found = hrnet_jax.load(step, weights=weights)[1]
        except UserError:
            refused += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, found, expected[weights])
    print(f'{refused} of {POSITIONS} refused, the others with the right arrays')
    assert refused > POSITIONS // 6


def values(source):
    """The tensors of a file, each as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in read(source).tensors.items()}


def believed(file):
    """How many of the flipped files are refused, and how many give other tensors."""
    expected, refused, wrong = values(file), 0, 0
    for _ in flips(file):
        try:
            wrong += values(file) != expected
        except UserError:
            refused += 1
    return refused, wrong


@pytest.mark.parametrize(
    ('kind', 'crc', 'safe'),
    [
        ('zip', True, True),
        ('zip', False, False),
        ('legacy', True, False),
        ('safetensors', True, False),
    ],
)
def test_a_file_of_another_program(tmp_path, kind, crc, safe):
    """The checksums of a zip archive show damage; other formats have none, unless the name of the
    file has its hash."""
    torch.serialization.set_crc32_options(crc)
    try:
        tensors = {'a': torch.arange(300.0), 'b': torch.ones(40, 5)}
        file = save(tensors, tmp_path / 'file.pth', kind)
    finally:
        torch.serialization.set_crc32_options(True)
    refused, wrong = believed(file)
    print(f'{kind}, checksums {crc}: {refused} of {POSITIONS} refused, {wrong} believed and wrong')
    assert (wrong == 0) == safe
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    named = file.rename(tmp_path / f'file-{digest}.pth')
    if digest.isdecimal():  # may be a date
        return
    for _ in flips(named, count=20):
        try:
            notes = read(named).notes
        except UserError:
            continue
        assert any('perhaps another file than its name says' in note for note in notes)


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_a_file_that_this_program_wrote(converted, tmp_path, ending):
    """Its JSON has its digest, so that every bit counts."""
    file = tmp_path / f'tiny{ending}'
    model, variables = hrnet_jax.load(converted)
    Written(file, 'timm', checkpoint.read_json(converted)).write(model, variables)
    for _ in flips(file):
        with pytest.raises(UserError, match='is damaged|is no checkpoint|cannot be read'):
            read(file)
    back = from_torch(file)[1]
    jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(variables))
    beside.place(file).unlink()
    state = to_torch(variables, 'tiny')
    assert values(file) == {name: value.tobytes() for name, value in state.items()}


def test_an_exported_program(converted, command, tmp_path):
    """JAX has no digest of a program; the JSON beside it has, and the documentation says so."""
    file = tmp_path / 'tiny.stablehlo'
    code, _, err = command(export.main, '--ckpt', converted, '--out', file)
    assert code == 0, err
    said = json.loads(beside.place(file).read_text())['sha256']
    assert hashlib.sha256(file.read_bytes()).hexdigest() == said
    for _ in flips(file):
        assert hashlib.sha256(file.read_bytes()).hexdigest() != said
