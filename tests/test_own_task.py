"""The task of docs/tasks.md, in a file of the user's: trained, resumed, evaluated, exported."""

from __future__ import annotations

import json
import re
import sys

import jax
import numpy as np
import pytest
import runs
from PIL import Image

import eval as eval_command
import hrnet_jax
import predict as predict_command
import train as train_command
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.commands import export as export_command

sys.path.append(str(runs.ROOT / 'examples'))
import digits  # noqa: E402

PAGE = (runs.ROOT / 'docs' / 'tasks.md').read_text()
CODE = re.search(r'```python\n(.*?)```', PAGE, re.DOTALL)[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """angle.py, own.py, and scans that were turned."""
    folder = tmp_path_factory.mktemp('own')
    (folder / 'angle.py').write_text(CODE)
    (folder / 'own.py').write_text(OWN)
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


def train(folder, run, *more, task='angle', command=runs.train, **where):
    options = (
        f'--task {task}:TASK --dataset folder:{folder} --split train --eval-split val '
        '--image-size 32 --eval-resize 32 --eval-crop 32 '
        '--batch-size 32 --dtype float32 --epochs 2 --learning-rate 0.1 --checkpoint-steps 5'
    ).split()
    return command(folder / run, folder, *options, *more, recipe=task, **where)


def test_it_is_short():
    assert len(CODE.splitlines()) <= 100


@pytest.fixture
def own(folder, monkeypatch):
    """The user's files can be imported, and are not yet."""
    monkeypatch.setattr('hrnet_jax.tasks._REGISTERED', {})
    monkeypatch.syspath_prepend(folder)
    for name in ('angle', 'own'):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_own_task(folder, own, command, refused, monkeypatch, standard_promotion):
    """In a hundred lines of the user's, without a change to ours."""
    assert 'error' in train(folder, 'whole')
    assert 'going on after 5' in train(folder, runs.lose_checkpoints(folder / 'whole', after=5))
    last = [
        checkpoint.read_json(folder / run / 'checkpoints' / '6') for run in ('whole', 'whole-5')
    ]
    assert last[0]['arrays'] == last[1]['arrays']
    assert last[0]['task'] == 'angle'
    scores = {int(k): -v for k, v in last[0]['training']['scores'].items()}
    assert hrnet_jax.checkpoint.find(folder / 'whole').name == str(min(scores, key=scores.get))

    monkeypatch.setattr('hrnet_jax.tasks._REGISTERED', {})
    data = ('--dataset', f'folder:{folder}', '--split', 'val', '--json', folder / 'eval.json')
    line = refused(eval_command.main, '--ckpt', folder / 'whole', *data)  # without the flag
    assert "unknown task 'angle'" in line

    flags = ('--task', 'angle:TASK', '--ckpt', folder / 'whole')
    for main, *arguments in (
        (eval_command.main, *data),
        (predict_command.main, folder / '3.png', '--json', folder / 'p.json'),
        (export_command.main, '--out', folder / 'angle.stablehlo'),
    ):
        code, _, err = command(main, *flags, *arguments)
        assert code == 0, err
    found = json.loads((folder / 'eval.json').read_text())
    assert found['error'] == pytest.approx(min(scores.values()), abs=1e-3)
    assert found['num_examples'] == 32
    [row] = json.loads((folder / 'p.json').read_text())
    assert -180 <= row['predictions'] <= 180
    assert (folder / 'angle.stablehlo').stat().st_size > 10_000


OWN = """
import dataclasses

import flax.linen as nn
from angle import Angle, Turned, jnp
from hrnet_jax.tasks.recipe import Group


class Net(nn.Module):
    outputs: int
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), 4, name='first')(images))
        return nn.Dense(self.outputs, name='out')(jnp.mean(x, (1, 2)))


@dataclasses.dataclass(frozen=True)
class Plain(Turned):
    task = 'own'


class Own(Angle):
    name = 'own'
    recipes = {'own': Plain}

    def create_model(self, arch, num_outputs, **options):
        return Net(num_outputs)

    def describe(self, model):
        return {'outputs': model.outputs}

    def model_of(self, meta, **options):
        return Net(meta['outputs'])

    def parameter_groups(self, model, recipe):
        return [Group('^out/', rate=0.1), Group('bias$', decay=0.0)]


TASK = Own()
"""


def test_a_model_of_its_own(folder, own):
    """Without `arch`, other attributes of ours, and BatchNorm: trained from the shell, stopped,
    resumed."""
    where = {'task': 'own', 'command': runs.launch, 'path': [folder]}
    [(code, _, err)] = runs.finish(train(folder, 'own', '--ema', '0.9', '--stop-at', '4', **where))
    assert (code, err) == (0, '')
    out = train(folder, 'own', '--ema', '0.9', task='own')
    assert 'model   tiny, 0.00 M parameters' in out
    assert 'going on after 4' in out
    assert json.loads((folder / 'own' / 'config.json').read_text())['arch'] == 'tiny'
    assert checkpoint.read_json(folder / 'own' / 'checkpoints' / '6')['outputs'] == 2
    model, variables = hrnet_jax.load(folder / 'own')
    assert model.outputs == 2
    assert list(variables) == ['params']


def test_a_loss_that_is_not_finite_stops_the_run(folder, own, refused, standard_promotion):
    def stopped(run, data_dir, *options, recipe):
        return refused(train_command.main, *runs.flags(run, data_dir, recipe), *options)

    more = ('--learning-rate', '1e15', '--checkpoint-steps', '1', '--keep', '9')
    line = train(folder, 'far', *more, task='own', command=stopped)
    last = workdir.steps(folder / 'far')[-1]
    assert f'not finite in step {last + 1};' in line
    _, variables = hrnet_jax.load(folder / 'far')
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize(
    ('code', 'said'),
    [
        ("open('/nowhere/table')", 'cannot read folder:x: /nowhere/table: No such file'),
        ("float('seven')", "cannot read folder:x: could not convert string to float: 'seven'"),
    ],
)
def test_errors_of_its_own_are_one_line(folder, refused, monkeypatch, tmp_path, code, said):
    name = f'broken{len(code)}'
    (folder / f'{name}.py').write_text(
        f'import angle\nclass Broken(angle.Angle):\n    name = "{name}"\n    recipes = {{}}\n'
        f'    def open_dataset(self, *a):\n        {code}\nTASK = Broken()\n'
        f'class R(angle.Turned):\n    task = "{name}"\nBroken.recipes = {{"{name}": R}}\n'
    )
    monkeypatch.syspath_prepend(str(folder))
    run = ('--task', f'{name}:TASK', '--arch', 'tiny', '--dataset', 'folder:x')
    assert said in refused(train_command.main, *run, '--workdir', tmp_path / 'run')


def test_a_split_that_is_not_given(folder, refused, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(folder))
    run = ('--task', 'angle:TASK', '--arch', 'tiny', '--dataset', f'folder:{folder}')
    line = refused(train_command.main, *run, '--workdir', tmp_path / 'run')
    assert line == 'error: --eval-split is not given: --split is needed\n'
