"""Files of detectors: recognised, converted exactly, and written again."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from segmenters import made, names, save
from test_networks import same

import hrnet_jax
from convert import from_torch, to_torch
from convert.__main__ import main
from convert.conversion import convert, official
from convert.verification import verify
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints.published import all_published, find_published
from hrnet_jax.data.keep_ratio import BGR, KeepRatio, coco
from hrnet_jax.tasks import get_task

# head, architecture -> as of mmdetection 3.3.0: entries, digest of the sorted "name shape" lines.
MANIFESTS = {
    ('fcos', 'w18'): (1877, 'ef71ff7c7e0af79a'),
    ('fcos', 'w32'): (1877, '367b2378e54dac2f'),
    ('fcos', 'w40'): (1877, '1fdec1d8854b514d'),
    ('faster_rcnn', 'w18'): (1856, '2140cd3160104f65'),
    ('faster_rcnn', 'w32'): (1856, 'a90cc524c5c8002d'),
    ('faster_rcnn', 'w40'): (1856, '475f3d34b2b19174'),
}
HEADS = ('fcos', 'faster_rcnn')
OTHERS = {
    'Mask R-CNN': ['roi_head.mask_head.convs.0.conv.weight', 'roi_head.mask_head.upsample.bias'],
    'Cascade R-CNN': ['roi_head.bbox_head.0.fc_cls.weight', 'roi_head.bbox_head.1.fc_cls.weight'],
    'Cascade Mask R-CNN': ['roi_head.bbox_head.0.fc_cls.bias', 'roi_head.mask_head.0.convs.0.bias'],
    'Hybrid Task Cascade (HTC)': ['roi_head.semantic_head.lateral_convs.0.conv.bias'],
}


def detector(head, classes=3, **options):
    channels = 32 if head == 'fcos' else 8
    return made('mmdet', head, classes=classes, task='detection', channels=channels, **options)


@pytest.mark.parametrize(('head', 'arch'), MANIFESTS)
def test_names_and_shapes(head, arch):
    found = names('mmdet', head, arch, 80, task='detection')
    lines = '\n'.join(sorted(f'{key} {shape}' for key, shape in found.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert (len(found), digest) == MANIFESTS[head, arch]


@pytest.mark.parametrize('head', HEADS)
def test_round_trip_is_bit_exact(head):
    state = detector(head, in_channels=4)
    done = convert(state)
    model = done.model
    assert (done.network.layout.name, model.head, model.pooling) == ('mmdet', head, 'average')
    assert (done.arch.name, done.num_classes, done.in_channels) == ('tiny', 3, 4)
    back = to_torch(done.variables, 'tiny', 'mmdet')
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    assert all(np.array_equal(back[k], state[k]) for k in state)
    if head == 'fcos':
        old = to_torch(done.variables, 'tiny', 'mmdet2.0')
        assert 'bbox_head.fcos_cls.weight' in old
        assert same(from_torch(old)[1], done.variables)


@pytest.mark.parametrize('pooling', ['average', 'max'])
@pytest.mark.parametrize('head', HEADS)
def test_the_same_as_in_pytorch(head, pooling):
    """GroupNorm over the few values of a coarse level magnifies rounding."""
    state = detector(head)
    stages = ['stem', 'layer1', 'stage2', 'stage3', 'stage4', 'pyramid']
    done = convert(state)
    model = done.model.clone(pooling=pooling)
    worst = verify(model, done.variables, official(done, state), (64, 96))
    assert list(worst)[:6] == stages
    heads = {
        'fcos': ['classes', 'distances', 'centerness'],
        'faster_rcnn': ['objectness', 'deltas', 'region logits', 'region deltas'],
    }
    assert sorted(list(worst)[6:]) == sorted(heads[head])
    assert max(worst.values()) < (1e-4 if head == 'fcos' else 1e-5)


@pytest.mark.parametrize('head', HEADS)
def test_up_to_the_pyramid(head):
    state = detector(head)
    done = convert(state, backbone=True)
    assert done.model.task == 'backbone'
    assert done.model.strides == ((8, 16, 32, 64, 128) if head == 'fcos' else (4, 8, 16, 32, 64))
    assert done.notes[0].startswith('took the backbone with a pyramid, without the tensors of ')
    whole = convert(state).variables['params']
    assert same(done.variables['params'], {k: whole[k] for k in ('backbone', 'neck')})
    if head == 'fcos':
        worst = verify(done.model, done.variables, official(done, state), (64, 64))
        assert list(worst)[-1] == 'pyramid'
        assert max(worst.values()) < 1e-5


def test_the_official_pyramid():
    """The official repository's names of the same layers."""
    done = convert(detector('faster_rcnn'), backbone=True)
    state = to_torch(done.variables, 'tiny', 'official')
    assert {'neck.reduction_conv.0.weight', 'neck.fpn_conv.4.bias'} < state.keys()
    again = convert(state)
    assert (again.kind.name, again.network.layout.name) == ('pyramid', 'official')
    assert same(again.variables, done.variables)
    assert set(to_torch(again.variables, 'tiny', 'mmdet')) < set(detector('faster_rcnn'))


@pytest.mark.parametrize('what', OTHERS)
def test_other_networks(what):
    """Refused with their names, or converted up to the pyramid."""
    state = detector('faster_rcnn')
    if 'mask_head.convs' not in OTHERS[what][0]:
        state = {k: v for k, v in state.items() if 'bbox_head' not in k}
    state |= dict.fromkeys(OTHERS[what], np.zeros(3, np.float32))
    remedy = r'; --backbone \(in Python backbone=True\) takes the backbone with a pyramid'
    begin = rf'^this is {what.replace("(", ".").replace(")", ".")} on HRNet tiny, and not'
    with pytest.raises(hrnet_jax.UserError, match=rf'{begin} converted whole{remedy}$'):
        convert(state)
    for backbone in (True, None):
        assert convert(state, backbone=backbone).kind.name == 'pyramid'


