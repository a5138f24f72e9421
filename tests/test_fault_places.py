"""Where files lie and what they are called: links, odd names, places that cannot be written."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from checkpoints import message, save
from imagenet import jpeg
from PIL import Image
from runs import ROOT, finish, start

import hrnet_jax
from convert import to_torch
from convert.__main__ import main as convert
from convert.readers import read
from hrnet_jax import checkpoint
from hrnet_jax.commands.eval import main as evaluate
from hrnet_jax.commands.predict import main as predict
from hrnet_jax.data import opencv
from hrnet_jax.data.evaluation import open_dataset

NAMES = (
    'with space',
    "quo'te",
    'ünïcode 画像',
    '-dash',
    'new\nline',
    '[glob]*?',
    'a' * 200,
    '%s{x}',
)
BYTES = b'caf\xe9 \xff'  # no UTF-8


@pytest.fixture(scope='module')
def folder(once):
    """A converted `tiny` of three classes."""

    def make(folder):
        model = hrnet_jax.create_model('tiny', 3)
        meta = checkpoint.describe(model) | {
            'transform': hrnet_jax.Transform(40, 32).to_json(),
            'class_names': ['ant', 'caf\udce9', 'cow'],  # as of a folder whose name is no UTF-8
        }
        checkpoint.save(folder / 'tiny', hrnet_jax.init(model, jax.random.key(0), 32), meta)

    return once('places', make)


def tiny(place):
    """A PyTorch file."""
    variables = hrnet_jax.init(hrnet_jax.create_model('tiny', 3), jax.random.key(0), 32)
    state = to_torch(variables, 'tiny')
    return save({k: torch.from_numpy(v.copy()) for k, v in state.items()}, place)


def test_odd_names(command, tmp_path, folder):
    """Of files that are read and of folders that are written; links to them."""
    file = tiny(tmp_path / 'tiny.pth')
    for name in NAMES[:4]:
        place = tmp_path / name
        place.mkdir()
        link = place / f'{name}.pth'
        link.symlink_to(file)
        code, _, err = command(
            convert, str(link), '--out', place / 'out', '--name', name.strip('-')
        )
        assert code == 0, err
        out = place / 'out' / name.strip('-')
        assert hrnet_jax.load(out)[0].num_classes == 3
        linked = tmp_path / f'{name} linked'
        linked.symlink_to(out, target_is_directory=True)
        assert hrnet_jax.load(linked)[0].num_classes == 3


def test_images_of_odd_names(tmp_path):
    """Every one is read, and named as it is where it cannot be."""
    names = [*map(os.fsencode, NAMES), BYTES]
    for kind in (b'ant', b'bee'):
        place = os.fsencode(tmp_path) + b'/' + kind
        os.mkdir(place)
        for i, name in enumerate(names):
            Path(os.fsdecode(place + b'/' + name + b'.jpg')).write_bytes(jpeg(i))
    source = open_dataset(f'folder:{tmp_path}', None, None)
    records = list(source.records(0, source.num_examples).as_numpy_iterator())
    assert len(records) == 2 * len(names)
    held = {os.path.basename(record['name']) for record in records}
    assert held == {name + b'.jpg' for name in names}
    for path in source.paths:
        assert opencv.read_rgb(path).ndim == 3


def test_a_name_that_is_no_unicode_is_printed(folder, tmp_path):
    """From the shell, of an image and of a class, whatever the terminal takes."""
    image = os.fsencode(tmp_path) + b'/' + BYTES + b'.png'
    Image.new('RGB', (40, 40)).save(os.fsdecode(image))
    broken = os.fsencode(tmp_path) + b'/broken' + BYTES
    Path(os.fsdecode(broken)).write_bytes(b'no image')
    code = 'from hrnet_jax.commands.predict import entry; entry()'
    options = ['--ckpt', folder / 'tiny', '--json', tmp_path / 'r.json']
    for path, status in ((image, 0), (broken, 2)):
        command = [sys.executable, '-c', code, path, *map(str, options)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True)
        assert done.returncode == status, done.stderr
        text = (done.stderr if status else done.stdout).decode()
        assert r'caf\udce9' in text
        assert b'Traceback' not in done.stderr
    [row] = json.loads((tmp_path / 'r.json').read_text())
    assert os.fsencode(row['image']) == image


def test_paths_in_archives(tmp_path):
    """Nothing is unpacked: names that lead elsewhere, links and absolute paths are names."""
    file = save({'a': torch.arange(8.0)}, tmp_path / 'a.pth')
    before = sorted(os.listdir(tmp_path))
    with zipfile.ZipFile(file, 'a') as archive:
        for name in ('../../outside', '/tmp/outside', 'a/../../outside', 'C:\\outside'):
            archive.writestr(name, b'outside')
        link = zipfile.ZipInfo('a/data/1')
        link.external_attr = 0o120777 << 16  # a symbolic link
        archive.writestr(link, '/etc/passwd')
    tensors = read(file).tensors
    np.testing.assert_array_equal(tensors['a'].numpy(), np.arange(8, dtype=np.float32))
    assert sorted(os.listdir(tmp_path)) == before
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('../data.pkl', b'\x80\x02}.')
    assert 'holds no tensors' in message(file)


def test_links_that_lead_nowhere(tmp_path, refused):
    loop, gone = tmp_path / 'loop.pth', tmp_path / 'gone.pth'
    loop.symlink_to(loop)
    gone.symlink_to(tmp_path / 'nothing')
    assert message(gone) == 'does not exist'
    assert message(loop).startswith('cannot be read: ')
    for place in (loop, gone):
        with pytest.raises(hrnet_jax.UserError, match='does not exist|is not a converted'):
            hrnet_jax.load(place)


@pytest.mark.parametrize('ending', ['.pth', '.safetensors', '/folder'])
def test_what_cannot_be_written(folder, tmp_path, refused, ending):
    """A file in the place of a folder, a folder in that of a file, a device, a missing disk."""
    file = tiny(tmp_path / 'tiny.pth')
    (tmp_path / 'file').write_text('mine')
    (tmp_path / f'full{ending}').mkdir(parents=True)
    (tmp_path / f'full{ending}' / 'thesis').write_text('mine')
    to = ('--to', 'timm') if ending != '/folder' else ()
    source = folder / 'tiny' if to else file
    for place in ('file/x', 'full', '/proc/x', '/dev/null/x'):
        out = tmp_path / f'{place}{ending}' if to else tmp_path / place
        more = () if to else ('--name', 'folder')
        before = sorted(tmp_path.rglob('*'))
        for force in ((), ('--force',)):
            refused(convert, source, '--out', out, *to, *more, *force)
        assert sorted(tmp_path.rglob('*')) == before
    assert (tmp_path / 'file').read_text() == 'mine'


@pytest.mark.parametrize('to', [(), ('--to', 'timm')])
def test_a_disk_that_is_full(folder, tmp_path, refused, to):
    """The line names it, and nothing of the output stays."""
    source = folder / 'tiny' if to else tiny(tmp_path / 'tiny.pth')
    out = tmp_path / 'out'
    place = out / 'a.safetensors' if to else out
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        line = refused(convert, source, '--out', place, *to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert 'cannot write' in line
    assert not out.exists() or not [*out.iterdir()]


@pytest.mark.parametrize(
    'damage', ['cut', 'empty', 'foreign', 'gone', 'of another', 'older', 'newer']
)
def test_a_json_that_is_not_the_right_one(folder, tmp_path, damage):
    """Of a converted checkpoint: refused, in one line that says what to do."""
    copy = shutil.copytree(folder / 'tiny', tmp_path / 'tiny')
    file = copy / 'checkpoint.json'
    text = file.read_text()
    meta = json.loads(text)
    if damage == 'of another':
        model = hrnet_jax.create_model('tiny', 4)
        other = checkpoint.describe(model) | {'arrays': meta['arrays']}
        file.write_text(json.dumps(checkpoint.with_digest(other)))
    elif damage in ('older', 'newer'):
        meta['version'] = 0 if damage == 'older' else 2
        file.write_text(json.dumps(meta))
    elif damage == 'gone':
        file.unlink()
    else:
        file.write_text({'cut': text[: len(text) // 2], 'empty': '', 'foreign': '{"a": 1}'}[damage])
    with pytest.raises(hrnet_jax.UserError) as caught:
        hrnet_jax.load(copy)
    assert '\n' not in str(caught.value)
    wanted = {'gone': 'holds no converted checkpoint', 'of another': 'does not fit'}
    wanted |= {'older': 'has format 0', 'newer': 'has format 2'}
    assert wanted.get(damage, 'is damaged or not of this program') in str(caught.value)


def test_a_checkpoint_that_does_not_say_how_images_are_prepared(folder, tmp_path, refused):
    """As one that was saved from Python without it."""
    copy = shutil.copytree(folder / 'tiny', tmp_path / 'tiny')
    Image.new('RGB', (40, 40)).save(tmp_path / 'a.png')
    for transform in ({}, {'transform': None}):
        meta = {k: v for k, v in checkpoint.read_json(copy).items() if k != 'transform'}
        (copy / 'checkpoint.json').write_text(json.dumps(checkpoint.with_digest(meta | transform)))
        assert hrnet_jax.load(copy)[0].num_classes == 3
        assert 'there is no "transform"' in refused(predict, tmp_path / 'a.png', '--ckpt', copy)
        data = ('--dataset', f'folder:{tmp_path}')
        assert 'there is no "transform"' in refused(evaluate, '--ckpt', copy, *data)


def evaluation(folder, tmp_path, count):
    """eval.py's options for so many images, and the folder with them."""
    root, kinds, files = tmp_path / 'images', ('ant', 'bee', 'cow'), []
    for i in range(min(count, 50)):
        files.append(tmp_path / f'{i}.jpg')
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 48, 3), np.uint8)).save(
            files[-1]
        )
    for kind in kinds:
        (root / kind).mkdir(parents=True)
    for i in range(count):
        os.link(files[i % 50], root / kinds[i % 3] / f'{i:05}.jpg')
    model = shutil.copytree(folder / 'tiny', tmp_path / 'tiny')
    meta = checkpoint.read_json(model) | {'class_names': list(kinds)}
    (model / 'checkpoint.json').write_text(json.dumps(checkpoint.with_digest(meta)))
    options = ['--ckpt', model, '--dataset', f'folder:{root}', '--batch-size', '250']
    return [*options, '--json', tmp_path / 'r.json'], root


