"""eval.py of a pose network on made sets, beside pycocotools; what is in a set; mistakes."""

from __future__ import annotations

import argparse
import dataclasses
import json

import cv2
import numpy as np
import poses
import pytest
import runs

import eval as eval_command
import hrnet_jax
import predict as predict_command
from hrnet_jax.commands.arguments import given_to
from hrnet_jax.data import coco_form, people, people_batches
from hrnet_jax.data.evaluation import Share
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.similarity import person_score


@pytest.fixture(scope='module')
def ckpt(once):
    return once('pose', poses.make_checkpoint)


def clipped(box, size):
    """mmpose's box of an annotation."""
    low = np.clip(box[:2], 0, np.array(size[::-1]) - 1)
    high = np.clip(np.add(box[:2], box[2:]), 0, np.array(size[::-1]) - 1)
    return [*low.tolist(), *(high - low).tolist()]


@pytest.fixture(scope='module')
def coco(ckpt, tmp_path_factory):
    """A set whose truth is what the network finds, moved by noise; its folder, and the people."""
    root = tmp_path_factory.mktemp('coco')
    images = poses.make_images(root / 'val2017')
    model, variables = hrnet_jax.load(ckpt)
    boxes = [
        [clipped(box, size) for box in rows]
        for rows, size in zip(poses.BOXES, poses.SIZES, strict=True)
    ]
    found = hrnet_jax.predict(model, variables, images, boxes=boxes)
    random = np.random.default_rng(0)
    truth = [
        [np.column_stack([p.keypoints + random.normal(0, 3, (17, 2)), np.full(17, 2)]) for p in one]
        for one in found
    ]
    poses.write_coco(root, poses.annotations(truth))
    return root, found


def rows_of(found):
    return [
        {
            'image_id': i + 1,
            'category_id': 1,
            'keypoints': np.column_stack([p.keypoints, p.scores]).ravel().tolist(),
            'score': float(person_score(1, p.scores)),
        }
        for i, one in enumerate(found)
        for p in one
    ]


def test_as_pycocotools(command, ckpt, coco, tmp_path):
    """From the shell: what `predict` finds in the boxes of the annotations."""
    root, found = coco
    result, out = poses.evaluated(
        command, ckpt, tmp_path, '--dataset', 'coco', '--data-dir', root,
        '--predictions', tmp_path / 'p.json', '--batch-size', 4,
    )  # fmt: skip
    expected = poses.by_pycocotools(
        root / 'annotations/person_keypoints_val2017.json', rows_of(found)
    )
    assert 0.05 < expected['ap'] < 0.95
    assert result['metrics'] == pytest.approx(expected, abs=1e-6)
    assert (result['task'], result['num_examples'], result['partial']) == ('pose', 6, False)
    assert result['protocol'] == 'coco quarter 64 32 sigma 2 flip'
    assert f'{expected["ap"]:.3f}' in out
    assert f'written: {tmp_path}/p.json\nwritten: {tmp_path}/r.json\n' in out
    people = json.loads((tmp_path / 'p.json').read_text())
    assert len(people) == 6
    best = max(people, key=lambda row: row['score'])
    row = max(rows_of(found), key=lambda row: row['score'])
    np.testing.assert_allclose(best['keypoints'], row['keypoints'], atol=1e-3)


def test_two_processes(ckpt, coco, tmp_path):
    root, found = coco
    options = ('--ckpt', ckpt, '--dataset', 'coco', '--data-dir', root)
    options += ('--json', tmp_path / 'r.json', '--predictions', tmp_path / 'p.json')
    ended = runs.finish(runs.start('eval', options, processes=2, devices=2))
    assert [code for code, *_ in ended] == [0, 0], ended
    expected = poses.by_pycocotools(
        root / 'annotations/person_keypoints_val2017.json', rows_of(found)
    )
    result = json.loads((tmp_path / 'r.json').read_text())
    assert result['metrics'] == pytest.approx(expected, abs=1e-6)
    assert len(json.loads((tmp_path / 'p.json').read_text())) == 6