def test_strict():
    state = detector('fcos')
    del state['bbox_head.scales.3.scale']
    state['bbox_head.conv_theta.weight'] = np.ones((1, 32, 3, 3), np.float32)
    state['bbox_head.conv_reg.weight'] = np.ones((5, 32, 3, 3), np.float32)
    with pytest.raises(hrnet_jax.UserError) as error:
        convert(state)
    assert '1 missing (bbox_head.scales.3.scale)' in str(error.value)
    assert '1 unexpected (bbox_head.conv_theta.weight)' in str(error.value)
    assert '1 misshapen (bbox_head.conv_reg.weight: 5x32x3x3 instead of 4x' in str(error.value)


@pytest.mark.parametrize('head', HEADS)
def test_the_command(command, tmp_path, head):
    """What the file does not say is as mmdetection has it, and noted."""
    meta = {'CLASSES': ('car', 'cat', 'dog')}
    source = save(tmp_path / 'x.pth', detector(head), meta=meta)
    code, out, err = command(main, source, '--out', tmp_path, '--verify')
    assert code == 0, err
    title = {'fcos': 'FCOS', 'faster_rcnn': 'Faster R-CNN'}[head]
    assert f'/tiny: tiny, {title}, 3 classes, mmdet layout\n' in out
    assert 'class names: taken from the file' in out
    model, variables = hrnet_jax.load(tmp_path / 'tiny')
    assert (model.task, model.head, model.class_names) == ('detection', head, meta['CLASSES'])
    assert model.transform == KeepRatio(**BGR if head == 'fcos' else {})
    code, out, err = command(main, tmp_path / 'tiny', '--to', 'mmdet', '--out', tmp_path / 'y.pth')
    assert code == 0, err
    assert same(from_torch(tmp_path / 'y.pth')[1], variables)


@pytest.mark.parametrize('flags', [(), ('--backbone',)])
def test_maximum_pooling(command, tmp_path, flags):
    """No file of another program shows it; the JSON beside ours does."""
    source = save(tmp_path / 'x.pth', detector('fcos'))
    code, out, err = command(
        main, source, '--out', tmp_path, '--pooling', 'max', '--verify', *flags
    )
    assert code == 0, err
    model, _ = hrnet_jax.load(tmp_path / 'tiny')
    assert (model.pooling, model.strides[0]) == ('max', 8)
    code, out, err = command(main, tmp_path / 'tiny', '--to', 'mmdet', '--out', tmp_path / 'y.pth')
    assert code == 0, err
    assert 'must set pooling max, which is not usual there' in out
    code, out, err = command(main, tmp_path / 'y.pth', '--out', tmp_path / 'again', *flags)
    assert code == 0, err
    assert hrnet_jax.load(tmp_path / 'again/tiny')[0].pooling == 'max'


def test_the_published_table():
    """The 13 of mmdetection 3.3.0 that this program has."""
    rows = {n: e for n, e in all_published().items() if e.task == 'detection'}
    assert len(rows) == 13
    assert {(e.head, e.num_classes, len(e.class_names)) for e in rows.values()} == {
        ('fcos', 80, 80), ('faster_rcnn', 80, 80)
    }  # fmt: skip
    for name, ap, schedule in (
        ('faster-rcnn_hrnetv2p-w18-1x_coco', 0.369, {'1x'}),
        ('fcos_hrnetv2p-w40-gn-head_ms-640-800-4xb4-2x_coco', 0.427, {'2x', 'ms-640-800'}),
    ):
        assert rows[name].transform.categories == tuple(coco())
        assert rows[name].transform.channels == ('bgr' if 'fcos' in name else 'rgb')
        assert rows[name].results[rows[name].transform] == {'coco': {'val2017': {'ap': ap}}}
        assert rows[name].details == schedule
    file = 'faster_rcnn_hrnetv2p_w32_2x_coco_20200529_015927-976a9c15.pth'
    assert find_published(None, file).name == 'faster-rcnn_hrnetv2p-w32_2x_coco'


def test_coco():
    """80 classes are COCO's, whose ids have gaps, unless they have other names."""
    protocol, notes = KeepRatio.of_file(80, {})
    assert notes[0] == 'the 80 classes are taken to be those of COCO; else say --class-names'
    names = get_task('detection').usual_names(protocol)
    assert names == tuple(coco().values())
    assert KeepRatio.of_file(80, {'classes': names})[1][0].startswith('images are taken to be RGB')
    own, _ = KeepRatio.of_file(80, {'classes': ('a', *names[1:])})
    assert (own.categories, get_task('detection').usual_names(own)) == (None, None)
    assert (protocol.category(0), protocol.category(79)) == (1, 90)
    assert (coco()[1], coco()[90]) == ('person', 'toothbrush')
    assert KeepRatio.from_text(protocol.text) == protocol
    assert KeepRatio().category(2) == 3


def test_eighty_classes_with_other_names(command, tmp_path):
    """Their ids are 1, 2, ..., without COCO's gaps."""
    source = save(tmp_path / 'x.pth', detector('faster_rcnn', 80))
    (tmp_path / 'names').write_text(''.join(f'kind {i}\n' for i in range(80)))
    code, out, err = command(main, source, '--out', tmp_path, '--class-names', tmp_path / 'names')
    assert (code, 'are taken to be those of COCO' in out) == (0, False), err
    meta = checkpoint.read_json(tmp_path / 'tiny')
    assert (meta['class_names'][79], meta['transform']['categories']) == ('kind 79', None)
