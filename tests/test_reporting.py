"""The record of a training run: metrics.jsonl, TensorBoard, W&B, the bar and the curves."""

from __future__ import annotations

import io
import json
import math
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.sources import tensorflow
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.classification import TASK
from hrnet_jax.training import reporting, trainer
from hrnet_jax.training.reporting import Reporter, curves, draw_curves, peak_flops

FIGURES = TASK.figures


def rows(folder):
    """The record, read as strictly as JSON is defined."""

    def refuse(constant):
        raise AssertionError(f'{constant} is no JSON')

    text = (folder / 'metrics.jsonl').read_text()
    assert not text or text.endswith('\n')
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def reporter(tmp_path):
    """Makes Reporters in `tmp_path` that print into their `lines`, and closes them."""
    made = []

    def make(start_step=0, tensorboard=False, **options):
        lines = []
        options = {
            'total_steps': 100, 'start_step': start_step, 'out': lines.append, 'figures': FIGURES,
        } | options  # fmt: skip
        made.append(Reporter(tmp_path, tensorboard=tensorboard, **options))
        made[-1].lines = lines
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_record(reporter, tmp_path):
    before = time.time()
    report = reporter()
    report.train(10, {'loss': np.float32(0.1), 'top1': math.nan, 'skipped_images': 3})
    report.evaluation(10, {'top1': 50.0, 'top5': -math.inf})
    report.event(11, 'checkpoint', 'kept “11”')
    found = rows(tmp_path)  # while it is open: each line is on disk at once
    assert all(before <= row.pop('time') <= time.time() for row in found)
    assert found == [
        {'kind': 'train', 'step': 10, 'loss': float(np.float32(0.1)), 'top1': 'nan',
         'skipped_images': 3},
        {'kind': 'eval', 'step': 10, 'top1': 50.0, 'top5': '-inf'},
        {'kind': 'checkpoint', 'step': 11, 'text': 'kept “11”'},
    ]  # fmt: skip


@pytest.mark.parametrize(('start', 'steps'), [(20, [10, 20, 20, 40]), (0, [40]), (30, None)])
def test_resume_drops_what_comes_again(reporter, tmp_path, start, steps):
    report = reporter()
    for step in (10, 20, 30):
        report.train(step, {'loss': 1 / step})
    report.evaluation(20, {'top1': 1.0})
    report.event(40, 'stopped', 'on request')
    report.close()
    whole = rows(tmp_path)
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"kinf": "train", "step": 15}\n7\n')  # a bit is flipped; no record
        file.write('{"kind": "train", "step": 15, "lo')  # killed while writing

    report = reporter(start)
    kept = rows(tmp_path)
    assert kept == [row for row in whole if steps is None or row['step'] in steps]
    report.train(start + 1, {'loss': 0.0})
    assert rows(tmp_path)[:-1] == kept
    assert rows(tmp_path)[-1]['step'] == start + 1
    assert not list(tmp_path.glob('.*'))


def test_line_of_an_evaluation(reporter, capfd):
    report = reporter()
    report.evaluation(0, {'top1': 0.1, 'top5': 0.5, 'num_examples': 10, 'epoch': 0.0})
    for step, loss in ((14_500, 2.2), (15_000, 2.068)):
        report.advance(step)
        report.train(
            step,
            {'loss': loss, 'images_per_second': 1234.4, 'data_wait': 0.3, 'seconds': 100.0},
        )
    report.evaluation(15_000, {'top1': 61.2, 'top5': 84.1, 'epoch': 12.0, 'seconds': 9.0})
    report.evaluation(15_001, {'top1': 61.2})  # nothing is left of the training before
    report.close()
    assert report.lines == [
        'epoch 0  step 0  top-1 0.10 %  top-5 0.50 %',
        'epoch 12  step 15,000  loss 2.134  top-1 61.20 %  top-5 84.10 %  1,234 images/s'
        '  waited 0.3 % for data',
        'step 15,001  top-1 61.20 %',
    ]
    assert capfd.readouterr() == ('', '')  # no terminal, no bar


