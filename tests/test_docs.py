"""The code of README and docs runs, on `tiny` and small images instead of `w18` to save time."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hrnet_jax.runtime import cli

ROOT = Path(__file__).parents[1]
QUICK = '--image-size 32 --eval-resize 32 --eval-crop 32 --epochs 4 --batch-size 16'

PAGES = ['README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))]
# A command with arguments, up to what ends it in a text or in a shell.
COMMAND = re.compile(
    r'python3?(?: -u)? (-m convert|-m hrnet_jax\.\w+'
    r'|(?:/\S*/)?(?:train|eval|predict|benchmarks/(?!startup)[a-z_]+|examples/to_onnx)\.py)'
    r'((?: +[^\s`|>&;]+)*)'
)
COMMANDS = sorted(
    {
        found
        for page in PAGES
        for found in COMMAND.findall((ROOT / page).read_text().replace('\\\n', ' '))
        if found[1].strip()
    }
)


def blocks(page: str, language: str = 'python') -> list[str]:
    found = re.findall(rf'```{language}\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    assert found
    return [block.replace("'w18'", "'tiny'").replace('224', '64') for block in found]


def run(page: str) -> dict:
    scope: dict = {}
    for block in blocks(page):
        exec(compile(block, page, 'exec'), scope)
    return scope


def test_readme(standard_promotion):
    scope = run('README.md')
    assert scope['logits'].shape == (2, 1000)
    assert float(scope['value']) > 0
    assert [m.shape[1] for m in scope['maps']] == [16, 8, 4, 2]
    assert scope['pooled'].shape == (2, 64)
    images = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(scope['Landmarks']().init, jax.random.key(0), images)
    assert shapes['params']['backbone'].keys() == scope['variables']['params']['backbone'].keys()


def test_library(capsys):
    scope = run('docs/library.md')
    assert [m.shape[1] for m in scope['maps']] == [32, 16, 8, 4, 2]
    assert 'initialised' in capsys.readouterr().out
    assert scope['report'].adapted == ('backbone/conv1/kernel',)
    assert set(scope['report'].initialised) == {'head/classifier/bias', 'head/classifier/kernel'}


def test_quick_start():
    assert run('docs/index.md')['logits'].shape == (1, 1000)


@pytest.fixture(scope='module', autouse=True)
def quick():
    """Compiles in a part of the time."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


class Parsed(Exception):
    """A command's arguments were understood."""


def test_every_command_was_found():
    assert len(COMMANDS) > 25
    scripts = {script for script, _ in COMMANDS}
    assert {'-m convert', '-m hrnet_jax.export', 'benchmarks/compare.py', 'train.py'} <= scripts


@pytest.mark.parametrize(('script', 'rest'), COMMANDS)
def test_commands_are_understood(script, rest, monkeypatch, tmp_path):
    """Every command in README and docs has flags and values that exist."""

    def understood(parser, *_):
        argparse.ArgumentParser.parse_args(parser)
        raise Parsed

    monkeypatch.setattr(cli.Parser, 'parse_args', understood)
    monkeypatch.setattr(sys, 'argv', [script, *shlex.split(rest, comments=True)])
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    (tmp_path / 'angle.py').write_text(blocks('docs/tasks.md')[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, 'environ', {**os.environ})  # tpu_compile.py sets some
    name = script.removeprefix('-m ').replace('convert', 'convert.__main__')
    if script.startswith('-m '):
        main = importlib.import_module(name).main
    else:
        main = runpy.run_path(str(ROOT / script.split('hrnet/src/')[-1]))['main']
    with pytest.raises((Parsed, SystemExit)) as ended:
        main()
    assert ended.type is Parsed or '--help' in rest


@pytest.mark.parametrize('page', PAGES)
def test_shells_and_extras(page):
    text = (ROOT / page).read_text()
    for block in re.findall(r'```(?:ba)?sh\n(.*?)```', text, re.DOTALL):
        subprocess.run(['bash', '-n'], input=block, text=True, check=True)
    known = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for named in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(named.split(',')) <= set(known['optional-dependencies'])


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """Two classes of scans of digits, and the converted digits checkpoint as converted/tiny."""
    sys.path.append(str(ROOT / 'examples'))
    from digits import scans

    for split, folder, count in (('train', 'train', 40), ('test', 'val', 20)):
        images, labels = scans()[split]
        for digit, name in enumerate(('daisy', 'rose')):
            place = tmp_path / 'flowers' / folder / name
            place.mkdir(parents=True)
            for i, pixels in enumerate(images[labels == digit][:count]):
                Image.fromarray(pixels[..., 0]).resize((40, 40)).save(place / f'{i}.jpg')
    monkeypatch.chdir(tmp_path)
    python(f'-m convert {ROOT}/examples/tiny_digits.pth --out converted')
    return tmp_path


def python(arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *shlex.split(arguments)],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fine_tuning(flowers, capsys):
    commands = [block.replace('w18', 'tiny') for block in blocks('docs/finetune.md', 'sh')]
    outputs = []
    for command in commands[:2]:
        arguments = command.replace('python ', f'{ROOT}/', 1)
        outputs.append(python(f'{arguments} {QUICK}' if 'train.py' in command else arguments))
    assert re.search(r'initialised +2 .*head/classifier', outputs[0])
    scope = run('docs/finetune.md')
    confusion = scope['confusion']
    assert confusion.sum() == 40
    assert f'top-1{100 * np.trace(confusion) / 40:15.3f}' in outputs[1]
    assert np.trace(confusion) >= 36
    assert Image.open('confusion.png').size > (300, 200)
    assert 'rose' in python(commands[2].replace('python ', f'{ROOT}/', 1))
    python(commands[3].replace('python ', '', 1))
    assert Path('flowers.safetensors').stat().st_size > 10_000


def test_notebook(tmp_path, monkeypatch, capsys, standard_promotion):
    """From top to bottom, in a folder of its own."""
    for name in ('digits.py', 'tiny_digits.pth'):
        shutil.copy(ROOT / 'examples' / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    cells = json.loads((ROOT / 'examples/tour.ipynb').read_text())['cells']
    scope: dict = {}
    for i, cell in enumerate(cells):
        if cell['cell_type'] == 'code':
            exec(compile(''.join(cell['source']), f'tour.ipynb, cell {i}', 'exec'), scope)
            assert not cell['outputs']
    assert scope['accuracy'] > 0.98
    assert scope['right'].mean() > 0.9
    assert scope['logits'].shape == (4, 2)
    assert '99.17 % of 599 scans' in capsys.readouterr().out
