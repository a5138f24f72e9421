"""The code and the commands of README and docs run."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segments
from pages import PAGES, ROOT, blocks
from PIL import Image

import eval as eval_command
import hrnet_jax
import predict as predict_command
import train as train_command
from convert import __main__ as convert_command
from hrnet_jax.export import export


def run(page: str) -> dict:
    scope: dict = {}
    for block in blocks(page):
        exec(compile(block, page, 'exec'), scope)
    return scope


def test_readme(standard_promotion):
    scope = run('README.md')
    assert scope['logits'].shape == (2, 1000)
    assert [m.shape[1] for m in scope['maps']] == [16, 8, 4, 2]
    assert scope['pooled'].shape == (2, 64)
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_nnx(standard_promotion):
    scope = run('docs/nnx.md')
    assert scope['logits'].shape == (2, 1000)
    assert float(scope['value']) > 0


def test_library(capsys, standard_promotion):
    scope = run('docs/library.md')
    assert [m.shape[1] for m in scope['maps']] == [32, 16, 8, 4, 2]
    assert 'initialised' in capsys.readouterr().out
    assert scope['report'].adapted == ('backbone/conv1/kernel',)
    assert set(scope['report'].initialised) == {'head/classifier/bias', 'head/classifier/kernel'}
    assert float(scope['value']) > 0
    images = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(scope['Landmarks']().init, jax.random.key(0), images)
    ours = scope['variables']
    assert shapes['params']['backbone'].keys() == ours['params']['backbone'].keys()
    own = {k: v['backbone'] for k, v in ours.items()}  # what the table says that HRNet takes
    maps = jax.eval_shape(hrnet_jax.HRNet('tiny').apply, own, images)
    assert [m.shape[1] for m in maps] == [16, 8, 4, 2]


def test_evaluate(capsys):
    run('docs/evaluate.md')
    assert 0 < float(capsys.readouterr().out.split()[-1]) < 1


def test_multilabel():
    assert run('docs/multilabel.md')['variables']


def test_deploy(tmp_path, monkeypatch):
    model = hrnet_jax.create_model('tiny')
    program = export(model, hrnet_jax.init(model, jax.random.key(0)), image_size=64)
    (tmp_path / 'w18.stablehlo').write_bytes(program.serialize())
    monkeypatch.chdir(tmp_path)
    scope = run('docs/deploy.md')
    assert scope['logits'].shape == (2, 1000)
    assert len(scope['maps']) == 4


def test_code_of_every_page_is_run():
    """By a test of this file, or by test_own_task.py."""
    written = Path(__file__).read_text()
    for page in PAGES:
        if '```python' in (ROOT / page).read_text():
            assert f"run('{page}')" in written or page == 'docs/tasks.md'


@pytest.fixture
def here(command):
    """Runs a line of `commands` in this process: what it prints."""
    modules = {
        '-m': convert_command,
        'eval.py': eval_command,
        'predict.py': predict_command,
        'train.py': train_command,
    }

    def call(line):
        script, *arguments = shlex.split(line)
        main = modules[Path(script).name].main
        code, out, err = command(main, *arguments[script == '-m' :])
        assert code == 0, err
        return out

    return call


@pytest.fixture
def flowers(tmp_path, monkeypatch, here):
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
    here(f'-m convert {ROOT}/examples/tiny_digits.pth --out converted')
    return tmp_path


def python(arguments: str) -> str:
    """From the shell: what it prints."""
    done = subprocess.run(
        [sys.executable, *shlex.split(arguments)],
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(page: str) -> list[str]:
    """The arguments to Python in a page's shell blocks, without those that need a network."""
    lines = [line for block in blocks(page, 'sh') for line in block.splitlines()]
    own = [line.removeprefix('python ') for line in lines if line.startswith('python ')]
    found = [line.replace('w18', 'tiny') for line in own if 'hf:' not in line]
    return [line if line.startswith('-m') else f'{ROOT}/{line}' for line in found]


def test_quick_start(flowers):
    convert, predict = commands('docs/index.md')
    shutil.rmtree('converted')
    Path('examples').symlink_to(ROOT / 'examples')
    shutil.copy('flowers/val/rose/0.jpg', 'photo.jpg')
    stages = re.compile(r'^ +(\w+) +\d\.\de-0\d$', re.MULTILINE)
    shown = stages.findall((ROOT / 'docs/index.md').read_text())
    assert stages.findall(python(convert)) == shown
    assert '%' in python(predict)
    assert Image.open('picture.png').size > (300, 200)


