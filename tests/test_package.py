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
import flax.linen as nn, jax, jax.numpy as jnp, optax
import hrnet_jax
from hrnet_jax.archs import ARCHS

class Regression(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        maps = hrnet_jax.HRNet(ARCHS['tiny'], name='backbone')(images, train)
        return nn.Dense(3, name='out')(jnp.concatenate([x.mean((1, 2)) for x in maps], -1))

model, images = Regression(), jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
_, loaded = hrnet_jax.load('converted')
first, stats = ({'backbone': loaded[kind]['backbone']} for kind in ('params', 'batch_stats'))
first['out'] = {'kernel': jnp.zeros((90, 3)), 'bias': jnp.zeros(3)}
first['out']['kernel'] += 0.01
optimizer = optax.sgd(0.01)

@jax.jit
def step(params, stats, state):
    def loss(params):
        values = {'params': params, 'batch_stats': stats}
        out, new = model.apply(values, images, train=True, mutable=['batch_stats'])
        return ((out - 1) ** 2).mean(), new['batch_stats']

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), stats, state, value

params, state, losses = first, optimizer.init(first), []
for _ in range(2):
    params, stats, state, value = step(params, stats, state)
    losses.append(float(value))
same = [bool((a == b).all()) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(params))]
print(hrnet_jax.__file__, *losses, sum(same))
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
    assert output(command, folder).endswith('tiny: tiny, 10 classes, official layout\n')
    return folder / 'tiny'


def pip(*arguments):
    done = run([sys.executable, '-m', 'pip', '--disable-pip-version-check', *arguments])
    assert done.returncode == 0, done.stdout + done.stderr


def run(command, **options):
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    env['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'  # compiles in less time
    command = [str(part) for part in command]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, **options)


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


def test_project_of_a_user(installed, converted, tmp_path):
    (tmp_path / 'user.py').write_text(USER.replace('converted', str(converted)))
    file, first, second, same = output([installed / 'python', 'user.py'], tmp_path).split()
    assert Path(file).is_relative_to(installed.parent)
    assert 0 < float(second) < float(first)
    assert same == '0'


def test_types(installed, tmp_path):
    (tmp_path / 'user.py').write_text(TYPES)
    done = run(
        [sys.executable, '-m', 'mypy', '--strict', '--python-executable', installed / 'python',
         'user.py'],
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
