"""Files with an HRNet that is no whole classifier: alone, or inside of another model."""

from __future__ import annotations

import contextlib
import logging
import re
import sys

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from rules import close
from test_conversion import made
from test_networks import same, under

import eval as eval_command
import hrnet_jax
import predict as predict_command
from convert import from_torch
from convert.__main__ import main
from convert.conversion import array
from convert.readers import read
from hrnet_jax import checkpoint
from hrnet_jax.archs import ARCHS, Arch
from hrnet_jax.commands import visualize
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.classification_recipes import Digits
from hrnet_jax.training.experiment import Experiment, Options

TRUNK = re.compile(r'(conv|bn)[12]\.|layer1\.|transition|stage')
OTHER = Arch('mine', (4, 8, 12, 20), (1, 12), (1, 1, 1), (1, 1, 1), 24)
X = np.random.default_rng(0).standard_normal((1, 32, 64, 3), np.float32)
FUSION = (
    'note: the fusion is taken to upsample by nearest; if the file is of a segmentation network, '
    'say --upsample bilinear (official) or bilinear_two_step (mmsegmentation)\n'
)
ALONE = 'a backbone alone gives maps and has no '
IMAGES = 'note: images are taken to be normalised as for ImageNet; else say --mean --std\n'


def trunk(state):
    return {k: v for k, v in state.items() if TRUNK.match(k)}


def without(state, *parts):
    return {k: v for k, v in state.items() if not k.startswith(parts)}


def one_output(state):
    """As of pose: the last module has the finest map alone."""
    return {k: v for k, v in state.items() if not re.search(r'stage4\.0\.fuse_layers\.[123]', k)}


def decoder(*names):
    return {name: np.ones((2, 3), np.float32) for name in names}


STATE = made()
T = len(trunk(STATE))
T1 = len(one_output(trunk(STATE)))
W, D, F = (
    sum(k.startswith(p) for k in STATE) for p in ('incre_modules', 'downsamp', 'final_layer')
)
REST = 'no downsampling layers, no final layer'
# Name -> the state dict, what it has and lacks, what is said to be left out.
FILES = {
    'naked': (
        trunk(STATE),
        f'trunk ({T}), and no widening layers, {REST}, no classifier',
        None,
    ),
    'pose of mmpose': (
        under('backbone.', one_output(trunk(STATE)))
        | decoder('keypoint_head.deconv_layers.0.weight', 'keypoint_head.deconv_layers.1.bias'),
        f'trunk ({T1}), keypoint_head.* (2), and no widening layers',
        'keypoint_head.* (2)',
    ),
    'pose, official': (
        one_output(trunk(STATE)) | {'final_layers.0.weight': np.ones((17, 6, 1, 1), np.float32)},
        f'trunk ({T1}), final_layers.* (1), and no widening layers, {REST}, no classifier',
        'final_layers.* (1)',
    ),
    'segmentation': (
        under('backbone.', trunk(STATE)) | decoder('decode_head.conv_seg.weight', 'aux.0.weight'),
        f'no whole segmentation network (FCN): it has tensors of trunk ({T}), classes (1), aux.* '
        '(1), and no last layers; ',
        'classes (1), aux.* (1)',
    ),
    'segmentation, official': (
        under('module.', trunk(STATE) | decoder('last_layer.0.weight')),
        f'no whole segmentation network (FCN): it has tensors of trunk ({T}), last layers (1), and '
        'no classes; ',
        'last layers (1)',
    ),
    'timm without classes': (
        without(STATE, 'classifier'),
        f'trunk ({T}), widening layers ({W}), downsampling layers ({D}), final layer ({F}), '
        'and no classifier',
        f'widening layers ({W}), downsampling layers ({D}), final layer ({F})',
    ),
    'timm features': (
        without(STATE, 'classifier', 'final_layer', 'downsamp_modules'),
        f'trunk ({T}), widening layers ({W}), and {REST}, no classifier',
        f'widening layers ({W})',
    ),
    'a sequential in the place of the classifier': (
        without(STATE, 'classifier') | decoder('classifier.1.weight', 'classifier.1.bias'),
        f'final layer ({F}), classifier.* (2), and no classifier',
        f'widening layers ({W}), downsampling layers ({D}), final layer ({F}), classifier.* (2)',
    ),
    'an encoder': (
        under('encoder.model.', without(STATE, 'classifier', 'final_layer', 'downsamp_modules'))
        | decoder('decoder.blocks.0.weight', 'decoder.blocks.1.weight', 'head.0.weight'),
        f'trunk ({T}), widening layers ({W}), decoder.* (2), head.* (1)',
        f'widening layers ({W}), decoder.* (2), head.* (1)',
    ),
    'another task of another size': (
        under('net.', trunk(made(arch=OTHER))) | decoder('loss.weight'),
        f'trunk ({T}), loss.* (1)',
        'loss.* (1)',
    ),
}