def test_boxes_of_a_detector(command, ckpt, coco, tmp_path):
    """Other categories and images, empty boxes: left out. Boxes of one person: the best stays."""
    root, _ = coco
    rows = [
        {'image_id': i, 'category_id': category, 'bbox': box, 'score': score}
        for i, category, box, score in (
            (1, 1, poses.BOXES[0][0], 0.9),
            (1, 1, poses.BOXES[0][0], 0.8),
            (2, 1, poses.BOXES[1][0], 0.5),
            (2, 7, poses.BOXES[1][0], 0.9),
            (3, 1, [500, 500, 40, 40], 0.1),  # outside of the image
            (3, 1, [5, 5, 0, 0], 0.9),
            (77, 1, [0, 0, 5, 5], 0.9),
        )
    ]
    (tmp_path / 'b.json').write_text(json.dumps(rows))
    result, out = poses.evaluated(
        command, ckpt, tmp_path, '--dataset', 'coco', '--data-dir', root,
        '--boxes', tmp_path / 'b.json', '--predictions', tmp_path / 'p.json', '--codec', 'dark',
        '--no-flip', '--batch-size', 4,
    )  # fmt: skip
    assert (result['num_examples'], result['split']) == (4, 'val2017 with b.json')
    assert result['protocol'] == 'coco dark 64 32 sigma 2'
    assert f'note: 2 boxes of {tmp_path}/b.json are empty or of images that are not' in out
    people = json.loads((tmp_path / 'p.json').read_text())
    assert [row['image_id'] for row in people] == [1, 2, 3]
    file = root / 'annotations/person_keypoints_val2017.json'
    assert result['metrics'] == pytest.approx(poses.by_pycocotools(file, people), abs=1e-6)
    scores = np.reshape(people[0]['keypoints'], (17, 3))[:, 2]
    assert people[0]['score'] == pytest.approx(0.9 * scores[scores > 0.2].mean(), rel=1e-5)


def test_an_image_that_cannot_be_read(command, ckpt, coco, tmp_path):
    """Its people are left out and counted, and none of the others is missed."""
    root, found = coco
    (tmp_path / 'val2017').mkdir()
    for file in (root / 'val2017').iterdir():
        data = file.read_bytes()
        (tmp_path / 'val2017' / file.name).write_bytes(data if '2.png' not in file.name else b'x')
    content = json.loads((root / 'annotations/person_keypoints_val2017.json').read_text())
    poses.write_coco(tmp_path, content)
    source = people.open_people('coco', None, str(tmp_path))
    with pytest.raises(UserError, match='1 of 3 images cannot be read: .*000000000002.png'):
        list(people_batches.batches(source, poses.SMALL, Share(4)))
    result, _ = poses.evaluated(
        command, ckpt, tmp_path, '--dataset', 'coco', '--data-dir', tmp_path, '--max-corrupt', 0.2,
        '--batch-size', 4,
    )  # fmt: skip
    assert (result['num_examples'], result['unreadable'], result['partial']) == (5, 1, True)
    kept = [x for x in content['annotations'] if x['image_id'] != 2]
    images = [x for x in content['images'] if x['id'] != 2]
    file = tmp_path / 'kept.json'
    file.write_text(json.dumps({**content, 'annotations': kept, 'images': images}))
    rows = [row for row in rows_of(found) if row['image_id'] != 2]
    assert result['metrics'] == pytest.approx(poses.by_pycocotools(file, rows), abs=1e-6)


def test_weights_that_give_no_numbers(refused, ckpt, coco, tmp_path):
    """They are refused, and nothing is written."""
    root, _ = coco
    model, variables = hrnet_jax.load(ckpt)
    variables['params']['head']['final_layer']['bias'] += np.float32(np.inf)
    poses.save(tmp_path / 'tiny', model, variables, poses.SMALL)
    written = tmp_path / 'p.json'
    line = refused(
        eval_command.main, '--ckpt', tmp_path, '--dataset', 'coco', '--data-dir', root,
        '--predictions', written, '--batch-size', 4,
    )  # fmt: skip
    assert 'the outputs for 6 of 6 images are not finite' in line
    photo = root / f'val2017/{1:012d}.png'
    line = refused(predict_command.main, photo, '--ckpt', tmp_path, '--json', written)
    assert 'the heatmaps are not finite' in line
    assert not written.exists()


def published(image, low, high, size, udp):
    """mmpose's crop between two float32 corners, in float32 to the matrix; its centre and scale."""
    centre, scale = (low + high) * np.float32(0.5), (high - low) * np.float32(1.25)
    ratio = np.float32(size[1] / size[0])
    wide = scale[0] > scale[1] * ratio
    scale[wide * 1] = scale[0] / ratio if wide else scale[1] * ratio
    width, height = size[::-1]
    if udp:
        by = np.array([width - 1, height - 1], np.float32) / scale
        matrix = np.column_stack([np.diag(by), by * (-centre + scale * np.float32(0.5))])
    else:
        left = centre - [scale[0] / 2, 0]
        here = np.float32([centre, left, left - [0, scale[0] / 2]])
        there = np.float32([[width / 2, height / 2], [0, height / 2], [0, (height - width) / 2]])
        matrix = cv2.getAffineTransform(here, there)
    return cv2.warpAffine(image, matrix, (width, height)), centre, scale


