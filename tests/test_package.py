"""The wheel: what is in it, and that it works alone, from a folder that is not the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())
PACKAGES = ('hrnet_jax', 'convert')
TYPES = """
import typing

import jax
import jax.numpy as jnp

import hrnet_jax
from hrnet_jax.archs import ARCHS

Variables = dict[str, typing.Any]
model = hrnet_jax.create_model('w18', dtype=jnp.bfloat16)
typing.assert_type(model, hrnet_jax.Classifier)
typing.assert_type(hrnet_jax.init(model, jax.random.key(0)), Variables)
loaded = hrnet_jax.load('converted', 'w18', weights='ema')
typing.assert_type(loaded, tuple[hrnet_jax.Classifier, Variables])
typing.assert_type(hrnet_jax.fold(*loaded), hrnet_jax.Folded)
typing.assert_type(hrnet_jax.list_models(), list[str])
found = hrnet_jax.predict(*loaded, ['photo.jpg'], topk=3)
typing.assert_type(found, list[list[hrnet_jax.Prediction]])
typing.assert_type(found[0][0].probability, float)
typing.assert_type(model.arch.channels, tuple[int, ...])
maps = hrnet_jax.HRNet(ARCHS['w18'], name='backbone')(jnp.zeros((1, 32, 32, 3)))
typing.assert_type(maps, tuple[jax.Array, ...])
hrnet_jax.create_model(18)  # type: ignore[arg-type]
hrnet_jax.HRNet()  # type: ignore[call-arg]
hrnet_jax.HRNet(ARCHS['w18'], widths=18)  # type: ignore[call-arg]
hrnet_jax.nothing  # type: ignore[attr-defined]
"""
USER = """
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax
import hrnet_jax
from flax import nnx
from hrnet_jax.nnx import from_linen
from sklearn.datasets import load_digits

digits = load_digits()
images = np.repeat(digits.images.astype('float32') / 4 - 2, 4, 1).repeat(4, 2)
images = np.repeat(images[..., None], 3, -1)
labels = 9 - digits.target  # ten classes that the checkpoint does not know
few, targets = images[:4], labels[:4]

