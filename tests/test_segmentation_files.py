"""Files of networks for segmentation: recognised, converted exactly, and written again."""

from __future__ import annotations

import json
import logging

import jax
import numpy as np
import pytest
import torch
from segmenters import OCR, made, save
from test_conversion import made as made_classifier
from test_networks import same, under

import hrnet_jax
from convert import folders, from_torch, to_torch
from convert.__main__ import main
from convert.conversion import convert, official
from convert.files import Written
from convert.verification import verify
from convert.writing import model_of
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints.published import all_published, find_published
from hrnet_jax.data import segmentation_sets

BOTH = [(layout, head) for layout in ('official', 'mmseg') for head in ('fcn', 'ocr')]
WITHOUT = 'note: align_corners is not in the file, and taken as no, as most official networks'
WITH = 'note: align_corners is not in the file, and taken as yes, as official networks with OCR'
BIASES = {'fcn': ['last_layer'], 'ocr': ['aux_head', 'conv3x3_ocr']}


@pytest.mark.parametrize(('layout', 'head'), BOTH)
def test_round_trip_is_bit_exact(layout, head):
    state = made(layout, head)
    arch, variables = from_torch(state)
    assert arch == 'tiny'
    back = to_torch(variables, arch, layout)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    changed = {k for k in state if not np.array_equal(back[k], state[k])}
    biases = BIASES[head] if layout == 'official' else []
    assert changed == {f'{b}.{end}' for b in biases for end in ('0.bias', '1.running_mean')}
    for bias in biases:
        exact = state[f'{bias}.1.running_mean'].astype(np.float64) - state[f'{bias}.0.bias']
        np.testing.assert_array_equal(back[f'{bias}.1.running_mean'], exact.astype(np.float32))
        assert not back[f'{bias}.0.bias'].any()
    again = to_torch(from_torch(back)[1], arch, layout)
    assert all(np.array_equal(again[k], back[k]) for k in back)
    other = 'mmseg' if layout == 'official' else 'official'
    assert same(from_torch(to_torch(variables, arch, other))[1], variables)
    with pytest.raises(hrnet_jax.UserError, match=r"unknown layout 'timm' of .*official, mmseg$"):
        to_torch(variables, arch)


@pytest.mark.parametrize(('layout', 'head'), BOTH)
def test_what_is_recognised(layout, head):
    done = convert(made(layout, head, classes=7, in_channels=4))
    model = done.model
    assert (model.head, model.num_classes, model.in_channels) == (head, 7, 4)
    if head == 'ocr':
        assert {name: getattr(model, name) for name in OCR} == OCR
    ours = layout, head
    assert model.upsample == ('bilinear_two_step' if layout == 'mmseg' else 'bilinear')
    assert model.align_corners == (ours == ('official', 'ocr'))
    assert model.dropout == (0.05 if ours == ('official', 'ocr') else 0)
    again = model_of(done.variables, 'tiny', upsample=model.upsample)
    assert again.clone(align_corners=model.align_corners, dropout=model.dropout) == model


@pytest.mark.parametrize(('layout', 'head'), BOTH)
def test_the_same_as_in_pytorch(layout, head):
    """Biases before BatchNorm are folded, not dropped; sizes that are no multiples of 32."""
    large = {k: v * 20 if k.endswith('.0.bias') else v for k, v in made(layout, head).items()}
    done = convert(large)
    worst = verify(done.model, done.variables, official(done, large), (75, 101))
    assert list(worst) == ['stem', 'layer1', 'stage2', 'stage3', 'stage4', 'logits']
    assert max(worst.values()) < 1e-5


@pytest.mark.parametrize('head', ['fcn', 'ocr'])
def test_all_biases_or_none(head):
    state = made('official', head)
    bare = {k: v for k, v in state.items() if k.removesuffix('.0.bias') not in BIASES[head]}
    assert len(bare) == len(state) - len(BIASES[head])
    assert not convert(bare).head_bias
    assert convert(state).head_bias
    if head == 'ocr':
        del state['aux_head.0.bias']
        with pytest.raises(hrnet_jax.UserError, match=r'kind are there \(aux_head.0.bias\)'):
            convert(state)


def test_strict():
    state = made('mmseg', 'ocr')
    state['decode_head.1.extra.weight'] = np.ones((2, 2), np.float32)
    state['decode_head.1.conv_seg.bias'] = np.ones(4, np.float32)
    del state['decode_head.1.object_context_block.key_project.1.bn.weight']
    with pytest.raises(hrnet_jax.UserError) as error:
        convert(state)
    for part in (
        '1 missing (decode_head.1.object_context_block.key_project.1.bn.weight)',
        '1 unexpected (decode_head.1.extra.weight)',
        '1 misshapen (decode_head.1.conv_seg.bias: 4 instead of 5)',
    ):
        assert part in str(error.value)