@pytest.mark.parametrize('codec', ['quarter', 'udp'])
@pytest.mark.parametrize('detector', [False, True])
def test_crops_of_a_set_are_of_float32_boxes(coco, tmp_path, codec, detector):
    """As mmpose's data sets hold them; float64 gives other pixels in a tenth of large crops."""
    root, _ = coco
    random, size = np.random.default_rng(0), np.array(poses.SIZES[0][::-1])
    low = random.uniform(0, 30, (40, 2)).round(2)
    boxes = np.concatenate([low, random.uniform(20, size - 35, (40, 2)).round(2)], 1)
    content = json.loads((root / 'annotations/person_keypoints_val2017.json').read_text())
    person = content['annotations'][0]
    content['annotations'] = [{**person, 'bbox': box} for box in boxes.tolist()]
    file = tmp_path / 'boxes.json'
    file.write_text(json.dumps(content['annotations']))
    (tmp_path / 'val2017').symlink_to(root / 'val2017')
    poses.write_coco(tmp_path, content)
    source = people.open_people('coco', None, str(tmp_path), str(file) if detector else None)
    protocol = dataclasses.replace(poses.SMALL, codec=codec)
    [batch] = people_batches.batches(source, protocol, Share(40, given=True))
    image = source.read.image(0)
    for i, box in enumerate(boxes):
        low, high = np.float32(box[:2]), np.float32(box[:2] + box[2:])
        high = low + np.float32(box[2:]) if detector else high
        expected = published(image, low, high, protocol.input_size, codec == 'udp')
        for name, values in zip(('image', 'centre', 'scale'), expected, strict=True):
            np.testing.assert_array_equal(batch[name][i], values)


def test_who_is_evaluated(coco, tmp_path):
    """No crowd, nobody without a visible joint or outside of the image."""
    root, _ = coco
    content = json.loads((root / 'annotations/person_keypoints_val2017.json').read_text())
    people_ = content['annotations']
    people_[0]['iscrowd'] = 1
    people_[1]['keypoints'] = [0] * 51
    people_[2]['bbox'] = [500, 500, 20, 20]
    poses.write_coco(tmp_path, content)
    poses.make_images(tmp_path / 'val2017')
    source = people.open_people('coco', 'val', str(tmp_path))
    assert (source.num_examples, source.split) == (3, 'val2017')
    assert source.notes == (
        '3 people without a keypoint or a box in their image, or crowds: not evaluated',
    )
    assert source.truth.image_ids == (2, 3, 3)
    assert len(source.truth.content['annotations']) == 6
    example = source.read(0)
    assert example['image'].shape == (120, 80, 3)
    np.testing.assert_allclose(example['keypoints'].ravel(), people_[3]['keypoints'], rtol=1e-6)
    np.testing.assert_allclose(example['box'], [*people_[3]['bbox'], 1])


def spoiled(root, kind):
    content = poses.annotations([[np.ones((17, 3))] * len(rows) for rows in poses.BOXES])
    person, boxes = content['annotations'][0], None
    if kind == 'no one':
        content['annotations'] = []
    elif kind == 'keypoints':
        person['keypoints'] = [1, 2, 3]
    elif kind == 'bbox':
        person['bbox'] = [1, 2, 3]
    elif kind == 'sigmas':
        content['categories'][0]['sigmas'] = [0] * 17
    elif kind == 'names':
        content['categories'][0]['keypoints'] = list(range(17))
    elif kind == 'image':
        person['image_id'] = 9
    elif kind == 'width':
        content['images'][1]['width'] = 'wide'
    elif kind == 'center':
        person |= {'center': [1], 'scale': 1.0}
    elif kind == 'ids':
        content['images'][1]['id'] = 'two'
    elif kind == 'category':
        content['categories'][0]['keypoints'] = 'nose'
    elif kind == 'form':
        content = [1]
    elif kind == 'files':
        content['images'][0]['file_name'] = 'absent.png'
    elif kind in ('empty', 'strangers'):
        boxes = root / 'b.json'
        row = {'image_id': 9, 'category_id': 1, 'bbox': [0, 0, 5, 5], 'score': 1}
        boxes.write_text(json.dumps([row] * (kind == 'strangers')))
    poses.write_coco(root, content)
    poses.make_images(root / 'val2017')
    return boxes


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('no one', 'has no person with a box and a keypoint'),
        ('keypoints', 'the keypoints of annotation 1 are not 17 times x, y and visibility'),
        ('bbox', r'the bbox of annotation 1 is not \[x, y, width, height\]'),
        ('sigmas', '"sigmas" are not 17 numbers above 0'),
        ('names', '"keypoints" of the category are names'),
        ('image', 'people are in images 9, which it does not list'),
        ('width', "is not in the form of COCO: the width of image 2 cannot be 'wide'"),
        ('center', r'is not in the form of COCO: the center of annotation 1 cannot be \[1\]'),
        ('ids', 'is not in the form of COCO: ids of images are all numbers, or all texts'),
        ('category', 'is not in the form of COCO: a category has .* a list of keypoints'),
        ('form', 'is not in the form of COCO: images, annotations, and a category with keypoints'),
        ('files', 'its first image absent.png is not in'),
        ('empty', 'has no box of a person in these images; it has 0 boxes of people'),
        ('strangers', 'has no box of a person in these images; it has 1 boxes of people'),
    ],
)
def test_mistakes(tmp_path, kind, words):
    boxes = spoiled(tmp_path, kind)
    with pytest.raises(UserError, match=words):
        people.open_people('coco', None, str(tmp_path), boxes and str(boxes))


