"""Files of networks for pose: recognised, converted exactly, and written again."""

from __future__ import annotations

import hashlib
import json

import jax
import numpy as np
import poses
import pytest
import torch
from segmenters import made, names, save
from test_conversion import made as made_classifier
from test_networks import same, under

import hrnet_jax
from convert import folders, from_torch, to_torch
from convert.__main__ import main
from convert.conversion import convert, official
from convert.formats import digest_of
from convert.verification import verify
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints.published import all_published, expected, find_published
from hrnet_jax.data import keypoint_sets, people
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.tasks import get_task

LAYOUTS = ('official', 'mmpose', 'mmpose0')
BOTH = [(layout, head) for layout in LAYOUTS for head in ('finest', 'joined')]
# layout, head, architecture, keypoints -> entries, digest of the sorted "name shape" lines.
MANIFESTS = {
    ('mmpose', 'finest', 'w32', 17): (1754, '3c3a94e00a1fdf73'),
    ('mmpose', 'finest', 'w48', 17): (1754, '0135ea797dccb2e6'),
    ('mmpose', 'finest', 'w48', 133): (1754, '0db1444bce9fd6ed'),
    ('mmpose', 'joined', 'w18', 68): (1839, '08fa92fbdaf7bcb2'),
    ('official', 'finest', 'w32', 17): (1754, 'b6d62e0de98476db'),
    ('official', 'finest', 'w48', 17): (1754, 'bf0c500246af9dc9'),
    ('official', 'finest', 'w32', 16): (1754, 'c84f4ef4c4ef55ff'),
    ('official', 'finest', 'w48', 16): (1754, '7c93af9cbc4b0af7'),
}
CODEC = 'note: the codec is not in the file, and taken as quarter; else say --codec official|dark'
SIZE = 'note: the size of the crops is not in the file, and taken as 256 x 192; else say'
COCO = 'note: the 17 keypoints are taken to be those of coco; else say --keypoints\n'
DETECTOR = 'val2017 with COCO_val2017_detections_AP_H_56_person.json'


def pose(layout, head, classes=17, **options):
    return made(layout, head, classes=classes, task='pose', **options)