def test_as_the_official_code_saves_it(command, tmp_path):
    """With the loss beside the network; the flag decides what no file shows."""
    state = under('model.', made('official', 'ocr'))
    state |= {'loss.criterion.weight': np.ones(19, np.float32)}
    source = save(tmp_path / 'checkpoint.pth.tar', state, epoch=3, best_mIoU=0.8)
    code, out, err = command(main, source, '--out', tmp_path, '--name', 'a', '--verify')
    assert code == 0, err
    assert 'ignored 1 tensors beside the network' in out
    assert 'loss.criterion.weight' in out
    assert WITH in out
    assert 'logits' in out
    assert 'a: tiny, OCR, 5 classes, official layout\n' in out
    model, variables = hrnet_jax.load(tmp_path / 'a')
    assert (model.task, model.head, model.align_corners) == ('segmentation', 'ocr', True)
    assert same(variables, from_torch(state)[1])

    flags = ('--no-align-corners', '--upsample', 'bilinear_two_step')
    code, out, err = command(main, source, '--out', tmp_path, '--name', 'b', *flags)
    assert code == 0, err
    assert 'align_corners is not in the file' not in out
    model, _ = hrnet_jax.load(tmp_path / 'b')
    assert (model.upsample, model.align_corners) == ('bilinear_two_step', False)

    save(tmp_path / 'fcn.pth', made('official', 'fcn'))
    code, out, err = command(main, tmp_path / 'fcn.pth', '--out', tmp_path)
    assert code == 0, err
    assert WITHOUT in out
    assert 'resized to' not in out
    assert not hrnet_jax.load(tmp_path / 'tiny')[0].align_corners


def test_there_and_back_with_the_command(command, refused, tmp_path):
    """The JSON beside the file keeps how it upsamples; another program must be told."""
    meta = {'CLASSES': ('a', 'b'), 'mmseg_version': '0.1'}
    source = save(tmp_path / 'x.pth', made('mmseg', 'fcn'), meta=meta, message_hub={})
    names = tmp_path / 'names.txt'
    names.write_text('\n'.join('vwxyz'))
    flags = ('--align-corners', '--class-names', names)
    assert command(main, source, '--out', tmp_path / 'a', *flags)[0] == 0
    for layout, said in (
        ('official', 'must set upsample bilinear_two_step and align_corners True, which'),
        ('mmseg', 'must set align_corners True, which'),
    ):
        file = tmp_path / f'{layout}.pth'
        code, out, err = command(main, tmp_path / 'a' / 'tiny', '--to', layout, '--out', file)
        assert code == 0, err
        assert said in out
        state = torch.load(file, weights_only=True)
        assert {k: tuple(v.shape) for k, v in state.items()} == {
            k: v.shape for k, v in made(layout, 'fcn').items()
        }
        code, out, err = command(main, file, '--out', tmp_path / layout)
        assert code == 0, err
        assert 'align_corners is not in' not in out
        assert f'tiny, FCN, 5 classes, {layout} layout\n' in out
        before, after = (checkpoint.read_json(tmp_path / d / 'tiny') for d in ('a', layout))
        for field in ('task', 'arrays', 'class_names', 'upsample', 'align_corners', 'transform'):
            assert before[field] == after[field]
        place = tmp_path / f'{layout}_trunk'
        code, out, err = command(main, file, '--out', place, '--backbone')
        assert code == 0, err
        trunk, _ = hrnet_jax.load(place)
        assert (trunk.upsample, trunk.align_corners) == ('bilinear_two_step', True)
    for layout in ('timm', 'mmpretrain'):
        assert f'segmentation, which has no layout {layout}; known: official, mmseg' in refused(
            main, tmp_path / 'a' / 'tiny', '--to', layout, '--out', tmp_path / 'y.pth'
        )
    assert 'multilabel is not converted from files of a segmentation network (FCN)' in refused(
        main, source, '--out', tmp_path / 'b', '--task', 'multilabel'
    )
    assert 'segmentation is not converted from files of a classifier' in refused(
        main,
        save(tmp_path / 'c.pth', made_classifier()),
        *('--out', tmp_path / 'b', '--task', 'segmentation'),
    )
    assert not (tmp_path / 'b').exists()


def test_as_from_the_hub(tmp_path, caplog):
    """Without a command, what is a guess is logged."""
    source = save(tmp_path / 'pytorch_model.bin', made('official', 'ocr'))
    with caplog.at_level(logging.INFO, 'hrnet_jax'):
        folders.write(str(source), tmp_path / 'a')
    assert WITH.removeprefix('note: ') in caplog.text
    assert hrnet_jax.load(tmp_path / 'a')[0].align_corners


def counterless(state):
    return {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}