def test_another_number_of_keypoints(refused, ckpt, tmp_path):
    content = poses.annotations(
        [[np.ones((3, 3))] * len(rows) for rows in poses.BOXES],
        category={'keypoints': ['a', 'b', 'c']},
    )
    (tmp_path / 'own.json').write_text(json.dumps(content))
    poses.make_images(tmp_path)
    line = refused(eval_command.main, '--ckpt', ckpt, '--dataset', tmp_path)
    assert f'{tmp_path} has 3 keypoints, the checkpoint 17' in line


def test_flags():
    pose, other = map(get_task, ('pose', 'classification'))
    args = argparse.Namespace(boxes='b.json')
    assert given_to(args, ['boxes'], pose, pose.add_data_flags) == {'boxes': 'b.json'}
    with pytest.raises(UserError, match='--boxes is not for classification'):
        given_to(args, ['boxes'], other, other.add_data_flags)
    with pytest.raises(UserError, match='its folder does not exist'):
        pose.metric(None, truth=None, predictions='/no/p.json')
    with pytest.raises(UserError, match='coco has no split test; it has val2017, val, train2017'):
        people.open_people('coco', 'test', '.')
    with pytest.raises(UserError, match='coco: --data-dir says where its files are'):
        people.open_people('coco', None, None)
    with pytest.raises(UserError, match="unknown pose data set 'cocoa'; known: coco, coco_who"):
        people.open_people('cocoa', None, None)


@pytest.mark.parametrize('place', ['.', 'annotations', 'file'])
def test_own_folder(tmp_path, place):
    """Sigmas of the category; without areas, a part of the box."""
    content = poses.annotations(
        [[np.ones((3, 3))] * len(rows) for rows in poses.BOXES],
        category={'keypoints': ['a', 'b', 'c'], 'sigmas': [0.1, 0.2, 0.3]},
    )
    for person in content['annotations']:
        del person['area']
    folder = tmp_path / ('annotations' if place == 'annotations' else '.')
    folder.mkdir(exist_ok=True)
    (folder / 'val.json').write_text(json.dumps(content))
    poses.make_images(tmp_path / 'images')
    where, split = (folder / 'val.json', None) if place == 'file' else (tmp_path, 'val')
    source = people.open_people(f'folder:{where}', split, None)
    assert (source.num_classes, source.num_examples) == (3, 6)
    assert source.truth.sigmas == (0.1, 0.2, 0.3)
    first = source.truth.content['annotations'][0]
    assert first['area'] == pytest.approx(0.53 * 40 * 70)
    assert not any('OKS' in note for note in source.notes)
    del content['categories'][0]['sigmas']
    (folder / 'val.json').write_text(json.dumps(content))
    source = people.open_people(f'folder:{where}', split, None)
    assert source.notes[-1].startswith('OKS with sigma 0.05 for each keypoint')


def test_whole_bodies(tmp_path):
    """Keypoints of body, feet, face and hands are one; each part by itself, too."""
    content = poses.annotations([[np.full((17, 3), 2.0)] * len(x) for x in poses.BOXES])
    for person in content['annotations']:
        for name, count in zip(coco_form.MORE, (6, 68, 21, 21), strict=True):
            person[name] = [5.0, 5.0, 2.0] * count
    (tmp_path / 'annotations').mkdir()
    file = tmp_path / 'annotations/coco_wholebody_val_v1.0.json'
    file.write_text(json.dumps(content))
    poses.make_images(tmp_path / 'val2017')
    truth = people.open_people('coco_wholebody', None, str(tmp_path)).truth
    assert len(truth.sigmas) == 133
    assert truth.parts == {
        'body': (0, 17), 'foot': (17, 23), 'face': (23, 91), 'lefthand': (91, 112),
        'righthand': (112, 133),
    }  # fmt: skip
    assert len(truth.content['annotations'][0]['keypoints']) == 3 * 133