def test_wait_is_measured_from_record_to_record(reporter, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(reporting.time, 'monotonic', lambda: now)
    report = reporter()
    now += 10
    report.train(1, {'data_wait': 1.0})
    now += 30
    report.evaluation(1, {})  # its seconds are not training's
    now += 10
    report.train(2, {'data_wait': 5.0})
    report.evaluation(2, {})
    assert report.lines == ['step 1  waited 10.0 % for data', 'step 2  waited 50.0 % for data']


def test_bar_on_a_terminal(reporter, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    report = reporter(40, out=lambda text: terminal.write(f'<{text}>\n'))
    report.train(50, {'loss': 2.5, 'images_per_second': 1234.0, 'mfu': 0.412})
    for step in range(41, 51):
        report.advance(step)
    report.evaluation(50, {'top1': 70.0})
    report.close()
    shown = terminal.getvalue().split('\r')
    assert '40/100' in shown[1]
    assert any('50/100' in s and 'loss=2.500, images/s=1,234, MFU=41.2%' in s for s in shown)
    # The bar is wiped before the line and drawn anew after it.
    assert '<step 50  loss 2.500  top-1 70.00 %  1,234 images/s>\n' in shown


def test_tensorboard(reporter, tmp_path):
    report = reporter(tensorboard=True)
    report.train(10, {'loss': 2.5, 'learning_rate': 0.1})
    report.evaluation(20, {'top1': 61.0})
    report.close()
    report = reporter(15, tensorboard=True)
    report.train(16, {'loss': math.nan})
    report.close()

    tf = tensorflow()
    found, starts = {}, []
    for file in sorted((tmp_path / 'tensorboard').iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            if event.HasField('session_log'):
                starts.append(event.step)
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
    assert starts == [1, 16]
    assert math.isnan(found.pop(('train/loss', 16)))
    assert found == {
        ('train/loss', 10): 2.5,
        ('train/learning_rate', 10): pytest.approx(0.1),
        ('eval/top1', 20): 61.0,
    }
    assert not tf.config.get_visible_devices('GPU')


@pytest.mark.parametrize('starts', [(0, 10), (10, 0), (20, 5)])
def test_wandb(reporter, tmp_path, monkeypatch, starts):
    """One run, also after going back: nothing is logged by W&B's own step, which never falls."""
    calls = []
    run = types.SimpleNamespace(
        log=lambda values: calls.append(values),
        define_metric=lambda names, step_metric: calls.append((names, step_metric)),
    )
    module = types.SimpleNamespace(
        init=lambda **options: calls.append(options) or run,
        finish=lambda: calls.append('finish'),
    )
    monkeypatch.setitem(sys.modules, 'wandb', module)
    for start in starts:
        report = reporter(start, wandb='hrnet', config={'arch': 'w18'})
        report.train(start + 5, {'loss': 2.5})
        report.evaluation(start + 5, {'top1': 61.0})
        report.close()
    name = (tmp_path / 'wandb_id.txt').read_text()
    assert len(name) > 6
    init = {'project': 'hrnet', 'dir': str(tmp_path), 'config': {'arch': 'w18'},
            'resume': 'allow', 'id': name}  # fmt: skip
    assert calls == [
        call
        for start in starts
        for call in (
            init,
            ('*', 'trainer/step'),
            {'train/loss': 2.5, 'trainer/step': start + 5},
            {'eval/top1': 61.0, 'trainer/step': start + 5},
            'finish',
        )
    ]


def test_what_is_missing(reporter, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.startswith('matplotlib')]:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ('tensorflow', 'tqdm', 'wandb'):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / 'metrics.jsonl').write_text('{"kind": "train", "step": 1}\n')
    with pytest.raises(UserError, match='^wandb is missing: pip install wandb$'):
        reporter(wandb='hrnet')
    assert len(rows(tmp_path)) == 1  # a refused start drops nothing

    report = reporter(tensorboard=True)
    report.advance(1)
    report.train(1, {'loss': 1.0})
    report.evaluation(1, {'top1': 2.0})
    report.close()
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']
    assert len(rows(tmp_path)) == 2
    assert report.lines == ['step 1  loss 1.000  top-1 2.00 %']


@pytest.mark.parametrize(('log_every', 'points'), [(50, [30, 60]), (7, [*range(7, 64, 7)])])
def test_an_epoch_has_a_point(log_every, points):
    recipe = types.SimpleNamespace(batch_size=16)
    experiment = types.SimpleNamespace(
        mesh=types.SimpleNamespace(size=1), task=TASK, recipe=recipe, flops=lambda: 1, total=10**9,
        options=types.SimpleNamespace(log_every=log_every),
        data=types.SimpleNamespace(steps_per_epoch=30),
    )  # fmt: skip
    names = ('loss', 'top1', 'gradient_norm', 'learning_rate', 'skipped')
    meter = trainer.Meter(experiment)
    found = [step for step in range(1, 64) if meter.add(step, dict.fromkeys(names, 1.0), 0.0)]
    assert found == points


def made_up(count):
    """Records of `count` intervals, an evaluation after every tenth, the last but one the best."""
    found = []
    for i in range(1, count + 1):
        common = {'step': 100 * i, 'epoch': i / 10}
        rate = 0.1 * (1 - i / count)
        found.append({'kind': 'train', 'loss': 7 / i, 'top1': 50.0, 'learning_rate': rate} | common)
        if i % 10 == 0:
            found.append({'kind': 'eval', 'top1': i / count if i < count else 0.1} | common)
    return found


@pytest.mark.parametrize('count', [1, 2, 10, 5000])
def test_curves(tmp_path, count):
    text = '\n'.join(map(json.dumps, made_up(count) + [{'kind': 'stopped', 'step': 10**9}]))
    (tmp_path / 'metrics.jsonl').write_text(text + '\n')
    path = draw_curves(tmp_path, FIGURES[:1])
    assert path == tmp_path / 'curves.png'
    with Image.open(path) as picture:
        assert picture.format == 'PNG'
        assert min(picture.size) > 900
        assert np.asarray(picture.convert('L')).std() > 5
    assert path.stat().st_size < 500_000
    assert not list(tmp_path.glob('.*'))


def test_curves_are_drawn_while_training_goes_on(reporter, tmp_path, monkeypatch):
    report = reporter()
    report.train(1, {'loss': 1.0})
    report.evaluation(1, {'top1': 50.0})
    assert not (tmp_path / 'curves.png').exists()
    monkeypatch.setattr(reporting, '_REDRAW', 0)
    report.evaluation(2, {'top1': 60.0})
    assert (tmp_path / 'curves.png').exists()


def test_best_evaluation_is_marked():
    found = made_up(100)
    found[5]['loss'] = 'nan'
    found.append({'kind': 'eval', 'step': 10_200, 'top1': 0.9})  # the later of equals
    found.append({'kind': 'eval', 'step': 10_500, 'top1': 'nan'})
    figure = curves(found, FIGURES[:1])
    figure.draw_without_rendering()  # places the epochs
    loss, top1, rate = figure.axes
    best = next(line for line in top1.lines if line.get_marker() == '*')
    assert (best.get_xdata(), best.get_ydata()) == ([10_200], [0.9])
    labels = [text.get_text() for text in top1.get_legend().get_texts()]
    assert labels == ['training', 'evaluation', 'best: 0.90 % at step 10,200']
    raw, smooth = loss.lines
    assert len(raw.get_xdata()) == 99  # all but NaN
    assert raw.get_linewidth() < smooth.get_linewidth()
    assert np.ptp(smooth.get_ydata()) < np.ptp(raw.get_ydata())
    np.testing.assert_allclose(top1.lines[1].get_ydata(), 50)  # no sag at the ends
    assert rate.get_xlim() == (0, pytest.approx(10_605))
    epochs = loss.child_axes[0]
    assert epochs.get_xlabel() == 'epoch'
    assert epochs.get_xlim() == (0, pytest.approx(10.605))
    assert not curves([{'kind': 'train', 'step': 0, 'loss': 1.0}], FIGURES[:1]).axes[0].child_axes


def test_nothing_to_draw(reporter, tmp_path):
    assert draw_curves(tmp_path, FIGURES[:1]) is None
    reporter().close()
    assert draw_curves(tmp_path, FIGURES[:1]) is None
    assert not (tmp_path / 'curves.png').exists()


@pytest.mark.parametrize(
    ('kind', 'tera'),
    [
        ('cpu', None),
        ('TPU v2', 23), ('TPU v3', 61.5), ('TPU v4', 275), ('TPU v5 lite', 197), ('TPU v5', 459),
        ('TPU v5p', 459), ('TPU v6 lite', 918), ('TPU7x', 1153.5), ('TPU v60', None),
        ('Tesla V100-SXM2-16GB', 125), ('Tesla V100-PCIE-32GB', 112), ('Tesla T4', 65),
        ('NVIDIA A100-SXM4-80GB', 312), ('NVIDIA A100 80GB PCIe', 312), ('NVIDIA A10G', 70),
        ('NVIDIA L4', 121), ('NVIDIA L40S', 362), ('NVIDIA L40', None), ('NVIDIA RTX A1000', None),
        ('NVIDIA GeForce RTX 3090', 71), ('NVIDIA GeForce RTX 4090', 165.2),
        ('NVIDIA H100 80GB HBM3', 989.4), ('NVIDIA H100 PCIe', 756), ('NVIDIA H200', 989.4),
        ('NVIDIA B200', 2250),
    ],
)  # fmt: skip
def test_peak_flops(kind, tera):
    assert peak_flops(kind) == (tera and pytest.approx(tera * 1e12))