def test_inplace_abn(command, tmp_path):
    """Of a file whose name says it, or by the flag; PyTorch agrees."""
    state = counterless(made('official', 'fcn'))
    norms = [k.replace('running_mean', 'weight') for k in state if k.endswith('running_mean')]
    state |= {k: -state[k] for k in norms[::2]}
    old = save(tmp_path / 'mine_torch04.pth', state)
    other = save(tmp_path / 'mine.pth', state)
    expected = {k: np.abs(v) + np.float32(1e-5) if k in norms else v for k, v in state.items()}
    wanted, plain = from_torch(expected)[1], from_torch(state)[1]
    assert same(from_torch(old)[1], wanted)
    assert same(from_torch(other)[1], plain)
    assert same(from_torch(other, inplace_abn=True)[1], wanted)
    note = 'note: BatchNorm scales by |weight| + 1e-05, as InPlaceABN does\n'
    for source, flags, inplace in (
        (old, ('--verify',), True),
        (other, ('--inplace-abn',), True),
        (old, ('--no-inplace-abn',), False),
        (other, (), False),
    ):
        code, out, err = command(main, source, '--out', tmp_path, '--force', *flags)
        assert code == 0, err
        assert (note in out) == inplace
        assert same(hrnet_jax.load(tmp_path / 'tiny')[1], wanted if inplace else plain)
    assert same(from_torch(old, backbone=True)[1]['params'], wanted['params']['backbone'])
    # What is written is of plain BatchNorm, whatever it is called.
    again = save(tmp_path / 'again_torch04.pth', to_torch(wanted, 'tiny', 'official'))
    assert same(from_torch(again)[1], wanted)


def test_published_files():
    rows = {n: e for n, e in all_published().items() if e.task == 'segmentation'}
    assert len([n for n in rows if n.startswith(('fcn_', 'ocrnet_'))]) == 58
    assert len(rows) == 74
    files = [file for entry in rows.values() for file in entry.files]
    assert len(files) == len(set(files))
    assert all(e.transform for n, e in rows.items() if 'lip' not in n and 'trainval' not in n)
    for entry in rows.values():
        assert len(entry.class_names) == entry.num_classes
        for accuracy in entry.results.values():
            for dataset, splits in accuracy.items():
                assert len(segmentation_sets.classes(dataset)) == entry.num_classes
                assert splits['val']['miou'] > 30
    for name, arch, head, protocol, dataset, value in (
        (
            *('fcn_hr18s_4xb2-40k_cityscapes-512x1024', 'w18_small_v2', 'fcn'),
            *('whole', 'cityscapes', 73.86),
        ),
        (
            *('ocrnet_hr48_4xb4-160k_ade20k-512x512', 'w48', 'ocr'),
            'fit 2048 512 whole scales 0.5 0.75 1 1.25 1.5 1.75 flip softmax',
            *('ade20k', 44.88),
        ),
        (
            *('fcn_hr48_4xb4-80k_pascal-context-59-480x480', 'w48', 'fcn'),
            *('fit 520 520 slide 480 480 stride 320 320', 'pascal_context_59', 51.12),
        ),
        ('hrnet_ocr_cs_8162', 'w48', 'ocr', 'whole', 'cityscapes', 81.6),
    ):
        entry = rows[name]
        assert (entry.arch, entry.head) == (arch, head)
        transform = hrnet_jax.tasks.get_task('segmentation').protocol.from_text(protocol)
        assert entry.class_names == segmentation_sets.classes(dataset)
        assert entry.results[transform] == {dataset: {'val': {'miou': value}}}
        assert find_published(name, 'x.pth') is entry
        assert all(find_published(None, f'/a/{file}') is entry for file in entry.files)


def test_a_published_name(command, refused, tmp_path, monkeypatch):
    """It knows align_corners, the norms, the protocol and the names of the classes."""
    entry, files = all_published()['hrnet_ade20k_4312'], ('tiny_torch04.pth',)
    small = entry.__class__(**vars(entry) | {'name': 'tiny_ade', 'arch': 'tiny', 'files': files})
    monkeypatch.setitem(all_published(), 'tiny_ade', small)
    state = counterless(made('official', 'fcn', classes=150))
    for file, flags in (('tiny_torch04.pth', ()), ('other.pth', ('--name', 'tiny_ade'))):
        source = save(tmp_path / file, state)
        code, out, err = command(main, source, '--out', tmp_path / file[:5], *flags)
        assert code == 0, err
        assert 'as InPlaceABN does' in out
        assert 'align_corners is not in the file' not in out
        assert '150 classes, official layout, published as 43.1 % mIoU on ade20k\n' in out
        [place] = (tmp_path / file[:5]).iterdir()
        assert Written(tmp_path / 'x.pth', 'official', checkpoint.read_json(place)).head_bias
        meta = json.loads((place / 'checkpoint.json').read_text())
        assert (meta['align_corners'], meta['upsample']) == (True, 'bilinear')
        assert meta['class_names'][:2] == ['wall', 'building']
        assert meta['transform']['fit'] == [520, 520]
        assert meta['published']['name'] == 'tiny_ade'
        model, _ = hrnet_jax.load(place)
        assert model.transform.text == 'fit 520 520 whole'
    source = save(tmp_path / 'ocr.pth', made('official', 'ocr', classes=150))
    assert 'published fcn tiny with 150 classes; the file holds ocr tiny with 150' in refused(
        main, source, '--out', tmp_path / 'x', '--name', 'tiny_ade'
    )
    _, out, _ = command(main, save(tmp_path / 'own.pth', state), '--out', tmp_path / 'own')
    assert 'if it is one, say --name tiny_ade\n' in out
    assert WITHOUT in out


