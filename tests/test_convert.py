"""`python -m convert`: what it writes, what it says, what it refuses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from test_conversion import made

import hrnet_jax
from convert import from_torch
from convert.__main__ import main
from convert.reference import HRNet
from hrnet_jax import checkpoint
from hrnet_jax.archs import ARCHS
from hrnet_jax.checkpoints import published
from hrnet_jax.checkpoints.published import Published, all_published, expected, find_published

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / 'examples' / 'tiny_digits.pth'
PROMISE = 'its name promises a sha256 of '


def save(path, state, **options):
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, path, **options)
    return path


@pytest.fixture
def source(tmp_path):
    return save(tmp_path / 'tiny.pth', made())


def test_converts_loads_and_describes(command, tmp_path):
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join('abcdefghij'))
    options = ('--resize', 32, '--crop', 32, '--class-names', names, '--verify')
    code, out, _ = command(main, DIGITS, '--out', tmp_path / 'c', *options)
    assert code == 0
    assert 'logits' in out
    assert 'tiny, 10 classes, official or timm layout' in out
    meta = json.loads((tmp_path / 'c' / 'tiny' / 'checkpoint.json').read_text())
    assert meta['transform']['crop'] == 32
    assert meta['class_names'] == list('abcdefghij')
    assert meta['published'] is None
    assert meta['source']['sha256'] == hashlib.sha256(DIGITS.read_bytes()).hexdigest()
    assert meta['source'] | {'container': 'state_dict', 'head_bias': True} == meta['source']

    _, again, _ = command(main, DIGITS, '--out', tmp_path / 'd')
    assert 'resized to 256 and cropped to 224 pixels and normalised as for ImageNet' in again
    assert 'images are taken to be normalised as for ImageNet; else say --mean --std' in out

    model, variables = hrnet_jax.load(tmp_path / 'c', arch='tiny')
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(DIGITS)[1])
    assert model.num_classes == 10
    assert sorted(p.name for p in (tmp_path / 'c').iterdir()) == ['tiny']


@pytest.mark.parametrize('layout', ['official', 'timm', 'mmpretrain'])
@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_there_and_back(command, tmp_path, source, layout, ending):
    assert command(main, source, '--out', tmp_path / 'a')[0] == 0
    file = tmp_path / f'back{ending}'
    assert command(main, tmp_path / 'a' / 'tiny', '--to', layout, '--out', file)[0] == 0
    assert command(main, file, '--out', tmp_path / 'b', '--name', 'again')[0] == 0
    both = [hrnet_jax.load(tmp_path / name)[1] for name in ('a', 'b')]
    jax.tree.map(np.testing.assert_array_equal, *both)
    if ending == '.pth' and layout != 'mmpretrain':
        HRNet(ARCHS['tiny'], 10).load_state_dict(torch.load(file, weights_only=True), strict=True)


def test_a_file_without_head_biases_comes_back_without(command, tmp_path):
    state = {k: v for k, v in made().items() if not (k.endswith('.0.bias') and v.ndim == 1)}
    save(tmp_path / 'bare.pth', state)
    command(main, tmp_path / 'bare.pth', '--out', tmp_path / 'a')
    command(main, tmp_path / 'a' / 'tiny', '--to', 'timm', '--out', tmp_path / 'back.pth')
    back = torch.load(tmp_path / 'back.pth', weights_only=True)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[k].numpy(), state[k]) for k in state)


def test_published_table():
    from_page = {'w18': (76.75, 93.44), 'w64': (79.46, 94.65), 'w48_ssld': (83.63, 96.79)}
    for name, figures in from_page.items():
        entry = all_published()[name]
        accuracy = dict(zip(('top1', 'top5'), figures, strict=True))
        assert entry.results[entry.transform] == {'imagenet2012': {'validation': accuracy}}
    classifiers = [n for n, entry in all_published().items() if entry.task == 'classification']
    assert len([n for n in classifiers if '.' not in n]) == 9
    assert len([n for n in classifiers if '.' in n]) == 14
    ssld = find_published(None, 'hf:timm/hrnet_w18_ssld.paddle_in1k@main')
    assert ssld is not None
    large = dataclasses.replace(ssld.transform, resize=288, crop=288)
    other, first = dataclasses.replace(large, resize=300), {'top1': 81.114, 'top5': 95.638}
    for transform, dataset, split, accuracy in (
        (ssld.transform, 'imagenet2012', 'validation', first),
        (ssld.transform, 'imagenet2012', 'validation[:100%]', first),
        (ssld.transform, 'imagenet2012', 'train', {}),
        (large, 'imagenet2012', 'validation', {'top1': 82.052, 'top5': 96.25}),
        (large, 'imagenet_a', 'test', {'top1': 23.24, 'top5': 55.067}),
        (other, 'imagenet_a', 'test', {}),
    ):
        assert expected({'published': ssld.to_json()}, transform, dataset, split) == accuracy
    assert expected({'published': None}, large, 'imagenet_a', 'test') == {}
    for file, name in {
        '/x/hrnet-w64_3rdparty_8xb32_in1k_20220120-19126642.pth': 'w64',
        'hrnetv2_w18-8cb57bb9.pth': 'w18.ms_in1k',
        'HRNet_W18_C_ssld_pretrained.pth': 'w18_ssld',
        'hrnet_w18.pth': None,
    }.items():
        found = find_published(None, file)
        assert (found.name if found else None) == name
    assert find_published('hrnet_w18.ms_in1k', 'a.pth') is all_published()['w18.ms_in1k']
    assert find_published('mine', 'hrnetv2_w18-8cb57bb9.pth') is all_published()['w18.ms_in1k']
    assert find_published('w18', 'hrnetv2_w18-8cb57bb9.pth') is all_published()['w18']
    assert find_published('mine', 'own.pth') is None
    assert all(entry.arch in ARCHS for entry in all_published().values())


def test_a_published_name_is_recorded(command, tmp_path):
    state = made(classes=1000, arch='w18_small_v1')
    file = save(tmp_path / 'hrnet_w18_small_model_v1.pth', state)
    code, out, _ = command(main, file, '--out', tmp_path / 'c')
    assert code == 0
    assert '72.34 % top-1' in out
    assert checkpoint.find(tmp_path / 'c', 'w18_small_v1').name == 'w18_small_v1'
    meta = checkpoint.read_json(tmp_path / 'c' / 'w18_small_v1')
    assert meta['published']['name'] == 'w18_small.ms_in1k'
    for name in ('w18_small.gluon_in1k', 'w18_small.ms_in1k'):
        command(main, file, '--out', tmp_path / 'n', '--name', name)
    meta = checkpoint.read_json(tmp_path / 'n' / 'w18_small.gluon_in1k')
    assert meta['transform']['interpolation'] == 'bicubic'
    accuracy = meta['published']['results'][0]['accuracy']['imagenet2012']
    assert accuracy == {'validation': {'top1': 73.934, 'top5': 91.178}}
    accuracy = meta['published']['results'][0]['accuracy'] = {'imagenet2012': [73.9, 91.2]}
    transform = hrnet_jax.Transform.from_json(meta['transform'])
    found = expected(meta, transform, 'imagenet2012', 'validation')  # of the first release
    assert found == {'top1': 73.9, 'top5': 91.2}
    with pytest.raises(hrnet_jax.UserError, match='several'):
        checkpoint.find(tmp_path / 'n', 'w18_small_v1')
    _, out, _ = command(main, save(tmp_path / 'own.pth', state), '--out', tmp_path / 'd')
    assert '--name w18_small.gluon_in1k|w18_small.ms_in1k' in out


def test_a_published_name_of_another_task(command, tmp_path, monkeypatch):
    """The number of classes, the figures and the task are those of the table's line."""
    transform = hrnet_jax.Transform(32, 32)
    results = {transform: {'digits': {'test': {'map': 97.5}}}}
    entry = Published('scans', 'tiny', 10, results, task='multilabel')
    monkeypatch.setitem(all_published(), 'scans', entry)
    _, out, _ = command(main, DIGITS, '--out', tmp_path)
    assert 'if it is one, say --name scans\n' in out
    code, out, err = command(main, DIGITS, '--out', tmp_path, '--name', 'scans')
    assert code == 0, err
    assert out.endswith(', published as 97.5 % mAP on digits\n')
    assert checkpoint.read_json(tmp_path / 'scans')['task'] == 'multilabel'


