"""Whole runs of train.py on label maps: stopped, resumed, on two processes, from a classifier."""

from __future__ import annotations

import re
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import runs

import hrnet_jax
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.models import variable_shapes
from hrnet_jax.tasks.segmentation_recipes import Segment
from hrnet_jax.training.experiment import Experiment, Options

sys.path.append(str(runs.ROOT / 'examples'))
import scenes  # noqa: E402

EPOCH = 3  # steps of 8 of the 24 pictures
SETTING = (
    '--split train --eval-split val --crop-size 32 64 --batch-size 8 --bn-group-size 4 '
    '--dtype float32 --epochs 2 --checkpoint-steps 2 --eval-every 2 --keep 9'
)
OCR = '--head ocr --dropout 0.1 --ohem --ohem-kept 1000 --class-weights 1 2 3'


@pytest.fixture(scope='module')
def folder(once):
    return once('scenes', lambda path: scenes.make(path, {'train': 24, 'val': 4}))


def train(run, folder, *flags, command=runs.train, **where):
    data = ('--dataset', f'folder:{folder}', *SETTING.split(), *flags)
    return command(run, folder, *data, recipe='segment', **where)


@pytest.fixture(scope='module')
def straight(once, folder):
    """A run without interruption."""

    def make(run):
        out = train(run, folder, *OCR.split())
        assert '24 images of 3 classes, 32 x 64; evaluated on 4 of val: whole' in out
        assert f'steps   {2 * EPOCH}, {EPOCH} an epoch for 2 epochs' in out

    return once('segmentation', make)


def test_resumed_it_is_the_same_to_the_bit(straight, folder):
    runs.resumed(straight, lambda run: train(run, folder, *OCR.split()), 4, 'miou')


def test_what_a_run_leaves_behind(straight):
    row = runs.rows(straight, 'train')[-1]
    assert 0 < row['pixel_accuracy'] < 100
    assert {'miou', 'mean_accuracy', 'pixel_accuracy'} <= set(runs.rows(straight, 'eval')[-1])
    step = straight / workdir.CHECKPOINTS / str(2 * EPOCH)
    meta = checkpoint.read_json(step)
    assert (meta['task'], meta['head'], meta['dropout']) == ('segmentation', 'ocr', 0.1)
    assert meta['class_names'] == list(scenes.CLASSES)
    assert meta['transform']['mode'] == 'whole'
    model, _ = checkpoint.load(step)
    assert model.class_names == scenes.CLASSES


def begun(run, folder, init, **given):
    """A run that starts from this checkpoint, before its first step; its parameters, and all that
    is told."""
    recipe = Segment(
        init=str(init), dataset=f'folder:{folder}', split='train', eval_split='val',
        crop_size=(64, 96), batch_size=8, bn_group_size=4, **given,
    )  # fmt: skip
    said = []
    experiment = Experiment('tiny', recipe, Options(run, None, tensorboard=False), said.append)
    params = experiment.start().params
    experiment.introduce(0)
    return experiment, params, '\n'.join(said)


def test_from_a_classifier(tiny, folder, tmp_path):
    """Its backbone is taken, the head is new, and both are told."""
    runs.save_classifier(tmp_path / 'tiny', tiny)
    _, params, out = begun(tmp_path / 'run', folder, tmp_path / 'tiny')
    assert f'init    {tmp_path / "tiny"}, head new for 3 classes' in out
    assert 'pixels  mean 0.4 0.4 0.4, std 0.3 0.3 0.3, as of' in out
    assert re.search(r'loaded +265 +backbone', out)
    assert re.search(r'initialised +7 +head', out)
    assert _apart(params['backbone'], tiny[1]['params']['backbone']) == 0


@pytest.mark.parametrize('given', [{}, {'align_corners': False}])
def test_from_a_segmenter_of_other_classes(folder, tmp_path, given):
    """Both of its last layers are new; the rest of the head is taken; maps are resized as it has
    it, unless the recipe says otherwise."""
    model = hrnet_jax.create_model(
        'tiny', 5, task='segmentation', head='ocr', upsample='bilinear', align_corners=True
    )
    variables = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), variable_shapes(model))
    transform = Segment().transform.to_json()
    checkpoint.save(
        tmp_path / 'five', variables, checkpoint.describe(model) | {'transform': transform}
    )
    run, five = tmp_path / 'run', tmp_path / 'five'
    experiment, params, said = begun(run, folder, five, head='ocr', **given)
    align = not given
    assert (experiment.model.upsample, experiment.model.align_corners) == ('bilinear', align)
    assert experiment.config['recipe']['align_corners'] == align
    assert ('five has align_corners True, this run False' in said) == (not align)
    again, *_ = begun(run, folder, five, head='ocr', **given)  # as the run has it until now
    assert again.recipe == experiment.recipe
    assert 'five, last layer new for 3 classes' in said
    last = 'head/aux_head_3/bias, head/aux_head_3/kernel, head/cls_head/bias, head/cls_head/kernel'
    assert re.search(rf'initialised +4 +{last}\n', said)
    for layer in ('aux_head_0', 'conv3x3_ocr_0'):
        pair = (tree['head'][layer]['kernel'] for tree in (params, variables['params']))
        np.testing.assert_array_equal(*pair)


@pytest.mark.long
def test_two_processes_killed_and_started_again(straight, folder, tmp_path):
    """Two processes see the images of one; as two, it is the same to the bit."""
    flags = ('--learning-rate', '1e-6', '--min-rate', '0', '--bn-group-size', '4')
    two = {'command': runs.launch, 'processes': 2}
    whole, broken, one = (tmp_path / name for name in ('whole', 'broken', 'one'))
    ended = runs.finish(train(whole, folder, *flags, **two))
    assert [code for code, _, _ in ended] == [0, 0], ended
    started = train(broken, folder, *flags, **two)
    runs.wait_for_checkpoint(broken, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    runs.finish(started)
    ended = runs.finish(train(broken, folder, *flags, **two))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert runs.digests(broken) == runs.digests(whole)
    train(one, folder, *flags)
    first, last = (_params(Path(whole), step) for step in (2, 2 * EPOCH))
    moved, apart = _apart(first, last), _apart(_params(one, 2 * EPOCH), last)
    print(f'{apart:.1e} apart, {moved:.1e} moved')
    assert moved > 10 * apart
    losses = [runs.rows(run, 'train')[0]['loss'] for run in (one, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def _params(run, step):
    return checkpoint.load(run / workdir.CHECKPOINTS / str(step))[1]['params']


def _apart(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)
