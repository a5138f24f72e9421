"""Whole runs of train.py: killed, stopped, resumed, read by the other commands."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from evaluated import Here
from runs import (
    ROOT,
    digests,
    finish,
    launch,
    rows,
    train,
    wait_for_checkpoint,
    wait_for_step,
)

import eval as eval_command
import predict as predict_command
import train as train_command
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir

EPOCH = 6  # steps of 64
SETTING = (
    '--split', 'train[:384]', '--eval-split', 'test[:256]', '--epochs', '2',
    '--warmup-epochs', '0', '--ema', '0.9', '--checkpoint-steps', '5',
)  # fmt: skip


@pytest.fixture(scope='module')
def straight(once, digits_data):
    """A run of two epochs without interruption."""

    def make(run):
        out = train(run, digits_data, *SETTING)
        assert '2 x cpu in 1 process, 32 images each: batch 64' in out
        assert (
            '384 images of 10 classes, 32 x 32; evaluated on 256 of test[:256]: resize 32 crop 32'
            in out
        )
        assert re.search(r'\ncompiling the training step; .*\ncompiled, after \d+ s\n', out)
        assert 'step 12' in out

    return once('straight', make)


def test_stopped_and_killed_it_is_the_same_to_the_bit(straight, digits_data, tmp_path):
    """Asked to stop, then killed in the middle of an epoch, then to the end."""
    run = tmp_path / 'run'
    started = launch(run, digits_data, *SETTING, devices=2)
    wait_for_step(run, 2, started)
    started[0].terminate()
    [(code, out, err)] = finish(started)
    assert code == 128 + signal.SIGTERM
    assert 'once more, after a second, to leave at once' in err
    [stopped] = rows(run, 'stopped')
    asked = stopped['step']
    assert f'stopped after step {asked}' in out
    assert workdir.steps(run)[-1] == asked < 2 * EPOCH
    started = launch(run, digits_data, *SETTING, devices=2)
    wait_for_checkpoint(run, started, after=asked)
    started[0].send_signal(signal.SIGKILL)
    assert finish(started)[0][0] == -signal.SIGKILL
    killed = workdir.steps(run)[-1]
    assert f'going on after {killed}' in train(run, digits_data, *SETTING)
    assert [row['step'] for row in rows(run, 'resumed')] == [asked, killed]
    assert digests(run) == digests(straight)
    steps = [row['step'] for row in rows(run, 'train')]
    assert steps == sorted(set(steps))
    assert steps[-1] == 2 * EPOCH
    ours, theirs = rows(run, 'eval')[-1], rows(straight, 'eval')[-1]
    assert ours['top1_correct'] == theirs['top1_correct']


def test_a_finished_run_has_nothing_to_do(straight, digits_data, tmp_path):
    """What only the evaluation depends on may change; it is said."""
    run = shutil.copytree(straight, tmp_path / 'run')
    out = train(run, digits_data, *SETTING, '--eval-every', '7')
    assert 'note: until now the run was one with recipe.eval_every 5, not 7.0\n' in out
    assert 'best' in out
    assert 'compiling' not in out
    assert digests(run) == digests(straight)
    assert json.loads((run / 'config.json').read_text())['recipe']['eval_every'] == 7


def test_ctrl_c_while_the_first_step_is_compiled(digits_data, tmp_path):
    flags = ('--momentum', '0.77')  # a program that is not in the cache
    with launch(tmp_path / 'run', digits_data, *flags)[0] as started:
        while not started.stdout.readline().startswith('compiling'):
            assert started.poll() is None
        time.sleep(1)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=60)
    assert started.returncode == 130
    assert err == 'stopped before the first step: nothing new to save\n'
    assert not rows(tmp_path / 'run', 'train')


def test_eval_reads_the_run(
    straight, digits_data, folded_as_for_users, command, monkeypatch, tmp_path
):
    monkeypatch.setattr('hrnet_jax.commands.eval.Reader', Here)
    recorded = rows(straight, 'eval')
    best = max(recorded, key=lambda row: (row['top1'], row['step']))
    common = ('--dataset', 'digits', '--split', 'test[:256]', '--data-dir', digits_data)
    counts = {}
    for weights in (None, 'ema', 'raw'):
        flags = ('--weights', weights) if weights else ()
        file = tmp_path / 'result.json'
        code, out, _ = command(
            eval_command.main, '--ckpt', straight, '--json', file, *common, *flags
        )
        assert code == 0
        assert f'step {best["step"]} of a run' in out
        counts[weights] = json.loads(file.read_text())['top1_correct']
    assert counts[None] == counts['ema'] == best['top1_correct']
    assert counts['raw'] != counts['ema']
    step = straight / workdir.CHECKPOINTS / str(recorded[-1]['step'])
    code, out, _ = command(eval_command.main, '--ckpt', step, *common)
    assert code == 0
    assert f'step {recorded[-1]["step"]} of a run' in out


def test_predict_reads_the_run(straight, command, tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / 'black.png')
    code, out, _ = command(predict_command.main, tmp_path / 'black.png', '--ckpt', straight)
    assert code == 0
    assert out.count('%') == 5


def test_what_a_run_leaves_behind(straight):
    names = {path.name for path in straight.iterdir()}
    assert names == {'config.json', 'checkpoints', 'metrics.jsonl', 'curves.png'}
    config = json.loads((straight / 'config.json').read_text())
    assert config['arch'] == 'tiny'
    assert config['recipe']['ema'] == 0.9
    assert config['recipe']['learning_rate'] == 0.05
    evaluated = [row['step'] for row in rows(straight, 'eval')]
    assert evaluated == [2 * EPOCH]
    assert workdir.steps(straight) == [2 * 5, 2 * EPOCH]
    row = rows(straight, 'train')[-1]
    assert row['skipped_images'] == 0
    assert {'loss', 'top1', 'learning_rate', 'images_per_second', 'data_wait'} <= set(row)


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (('--batch-size', '32'), 'recipe.batch_size 64, not 32'),
        (('--seed', '1'), 'recipe.seed 0, not 1'),
        (('--recipe', 'official', '--dataset', 'digits', '--eval-split', 'test'), 'recipe.'),
    ],
)
def test_another_recipe_is_refused(straight, digits_data, refused, flags, said):
    before = (straight / 'config.json').read_text()
    line = refused(
        train_command.main, '--arch', 'tiny', '--recipe', 'digits', '--workdir', straight,
        '--data-dir', digits_data, *SETTING, *flags,
    )  # fmt: skip
    assert said in line
    assert '--force' in line
    assert (straight / 'config.json').read_text() == before


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_everything_else_at_once(straight, digits_data, tmp_path):
    """From a checkpoint, with a teacher, AdamW and every augmentation, in bfloat16."""
    flags = ['--recipe', 'finetune', '--dataset', 'digits', '--eval-split', 'test']
    flags += ['--stop-at', '3', '--batch-size', '32', '--accumulate', '2']
    flags += ['--init', straight, '--teacher', straight, '--distill-weight', '0.5']
    flags += ['--mixup', '0.2', '--cutmix', '1', '--randaugment-ops', '1', '--optimizer', 'adamw']
    flags += ['--clip-norm', '1', '--no-decay-norms', '--image-size', '32', '--eval-crop', '32']
    flags += ['--eval-resize', '32', '--profile', '1', '2', '--remat', '--bn-group-size', 'none']
    out = train(tmp_path / 'run', digits_data, *flags)
    assert f'init    {straight}' in out
    assert '2 x cpu in 1 process, 8 images each: batch 32 in 2 parts' in out
    assert 'bfloat16' in out
    assert np.isfinite(rows(tmp_path / 'run', 'train')[-1]['loss'])
    assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.long
def test_two_processes_killed_and_started_again_as_two_and_as_one(digits_data, tmp_path):
    """As two, the same to the bit. As one, sums are made in another order: the next steps are
    compared, at a low learning rate, because ReLUs near 0 change sign and training amplifies it."""
    flags = ['--epochs', '1', '--bn-group-size', '16', '--learning-rate', '1e-6', '--keep', '9']
    flags += ['--warmup-epochs', '0', '--checkpoint-steps', '4']
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    two = {'processes': 2, 'devices': 2, 'quick': False}
    ended = finish(launch(whole, digits_data, *flags, **two))
    assert [code for code, _, _ in ended] == [0, 0], ended
    started = launch(broken, digits_data, *flags, **two)
    wait_for_checkpoint(broken, started)
    started[1].kill()
    time.sleep(1)
    started[0].kill()  # it would notice by its missing heartbeat, after 100 s
    finish(started)
    first = workdir.steps(broken)[-1]
    assert 4 <= first < 18  # steps of 64 of the 1,198 scans
    step = min(first + 4, 18)
    states = {}
    for name, shape in {'two': (2, 2), 'one': (1, 4), 'alone': (1, 1)}.items():
        run = tmp_path / name
        subprocess.run(['cp', '-r', broken, run], check=True)
        more = ('--stop-at', str(step))
        where = {'processes': shape[0], 'devices': shape[1], 'quick': False}
        ended = finish(launch(run, digits_data, *flags, *more, **where))
        assert {code for code, _, _ in ended} == {0}, ended
        states[name] = checkpoint.load(run / workdir.CHECKPOINTS / str(step))[1]
    assert digests(tmp_path / 'two', step) == digests(whole, step)
    start = checkpoint.load(broken / workdir.CHECKPOINTS / str(first))[1]
    moved = _largest(start, states['two'])
    for name in ('one', 'alone'):
        apart = _largest(states[name], states['two'])
        print(f'{name}: {apart:.1e} apart, {moved:.1e} moved')
        assert apart <= 1e-6
        assert moved > 10 * apart


def _largest(a, b):
    pairs = zip(_leaves(a['params']), _leaves(b['params']), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


def test_the_second_signal_leaves_at_once():
    code = (
        'import time\nfrom hrnet_jax.training.interrupt import Interrupt\n'
        'with Interrupt() as stop:\n    stop.armed = True\n    print("ready", flush=True)\n'
        '    while not stop: time.sleep(0.01)\n    print("asked", flush=True)\n    time.sleep(60)'
    )
    with subprocess.Popen(
        [sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b'ready\n'
        process.terminate()
        assert process.stdout.readline() == b'asked\n'
        process.terminate()  # within a second: the same request, sent twice
        time.sleep(1.2)
        assert process.poll() is None
        process.terminate()
        assert process.wait(5) == 128 + signal.SIGTERM


def test_help_shows_the_defaults_of_the_recipe(command):
    code, out, _ = command(train_command.main, '--recipe', 'strong', '--help')
    assert code == 0
    text = ' '.join(out.split())
    assert 'part of the target that all classes share equally (default: 0.1)' in text
    assert 'alpha of CutMix' in text
    assert '(default: ())' not in text


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (
            ('--batch-size', '48'),
            '48 images (batch_size / accumulate) do not divide into BatchNorm',
        ),
        (('--accumulate', '3'), 'accumulate 3 does not divide a batch of 64'),
        (('--batch-size', '2048', '--bn-group-size', 'none'), 'less than a batch of 2048'),
        (('--image-size', '40'), '--image-size 40 is no multiple of 32'),
        (('--flip', '2'), 'flip must be from 0 to 1, not 2.0'),
        (('--learning-rate', 'nan'), 'learning_rate must be from 0'),
        (('--dataset', 'nothing'), 'tfds has no data set of that name'),
        (('--dataset', 'mnist:9.9.9'), 'tfds has mnist in version 3.0.1, not 9.9.9'),
        (('--split', 'nothing'), "has no split 'nothing'"),
        (('--eval-split', 'nothing'), "--eval-split nothing: digits has no split 'nothing'"),
        (('--teacher', 'nowhere'), 'nowhere does not exist'),
        (('--init', 'nowhere'), 'nowhere does not exist'),
        (('--workdir', '/proc/run'), 'cannot write /proc/run'),
        (('--log-every', '0'), '--log-every must be at least 1'),
    ],
)
def test_mistakes_are_one_line(digits_data, refused, tmp_path, flags, said):
    line = refused(
        train_command.main, '--arch', 'tiny', '--recipe', 'digits', '--workdir', tmp_path / 'run',
        '--data-dir', digits_data, *flags,
    )  # fmt: skip
    assert said in line
    assert not (tmp_path / 'run').exists()


def test_a_network_or_a_checkpoint_is_needed(refused, tmp_path):
    run = ('--recipe', 'digits', '--workdir', tmp_path / 'run')
    assert '--arch or --init is needed' in refused(train_command.main, *run)
    assert 'nowhere does not exist' in refused(train_command.main, *run, '--init', 'nowhere')
    run = ('--recipe', 'finetune', '--dataset', 'folder:nowhere', *run[2:])
    assert '--arch or --init is needed' in refused(train_command.main, *run)
    assert 'nowhere/train is not a folder' in refused(train_command.main, *run, '--arch', 'tiny')