def test_lines_of_the_table_of_figures(monkeypatch):
    """Not each figure of a task, and several splits; but one value."""
    rows = {name: list(published._rows(name)) for name in ('published.csv', 'results.csv')}
    first = rows['results.csv'][0] | {'split': 'train', 'value': '99'}
    rows['results.csv'].append(first)
    monkeypatch.setattr(published, '_rows', rows.get)
    entry = published.all_published.__wrapped__()['w18']
    accuracy = entry.results[entry.transform]['imagenet2012']
    assert accuracy == {'validation': {'top1': 76.75, 'top5': 93.44}, 'train': {'top1': 99}}
    rows['results.csv'].append(first | {'source': 'another'})
    with pytest.raises(ValueError, match=r'two figures for top1 of w18, .*, imagenet2012, train'):
        published.all_published.__wrapped__()


def wrong_variant(path):
    state = made(arch='w18_small_v1', classes=4)
    for key in [k for k in state if k.startswith('stage4.0.branches.2')]:
        del state[key]
    save(path, state)


def flipped(path):
    save(path, made())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


class Evil:
    def __reduce__(self):
        import os

        return os.system, (f'touch {Evil.canary}',)


def cut(path, **options):
    save(path, made(), **options)
    path.write_bytes(path.read_bytes()[:-5000])