def test_classes_and_colours():
    sets = {name: segmentation_sets.classes(name) for name in segmentation_sets.names()}
    assert {name: len(classes) for name, classes in sets.items()} == {
        'cityscapes': 19,
        'ade20k': 150,
        'voc2012': 21,
        'pascal_context': 60,
        'pascal_context_59': 59,
        'loveda': 7,
        'potsdam': 6,
        'vaihingen': 6,
        'isaid': 16,
        'cocostuff': 171,
        'lip': 20,
    }
    for name, classes in sets.items():
        colours = segmentation_sets.palette(name)
        assert len(colours) == len(classes) == len(set(classes))
        assert all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in colours)
        assert all(one == one.strip() != '' for one in classes)
    assert sets['pascal_context'][1:] == sets['pascal_context_59']
    assert (sets['cityscapes'][0], segmentation_sets.palette('cityscapes')[0]) == (
        'road',
        (128, 64, 128),
    )
    assert segmentation_sets.palette('ade20k')[:2] == ((120, 120, 120), (180, 120, 120))
    assert (sets['ade20k'][7], sets['lip'][19]) == ('bed', 'Right-shoe')
    assert segmentation_sets.classes('mine') is segmentation_sets.palette('mine') is None


@pytest.fixture(scope='module')
def fresh():
    model = hrnet_jax.create_model('tiny', 3, task='segmentation', head='ocr', **OCR)
    return hrnet_jax.init(model, jax.random.key(0))


def test_transfer_from_a_classifier(fresh, tmp_path, caplog):
    source = save(tmp_path / 'x.pth', made_classifier())
    with caplog.at_level(logging.INFO, 'hrnet_jax'):
        got, report = hrnet_jax.transfer(fresh, source)
    assert {name.split('/')[0] for name in report.loaded} == {'backbone'}
    assert {name.split('/')[0] for name in report.initialised} == {'head'}
    assert {name.split('/')[0] for name in report.left} == {'head'}
    trees = from_torch(source)[1]
    assert all(same(got[k]['backbone'], trees[k]['backbone']) for k in trees)
    assert all(same(got[k]['head'], fresh[k]['head']) for k in trees)
    assert 'weights transferred:\nloaded' in caplog.text


def test_transfer_from_other_classes(fresh, tmp_path):
    """Layers whose number of classes differs are named; as fresh, they stay."""
    source = save(tmp_path / 'x.pth', made('mmseg', 'ocr'))
    with pytest.raises(hrnet_jax.UserError, match=r'head/aux_head_3/kernel .* head/cls_head/'):
        hrnet_jax.transfer(fresh, source)
    last = ['^' + '/'.join(path) for path in hrnet_jax.models.last_layers(hrnet_ocr())]
    _, report = hrnet_jax.transfer(fresh, source, fresh=last)
    layers = {name.rsplit('/', 1)[0] for name in report.initialised}
    assert layers == {'head/aux_head_3', 'head/cls_head'}
    assert any(name.startswith('head/ocr_distri_head') for name in report.loaded)


def hrnet_ocr():
    return hrnet_jax.create_model('tiny', 3, task='segmentation', head='ocr', **OCR)


@pytest.mark.parametrize('layout', ['official', 'mmseg'])
def test_averaged_and_wrapped(layout):
    """As other files: --weights, --prefix and wrappers."""
    one = made(layout, 'fcn')
    two = {k: v * 2 if v.dtype == np.float32 else v for k, v in one.items()}
    done = convert(under('model._orig_mod.', one) | under('model_ema.module.', two))
    assert (done.weights, done.model.head) == ('ema', 'fcn')
    assert same(done.variables, from_torch(two)[1])
    pair = under('student.', one) | under('teacher.', two)
    with pytest.raises(hrnet_jax.UserError, match=r'student. \(tiny, 5 classes\) and teacher.'):
        convert(pair)
    assert same(convert(pair, prefix='teacher').variables, from_torch(two)[1])