@pytest.mark.parametrize(('layout', 'head', 'arch', 'count'), MANIFESTS)
def test_names_and_shapes(layout, head, arch, count):
    """Those of mmpose 1.3.2 and of the official code."""
    found = names(layout, head, arch, count, task='pose')
    lines = '\n'.join(sorted(f'{key} {shape}' for key, shape in found.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert (len(found), digest) == MANIFESTS[layout, head, arch, count]


@pytest.mark.parametrize(('layout', 'head'), BOTH)
def test_round_trip_is_bit_exact(layout, head):
    state = pose(layout, head, classes=5, in_channels=4)
    done = convert(state)
    assert (done.network.layout.name, done.model.head) == (layout, head)
    assert (done.arch.name, done.num_classes, done.in_channels) == ('tiny', 5, 4)
    assert done.model.upsample == ('bilinear' if head == 'joined' else 'nearest')
    back = to_torch(done.variables, 'tiny', layout)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    changed = {k for k in state if not np.array_equal(back[k], state[k])}
    # The bias before BatchNorm is folded.
    assert len(changed) == (2 if head == 'joined' else 0)
    for other in LAYOUTS:
        assert same(from_torch(to_torch(done.variables, 'tiny', other))[1], done.variables)


@pytest.mark.parametrize('head', ['finest', 'joined'])
def test_the_same_as_in_pytorch(head):
    state = {k: v * 20 if k == 'head.0.bias' else v for k, v in pose('official', head).items()}
    done = convert(state)
    worst = verify(done.model, done.variables, official(done, state), (64, 96))
    assert list(worst) == ['stem', 'layer1', 'stage2', 'stage3', 'stage4', 'logits']
    assert max(worst.values()) < 1e-5


def test_strict():
    state = pose('mmpose', 'joined')
    state['head.deconv_layers.0.weight'] = np.ones((2, 2, 3, 3), np.float32)
    del state['head.conv_layers.1.weight']
    with pytest.raises(hrnet_jax.UserError) as error:
        convert(state)
    assert '1 missing (head.conv_layers.1.weight)' in str(error.value)
    assert '1 unexpected (head.deconv_layers.0.weight)' in str(error.value)
    del state['head.final_layer.bias']
    with pytest.raises(hrnet_jax.UserError, match=r'missing .*head\.final_layer\.bias'):
        convert(state)


def test_as_the_official_code_trains(command, refused, tmp_path):
    """The weights of the last step come before the best ones; what the file does not say is noted,
    and flags say it."""
    last, best = pose('official', 'finest'), pose('official', 'finest', classes=16)
    tensors = {k: torch.from_numpy(np.array(v)) for k, v in best.items()}
    source = save(
        tmp_path / 'checkpoint.pth',
        under('module.', last),
        **{'epoch': 3, 'model': 'pose_hrnet', 'best_state_dict': tensors, 'perf': 0.7},
    )
    code, out, err = command(main, source, '--out', tmp_path / 'a', '--verify')
    assert code == 0, err
    assert "took the weights under 'state_dict', not those under best_state_dict" in out
    assert all(note in out for note in (CODEC, SIZE, COCO))
    assert 'a/tiny: tiny, 17 keypoints, official layout\n' in out
    model, variables = hrnet_jax.load(tmp_path / 'a')
    assert (model.task, model.head, model.num_keypoints) == ('pose', 'finest', 17)
    assert model.transform == TopDown()
    assert same(variables, from_torch(last)[1])

    flags = ('--codec', 'dark', '--input-size', 384, 288, '--keypoints', 'ap10k')
    code, out, err = command(main, source, '--out', tmp_path / 'b', *flags)
    assert code == 0, err
    assert 'the codec' not in out
    assert 'crops' not in out
    assert 'the 17 keypoints' not in out
    assert hrnet_jax.load(tmp_path / 'b')[0].transform.text == 'ap10k dark 384 288 sigma 3 flip'
    code, *_ = command(main, source, '--out', tmp_path / 'c', *flags[2:5], '--sigma', 2.5)
    assert code == 0
    assert hrnet_jax.load(tmp_path / 'c')[0].transform.sigma == 2.5

    wrong = tmp_path / 'names.txt'
    wrong.write_text('a\n' * 17)
    for arguments, said in (
        (('--keypoints', 'mpii'), '16 keypoints have names, but the file has 17'),
        (('--input-size', 250, 192), 'input_size must be two multiples of 32, not (250, 192)'),
        (('--sigma', -1), 'sigma must be above 0'),
        (('--crop', 224), '--crop is not for this checkpoint'),
        (('--upsample', 'bilinear'), '--upsample is not for a pose network'),
        (('--class-names', wrong), '--class-names is not for pose, which has keypoints'),
        (('--task', 'segmentation'), 'segmentation is not converted from files of a pose network'),
    ):
        assert said in refused(main, source, '--out', tmp_path / 'd', *arguments)
    assert not (tmp_path / 'd').exists()


def test_there_and_back_with_the_command(command, refused, tmp_path):
    """The JSON beside the file keeps what the file does not hold."""
    source = save(tmp_path / 'x.pth', pose('mmpose0', 'joined', classes=68))
    flags = ('--codec', 'udp', '--input-size', 256, 256)
    code, out, err = command(main, source, '--out', tmp_path / 'a', *flags)
    assert code == 0, err
    assert 'the 68 keypoints are taken to be those of 300w' in out
    assert 'tiny, HRNetV2, 68 keypoints, mmpose0 layout\n' in out
    before = checkpoint.read_json(tmp_path / 'a' / 'tiny')
    assert before['transform']['pairs'] == [list(p) for p in keypoint_sets.sets()['300w'].pairs]
    assert (before['upsample'], before['class_names']) == ('bilinear', None)
    for layout in LAYOUTS:
        file = tmp_path / f'{layout}.safetensors'
        code, out, err = command(main, tmp_path / 'a' / 'tiny', '--to', layout, '--out', file)
        assert code == 0, err
        code, out, err = command(main, file, '--out', tmp_path / layout)
        assert code == 0, err
        assert 'the codec' not in out
        after = checkpoint.read_json(tmp_path / layout / 'tiny')
        for field in ('task', 'arrays', 'num_classes', 'head', 'upsample', 'transform'):
            assert before[field] == after[field]
    content = json.loads(tmp_path.joinpath('mmpose.safetensors.json').read_text())
    content['transform'] = TopDown().to_json()
    tmp_path.joinpath('mmpose.safetensors.json').write_text(json.dumps(content))
    _, out, _ = command(main, tmp_path / 'mmpose.safetensors', '--out', tmp_path / 'other')
    assert 'safetensors.json: 17 keypoints have names, but the file has 68\n' in out
    assert 'which has no layout mmseg; known: official, mmpose, mmpose0' in refused(
        main, tmp_path / 'a' / 'tiny', '--to', 'mmseg', '--out', tmp_path / 'y.pth'
    )


def test_keypoints_of_the_file(command, tmp_path):
    """mmpose 1.x writes them; where nothing says which they are, the mirror is not asked."""
    meta = {
        'dataset_name': 'mine',
        'keypoint_id2name': {0: 'nose', 1: 'left', 2: 'right'},
        'flip_indices': [0, 2, 1],
        'skeleton_links': [(0, 1), (0, 2)],
        'sigmas': np.ones(3, np.float32),
    }
    state = pose('mmpose', 'finest', classes=3)
    for number, (said, note) in enumerate(
        (
            (meta, 'note: keypoints: names, partners and skeleton taken from the file\n'),
            (meta | {'flip_indices': [0, 2]}, 'keypoints: names, partners'),
            (meta | {'flip_indices': [1, 2, 0]}, 'it is not known which 3 keypoints these are'),
            (meta | {'keypoint_id2name': {1: 'a', 2: 'b'}}, 'it is not known which 3 keypoints'),
            (meta | {'keypoint_id2name': {0: 1, 1: 2, 2: 3}}, 'it is not known which 3 keypoints'),
            ({}, 'it is not known which 3 keypoints these are, so the network is not asked for'),
        )
    ):
        source = save(tmp_path / f'{number}.pth', state, meta={'dataset_meta': said})
        code, out, err = command(main, source, '--out', tmp_path / f'{number}')
        assert code == 0, err
        assert note in out
        transform = hrnet_jax.load(tmp_path / f'{number}')[0].transform
        assert transform.flip == (number < 2)
        if number == 0:
            assert transform.keypoints == ('nose', 'left', 'right')
            assert (transform.pairs, transform.skeleton) == (((1, 2),), ((0, 1), (0, 2)))
        if number > 1:
            assert transform.keypoints == ('keypoint_0', 'keypoint_1', 'keypoint_2')
            assert transform.pairs == transform.skeleton == ()


def test_the_backbone_alone():
    done = convert(pose('mmpose', 'finest'), backbone=True)
    assert done.model.outputs == 1
    assert done.notes == ('took the trunk alone, without the tensors of heatmaps (2)',)


def test_what_so_many_keypoints_are():
    counts = (17, 16, 133, 98, 29, 68, 19, 14, 21, 5)
    known = ('coco', 'mpii', 'coco_wholebody', 'wflw', 'cofw', '300w', 'aflw', None, None, None)
    assert tuple(map(keypoint_sets.usual, counts)) == known


def test_the_initialisation_of_imagenet(command, refused, tmp_path):
    """Its widening layers are `head.0.*`, which are no heatmaps."""
    theirs = {
        'incre_modules.': 'head.0.',
        'downsamp_modules.': 'head.1.',
        'final_layer.': 'head.2.',
    }
    state = {}
    for key, value in made_classifier().items():
        start = next((old for old in theirs if key.startswith(old)), '')
        state[theirs.get(start, '') + key.removeprefix(start)] = value
    source = save(tmp_path / 'imagenet.pth', state)
    said = refused(main, source, '--out', tmp_path / 'a')
    assert 'HRNet tiny, but no whole classifier' in said
    assert 'head.* (' in said
    assert '--backbone (in Python backbone=True) takes the trunk alone' in said
    code, out, err = command(main, source, '--out', tmp_path, '--backbone')
    assert code == 0, err
    model, variables = hrnet_jax.load(tmp_path / 'tiny')
    assert (model.task, model.outputs) == ('backbone', 4)
    fresh = hrnet_jax.create_model('tiny', task='pose')
    got, report = hrnet_jax.transfer(hrnet_jax.init(fresh, jax.random.key(0), 32), source)
    assert {name.split('/')[0] for name in report.initialised} == {'head'}
    # The rows of the last module that this network does not have.
    assert report.left
    assert all('stage4_0/fuse_layers_' in name for name in report.left)
    kernel = got['params']['backbone']['stage2_0']['branches_0_0']['conv1']['kernel']
    np.testing.assert_array_equal(
        kernel, variables['params']['stage2_0']['branches_0_0']['conv1']['kernel']
    )


def test_published_files():
    rows = {n: e for n, e in all_published().items() if e.task == 'pose'}
    assert len([n for n in rows if n.startswith('td-hm_')]) == 54
    assert len(rows) == 59
    files = [file for entry in all_published().values() for file in entry.files]
    assert len(files) == len(set(files))
    for entry in rows.values():
        entry.transform.check_outputs(entry.num_classes)
        assert len(entry.results) == 1
        for splits in entry.results[entry.transform].values():
            for values in splits.values():
                assert all(0 < values.get(name, 0.5) < 1 for name in ('ap', 'ar', 'pckh'))
    for name, arch, head, protocol, dataset, split, values in (
        (
            *('td-hm_hrnet-w32_8xb64-210e_coco-256x192', 'w32', 'finest'),
            *('coco quarter 256 192 sigma 2 flip', 'coco', DETECTOR),
            {'ap': 0.746, 'ap50': 0.904, 'ap75': 0.819, 'ar': 0.799, 'ar50': 0.942},
        ),
        (
            *('td-hm_hrnet-w48_udp-8xb32-210e_coco-384x288', 'w48', 'finest'),
            *('coco udp 384 288 sigma 3 flip', 'coco', DETECTOR),
            {'ap': 0.773, 'ap50': 0.911, 'ap75': 0.836, 'ar': 0.821, 'ar50': 0.946},
        ),
        (
            *('td-hm_hrnetv2-w18_dark-8xb64-60e_aflw-256x256', 'w18', 'joined'),
            *('aflw dark 256 256 sigma 2 flip', 'aflw', 'test', {'nme': 1.34}),
        ),
        (
            *('pose_hrnet_w48_384x288', 'w48', 'finest'),
            *('coco official 384 288 sigma 3 flip', 'coco', DETECTOR),
            {'ap': 0.763, 'ap50': 0.908, 'ap75': 0.829, 'ar': 0.812},
        ),
    ):
        entry = rows[name]
        assert (entry.arch, entry.head) == (arch, head)
        transform = get_task('pose').protocol.from_text(protocol)
        assert entry.results[transform][dataset][split] == values
        meta = {'task': 'pose', 'published': entry.to_json()}
        assert expected(meta, transform, dataset, split) == values
        # Boxes of people and of a detector are not to be compared.
        assert expected(meta, transform, dataset, 'val2017') == {}
        assert find_published(name, 'x.pth') is entry
        assert all(find_published(None, f'/a/{file}') is entry for file in entry.files)


def test_boxes_of_a_detector_are_in_the_split(tmp_path):
    """So that its figures are compared with those of the same boxes alone."""
    keypoints = [[np.ones((17, 3))] * len(rows) for rows in poses.BOXES]
    poses.write_coco(tmp_path, poses.annotations(keypoints))
    poses.make_images(tmp_path / 'val2017')
    boxes = tmp_path / DETECTOR.split()[-1]
    row = {'image_id': 1, 'category_id': 1, 'bbox': [5, 5, 30, 60], 'score': 0.9}
    boxes.write_text(json.dumps([row]))
    assert people.open_people('coco', None, str(tmp_path)).split == 'val2017'
    source = people.open_people('coco', None, str(tmp_path), str(boxes))
    assert source.split == source.dataset.split == DETECTOR
    assert source.num_examples == 1


def test_a_hash_before_a_date(tmp_path):
    """As mmpose names its files."""
    for name, promised in (
        ('hrnet_w32_mpii_256x256-6c4f923f_20200812.pth', '6c4f923f'),
        ('hrnet_w32_mpii_256x256-20200812_20200812.pth', None),
    ):
        (tmp_path / name).write_bytes(b'x')
        remark = digest_of(tmp_path / name)[1]
        assert f'promises a sha256 of {promised}...' in remark if promised else remark is None


def test_a_published_name(command, tmp_path, monkeypatch):
    """It knows the codec, the size and the keypoints."""
    entry, file = all_published()['td-hm_hrnet-w32_dark-8xb64-210e_coco-384x288'], 'tiny_dark.pth'
    small = entry.__class__(**vars(entry) | {'name': 'dark', 'arch': 'tiny', 'files': (file,)})
    monkeypatch.setitem(all_published(), 'dark', small)
    source = save(tmp_path / file, pose('mmpose', 'finest'))
    code, out, err = command(main, source, '--out', tmp_path / 'a')
    assert code == 0, err
    assert 'note' not in out
    assert '17 keypoints, mmpose layout, published as 0.907 AP at 0.5' not in out
    assert '17 keypoints, mmpose layout, published as 0.766 AP and ' in out
    meta = checkpoint.read_json(tmp_path / 'a' / 'tiny')
    assert meta['published']['name'] == 'dark'
    assert hrnet_jax.load(tmp_path / 'a')[0].transform.text == 'coco dark 384 288 sigma 3 flip'
    other = save(tmp_path / 'own.pth', pose('mmpose', 'finest'))
    _, out, _ = command(main, other, '--out', tmp_path / 'b')
    assert 'note: not a published file by its name; if it is one, say --name dark\n' in out
    assert CODEC in out


def test_class_names_in_a_file(command, tmp_path):
    """OpenMMLab writes them; a published name and the JSON beside the file come first."""
    state = made('mmseg', 'fcn', classes=3)
    three = ('sky', 'sea', 'land')
    for number, (meta, said) in enumerate(
        (
            ({'CLASSES': three}, True),
            ({'dataset_meta': {'classes': three, 'palette': [[0, 0, 0]] * 3}}, True),
            ({'CLASSES': three[:2]}, False),
            ({'CLASSES': (1, 2, 3)}, False),
            ({'CLASSES': None}, False),
        )
    ):
        source = save(tmp_path / f'{number}.pth', state, meta=meta)
        code, out, err = command(main, source, '--out', tmp_path / f'{number}')
        assert code == 0, err
        assert ('note: class names: taken from the file\n' in out) == said
        assert ('3 classes, in this order: sky, sea, land\n' in out) == said
        assert ('the file has 2 class names, which are not taken' in out) == (number == 2)
        names_ = checkpoint.read_json(tmp_path / f'{number}' / 'tiny')['class_names']
        assert names_ == (list(three) if said else None)
    own = tmp_path / 'names.txt'
    own.write_text('a\nb\nc\n')
    command(main, tmp_path / '0.pth', '--out', tmp_path / 'own', '--class-names', own)
    assert checkpoint.read_json(tmp_path / 'own' / 'tiny')['class_names'] == ['a', 'b', 'c']
    folders.write(str(tmp_path / '0.pth'), tmp_path / 'hub')
    assert checkpoint.read_json(tmp_path / 'hub')['class_names'] == list(three)