def with_nan(path):
    state = made()
    state['classifier.weight'][3, 3] = np.nan
    save(path, state)


BAD = {
    'empty': lambda p: p.write_bytes(b''),
    'html': lambda p: p.write_text('<!DOCTYPE html><html><body>Not found</body></html>'),
    'lfs': lambda p: p.write_text(
        'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'
    ),
    'text': lambda p: p.write_text('hello'),
    'malicious': lambda p: p.write_bytes(pickle.dumps(Evil())),
    'malicious zip': lambda p: torch.save({'state_dict': Evil()}, p),
    'module': lambda p: torch.save(HRNet(ARCHS['tiny'], 10), p),
    'truncated zip': cut,
    'truncated legacy': lambda p: cut(p, _use_new_zipfile_serialization=False),
    'flipped bit': flipped,
    'other model': lambda p: save(p, {'fc.weight': np.zeros((3, 4)), 'fc.bias': np.zeros(3)}),
    'wrong variant': wrong_variant,
    'nan': with_nan,
    'folder': lambda p: p.mkdir(),
    'missing': lambda p: None,
}


@pytest.mark.parametrize('case', BAD)
def test_bad_files(refused, tmp_path, case):
    Evil.canary = tmp_path / 'canary'
    path = tmp_path / 'bad.pth'
    BAD[case](path)
    assert 'bad.pth' in refused(main, path, '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert not Evil.canary.exists()


def test_hash_in_the_name(command, refused, tmp_path, source):
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    good = source.rename(tmp_path / f'hrnet-{digest[:8]}.pth')
    assert command(main, good, '--out', tmp_path / 'a')[0] == 0
    other = good.rename(tmp_path / 'hrnet-0c10b180.pth')
    _, text, _ = command(main, other, '--out', tmp_path / 'b')
    assert f'note: perhaps another file than its name says: {PROMISE}0c10b180...' in text
    wrong = other.rename(tmp_path / 'hrnetv2_w18-8cb57bb9.pth')
    text = refused(main, wrong, '--out', tmp_path / 'c')
    assert f'is damaged or renamed: {PROMISE}8cb57bb9..., its content has {digest[:8]}' in text
    assert not (tmp_path / 'c').exists()
    code, text, _ = command(main, wrong, '--out', tmp_path / 'c', '--ignore-digest')
    assert code == 0
    assert f'note: perhaps another file than its name says: {PROMISE}8cb57bb9...' in text


def test_wrong_arguments(command, refused, tmp_path, source):
    out = tmp_path / 'out'
    short = tmp_path / 'short.txt'
    short.write_text('a\nb\n')
    for arguments, part in (
        ((source,), '--out'),
        ((source, '--out', out, '--arch', 'w99'), 'w18_small_v1'),
        ((source, '--out', out, '--arch', 'hrnet_w18'), "'hrnet_w18'; perhaps w18; known: tiny, "),
        ((source, '--out', out, '--weights', 'ema'), 'the file holds no averaged weights'),
        ((source, '--out', out, '--prefix', 'x'), '--prefix x: the networks begin with no prefix'),
        (('timm/w18', '--out', out), 'does not exist; if it is a repository of the Hugging Face'),
        ((source, '--out', out, '--arch', 'w18'), 'holds tiny, not w18'),
        (
            (source, '--out', out, '--name', 'w18_ssld'),
            'published classifier w18 with 1000 classes',
        ),
        ((source, '--out', out, '--name', '../x'), 'plain name'),
        ((source, '--out', out, '--class-names', short), '2 names'),
        ((source, '--out', out, '--class-names', tmp_path / 'none'), 'none'),
        ((source, '--out', out, '--crop', '-1'), 'crop'),
        ((source, '--out', out, '--to', 'timm'), 'not a converted checkpoint'),
        ((source, '--out', out, '--nonsense'), '--nonsense'),
        ((source, '--out', out, '--resize', 0), 'resize'),
        ((source, '--out', out, '--crop', 100), 'multiple of 32'),
        ((source, '--out', out, '--name', 'w18'), 'w18'),
        ((source, '--out', out, '--name', 'w48'), 'w48'),
        (('', '--out', out), 'is empty'),
        (('hf:nothing', '--out', out), 'hf:OWNER/REPO'),
    ):
        assert part in refused(main, *arguments)
        assert not out.exists()
    assert command(main, source, '--out', out)[0] == 0
    assert 'exists' in refused(main, source, '--out', out)
    assert 'converted already' in refused(main, out / 'tiny', '--out', tmp_path / 'o2')
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'run' / 'config.json').write_text('{}')
    assert '--to LAYOUT' in refused(main, tmp_path / 'run', '--out', tmp_path / 'o2')
    assert '.pth or .safetensors' in refused(
        main, out / 'tiny', '--to', 'timm', '--out', tmp_path / 'x.bin'
    )
    assert '--name' in refused(
        main, out / 'tiny', '--to', 'timm', '--out', tmp_path / 'x.pth', '--name', 'x'
    )
    assert 'tiny, not w18' in refused(
        main, out / 'tiny', '--to', 'timm', '--out', tmp_path / 'x.pth', '--arch', 'w18'
    )
    (tmp_path / 'y.pth').write_text('keep')
    assert 'exists' in refused(main, out / 'tiny', '--to', 'timm', '--out', tmp_path / 'y.pth')
    assert (tmp_path / 'y.pth').read_text() == 'keep'
    assert command(main, source, '--out', out, '--force')[0] == 0
    assert 'cannot write' in refused(main, source, '--out', source)


def test_nothing_is_left_when_writing_fails(refused, tmp_path, source, monkeypatch):
    import orbax.checkpoint as ocp

    def fail(self, directory, *args, **kwargs):
        directory.mkdir()
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(ocp.Checkpointer, 'save', fail)
    assert 'No space left' in refused(main, source, '--out', tmp_path / 'out')
    assert list((tmp_path / 'out').iterdir()) == []


def test_nothing_is_left_after_an_interrupt(command, tmp_path, source, monkeypatch):
    import orbax.checkpoint as ocp

    real = ocp.Checkpointer.save

    def interrupted(self, directory, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        real(self, directory, *args, **kwargs)
        assert any(directory.iterdir())

    monkeypatch.setattr(ocp.Checkpointer, 'save', interrupted)
    code, _, err = command(main, source, '--out', tmp_path / 'out')
    assert (code, err) == (130, '')
    assert list((tmp_path / 'out').iterdir()) == []


def test_as_a_module_from_another_folder(tmp_path, source):
    done = subprocess.run(
        [sys.executable, '-m', 'convert', source, '--out', tmp_path / 'o'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ''
    assert (tmp_path / 'o' / 'tiny' / 'checkpoint.json').is_file()
