"""Converted checkpoints on disk: damage is noticed, the right one is found."""

from __future__ import annotations

import json
import os
import shutil
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import hrnet_jax
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints.description import _digest as digest
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.tasks import classification


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    model = create_model('tiny', 10)
    variables = init(model, jax.random.key(3))
    folder = tmp_path_factory.mktemp('written') / 'mine'
    checkpoint.save(folder, variables, checkpoint.describe(model))
    return folder, variables


def rewrite(folder, meta):
    """As another program might write it: the content changed, the digest right."""
    meta.pop('digest')
    meta['digest'] = digest(meta)
    (folder / 'checkpoint.json').write_text(json.dumps(meta))


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / 'mine')


def test_found_by_folder_name_and_architecture(written):
    folder, variables = written
    for path, arch in (
        (folder, None),
        (folder, 'tiny'),
        (folder.parent, None),
        (folder.parent, 'tiny'),
    ):
        model, loaded = hrnet_jax.load(path, arch=arch)
        assert (model.arch.name, model.num_classes) == ('tiny', 10)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    for path, arch, message in (
        (folder, 'w18', 'checkpoint of tiny, not w18'),
        (folder.parent, 'w18', 'no checkpoint of w18; it holds mine'),
        (folder / 'nowhere', None, 'does not exist; python -m convert writes one$'),
        ('timm/hrnet_w18.ms_in1k', None, 'write hf:timm/hrnet_w18.ms_in1k$'),
        (folder / 'arrays', None, 'holds no converted checkpoint'),
    ):
        with pytest.raises(hrnet_jax.UserError, match=message):
            hrnet_jax.load(path, arch=arch)


class Net(nn.Module):
    """Its `arch` is a name, or nothing."""

    arch: str | None

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Conv(2, (1, 1))(images)


class Named(classification.Classification):
    name = 'named'
    recipes: ClassVar = {}

    def describe(self, model):
        return {'arch': model.arch} if model.arch else {}

    def model_of(self, meta, **options):
        return Net(meta.get('arch'))


def test_found_beside_models_of_other_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr('hrnet_jax.tasks._REGISTERED', {'named': Named()})
    variables = Net(None).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    for arch in (None, 'tiny'):
        checkpoint.save(tmp_path / f'{arch}!', variables, checkpoint.describe(Net(arch), 'named'))
    model, loaded = hrnet_jax.load(tmp_path, 'tiny')
    assert model.arch == 'tiny'
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    for folder, held in (('tiny!', 'tiny'), ('None!', 'another model')):
        with pytest.raises(hrnet_jax.UserError, match=f'is a checkpoint of {held}, not w18'):
            hrnet_jax.load(tmp_path / folder, 'w18')


def test_what_can_be_described(tmp_path, written):
    """A model of a task, its architecture given by name, too; class names in an array."""
    model = hrnet_jax.Classifier('tiny', 10)
    assert checkpoint.describe(model) == checkpoint.describe(create_model('tiny', 10))
    assert checkpoint.describe(hrnet_jax.HRNet('tiny'))['task'] == 'backbone'
    with pytest.raises(hrnet_jax.UserError, match='does not say what it is for'):
        checkpoint.describe(hrnet_jax.FeatureMaps('tiny'))
    names = np.array(list('abcdefghij'))
    meta = checkpoint.describe(model) | {'class_names': names}
    checkpoint.save(tmp_path / 'named', written[1], meta)
    assert checkpoint.read_json(tmp_path / 'named')['class_names'] == names.tolist()


def test_differences_are_counted(written):
    wrong = create_model('tiny', 10, in_channels=5, features=40)
    arrays = checkpoint.read_json(written[0])['arrays']
    shapes = hrnet_jax.models.variable_shapes(wrong)
    names = checkpoint.differing(arrays, shapes)
    assert len(names) > 5
    with pytest.raises(checkpoint.Misfit, match=rf'it differs at .* and {len(names) - 5} more$'):
        checkpoint.restore(written[0] / 'arrays', shapes, arrays)