def test_a_checkpoint_made_in_python_is_evaluated(command, folder, tmp_path):
    """It has what `describe` says, and no more."""
    code, _, err = command(evaluate, *evaluation(folder, tmp_path, 3)[0])
    assert (code, err) == (0, '')
    result = json.loads((tmp_path / 'r.json').read_text())
    assert (result['num_examples'], result['checkpoint']) == (3, None)


@pytest.mark.faults
def test_fifty_thousand_images_of_which_one_is_damaged(folder, tmp_path):
    """Over two processes: named, in both; and counted right where it may be left out."""
    count = 50_000
    options, root = evaluation(folder, tmp_path, count)
    broken = root / 'cow' / '43217.jpg'
    content = broken.read_bytes()
    broken.unlink()  # a link to others
    broken.write_bytes(content[: len(content) // 2])
    ended = finish(start('eval', options, processes=2), timeout=3000)
    assert [code for code, *_ in ended] == [2, 2], ended
    assert '43217.jpg' in ended[0][2] + ended[1][2]
    assert not (tmp_path / 'r.json').exists()
    ended = finish(start('eval', [*options, '--max-corrupt', '0.001'], processes=2), timeout=3000)
    assert [code for code, *_ in ended] == [0, 0], ended
    result = json.loads((tmp_path / 'r.json').read_text())
    assert result['num_examples'] == count - 1
    print(
        f'{count} images in two processes: 43217.jpg is named; without it {count - 1} are counted'
    )