def save(state, path):
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, path)
    return path


@pytest.mark.parametrize('name', FILES)
def test_every_kind(name, command, refused, tmp_path):
    state, parts, left = FILES[name]
    source = save(state, tmp_path / 'x.pth')
    arch = 'mine' if 'another size' in name else 'tiny'
    wanted = from_torch(made(arch=OTHER if arch == 'mine' else 'tiny'))[1]
    outputs = 1 if name.startswith('pose') else 4

    said = refused(main, source, '--out', tmp_path / 'out')
    called = 'tiny' if arch == 'tiny' else 'a custom architecture of widths (4, 8, 12, 20)'
    assert f'x.pth: this is HRNet {called}, but no whole ' in said
    assert parts in said
    assert said.endswith('; --backbone (in Python backbone=True) takes the trunk alone\n')
    assert not (tmp_path / 'out').exists()

    code, out, err = command(main, source, '--out', tmp_path / 'out', '--backbone')
    assert code == 0, err
    if left:
        assert f'note: took the trunk alone, without the tensors of {left}\n' in out
    assert ('took the trunk alone' in out) == bool(left)
    widened = 'widening layers' in (left or '')
    known = {'segmentation': 'bilinear_two_step', 'segmentation, official': 'bilinear'}
    assert (FUSION in out) == (outputs == 4 and not widened and name not in known)
    assert ('note: align_corners is not in the file' in out) == name.endswith('ation, official')
    assert IMAGES in out
    arch = 'custom' if arch == 'mine' else arch
    assert f'{arch}: the backbone of {arch}; channels of its maps: ' in out

    model, variables = hrnet_jax.load(tmp_path / 'out')
    assert isinstance(model, hrnet_jax.HRNet)
    assert (model.outputs, model.arch.name) == (outputs, arch)
    assert (model.upsample, model.align_corners) == (known.get(name, 'nearest'), False)
    inner = {k: v['backbone'] for k, v in wanted.items()}
    if outputs == 1:
        for tree in inner.values():
            last = tree['stage4_0']
            tree['stage4_0'] = {k: v for k, v in last.items() if 'fuse' not in k or 'rs_0' in k}
    assert same(variables, inner)
    again = from_torch(state, backbone=True)
    assert same(again[1], variables)
    assert getattr(again[0], 'name', again[0]) == arch
    assert same(from_torch(state, backbone=None)[1], variables)


@pytest.fixture(scope='module')
def backbones(once):
    """Converted with the command: of a segmentation network, and of one for pose."""

    def make(folder):
        for name, flags in (
            (
                'segmentation',
                ('--upsample', 'bilinear', '--align-corners', '--mean', '0', '0', '0'),
            ),
            ('pose, official', ()),
        ):
            source = save(FILES[name][0], folder.with_suffix('.pth'))
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
                given = ['command', str(source), '--out', str(folder), '--backbone', '--name']
                patch.setattr(sys, 'argv', [*given, name.split(',')[0], *flags])
                main()

    return once('backbones', make)