def test_options_reach_the_model(written):
    model, variables = hrnet_jax.load(written[0], dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    assert variables['params']['backbone']['conv1']['kernel'].dtype == jnp.bfloat16
    assert variables['batch_stats']['backbone']['bn1']['mean'].dtype == jnp.float32


def test_every_flipped_bit_is_noticed(copy):
    """In the arrays' files: a clear error, or the right values, never silently wrong ones."""
    expected = hrnet_jax.load(copy)[1]
    files = sorted(
        p for p in (copy / 'arrays').rglob('*') if p.is_file() and p.stat().st_size > 20_000
    )
    assert files
    random, noticed = np.random.default_rng(0), 0
    for file in files:
        whole = file.read_bytes()
        for at in random.integers(0, len(whole), 3):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
            try:
                loaded = hrnet_jax.load(copy)[1]
            except hrnet_jax.UserError:
                noticed += 1
            else:
                jax.tree.map(np.testing.assert_array_equal, loaded, expected)
        file.write_bytes(whole)
    assert noticed


def test_digests_name_the_array(copy):
    meta = json.loads((copy / 'checkpoint.json').read_text())
    name = 'params/backbone/conv2/kernel'
    meta['arrays'][name]['digest'] = '0' * 16
    rewrite(copy, meta)
    with pytest.raises(hrnet_jax.UserError, match=f'damaged: {name} do not match'):
        hrnet_jax.load(copy)


def test_missing_and_cut_files(copy):
    largest = max(
        (copy / 'arrays').rglob('*'), key=lambda p: p.stat().st_size if p.is_file() else 0
    )
    whole = largest.read_bytes()
    largest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(hrnet_jax.UserError, match='damaged'):
        hrnet_jax.load(copy)
    shutil.rmtree(copy / 'arrays')
    with pytest.raises(hrnet_jax.UserError, match='damaged'):
        hrnet_jax.load(copy)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'version': 99}, 'format 99'),
        ({'num_classes': 11}, 'it differs at params/head/classifier'),
        ({'arch': {'name': 'tiny', 'depth': 3}}, 'does not know'),
        ({'arch': None}, 'does not know'),
    ],
)
def test_json_that_does_not_fit(copy, change, message):
    file = copy / 'checkpoint.json'
    rewrite(copy, json.loads(file.read_text()) | change)
    with pytest.raises(hrnet_jax.UserError, match=message):
        hrnet_jax.load(copy)
    file.write_text(file.read_text()[:100])
    with pytest.raises(hrnet_jax.UserError, match='damaged'):
        hrnet_jax.load(copy)


def test_import_needs_neither_torch_nor_tensorflow():
    import subprocess
    import sys

    code = (
        'import sys; names = ["torch", "tensorflow", "tensorflow_datasets", "PIL", "matplotlib"]; '
        'sys.modules.update(dict.fromkeys(names)); '
        'import hrnet_jax, hrnet_jax.data, hrnet_jax.inference.evaluation, hrnet_jax.tasks; '
        'print(hrnet_jax.list_models()[0])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'tiny\n'


def test_a_changed_digit_in_the_json_is_noticed(copy):
    file = copy / 'checkpoint.json'
    file.write_text(file.read_text().replace('"num_classes": 10', '"num_classes": 11'))
    with pytest.raises(hrnet_jax.UserError, match='damaged or was edited'):
        hrnet_jax.load(copy)


def test_a_folder_name_does_not_make_another_architecture(written, copy):
    copy.rename(copy.with_name('w48'))
    with pytest.raises(hrnet_jax.UserError, match='checkpoint of tiny, not w48'):
        hrnet_jax.load(copy.parent, 'w48')
    (copy.with_name('w48')).rename(copy.with_name('w48_ssld'))
    assert hrnet_jax.load(copy.parent, 'w48_ssld')[0].arch.name == 'tiny'


def test_what_was_there_survives_a_failed_replacement(copy, written, monkeypatch):
    real, calls = os.replace, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, 'No space left on device')
        real(source, target)

    monkeypatch.setattr(os, 'replace', second_fails)
    meta = checkpoint.describe(create_model('tiny', 10))
    with pytest.raises(hrnet_jax.UserError, match='No space left'):
        checkpoint.save(copy, written[1], meta, force=True)
    assert len(calls) == 3
    hrnet_jax.load(copy)
    assert [path.name for path in copy.parent.iterdir()] == ['mine']


def test_force_replaces_nothing_but_checkpoints(tmp_path, written):
    precious = tmp_path / 'precious' / 'thesis.txt'
    precious.parent.mkdir()
    precious.write_text('text')
    with pytest.raises(hrnet_jax.UserError, match='not of this program'):
        checkpoint.save(precious.parent, written[1], {}, force=True)
    assert precious.read_text() == 'text'


def test_what_a_killed_process_left_is_no_checkpoint(copy):
    shutil.copytree(copy, copy.with_name('.mine.0123abcd.tmp'))
    assert hrnet_jax.load(copy.parent)[0].arch.name == 'tiny'


def test_bfloat16_variables_can_be_saved_and_loaded(tmp_path):
    model = create_model('tiny', 10, param_dtype=jnp.bfloat16)
    variables = init(model, jax.random.key(0))
    checkpoint.save(tmp_path / 'half', variables, checkpoint.describe(model))
    loaded = hrnet_jax.load(tmp_path / 'half')[1]  # in float32, which loses nothing
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert loaded['params']['backbone']['conv1']['kernel'].dtype == np.float32
    same = hrnet_jax.load(tmp_path / 'half', param_dtype=jnp.bfloat16)[1]
    assert same['params']['backbone']['conv1']['kernel'].dtype == jnp.bfloat16


def test_pieces_larger_than_their_array(copy):
    """As only a hostile file has them: to make room, TensorStore would end the process."""
    import tensorstore

    arrays = copy / 'arrays'
    store = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{arrays}/'}}
    values = tensorstore.KvStore.open(store).result()
    key = 'params.backbone.conv2.kernel/.zarray'
    content = json.loads(values[key])
    for change in ({'chunks': [2**40, 3, 16, 16]}, {'dtype': '|V1000000000'}):
        values[key] = json.dumps(content | change).encode()
        with pytest.raises(hrnet_jax.UserError, match='is damaged'):
            hrnet_jax.load(copy)
    values[key] = json.dumps(content).encode()
    hrnet_jax.load(copy)
