"""timm's and transformers' config.json: written, and read in each of its forms."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from safetensors.torch import save_file
from test_beside import NAMES
from test_conversion import made

import hrnet_jax
from convert import folders, timm
from convert.__main__ import main
from hrnet_jax import checkpoint
from hrnet_jax.models import create_model

# Of timm's pretrained_cfg, and what it is here.
FIELDS = {
    'input_size': [3, 224, 224],
    'crop_pct': 0.9,
    'crop_mode': 'center',
    'interpolation': 'bilinear',
    'mean': [0.5, 0.4, 0.3],
    'std': [0.2, 0.2, 0.1],
}
FITTING = hrnet_jax.Transform(248, 224, 'bilinear', (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
SMALL = made(classes=4)


@pytest.mark.parametrize(
    ('resize', 'crop'), [(256, 224), (235, 224), (288, 288), (32, 32), (224, 256), (331, 320)]
)
def test_config_of_timm(resize, crop):
    """Its crop_pct gives the same sizes by timm's arithmetic, and reads back as the same."""
    transform = hrnet_jax.Transform(resize, crop, 'bicubic', mean=(0.5, 0.5, 0.5))
    meta = checkpoint.describe(create_model('w18', 10)) | {
        'transform': transform.to_json(),
        'class_names': NAMES,
    }
    config = timm.config(meta, True)
    fields = config['pretrained_cfg']
    assert (config['architecture'], config['num_classes']) == ('hrnet_w18', 10)
    assert fields['input_size'] == [3, crop, crop]
    assert math.floor(crop / fields['crop_pct']) == resize
    assert len(str(fields['crop_pct'])) <= 8  # 0.875, not 0.8749...9
    told, notes = timm.told(config)
    assert not notes
    assert told['class_names'] == NAMES
    assert hrnet_jax.Transform.from_json(told['transform']) == transform
    assert timm.config(meta, False)['architecture'] == 'hrnet_w18_ssld'  # no biases
    tiny = checkpoint.describe(create_model('tiny', 10)) | {'transform': transform.to_json()}
    assert timm.config(tiny, True) is None


@pytest.mark.parametrize(
    ('change', 'note'),
    [
        ({'input_size': [3, 224, 256]}, 'images of 224 x 256 are not square'),
        ({'crop_pct': 0}, 'division by zero'),
        ({'mean': [0.5]}, 'mean must be 3 numbers'),
    ],
)
def test_transforms_of_timm_that_are_not_taken(change, note):
    config = {'architecture': 'hrnet_w18', 'num_classes': 3, 'pretrained_cfg': FIELDS | change}
    config['label_names'] = {'0': 'a', '1': 'b', '2': 'c'}
    told, [said] = timm.told(config)
    assert 'transform' not in told
    assert said.startswith('the transform of config.json is not taken: ')
    assert note in said
    assert told['class_names'] == ['a', 'b', 'c']
    assert timm.told({'arch': 'w18', 'recipe': {}}) == ({}, [])  # of a training folder


@pytest.mark.parametrize(
    ('change', 'note', 'expected'),
    [
        ({'crop_mode': 'squash'}, 'crop_mode squash of config.json is not done here', {}),
        ({'crop_mode': 'border'}, 'crop_mode border of config.json is not done here', {}),
        ({'crop_mode': 'center'}, None, {}),
        (
            {'interpolation': 'lanczos'},
            'interpolation lanczos of config.json is not done here: taken as bicubic',
            {'interpolation': 'bicubic'},
        ),
        (
            {'mean': None, 'std': None},
            'config.json does not say mean, std: taken as timm has it by default',
            {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)},
        ),
        (
            {'input_size': None},
            'config.json does not say input_size: taken as timm has it by default',
            {'resize': 248, 'crop': 224},
        ),
    ],
)
def test_what_is_done_in_another_way(change, note, expected):
    told, notes = timm.told({'architecture': 'hrnet_w18', 'pretrained_cfg': FIELDS | change})
    transform = dataclasses.replace(FITTING, **expected)
    assert hrnet_jax.Transform.from_json(told['transform']) == transform
    assert len(notes) == bool(note)
    assert not note or note in notes[0]


FORMS = {
    'timm': lambda names: {'pretrained_cfg': FIELDS, 'num_classes': 4, 'label_names': names},
    'timm, names by number': lambda names: {
        'pretrained_cfg': FIELDS | {'num_classes': 1000},  # of what it was tuned from
        'num_classes': 4,
        'label_names': {str(i): name for i, name in enumerate(names)},
    },
    'timm, old and flat': lambda names: FIELDS | {'num_classes': 4, 'labels': names},
    'timm, names inside': lambda names: {'pretrained_cfg': FIELDS | {'labels': names}},
    'transformers': lambda names: {
        'model_type': 'timm_wrapper',
        'architectures': ['TimmWrapperForImageClassification'],
        'pretrained_cfg': FIELDS,
        'id2label': {str(i): name for i, name in enumerate(names)},
    },
    'transformers, as it writes it': lambda names: {
        'model_type': 'timm_wrapper',
        'pretrained_cfg': FIELDS,
        'label_names': names,
        'num_classes': 4,
    },
}


@pytest.fixture
def tiny_of_timm(monkeypatch):
    """As if timm had our smallest network."""
    monkeypatch.setitem(timm.models(), 'hrnet_tiny', ('tiny', True))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('names', [NAMES[:4], ['LABEL_0', 'LABEL_1', 'LABEL_2', 'LABEL_3']])
def test_every_form_of_timms_config(form, names, command, tiny_of_timm, tmp_path):
    """transformers' names begin with timm_model, and for want of names it has LABEL_0, ..."""
    prefix = 'timm_model.' * form.startswith('transformers')
    state = {prefix + k: torch.from_numpy(v.copy()) for k, v in SMALL.items()}
    save_file(state, tmp_path / 'model.safetensors')
    config = {'architecture': 'hrnet_tiny', **FORMS[form](names)}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    code, out, err = command(main, tmp_path / 'model.safetensors', '--out', tmp_path)
    assert code == 0, err
    named = names == NAMES[:4]
    taken = 'class names, transform, layout' if named else 'transform, layout'
    assert f'note: {taken}: taken from config.json\n' in out
    assert 'images are taken to be' not in out
    assert ('4 classes, in this order: zebra, ant, cow, bee\n' in out) == named
    assert '4 classes, timm layout\n' in out
    meta = checkpoint.read_json(tmp_path / 'tiny')
    assert meta['class_names'] == (names if named else None)
    assert hrnet_jax.Transform.from_json(meta['transform']) == FITTING


@pytest.mark.parametrize(
    ('config', 'note'),
    [
        ({'num_classes': 5}, 'nothing is taken from config.json: it is of another model'),
        ({'architecture': 'hrnet_w18'}, 'nothing is taken from config.json: it is of another'),
        ({'label_names': NAMES}, 'config.json has 10 class names, which are not taken'),
        ({'label_names': {'1': 'a', '2': 'b'}}, 'the class names of config.json are not taken'),
    ],
)
def test_configs_of_timm_that_do_not_fit(config, note, tiny_of_timm, tmp_path):
    state = {k: torch.from_numpy(v.copy()) for k, v in SMALL.items()}
    save_file(state, tmp_path / 'model.safetensors')
    whole = {'architecture': 'hrnet_tiny', 'num_classes': 4, 'pretrained_cfg': FIELDS}
    (tmp_path / 'config.json').write_text(json.dumps(whole | config))
    found = folders.read(str(tmp_path / 'model.safetensors'))
    assert 'class_names' not in found.told
    assert any(said.startswith(note) for said in found.notes)