class Mine(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        maps = hrnet_jax.HRNet('tiny', name='backbone')(images, train)
        return nn.Dense(10, name='out')(jnp.concatenate([x.mean((1, 2)) for x in maps], -1))

def loss_of(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

def make_step(model, optimizer):
    @jax.jit
    def step(variables, state, images, labels):
        def loss(params):
            values = {**variables, 'params': params}
            out, new = model.apply(values, images, train=True, mutable=['batch_stats'])
            return loss_of(out, labels), new['batch_stats']

        params = variables['params']
        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return {'params': optax.apply_updates(params, updates), 'batch_stats': stats}, state, value

    return step

own = Mine()
filled, _ = hrnet_jax.transfer(hrnet_jax.init(own, jax.random.key(0), 32), 'converted')

def linen():
    variables, optimizer = filled, optax.sgd(0.01)
    step, state, losses = make_step(own, optimizer), optimizer.init(variables['params']), []
    for _ in range(2):
        variables, state, value = step(variables, state, few, targets)
        losses.append(float(value))
    return losses

def in_nnx():
    module = from_linen(own, filled)
    optimizer = nnx.Optimizer(module, optax.sgd(0.01), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer, images, labels):
        def loss(module):
            return loss_of(module(images, train=True), labels)

        value, gradients = nnx.value_and_grad(loss)(module)
        optimizer.update(module, gradients)
        return value

    return [float(step(module, optimizer, few, targets)) for _ in range(2)]

def fine_tune(steps=40, batch=64):
    own, optimizer = hrnet_jax.create_model('tiny', num_classes=10), optax.adam(3e-3)
    fresh = hrnet_jax.init(own, jax.random.key(0))
    variables, report = hrnet_jax.transfer(fresh, 'converted', fresh='^head/classifier/')
    step, state = make_step(own, optimizer), optimizer.init(variables['params'])
    chosen = np.random.default_rng(0).integers(0, 1200, (steps, batch))
    for i in chosen:
        variables, state, _ = step(variables, state, images[i], labels[i])
    found = hrnet_jax.fold(own, variables)(images[1200:]).argmax(-1)
    return [len(report.initialised), float((found == labels[1200:]).mean())]

def forward():
    logits = jax.jit(own.apply)(filled, few)
    again = jax.jit(lambda module, images: module(images))(from_linen(own, filled), few)
    return [float(jnp.abs(logits).max()), float(jnp.abs(again - logits).max())]

print(hrnet_jax.__file__, *(value for part in PARTS for value in part()))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Built of a copy, so that nothing is left in the repository."""
    copy, out = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('wheel')
    for name in (*PACKAGES, 'pyproject.toml', 'README.md', 'LICENSE', 'NOTICE'):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, copy)
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', out, copy)
    (built,) = out.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel before this environment's packages; its bin folder.

    A .pth file in a folder that a .pth file names is not read: an editable install is not seen.
    """
    folder = tmp_path_factory.mktemp('venv')
    venv.create(folder, symlinks=os.name != 'nt')
    scripts = folder / ('Scripts' if os.name == 'nt' else 'bin')
    pip('--python', scripts / 'python', 'install', '--no-deps', '--no-index', wheel)
    (own,) = [p for p in folder.rglob('site-packages') if (p / 'hrnet_jax').is_dir()]
    others = [p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')]
    (own / 'others.pth').write_text('\n'.join(others))
    return scripts


@pytest.fixture(scope='module')
def converted(installed, tmp_path_factory):
    """The digits checkpoint, converted by the installed command into its current folder."""
    folder = tmp_path_factory.mktemp('work')
    source = ROOT / 'examples' / 'tiny_digits.pth'
    command = [installed / 'hrnet-convert', source, '--out', '.', '--resize', 32, '--crop', 32]
    assert output(command, folder).endswith('tiny: tiny, 10 classes, official or timm layout\n')
    return folder / 'tiny'


def pip(*arguments):
    done = run([sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments])
    assert done.returncode == 0, done.stdout + done.stderr


def run(command, **options):
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    env['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'  # compiles in less time
    command = [str(part) for part in command]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, **options)


def output(command, cwd):
    done = run(command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_content(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {n.split('/')[0] for n in names if '.dist-info' in n}
        head = archive.read(f'{info}/METADATA').decode().split('\n\n')[0].splitlines()
    listed = run(['git', 'ls-files', *PACKAGES], cwd=ROOT).stdout.split()
    sources = listed or [
        str(p.relative_to(ROOT)) for d in PACKAGES for p in (ROOT / d).rglob('*.*')
    ]
    sources = [name for name in sources if '__pycache__' not in name]
    assert 'hrnet_jax/commands/train.py' in sources
    assert {n for n in names if '.dist-info' not in n} == set(sources)
    assert {'LICENSE', 'NOTICE'} <= {n.rsplit('/')[-1] for n in names}
    extras = {line.split()[1] for line in head if line.startswith('Provides-Extra')}
    assert extras == set(PROJECT['project']['optional-dependencies'])


def test_extras_of_devices():
    """JAX ignores an extra that it does not have, with no more than a warning of pip."""
    known = metadata.metadata('jax').get_all('Provides-Extra')
    assert {'cuda12', 'cuda13', 'tpu'} <= set(known)


def test_commands(installed, converted, tmp_path):
    nine = (load_digits().images[9] * (255 / 16)).round().astype(np.uint8)
    Image.fromarray(nine).save(tmp_path / 'nine.png')
    shown = output(
        [installed / 'hrnet-predict', 'nine.png', '--ckpt', converted, '--topk', '1'], tmp_path
    )
    assert re.fullmatch(r'nine\.png\n +\d+\.\d\d %  9\n', shown)
    version = f'hrnet_jax {metadata.version("hrnet_jax")} '
    for command in (['hrnet-eval'], ['python', '-m', 'convert']):
        assert output([installed / command[0], *command[1:], '--version'], tmp_path).startswith(
            version
        )
    usage = output([installed / 'hrnet-train', '--help'], tmp_path)
    assert usage.startswith('usage: hrnet-train ')
    assert '--recipe' in usage
    done = run([installed / 'hrnet-eval', '--ckpt', 'nowhere'], cwd=tmp_path)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1)


@pytest.fixture
def user(installed, converted, tmp_path):
    """Runs functions of the user's project: the numbers that they return."""

    def call(parts):
        script = USER.replace('converted', str(converted)).replace('PARTS', parts)
        (tmp_path / 'user.py').write_text(script)
        file, *numbers = output([installed / 'python', 'user.py'], tmp_path).split()
        assert Path(file).is_relative_to(installed.parent)
        return [float(number) for number in numbers]

    return call


def test_project_of_a_user(user):
    """A Linen model with HRNet inside, filled from a checkpoint, and the same in NNX."""
    largest, apart = user('[forward]')
    assert apart <= 1e-5 * largest
    assert largest > 0


@pytest.mark.long
def test_project_of_a_user_trains(user):
    """That model, the same in NNX, and a checkpoint for ten new classes."""
    numbers = user('[linen, in_nnx, fine_tune]')
    linen, nnx, (initialised, accuracy) = np.array(numbers, float).reshape(3, 2)
    assert 0 < linen[1] < linen[0]
    np.testing.assert_allclose(nnx, linen, rtol=1e-5)
    assert initialised == 2
    assert accuracy > 0.9


def test_types(installed, tmp_path):
    (tmp_path / 'user.py').write_text(TYPES)
    done = run(
        [sys.executable, '-m', 'mypy', '--strict', '--python-executable', installed / 'python',
         'user.py'],
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