def test_fine_tuning(flowers, here, standard_promotion):
    train, evaluate, predict, convert = commands('docs/finetune.md')
    quick = '--image-size 32 --eval-resize 32 --eval-crop 32 --epochs 4 --eval-every 4'
    said = here(f'{train} {quick} --batch-size 16 --dtype float32')
    assert re.search(r'initialised +2 .*head/classifier', said)
    scope = run('docs/finetune.md')
    confusion = scope['confusion']
    assert confusion.sum() == 40
    assert re.search(rf'top-1 +{100 * np.trace(confusion) / 40:.3f} ', here(evaluate))
    assert np.trace(confusion) >= 36
    assert Image.open('confusion.png').size > (300, 200)
    assert 'rose' in here(predict)
    here(convert)
    assert Path('flowers.safetensors').stat().st_size > 10_000


def test_segmentation(flowers, here, standard_promotion):
    """The page's commands on smaller crops, and its code."""
    for split, count in (('train', 4), ('val', 2)):
        segments.make_folder(flowers / 'streets', ((64, 96),) * count, split)
    shutil.copy('streets/images/val/p0.png', 'photo.jpg')
    train, evaluate, predict = commands('docs/segmentation.md')
    quick = '--crop-size 32 64 --batch-size 2 --bn-group-size 2 --epochs 1 --dtype float32'
    assert re.search(r'initialised +7 .*head', here(f'{train} {quick}'))
    assert 'house' in here(evaluate)
    here(predict)
    assert Image.open('picture.png').size > (300, 200)
    assert Image.open('ids/photo.png').size == (96, 64)
    scope = run('docs/segmentation.md')
    assert scope['ids'].shape == (96, 128)
    assert scope['logits'].shape == (1, 25, 33, 19)
    assert len(scope['both']) == 2


def test_pose(flowers, here, standard_promotion):
    """The page's commands on smaller crops."""
    figures = importlib.import_module('figures')
    figures.make(flowers / 'cats', {'train': 4, 'val': 1})
    shutil.copy('cats/images/val/000.png', 'photo.jpg')
    box = json.loads(Path('cats/val.json').read_text())['annotations'][0]['bbox']
    Path('boxes.json').write_text(json.dumps({'photo.jpg': [box]}))
    train, evaluate, predict = commands('docs/pose.md')
    quick = '--input-size 64 32 --batch-size 4 --bn-group-size 4 --epochs 1 --dtype float32'
    said = here(f'{train} {quick}')
    assert re.search(r'initialised +2 .*head', said)
    assert re.search(r'left +\d+ ', said)
    assert 'AP' in here(evaluate)
    assert set(json.loads(Path('result.json').read_text())['metrics']) >= {'ap', 'ar'}
    here(predict)
    assert Image.open('picture.png').size > (100, 100)
    [found] = json.loads(Path('found.json').read_text())
    assert (found['bbox'], len(found['keypoints'])) == (box, 51)


def test_detection(flowers, here, standard_promotion):
    """The page's commands on smaller images."""
    signs = importlib.import_module('signs')
    signs.make(flowers / 'birds', {'train': 4, 'val': 2})
    shutil.copy('birds/images/val/000.png', 'photo.jpg')
    train, evaluate, predict = commands('docs/detection.md')
    quick = '--scale 64 64 --pyramid 32 --batch-size 4 --epochs 1 --dtype float32'
    said = here(f'{train} {quick}')
    assert re.search(r'initialised +\d+ .*bbox_head', said)
    out = here(evaluate)
    assert re.search('^AP at 0.5 ', out, re.MULTILINE)
    assert re.search('^three ', out, re.MULTILINE)
    assert set(json.loads(Path('result.json').read_text())['metrics']) >= {'ap', 'ar'}
    assert isinstance(json.loads(Path('boxes.json').read_text()), list)
    here(predict)
    assert Image.open('picture.png').size > (100, 100)
    assert isinstance(json.loads(Path('found.json').read_text()), list)


def test_picture(tmp_path, monkeypatch):
    """The program of README's picture, without its training."""
    monkeypatch.syspath_prepend(ROOT / 'examples')
    resolutions = importlib.import_module('resolutions')
    model = resolutions.Digits()
    variables = hrnet_jax.init(model, jax.random.key(0), image_size=32)
    resolutions.draw(model, variables, tmp_path / 'drawn.png')
    shown = ROOT / 'docs/resolutions.png'
    assert Image.open(tmp_path / 'drawn.png').size == Image.open(shown).size
    assert shown.stat().st_size < 200_000


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