def test_what_a_backbone_computes(backbones):
    """As the classifier that it was taken from; its variables fit FeatureMaps in one line."""
    whole = from_torch(STATE)[1]
    expected = jax.jit(hrnet_jax.FeatureMaps('tiny').apply)(whole, X)
    model, variables = hrnet_jax.load(backbones / 'pose')
    assert (model.outputs, model.upsample) == (1, 'nearest')
    [finest] = jax.jit(model.apply)(variables, X)
    assert close(finest, expected[0]) < 1e-5

    model, variables = hrnet_jax.load(backbones / 'segmentation')
    assert (model.outputs, model.upsample, model.align_corners) == (4, 'bilinear', True)
    maps = hrnet_jax.FeatureMaps('tiny', upsample='bilinear', align_corners=True)
    ours = jax.jit(maps.apply)({k: {'backbone': v} for k, v in variables.items()}, X)
    theirs = jax.jit(model.apply)(variables, X)
    assert max(map(close, ours, theirs)) < 1e-5
    assert close(ours[0], expected[0]) > 1e-3  # by nearest
    assert checkpoint.read_json(backbones / 'segmentation')['transform']['mean'] == [0, 0, 0]


@pytest.mark.parametrize('name', ['segmentation', 'pose', 'another task of another size'])
def test_back_to_pytorch(backbones, name, command, tmp_path):
    """The trunk by its official names, in every bit; and again the same checkpoint."""
    whole = FILES['pose, official' if name == 'pose' else name][0]
    folder = backbones / name
    if not folder.exists():
        save(whole, tmp_path / 'x.pth')
        command(main, tmp_path / 'x.pth', '--out', tmp_path, '--backbone', '--name', name)
        folder = tmp_path / name
    inner = {re.sub(r'^(backbone|net)\.', '', k): v for k, v in whole.items()}
    wanted = trunk(inner)
    for ending in ('.safetensors', '.pth'):
        file = tmp_path / f'trunk{ending}'
        code, out, err = command(main, folder, '--to', 'official', '--out', file)
        assert code == 0, err
        assert f'{file}: {len(wanted)} tensors, official layout' in out
        found = {k: array(v) for k, v in read(file).tensors.items()}
        assert found.keys() == wanted.keys()
        for key in [key for key in wanted if 'num_batches' not in key]:
            np.testing.assert_array_equal(found[key], wanted[key])
        code, out, err = command(main, file, '--out', tmp_path / ending, '--backbone')
        assert code == 0, err
        assert FUSION not in out
        again = next((tmp_path / ending).iterdir())
        (first, variables), (second, back) = hrnet_jax.load(folder), hrnet_jax.load(again)
        assert first == second
        assert same(variables, back)
        kept = [checkpoint.read_json(place)['transform'] for place in (folder, again)]
        assert kept[0] == kept[1]


@pytest.mark.parametrize('name', ['segmentation', 'pose'])
def test_what_a_backbone_does_not_do(backbones, name, refused, tmp_path):
    own = ('--ckpt', backbones / name)
    picture = tmp_path / 'a.png'
    Image.new('RGB', (40, 40)).save(picture)
    ending = 'use it by hrnet_jax.transfer, or train a head on it with train.py --init'
    said = refused(eval_command.main, *own, '--dataset', 'digits')
    assert said == f'error: {ALONE}evaluation: {ending}\n'
    assert f'{ALONE}prediction: {ending}' in refused(predict_command.main, picture, *own)
    seen = refused(visualize.main, picture, *own, '--out', tmp_path / 'b.png')
    assert 'the model is for backbone; views are of classifiers' in seen
    assert 'is for backbone, which has no layout timm; known: official' in refused(
        main, backbones / name, '--to', 'timm', '--out', tmp_path / 'x.pth'
    )
    model, variables = hrnet_jax.load(backbones / name)
    with pytest.raises(hrnet_jax.UserError, match=f'{ALONE}prediction'):
        hrnet_jax.predict(model, variables, [np.zeros((40, 40, 3), np.uint8)])
    task = get_task('backbone')
    assert hrnet_jax.create_model('tiny', task='backbone') == hrnet_jax.HRNet(ARCHS['tiny'])
    for call in (
        lambda: task.metric(model),
        lambda: task.loss(None, {}, None),
        lambda: task.distance(None, None, None),
        lambda: task.draw([], [], [], tmp_path / 'b.png', 'png', {}),
    ):
        with pytest.raises(hrnet_jax.UserError, match=ALONE):
            call()


