"""`load('hf:OWNER/REPO')` and `push_to_hub`: the real client, and a hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import hub
import jax
import numpy as np
import pytest

import eval as eval_command
import hrnet_jax
import predict as predict_command
from convert import __main__ as convert
from convert import from_torch
from hrnet_jax import checkpoint
from hrnet_jax.commands import export, visualize
from hrnet_jax.tasks.classification import Classification
from hrnet_jax.weights import hub_cache

DIGITS = hub.ROOT / 'examples' / 'tiny_digits.pth'
# Each argument is one step; prints what each gave, arrays as their digests.
SCRIPT = """
import json, sys
import hrnet_jax
assert 'huggingface_hub' not in sys.modules and 'convert' not in sys.modules
answers = []
for kind, *arguments in map(json.loads, sys.argv[1:]):
    try:
        if kind == 'load':
            model, variables = hrnet_jax.load(*arguments)
            answers.append([model.arch.name, hrnet_jax.checkpoint.entries(variables)])
        elif kind == 'without':
            sys.modules[arguments[0]] = None
        else:
            source, repository, options = arguments
            answers.append(hrnet_jax.push_to_hub(source, repository, **options))
    except hrnet_jax.UserError as error:
        answers.append(f'UserError: {error}')
print(json.dumps(answers))
"""


def run(tmp_path, endpoint, *steps, **env):
    return json.loads(hub.run(SCRIPT, tmp_path, endpoint, *map(json.dumps, steps), **env))


def entries(variables):
    return json.loads(json.dumps(checkpoint.entries(variables)))


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """The digits checkpoint, converted; its variables."""
    folder = tmp_path_factory.mktemp('converted') / 'tiny'
    variables = from_torch(DIGITS)[1]
    meta = checkpoint.describe(hrnet_jax.create_model('tiny', 10)) | {
        'transform': hrnet_jax.Transform(32, 32).to_json(),
        'published': None,
        'class_names': list('abcdefghij'),
        'source': {'file': 'tiny_digits.pth', 'origin': 'tiny_digits.pth', 'sha256': '0'},
    }
    checkpoint.save(folder, variables, meta)
    return folder, variables


def test_pytorch_weights_are_converted_once(tmp_path):
    files = {('timm/digits', 'main', 'pytorch_model.bin'): DIGITS.read_bytes()}
    files['timm/other', 'main', 'model.safetensors'] = b'\x02\0\0\0\0\0\0\0{}'
    expected = ['tiny', entries(from_torch(DIGITS)[1])]
    steps = (['load', 'hf:timm/digits'], ['load', 'hf:timm/absent'], ['load', 'hf:timm/other'])
    with hub.serve(files) as (endpoint, asked):
        without = run(tmp_path, endpoint, ['without', 'convert'], steps[0])
        found, absent, other = run(tmp_path, endpoint, *steps)
        before = len(asked)
        again = run(tmp_path, endpoint, steps[0], ['load', 'hf:timm/digits', 'w18'])
        assert len(asked) == before
    assert found == again[0] == expected
    assert again[1].endswith('is a checkpoint of tiny, not w18')
    assert without[0].startswith('UserError: hf:timm/digits holds no checkpoint of hrnet_jax')
    assert "pip install 'hrnet_jax[convert,hub]'" in without[0]
    assert absent.startswith('UserError: hf:timm/absent cannot be downloaded: no such repository')
    assert other.startswith('UserError: hf:timm/other holds no tensors')
    folder = tmp_path / 'cache' / 'hrnet_jax' / 'checkpoints'
    assert [p.name for p in folder.iterdir()] == ['timm%2Fdigits@main']  # and nothing half-made
    meta = checkpoint.read_json(folder / 'timm%2Fdigits@main')
    assert meta['source']['origin'] == 'hf:timm/digits'
    # Nobody answers any more.
    assert run(tmp_path, endpoint, steps[0]) == [expected]


def test_push_and_load(converted, tmp_path):
    folder, variables = converted
    push, load = ['push', str(folder), 'me/digits', {}], ['load', 'hf:me/digits']
    files: dict = {}
    with hub.serve(files) as (endpoint, asked):
        refused = run(tmp_path, endpoint, push)
        assert not files
        url, found = run(tmp_path, endpoint, push, load, HF_TOKEN=hub.TOKEN)
        meta = checkpoint.read_json(next(tmp_path.rglob('checkpoints/*')))
        assert meta == checkpoint.read_json(folder)  # names, transform, digests
        # A second push is what is loaded then.
        names = [str(i) for i in range(10)]
        options = {'class_names': names, 'message': 'digits'}
        run(tmp_path, endpoint, [*push[:3], options], load, HF_TOKEN=hub.TOKEN)
        renamed = checkpoint.read_json(next(tmp_path.rglob('checkpoints/*')))
        assert renamed['class_names'] == names
        assert renamed['arrays'] == meta['arrays']
    assert refused == ['UserError: me/digits cannot be pushed: run `hf auth login` first']
    assert url.startswith(f'{endpoint}/me/digits/commit/')
    assert found == ['tiny', entries(variables)]
    assert {key[2] for key in files} == {'.gitattributes', *('model.safetensors', checkpoint.JSON)}
    assert ('me/digits', 'main', 'pytorch_model.bin') not in asked


def test_damage_is_found(converted, tmp_path):
    files: dict = {}
    push, load = ['push', str(converted[0]), 'me/digits', {}], ['load', 'hf:me/digits']
    with hub.serve(files) as (endpoint, _):
        run(tmp_path, endpoint, push, HF_TOKEN=hub.TOKEN)
        data = bytearray(files['me/digits', 'main', 'model.safetensors'])
        data[-1] ^= 1
        for name, content in (
            ('flipped', data), ('cut', data[:-8]), ('without', None),
        ):  # fmt: skip
            described = files['me/digits', 'main', checkpoint.JSON]
            files[f'me/{name}', 'main', checkpoint.JSON] = described
            if content is not None:
                files[f'me/{name}', 'main', 'model.safetensors'] = bytes(content)
        files['me/edited', 'main', checkpoint.JSON] = described.replace(b'"a"', b'"b"')
        names = ('flipped', 'cut', 'without', 'edited')
        damaged = (['load', f'hf:me/{name}'] for name in names)
        flipped, cut, without, edited, whole = run(tmp_path, endpoint, *damaged, load)
    assert whole[0] == 'tiny'
    assert flipped.startswith('UserError: hf:me/flipped is damaged: ')
    assert 'do not match their digests' in flipped
    assert cut.startswith('UserError: hf:me/cut is damaged (')
    assert without.endswith('the repository has no model.safetensors')
    assert 'was edited: its digest differs' in edited


def test_push_of_a_model_in_memory(converted, monkeypatch, tmp_path):
    """What is uploaded, and what is refused before anything is; what was in the cache goes."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    old = [hub_cache.place_of('me/net', 'v1', weights) for weights in (None, 'ema', 'raw')]
    other = hub_cache.place_of('me/net', None)
    for place in (*old, other):
        place.mkdir(parents=True)
    sent = {}

    def create_commit(repository, operations, revision=None, **options):
        sent['revision'] = revision
        for one in operations:
            sent[one.path_in_repo] = Path(one.path_or_fileobj).read_bytes()
        return type('Commit', (), {'commit_url': f'https://hub/{repository}'})

    monkeypatch.setattr('huggingface_hub.create_repo', lambda *_, **__: None)
    monkeypatch.setattr('huggingface_hub.create_commit', create_commit)
    model, variables = hrnet_jax.create_model('tiny', 10), converted[1]
    halves = jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.bfloat16), variables)
    small = hrnet_jax.Transform(32, 32)
    url = hrnet_jax.push_to_hub((model, halves), 'me/net@v1', transform=small)
    assert url == 'https://hub/me/net'
    assert list(other.parent.iterdir()) == [other]
    assert sent['revision'] == 'v1'
    meta = json.loads(sent[checkpoint.JSON])
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float32), halves)
    assert meta['arrays'] == entries(rounded)
    assert meta['transform'] == small.to_json()
    names = np.array(list('abcdefghij'))
    hrnet_jax.push_to_hub((model, variables), 'me/net', class_names=names)
    assert json.loads(sent[checkpoint.JSON])['class_names'] == names.tolist()
    assert json.loads(sent[checkpoint.JSON])['transform'] == hrnet_jax.Transform().to_json()
    small_task = type('Small', (Classification,), {'name': 'small', 'recipes': {}})()
    small_task.protocol = lambda: small
    monkeypatch.setattr('hrnet_jax.tasks._REGISTERED', {'small': small_task})
    hrnet_jax.push_to_hub((model.clone(task='small'), variables), 'me/net')
    assert json.loads(sent[checkpoint.JSON])['transform'] == small.to_json()
    backbone = hrnet_jax.HRNet('tiny', upsample='bilinear', align_corners=True)
    own = {k: v['backbone'] for k, v in variables.items()}
    hrnet_jax.push_to_hub((backbone, own), 'me/backbone')
    meta = json.loads(sent[checkpoint.JSON])
    assert (meta['task'], meta['class_names']) == ('backbone', None)
    again = checkpoint.model_of(meta)
    assert (again.outputs, again.upsample, again.align_corners) == (4, 'bilinear', True)
    sent.clear()
    for source, options, reason in (
        ((hrnet_jax.create_model('tiny', 9), variables), {}, 'params/head/classifier/bias'),
        ((model, variables), {'class_names': ['a']}, '1 class names for 10 classes'),
        ((model, variables['params']), {}, 'the variables are not of this model'),
        (tuple(vars(hrnet_jax.fold(model, variables)).values()), {}, 'folded'),
        ((model.clone(upsample='bilinear'), variables), {}, 'does not say upsample, which'),
        ((model, variables), {'revision': 'v2'}, "v1, and revision says 'v2': leave one out"),
        ((hrnet_jax.FeatureMaps('tiny'), variables), {}, 'FeatureMaps does not say what it is'),
    ):
        with pytest.raises(hrnet_jax.UserError, match=reason):
            hrnet_jax.push_to_hub(source, 'me/net@v1', **options)
    with pytest.raises(hrnet_jax.UserError, match='is no repository'):
        hrnet_jax.push_to_hub((model, variables), 'net')
    assert not sent


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    """Then the cache alone, for PyTorch's files too."""
    import huggingface_hub

    asked = []

    def download(repository, name, revision, local_files_only):
        asked.append((name, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError('no')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    with pytest.raises(hrnet_jax.UserError, match='^hf:a/b cannot be downloaded: the hub cannot'):
        hrnet_jax.load('hf:a/b')
    assert asked[0] == (checkpoint.JSON, False)
    assert [local for _, local in asked[1:]] == [True, True]


def test_every_command_asks_for_the_weights(command, monkeypatch, tmp_path):
    """A repository may have averaged weights and others: each are a folder of their own."""
    asked = []

    def fetch(origin, weights=None):
        asked.append(weights)
        raise hrnet_jax.UserError('stop')

    monkeypatch.setattr(hub_cache, 'fetch', fetch)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    flags = ('--ckpt', 'hf:a/b', '--weights', 'raw')
    for main, *arguments in (
        (eval_command.main, *flags),
        (predict_command.main, 'a.png', *flags),
        (export.main, '--out', tmp_path / 'a.stablehlo', *flags),
        (visualize.main, 'a.png', '--out', tmp_path / 'a.png', *flags),
        (convert.main, 'hf:a/b', '--to', 'timm', '--out', tmp_path / 'a.pth', *flags[2:]),
    ):
        before = len(asked)
        assert command(main, *arguments)[0] == 2
        assert len(asked) > before
    with pytest.raises(hrnet_jax.UserError, match='stop'):
        hrnet_jax.push_to_hub('hf:a/b', 'me/net', weights='raw')
    assert set(asked) == {'raw'}
