"""Whole runs of train.py on boxes in the form of COCO: resumed, from a classifier, both heads."""

from __future__ import annotations

import json
import re
import sys

import jax
import numpy as np
import pytest
import runs

import train as train_command
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir

sys.path.append(str(runs.ROOT / 'examples'))
import signs  # noqa: E402

EPOCH = 4  # steps of 4 of the 16 images
SETTING = (
    '--split train --eval-split val --scale 96 64 --pyramid 32 --batch-size 4 --base-batch 4 '
    '--dtype float32 --epochs 1 --checkpoint-steps 2 --eval-every 1 --keep 9'
)


def make(path, sizes=((96, 128),)):
    """One image has a crowd, one nothing."""
    signs.make(path, {'train': 16, 'val': 3}, sizes)
    content = json.loads((path / 'train.json').read_text())
    first = content['annotations'][0]
    content['annotations'].append({**first, 'id': 10_000, 'iscrowd': 1, 'bbox': [4, 4, 60, 60]})
    (path / 'train.json').write_text(json.dumps(content))


@pytest.fixture(scope='module')
def folder(once):
    return once('signs', make)


def train(run, folder, *more):
    flags = f'--dataset folder:{folder} {SETTING} --no-frozen-norm'.split()
    return runs.train(run, folder, *flags, *more, recipe='detect')


@pytest.fixture(scope='module')
def straight(once, folder):
    """A run without interruption."""

    def make(run):
        out = train(run, folder)
        assert '16 images of 5 classes, 64 x 96; evaluated on 3 of val: own scale 96 64' in out
        assert f'steps   {EPOCH}, {EPOCH} an epoch for 1 epochs' in out

    return once('detection_run', make)


def test_resumed_it_is_the_same_to_the_bit(straight, folder):
    runs.resumed(straight, lambda run: train(run, folder), 2, 'ap')


@pytest.mark.long  # as test_images_of_like_aspect_together has them, and eval.py two shapes
def test_wide_and_high_images(once, tmp_path):
    train(tmp_path, once('signs_of_two_sizes', lambda path: make(path, ((96, 128), (128, 96)))))
    assert workdir.steps(tmp_path)[-1] == EPOCH


def test_what_a_run_leaves_behind(straight):
    assert {'ap', 'ap50', 'ar'} <= set(runs.rows(straight, 'eval')[-1])
    meta = checkpoint.read_json(straight / workdir.CHECKPOINTS / str(EPOCH))
    assert (meta['task'], meta['head'], meta['num_classes']) == ('detection', 'fcos', 5)
    assert meta['class_names'] == list(signs.NAMES)
    assert meta['transform']['scale'] == [96, 64]
    assert meta['channels'] == 32


def test_faster_rcnn_from_a_classifier(tiny, folder, command, tmp_path):
    """The backbone is taken, statistics stay; the pyramid and the heads are new; all is told."""
    runs.save_classifier(tmp_path / 'tiny', tiny)
    code, out, err = command(
        train_command.main, '--recipe', 'detect', '--dataset', f'folder:{folder}',
        *SETTING.split(), '--workdir', tmp_path / 'run', '--no-tensorboard', '--head',
        'faster_rcnn', '--init', tmp_path / 'tiny', '--steps', '1', '--batch-size', '2',
        '--warmup-steps', '0',
    )  # fmt: skip
    assert (code, err) == (0, '')
    assert f'init    {tmp_path / "tiny"}, head new for 5 classes' in out
    assert 'pixels  mean 0.4 0.4 0.4, std 0.3 0.3 0.3, as of' in out
    assert re.search(r'loaded +\d+ +backbone', out)
    assert re.search(r'initialised +\d+ .*neck', out)
    _, trained = checkpoint.load(tmp_path / 'run')
    ours, theirs = trained['batch_stats']['backbone'], tiny[1]['batch_stats']['backbone']
    for path, x in jax.tree_util.tree_flatten_with_path(ours)[0]:
        y = theirs
        for key in path:
            y = y[key.key]
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    moved = trained['params']['backbone']['stage4_0']
    before = tiny[1]['params']['backbone']['stage4_0']
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(before), strict=False)
    )