@pytest.mark.parametrize(
    ('name', 'flags', 'said'),
    [
        ('whole', ('--upsample', 'bilinear'), '--upsample is not for a classifier\n'),
        ('whole', ('--pooling', 'max'), '--pooling is not for a classifier\n'),
        ('naked', ('--backbone', '--task', 'multilabel'), '--task cannot be combined'),
        ('pose, official', ('--backbone', '--arch', 'w18'), 'the file holds tiny, not w18'),
    ],
)
def test_flags_that_do_not_fit(name, flags, said, refused, tmp_path):
    source = save(STATE if name == 'whole' else FILES[name][0], tmp_path / 'x.pth')
    assert said in refused(main, source, '--out', tmp_path / 'out', *flags)


@pytest.mark.parametrize('name', ['pose, official', 'segmentation'])
def test_strict_inside_of_the_trunk(name):
    state = dict(FILES[name][0])
    start = 'backbone.' if name == 'segmentation' else ''
    del state[f'{start}layer1.0.conv2.weight']
    state[f'{start}stage3.0.branches.0.0.bn1.weight'] = np.zeros(9, np.float32)
    state[f'{start}stage3.0.extra.weight'] = np.zeros((3, 3), np.float32)
    with pytest.raises(hrnet_jax.UserError, match='this is nearest to HRNet tiny'):
        from_torch(state)
    with pytest.raises(hrnet_jax.UserError) as error:
        from_torch(state, backbone=True)
    for part in (
        'compared with the trunk of tiny',
        f'1 missing ({start}layer1.0.conv2.weight)',
        f'1 unexpected ({start}stage3.0.extra.weight)',
        f'1 misshapen ({start}stage3.0.branches.0.0.bn1.weight: 9 instead of 6)',
    ):
        assert part in str(error.value)


@pytest.mark.parametrize('name', ['pose of mmpose', 'an encoder'])
def test_verify(name, command, tmp_path):
    source = save(FILES[name][0], tmp_path / 'x.pth')
    code, out, err = command(main, source, '--out', tmp_path, '--backbone', '--verify')
    assert code == 0, err
    assert out.startswith('compiling the network to verify it')
    assert re.findall(r'^  (\w+) +\d', out, re.MULTILINE) == [
        *('stem', 'layer1', 'stage2', 'stage3', 'stage4')
    ]


@pytest.mark.parametrize(
    ('name', 'loaded', 'left'),
    [('whole', {'backbone', 'head'}, False), ('an encoder', {'backbone'}, True)],
)
def test_transfer_of_a_file(name, loaded, left, tmp_path, caplog):
    state = STATE if name == 'whole' else FILES[name][0]
    source = save(state, tmp_path / 'x.pth')
    fresh = hrnet_jax.init(hrnet_jax.create_model('tiny', 10), jax.random.key(0))
    with caplog.at_level(logging.INFO, 'hrnet_jax'):
        got, report = hrnet_jax.transfer(fresh, source)
    assert {name.split('/')[0] for name in report.loaded} == loaded
    whole = from_torch(STATE)[1]
    for part in ('backbone', 'head'):
        expected = whole if part in loaded else fresh
        assert same(*({k: v[part] for k, v in tree.items()} for tree in (got, expected)))
    note = f'x.pth: took the trunk alone, without the tensors of widening layers ({W}), decoder'
    assert (note in caplog.text) == left


@pytest.mark.parametrize('name', ['segmentation', 'pose'])
def test_a_classifier_starts_from_it(backbones, name, digits_data, tmp_path):
    init = str(backbones / name)
    recipe, options = Digits(init=init), Options(tmp_path / 'run', digits_data)
    said = []
    state = Experiment('tiny', recipe, options, said.append).start()
    assert said[0] == f'init    {init}, head new for 10 classes'
    initialised = re.search('^initialised.*', said[1], re.MULTILINE)[0]
    assert re.sub(r' *\d+', '', initialised) == (
        'initialised  backbone (), head ()' if name == 'pose' else 'initialised  head ()'
    )
    ours, theirs = state.params['backbone'], hrnet_jax.load(init)[1]['params']
    assert same({k: ours[k] for k in theirs if k != 'stage4_0'}, without(theirs, 'stage4_0'))
    row = 'fuse_layers_0_1_0'
    assert same(ours['stage4_0'][row], theirs['stage4_0'][row])
