"""Folders that the first release wrote (commit 98a1776), before there were tasks.

`run` was made from the images of `make_images` with the flags `FLAGS`, up to step 2; `converted`
with `python -m convert` from a file for `tiny` whose weights have few values. `expected.npz` has
what that code reached from there: the weights of step 4, and logits.
"""

from __future__ import annotations

import tarfile

import jax
import numpy as np
import pytest
from PIL import Image
from rules import close, image
from runs import ROOT, rows

import train as train_command
from hrnet_jax import Transform, checkpoint
from hrnet_jax.archs import ARCHS
from hrnet_jax.checkpoints import workdir
from hrnet_jax.heads.classification import ClassifierArch

DATA = ROOT / 'tests' / 'data' / 'first_release'
SMALL = ClassifierArch(
    'small', (1, 2, 4, 8), (1, 1), (1, 1, 1), (1, 1, 1), 2, head=(4, 4, 4, 4), features=4
)
FLAGS = (
    '--arch small --recipe strong --workdir run --dataset folder:images --split train '
    '--eval-split val --image-size 32 --batch-size 8 --epochs 2 --warmup-epochs 0 '
    '--dtype float32 --bn-group-size 4 --ema 0.5 --randaugment-ops 0 --learning-rate 0.5 '
    '--checkpoint-steps 2 --log-every 1 --keep 3 --no-tensorboard'
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHS, 'small', SMALL)
    monkeypatch.chdir(tmp_path)
    with tarfile.open(DATA / 'folders.tar.xz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path


def make_images(folder):
    random = np.random.RandomState(0)
    for split, number in (('train', 16), ('val', 4)):
        for i in range(number):
            file = folder / split / 'ab'[i % 2] / f'{i:02}.png'
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.randint(0, 256, (40, 48, 3)).astype(np.uint8)).save(file)


def weights(run):
    """Those of its last step, each collection as one vector."""
    step = run / 'checkpoints' / str(workdir.steps(run)[-1])
    _, variables = checkpoint.load(step, weights='raw')
    return {
        name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        for name, tree in variables.items()
    }


@pytest.mark.long
def test_a_run_goes_on(folder, command):
    """As it would have: the same images, mixed alike, and the same sizes of the evaluation."""
    make_images(folder / 'images')
    before = weights(folder / 'run')
    code, out, err = command(train_command.main, *FLAGS.split())
    assert (code, err) == (0, '')
    assert 'going on after 2' in out
    assert 'note: evaluated as before, --eval-crop 224 --eval-resize 256; to change' in out
    assert workdir.steps(folder / 'run') == [2, 4]
    assert sorted(workdir.evaluations(folder / 'run')) == [2, 4]
    assert [row['step'] for row in rows(folder / 'run', 'eval')] == [4]
    after, expected = weights(folder / 'run'), np.load(DATA / 'expected.npz')
    change = close(*(x - before['params'] for x in (after['params'], expected['params'])))
    assert change < 1e-3
    assert close(after['batch_stats'], expected['batch_stats']) < 1e-4


@pytest.mark.parametrize('order', ['b a', 'b c a'])
def test_a_run_with_classes_in_another_order(folder, refused, order):
    """And with others: of as many names as there are."""
    make_images(folder / 'images')
    names, words = order.split(), 'keeps that order (a, b)'
    if 'c' in names:
        names, words = ['c', 'b'], 'name the classes as before, or take another --workdir'
        for split in ('train', 'val'):
            (folder / 'images' / split / 'a').rename(folder / 'images' / split / 'c')
    (folder / 'names.txt').write_text('\n'.join(names))
    before = (folder / 'run' / 'config.json').read_text()
    line = refused(train_command.main, *FLAGS.split(), '--class-names', 'names.txt')
    said = f'run: class 0 of the run is a, class 0 of the data now is {names[0]}; '
    assert said in line
    assert words in line
    assert (folder / 'run' / 'config.json').read_text() == before


def test_a_run_is_read(folder):
    assert list(workdir.evaluations(folder / 'run')) == [2]
    assert workdir.recipe(folder / 'run')['eval_resize'] == 256
    model, _ = checkpoint.load(folder / 'run')
    assert (model.arch, model.num_classes) == (SMALL, 2)


def test_a_converted_folder(folder):
    model, variables = checkpoint.load(folder / 'converted')
    logits = model.apply(variables, image(0, 2, 64, 64))
    assert close(logits, np.load(DATA / 'expected.npz')['logits']) < 1e-4
    described = checkpoint.read_json(folder / 'converted')
    assert Transform.from_json(described['transform']) == Transform()
