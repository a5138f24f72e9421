"""What the tensors of a file do not say lies beside it, is read again, and is refused where it is
of another file."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from test_conversion import made

import hrnet_jax
from convert import folders, readers
from convert.__main__ import main
from convert.files import Written
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import beside
from hrnet_jax.models import create_model

NAMES = ['zebra', 'ant', 'cow', 'bee', 'dog', 'elk', 'fox', 'gnu', 'hen', 'ibis']
TRANSFORM = hrnet_jax.Transform(40, 32, 'bicubic', (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))

TINY = made()


def saved(folder, arch, classes, **more):
    """A checkpoint of rule-made weights that knows its classes and its transform."""
    from convert import from_torch

    variables = from_torch(made(arch=arch, classes=classes))[1]
    meta = {
        **checkpoint.describe(create_model(arch, classes)),
        'transform': TRANSFORM.to_json(),
        'published': None,
        'class_names': NAMES[:classes],
        'source': {'file': None, 'origin': 'test', 'sha256': None},
    }
    checkpoint.save(folder, variables, meta | more)


@pytest.fixture(scope='module')
def tiny_checkpoint(once):
    """For several labels an image."""
    return once('beside_tiny', lambda folder: saved(folder, 'tiny', 10, task='multilabel'))


@pytest.fixture(scope='module')
def timm_checkpoint(once):
    """Of an architecture that timm has."""
    return once('beside_timm', lambda folder: saved(folder, 'w18_small_v1', 4))


@pytest.fixture(scope='module')
def tiny_file(tiny_checkpoint, tmp_path_factory):
    """A PyTorch file, and what lies beside it."""
    meta = checkpoint.read_json(tiny_checkpoint)
    file = tmp_path_factory.mktemp('file') / 'a.safetensors'
    Written(file, 'timm', meta).write(*hrnet_jax.load(tiny_checkpoint))
    return file, json.loads(beside.place(file).read_text())


@pytest.mark.parametrize('layout', ['official', 'timm', 'mmpretrain'])
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_there_and_back(tiny_checkpoint, command, tmp_path, layout, ending):
    file = tmp_path / f'tiny{ending}'
    code, out, err = command(main, tiny_checkpoint, '--to', layout, '--out', file)
    assert code == 0, err
    assert '10 classes, in this order: zebra, ant, cow, bee, dog and 5 more\n' in out
    assert f'beside it tiny{ending}.json\n' in out
    content = json.loads((tmp_path / f'tiny{ending}.json').read_text())
    assert content['class_names'] == NAMES
    assert content['arch']['name'] == 'tiny'
    assert (content['task'], content['layout']) == ('multilabel', layout)
    assert content['sha256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert hrnet_jax.Transform.from_json(content['transform']) == TRANSFORM

    code, out, err = command(main, file, '--out', tmp_path / 'back')
    assert code == 0, err
    assert f'10 classes, {layout} layout\n' in out
    assert 'in this order: zebra, ant' in out
    assert f'note: task, class names, transform, layout: taken from {file.name}.json\n' in out
    assert 'images are taken to be' not in out
    before, after = (checkpoint.read_json(f) for f in (tiny_checkpoint, tmp_path / 'back' / 'tiny'))
    for field in ('task', 'class_names', 'transform', 'arrays'):
        assert before[field] == after[field]

    names = tmp_path / 'names.txt'
    names.write_text('\n'.join(reversed(NAMES)))
    flags = ('--class-names', names, '--crop', 64, '--task', 'classification', '--force')
    assert command(main, file, '--out', tmp_path / 'back', *flags)[0] == 0
    changed = checkpoint.read_json(tmp_path / 'back' / 'tiny')
    assert changed['class_names'] == NAMES[::-1]
    assert (changed['transform']['crop'], changed['transform']['resize']) == (64, 80)
    assert changed['task'] == 'classification'


def test_without_it_or_with_that_of_another_file(tiny_checkpoint, command, refused, tmp_path):
    """Its absence shows; wrong names are worse than none."""
    file = tmp_path / 'a.safetensors'
    command(main, tiny_checkpoint, '--to', 'timm', '--out', file)
    alone = shutil.copy(file, tmp_path / 'alone.safetensors')
    state = {k: torch.from_numpy(np.array(v)) for k, v in made().items()}
    torch.save(state, tmp_path / 'other.pth')
    shutil.copy(f'{file}.json', tmp_path / 'other.pth.json')
    (tmp_path / 'third.pth').write_bytes((tmp_path / 'other.pth').read_bytes())
    (tmp_path / 'third.pth.json').write_text('[1, 2')
    for source, note in (
        (alone, None),
        (tmp_path / 'other.pth', 'other.pth.json: other.pth has changed since'),
        (tmp_path / 'third.pth', 'third.pth.json: it is not of this program'),
    ):
        if note and 'changed' in note:
            line = refused(main, source, '--out', tmp_path / 'out', '--force')
            assert 'is damaged or was changed since other.pth.json was written' in line
        flags = ('--force', '--ignore-digest')
        code, out, err = command(main, source, '--out', tmp_path / 'out', *flags)
        assert code == 0, err
        assert '10 classes, official or timm layout\n' in out
        assert 'images are taken to be' in out
        assert (f'note: nothing is taken from {note}\n' in out) == bool(note)
        meta = checkpoint.read_json(tmp_path / 'out' / 'tiny')
        assert (meta['class_names'], meta['task']) == (None, 'classification')


@pytest.mark.parametrize(
    ('change', 'note'),
    [
        ({'class_names': NAMES[:9]}, 'it has 9 class names, the file has 10 classes'),
        ({'class_names': 5}, 'class_names is 5'),
        ({'class_names': [*range(10)]}, 'class_names is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]'),
        ({'transform': [1]}, 'transform is [1]'),
        (
            {'transform': {'crop': '224'}},
            "transform: crop must be a whole number above 0, not '224'",
        ),
        ({'task': 3}, 'task is 3'),
        ({'layout': None}, 'layout is None'),
        ({'published': 'w18'}, "published is 'w18'"),
        ({'published': {'name': 18}}, "published is {'name': 18}"),
    ],
)
def test_nothing_is_taken_of_what_cannot_be(tiny_file, change, note):
    file, content = tiny_file
    beside.place(file).write_text(json.dumps(content | change))
    found = folders.read(str(file))
    assert found.told == {}
    assert found.notes == (f'nothing is taken from {file.name}.json: {note}',)
    assert folders.describe(found)['task'] == 'classification'


def test_nothing_is_overwritten_unasked(tiny_checkpoint, refused, tmp_path):
    out = tmp_path / 'a.safetensors'
    (tmp_path / 'a.safetensors.json').write_text('mine')
    assert 'a.safetensors.json exists' in refused(
        main, tiny_checkpoint, '--to', 'timm', '--out', out
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (
            (),
            'images are taken to be resized to 256 and cropped to 224 pixels and normalised as for '
            'ImageNet; else say --resize --crop --mean --std',
        ),
        (
            ('--resize', '40', '--crop', '32'),
            'images are taken to be normalised as for ImageNet; else say --mean --std',
        ),
        (
            ('--mean', '0.5', '0.5', '0.5'),
            'images are taken to be resized to 256 and cropped to 224 pixels as for ImageNet; else '
            'say --resize --crop',
        ),
        (('--crop', '32', '--std', '1', '1', '0.5'), None),
    ],
)
def test_only_what_is_taken_for_granted_is_said(flags, said, command, tmp_path):
    torch.save({k: torch.from_numpy(v.copy()) for k, v in TINY.items()}, tmp_path / 'a.pth')
    code, out, err = command(main, tmp_path / 'a.pth', '--out', tmp_path, *flags)
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith('note')] == (
        [f'note: {said}'] * bool(said)
    )
    transform = checkpoint.read_json(tmp_path / 'tiny')['transform']
    expected = hrnet_jax.Transform()
    if '--mean' in flags:
        assert transform['mean'] == [0.5, 0.5, 0.5]
    assert transform['std'] == ([1.0, 1.0, 0.5] if '--std' in flags else list(expected.std))


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (('--mean', '0.5', '0.5'), '--mean: expected 3 arguments'),
        (('--std', '1', '0', '1'), 'std must be above 0'),
        (('--to', 'timm', '--std', '1', '1', '1'), '--std cannot be combined with --to'),
    ],
)
def test_numbers_that_are_refused(flags, said, refused, tmp_path):
    assert said in refused(main, tmp_path / 'a.pth', '--out', tmp_path / 'out', *flags)


def test_a_folder_for_timm(timm_checkpoint, command, refused, tmp_path, monkeypatch):
    folder = tmp_path / 'net'
    file, config = folder / 'model.safetensors', folder / 'config.json'
    code, out, err = command(main, timm_checkpoint, '--to', 'timm', '--out', file)
    assert code == 0, err
    assert 'beside it model.safetensors.json and config.json\n' in out
    content = json.loads(config.read_text())
    assert (content['architecture'], content['label_names']) == ('hrnet_w18_small', NAMES[:4])
    assert 'exists' in refused(main, timm_checkpoint, '--to', 'timm', '--out', folder / 'b.pth')

    (folder / 'model.safetensors.json').unlink()  # as timm writes one
    found = folders.read(str(file))
    assert (found.layouts, found.told['class_names']) == (['timm'], NAMES[:4])
    assert found.transform == TRANSFORM
    assert 'class names, transform, layout: taken from config.json' in found.notes
    meta = folders.describe(found)
    assert (meta['class_names'], meta['source']['layout']) == (NAMES[:4], 'timm')

    # As of the hub, where it is downloaded beside the weights.
    elsewhere = tmp_path / 'abc' / 'model.safetensors'
    elsewhere.parent.mkdir()
    shutil.copy(file, elsewhere)
    asked = []
    monkeypatch.setattr(readers, 'download', lambda *_: elsewhere)
    monkeypatch.setattr(folders, 'download', lambda *given: asked.append(given) or config)
    assert folders.read('hf:me/net').told['class_names'] == NAMES[:4]
    assert asked == [('hf:me/net@abc', ('config.json',), False)]

    config.write_text(json.dumps(content | {'num_classes': 5}))
    found = folders.read(str(file))
    assert found.told == {}
    assert 'nothing is taken from config.json: it is of another model' in found.notes
    config.write_text('{"recipe": "official"}')  # of a training folder
    code, out, err = command(main, timm_checkpoint, '--to', 'timm', '--out', file, '--force')
    assert code == 0, err
    assert 'config.json is not of timm and stays' in out
    assert config.read_text() == '{"recipe": "official"}'


@pytest.mark.parametrize(
    ('weights', 'ema', 'expected'),
    [
        (None, {'a': 1}, 'step 7 of the run, averaged weights'),
        ('raw', {'a': 1}, 'step 7 of the run'),
        (None, None, 'step 7 of the run'),
    ],
)
def test_the_step_is_named(weights, ema, expected):
    meta = {'training': {'step': 7}, 'ema': ema, 'num_classes': 3, 'class_names': None}
    assert beside.lines(meta, weights) == [expected, '3 classes, without names']
