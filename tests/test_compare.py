"""benchmarks/compare.py: its arithmetic, its check of results, and a run of ours alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'benchmarks'))

import compare  # noqa: E402
import compare_jax  # noqa: E402
import compare_measure  # noqa: E402
import compare_report  # noqa: E402
import compare_tasks  # noqa: E402
import compare_torch  # noqa: E402
import compare_worker  # noqa: E402

import hrnet_jax  # noqa: E402
from hrnet_jax.errors import UserError  # noqa: E402

CELL = {
    'task': 'classification', 'arch': 'tiny', 'head': '', 'image_size': (32, 32),
    'mode': 'inference', 'dtype': 'float32', 'batch': 2,
}  # fmt: skip
FILE = ROOT / 'benchmarks' / 'compare.py'


def test_ratio_is_of_the_same_round():
    found = compare_measure.spread([10.0, 20.0, 60.0], [10.0, 10.0, 20.0])
    assert found == {'median': 2.0, 'min': 1.0, 'max': 3.0}


def test_difference_is_relative_to_the_largest():
    ours, theirs = {'logits': np.float32([1, -4])}, {'logits': np.float32([1.5, -5])}
    found = compare_measure.differences(ours, theirs)
    assert found == {'logits': pytest.approx(0.2)}
    compare_measure.refuse_different(CELL, 'timm', {'logits': 9e-5})
    compare_measure.refuse_different(CELL | {'dtype': 'bfloat16'}, 'timm', {'logits': 0.04})
    for bad in (2e-4, float('inf')):
        with pytest.raises(UserError, match='logits of timm differs'):
            compare_measure.refuse_different(CELL, 'timm', {'logits': bad})
    nothing = {'logits': np.float32([np.nan, 1])}
    assert compare_measure.differences(ours, nothing) == {'logits': float('inf')}
    with pytest.raises(UserError, match='logits'):
        compare_measure.differences(ours, {'logits': np.zeros(3)})


def test_floor():
    rates = {'JAX': {'flops': 1e9, 'bytes': 4e9}, 'PyTorch': {'flops': 2e9, 'bytes': 1e9}}
    one = compare_measure.floor(CELL, rates)
    half = compare_measure.floor(CELL | {'dtype': 'bfloat16'}, rates)
    train = compare_measure.floor(CELL | {'mode': 'train'}, rates)
    assert train['flops'] == 3 * one['flops']
    assert 2 * half['bytes'] == one['bytes']
    assert one['images_per_second_by_flops'] == pytest.approx(2 * 2e9 / one['flops'])
    assert one['images_per_second_by_bytes'] == pytest.approx(2 * 4e9 / one['bytes'])


@pytest.mark.parametrize(
    ('value', 'text'), [(0.123, '0.12'), (1.234, '1.23'), (45.67, '45.7'), (1234.5, '1234')]
)
def test_digits(value, text):
    assert compare_report.digits(value) == text


class Fake:
    """A worker that computes nothing: its logits are of the contender, its speed is given."""

    logits = {'hrnet_jax': 1.0, 'timm': 1.0, 'timm-compile': 1.0, 'mmseg': 1.0}
    seconds = {'hrnet_jax': 0.5, 'timm': 1.0}
    started, ended, specs = [], [], []

    def __init__(self, spec):
        self.specs.append(spec)
        self.name = spec.get('contender', spec['side'])
        self.started.append(self.name)

    def ask(self, order, **more):
        if order == 'build':
            np.savez(more['file'], logits=np.float32([self.logits[self.name], 2]))
        if order == 'time' and self.name == 'timm-compile':
            raise compare_worker.Failed('no compiler')
        return {
            'start': {'platform': 'cpu', 'device': 'cpu', 'bytes': 1},
            'rates': {'flops': 1e9, 'bytes': 1e9},
            'build': {'seconds': 1.0},
            'time': {'seconds': self.seconds.get(self.name, 1) * more.get('iterations', 1)},
            'memory': {'bytes': 10**9},
        }[order]

    def end(self):
        self.ended.append(self.name)


@pytest.fixture
def fake(monkeypatch):
    for module in (compare, compare_measure):
        monkeypatch.setattr(module, 'Worker', Fake)
    monkeypatch.setattr(compare, 'installed', lambda names: names)
    monkeypatch.setattr(compare_measure, 'write_inputs', lambda *arguments: None)
    monkeypatch.setattr(compare_measure, 'costs', lambda *arguments: (1, 1, 1))
    monkeypatch.setattr(Fake, 'started', [])
    monkeypatch.setattr(Fake, 'ended', [])
    monkeypatch.setattr(Fake, 'specs', [])
    return ['--arch', 'w18_small_v1', '--mode', 'latency', '--rounds', '3', '--seconds', '1']


def test_rows_of_several(fake, command, tmp_path):
    code, out, err = command(compare.main, *fake, '--json', tmp_path / 'x.json')
    assert code == 0, err
    assert '| hrnet_jax | 2.00 | 500 |' in out
    assert '| timm | 1.00 | 1000 | 2.00 (2.00 to 2.00) |' in out
    assert '| timm-compile | failed: no compiler |' in out
    assert 'mmpretrain has no w18_small_v1' in err
    timm = json.loads((tmp_path / 'x.json').read_text())['cells'][0]['contenders']['timm']
    assert timm['ratio'] == {'median': 2.0, 'min': 2.0, 'max': 2.0}
    assert timm['difference'] == {'logits': 0.0}
    assert sorted(Fake.started) == sorted(Fake.ended)


def test_different_results_are_refused(fake, refused, monkeypatch):
    monkeypatch.setitem(Fake.logits, 'timm', 1.1)
    monkeypatch.setattr(compare, 'note', lambda text: None)
    assert 'logits of timm differs from ours by 5.0e-02' in refused(compare.main, *fake)
    assert sorted(Fake.started) == sorted(Fake.ended)


def test_segmentation_beside_mmsegmentation(fake, command):
    flags = '--task segmentation --arch w18 w64 --head fcn ocr --image-size 64 32x64'
    code, out, err = command(compare.main, *fake, *flags.split())
    assert code == 0, err
    assert out.count('| mmseg | 1.00 |') == 4
    assert '| w18 ocr | 32 x 64 | latency | float32 | 1 | mmseg |' in out
    assert 'mmseg has no w64 fcn' in err
    names = {
        (spec['head'], spec['image_size'], spec['name'])
        for spec in Fake.specs if spec.get('package') == 'mmseg'
    }  # fmt: skip
    tail = 'hr18_4xb2-40k_cityscapes-512x1024.py'
    assert names == {
        (head, size, f'{folder}_{tail}')
        for head, folder in (('fcn', 'hrnet/fcn'), ('ocr', 'ocrnet/ocrnet'))
        for size in ((64, 64), (32, 64))
    }


@pytest.mark.parametrize('name', compare_tasks.RIVALS)
def test_inputs_of_every_rival(name, tmp_path):
    """Each of its networks is one of ours, and our weights are written in its layout."""
    rival = compare_tasks.RIVALS[name]
    task = compare_tasks.TASKS[rival.task]
    ours = {f'{arch} {head}'.strip() for arch in hrnet_jax.list_models() for head in task.heads}
    assert rival.names.keys() <= ours
    assert rival.package in compare_torch.MAKERS
    for head in task.heads:
        cell = CELL | {'task': rival.task, 'head': head, 'image_size': (32, 64)}
        compare_measure.write_inputs(tmp_path, cell, [name])
        with np.load(tmp_path / 'batch.npz') as file:
            assert file['images'].shape == (2, 32, 64, 3)
        with np.load(tmp_path / f'{rival.package}.npz') as file:
            assert any(key.endswith('running_var') for key in file.files)


def test_maps_have_channels_last(tmp_path, monkeypatch):
    """Both sides give logits of segmentation as (N, H, W, classes)."""
    cell = CELL | {'task': 'segmentation', 'head': 'fcn', 'image_size': (32, 64)}
    compare_measure.write_inputs(tmp_path, cell, [])
    spec = cell | {'folder': str(tmp_path), 'threads': 1, 'platform': 'cpu', 'result': 'logits'}
    side = compare_jax.Side(spec)
    assert side.first()['logits'].shape == (2, 8, 16, 19)

    monkeypatch.setattr(compare_torch, 'import_torchvision', lambda: None)
    monkeypatch.setitem(compare_torch.MAKERS, 'mmseg', lambda *_: torch.nn.Conv2d(3, 19, 1))
    kernel = np.random.default_rng(0).standard_normal((19, 3, 1, 1)).astype(np.float32)
    np.savez(tmp_path / 'mmseg.npz', weight=kernel, bias=np.zeros(19, np.float32))
    threads = torch.get_num_threads()
    rival = {'package': 'mmseg', 'name': '', 'compiled': False}
    found = compare_torch.Side(spec | rival).first()['logits']
    torch.set_num_threads(threads)
    with np.load(tmp_path / 'batch.npz') as file:
        expected = file['images'] @ kernel[:, :, 0, 0].T
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('head', compare_tasks.TASKS['detection'].heads)
def test_maps_of_a_pyramid(tmp_path, head):
    """Both sides give what is said of a level as (N, places of all levels, numbers)."""
    cell = CELL | {'task': 'detection', 'head': head, 'image_size': (64, 64)}
    compare_measure.write_inputs(tmp_path, cell, [])
    side = compare_jax.Side(cell | {'folder': str(tmp_path), 'result': 'maps'})
    shapes = {name: array.shape for name, array in side.first().items()}
    if head == 'fcos':
        places = 8 * 8 + 4 * 4 + 2 * 2 + 1 + 1
        expected = {'classes': 80, 'distances': 4, 'centerness': 1}
    else:
        places, expected = 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1, {'objectness': 3, 'deltas': 12}
    assert shapes == {name: (2, places, count) for name, count in expected.items()}
    levels = [torch.arange(12.0).reshape(1, 3, 2, 2), torch.ones(1, 3, 1, 1)]
    found = compare_worker.results({'classes': levels}, 'maps', compare_torch.joined)['classes']
    assert found.shape == (1, 3, 5)
    assert found[0, :, 1].tolist() == levels[0][0, :, 0, 1].tolist()


def test_people_of_a_picture(tmp_path):
    """The chain: from a file to the keypoints of the people in its boxes."""
    cell = CELL | {'task': 'pose', 'mode': 'chain', 'image_size': (256, 192)}
    compare_measure.write_inputs(tmp_path, cell, [])
    path, boxes = compare_worker.picture(str(tmp_path))
    assert boxes.shape == (2, 4)
    names = compare_tasks.TASKS['pose'].chain
    side = compare_jax.Side(cell | {'folder': str(tmp_path), 'of_chain': names})
    found = side.first()
    assert {name: array.shape for name, array in found.items()} == {
        'keypoints': (2, 17, 2),
        'scores': (2, 17),
    }
    [people] = hrnet_jax.predict(side.model, side.variables, [Image.open(path)], boxes=[boxes])
    for person, keypoints in zip(people, side.step()['keypoints'], strict=True):
        np.testing.assert_allclose(person.keypoints, keypoints, atol=1e-2)


def test_absent_operators_are_refused_when_called():
    operator = compare_torch.Absent('mmcv._ext').nms
    with pytest.raises(NotImplementedError, match='mmcv._ext.nms'):
        operator(1)


def test_bad_flags(refused, tmp_path):
    for size in (100, '64x100', '64x', 'x64', '64x64x64'):
        assert '--image-size' in refused(compare.main, '--image-size', size)
    assert '--head ocr is not for classification' in refused(compare.main, '--head', 'ocr')
    dense = ('--task', 'segmentation')
    assert 'which has: inference, latency' in refused(compare.main, *dense, '--mode', 'train')
    assert 'which has: mmseg' in refused(compare.main, *dense, '--against', 'timm')
    assert '--threads' in refused(compare.main, '--threads', 10**6)
    assert '--out' in refused(compare.main, '--out', tmp_path / 'x.txt')


@pytest.mark.parametrize(
    'modes', ['inference', pytest.param('latency train', marks=pytest.mark.long)]
)
def test_ours_alone(tmp_path, modes):
    """The command as from the shell, where no module of TensorFlow can be imported."""
    for name in ('tensorflow', 'tensorflow_datasets'):
        (tmp_path / f'{name}.py').write_text('raise SystemExit("imported")\n')
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get('PYTHONPATH', '')])
    flags = '--arch tiny --batch 2 --mode MODES --against --image-size 32 --threads 1 --rounds 2 '
    flags += f'--seconds 0.01 --json {tmp_path}/x.json --out {tmp_path}/x.png'
    flags = flags.replace('MODES', modes)
    done = subprocess.run(
        [sys.executable, FILE, *flags.split()],
        env=os.environ | {'PYTHONPATH': path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(modes.split())
    document = json.loads((tmp_path / 'x.json').read_text())
    assert {'jax', 'jaxlib', 'flax', 'python'} <= set(document['versions'])
    for key in ('command', 'date', 'processor', 'platform', 'device', 'threads'):
        assert document[key], key
    assert [cell['mode'] for cell in document['cells']] == modes.split()
    for cell in document['cells']:
        entry = cell['contenders']['hrnet_jax']
        assert entry['failed'] is None
        assert cell['rates']['JAX']['flops'] > 0
        assert len(entry['rounds']) == 2
        for key in ('images_per_second', 'peak_bytes', 'seconds_to_first_result', 'of_floor'):
            assert entry[key] > 0, key
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')


def test_worker_reports_and_ends(tmp_path):
    """An error of the process is one line; a process that died does not hang its parent."""
    (tmp_path / 'broken.py').write_text('import os\nprint("noise")\nos._exit(3)\n')
    spec = {'threads': 1, 'cpus': [], 'mode': 'rates'}
    if hasattr(os, 'sched_getaffinity'):
        spec['cpus'] = sorted(os.sched_getaffinity(0))
    for side, text in (('nowhere', 'ModuleNotFoundError'), ('broken', 'exit code 3')):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('PYTHONPATH', str(tmp_path))
            worker = compare_worker.Worker(spec | {'side': side})
        try:
            with pytest.raises(compare_worker.Failed, match=text):
                worker.ask('start')
        finally:
            worker.end()
        assert worker.process.returncode is not None
