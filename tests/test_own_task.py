"""The task of docs/tasks.md, in a file of the user's: trained, resumed, evaluated, exported."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import runs
from PIL import Image

import hrnet_jax
from hrnet_jax.checkpoints import format as checkpoint

sys.path.append(str(runs.ROOT / 'examples'))
import digits  # noqa: E402

PAGE = (runs.ROOT / 'docs' / 'tasks.md').read_text()
CODE = re.search(r'```python\n(.*?)```', PAGE, re.DOTALL)[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """angle.py, and scans that were turned."""
    folder = tmp_path_factory.mktemp('own')
    (folder / 'angle.py').write_text(CODE)
    images, _ = digits.scans()['train']
    random = np.random.default_rng(0)
    for split, numbers in (('train', range(96)), ('val', range(96, 128))):
        rows = ['file,angle']
        for i in numbers:
            angle = float(np.round(random.uniform(-60, 60), 1))
            image = Image.fromarray(images[i][..., 0]).resize((32, 32), Image.BILINEAR)
            image.rotate(angle).save(folder / f'{i}.png')
            rows.append(f'{i}.png,{angle}')
        (folder / f'{split}.csv').write_text('\n'.join(rows) + '\n')
    return folder


def train(folder, run, *more):
    options = (
        f'--task angle:TASK --dataset folder:{folder} --split train --eval-split val '
        '--image-size 32 --eval-resize 32 --eval-crop 32 '
        '--batch-size 32 --dtype float32 --epochs 4 --learning-rate 0.1 --checkpoint-steps 5'
    ).split()
    where = {'recipe': 'angle', 'path': [folder], 'quick': True}
    started = runs.launch(folder / run, folder, *options, *more, **where)
    [(code, out, err)] = runs.finish(started)
    assert code == 0, err
    return out


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=runs.ROOT, capture_output=True, text=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join((str(runs.ROOT), str(folder)))},
    )  # fmt: skip


def test_it_is_short():
    assert len(CODE.splitlines()) <= 100


def test_own_task(folder):
    """In a hundred lines of the user's, without a change to ours."""
    assert 'error' in train(folder, 'whole')
    train(folder, 'stopped', '--stop-at', '7')
    train(folder, 'stopped')
    last = [
        checkpoint.read_json(folder / run / 'checkpoints' / '12') for run in ('whole', 'stopped')
    ]
    assert last[0]['arrays'] == last[1]['arrays']
    assert last[0]['task'] == 'angle'
    scores = {int(k): -v for k, v in last[0]['training']['scores'].items()}
    assert hrnet_jax.checkpoint.find(folder / 'whole').name == str(min(scores, key=scores.get))

    own = ('--task', 'angle:TASK', '--ckpt', folder / 'whole')
    data = ('--dataset', f'folder:{folder}', '--split', 'val', '--json', folder / 'eval.json')
    done = command(folder, 'eval.py', *own, *data)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / 'eval.json').read_text())
    assert found['error'] == pytest.approx(min(scores.values()), abs=1e-3)
    assert found['num_examples'] == 32

    done = command(folder, 'predict.py', folder / '3.png', *own, '--json', folder / 'p.json')
    assert done.returncode == 0, done.stderr
    [row] = json.loads((folder / 'p.json').read_text())
    assert -180 <= row['predictions'] <= 180
    done = command(folder, '-m', 'hrnet_jax.export', *own, '--out', folder / 'angle.stablehlo')
    assert done.returncode == 0, done.stderr

    done = command(folder, 'eval.py', '--ckpt', folder / 'whole', *data)  # without the flag
    assert done.returncode == 2
    assert "unknown task 'angle'" in done.stderr
    assert 'Traceback' not in done.stderr
