"""eval.py of a pose network on made sets: AP beside pycocotools, suppression beside plain NumPy."""

from __future__ import annotations

import argparse
import contextlib
import io
import json

import numpy as np
import poses
import pytest
import runs
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.io import savemat

import eval as eval_command
import hrnet_jax
from hrnet_jax.commands.arguments import given_to
from hrnet_jax.data import coco_form, people, people_batches
from hrnet_jax.data.evaluation import Share
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.keypoint_metrics import NAMES, precision
from hrnet_jax.tasks.pose import TASK
from hrnet_jax.tasks.pose_recipes import OwnPose
from hrnet_jax.tasks.similarity import person_score, suppressed

SIGMAS = np.array(poses.COCO.sigmas)


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


def evaluated(command, ckpt, tmp_path, *more):
    code, out, err = command(
        eval_command.main, '--ckpt', ckpt, '--json', tmp_path / 'r.json', *more
    )
    assert code == 0, err
    return json.loads((tmp_path / 'r.json').read_text()), out


def by_pycocotools(file, rows, sigmas=SIGMAS):
    """Its ten figures, asked as its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        asked = COCOeval(truth, truth.loadRes(rows), 'keypoints')
        asked.params.kpt_oks_sigmas = np.array(sigmas)
        asked.evaluate()
        asked.accumulate()
        asked.summarize()
    return dict(zip(NAMES, asked.stats, strict=True))


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
    result, out = evaluated(
        command, ckpt, tmp_path, '--dataset', 'coco', '--data-dir', root,
        '--predictions', tmp_path / 'p.json', '--batch-size', 4,
    )  # fmt: skip
    expected = by_pycocotools(root / 'annotations/person_keypoints_val2017.json', rows_of(found))
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
    expected = by_pycocotools(root / 'annotations/person_keypoints_val2017.json', rows_of(found))
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
    result, out = evaluated(
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
    assert result['metrics'] == pytest.approx(by_pycocotools(file, people), abs=1e-6)
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
    result, _ = evaluated(
        command, ckpt, tmp_path, '--dataset', 'coco', '--data-dir', tmp_path, '--max-corrupt', 0.2,
        '--batch-size', 4,
    )  # fmt: skip
    assert (result['num_examples'], result['unreadable'], result['partial']) == (5, 1, True)
    kept = [x for x in content['annotations'] if x['image_id'] != 2]
    images = [x for x in content['images'] if x['id'] != 2]
    file = tmp_path / 'kept.json'
    file.write_text(json.dumps({**content, 'annotations': kept, 'images': images}))
    rows = [row for row in rows_of(found) if row['image_id'] != 2]
    assert result['metrics'] == pytest.approx(by_pycocotools(file, rows), abs=1e-6)


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
        ('form', 'is not in the form of COCO'),
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


def perturbed(seed, people_=40, images=8):
    """A set, and results of several kinds of quality, some people twice, some missed."""
    random = np.random.default_rng(seed)
    annotations, rows = [], []
    for i in range(people_):
        x, y, width, height = [*random.uniform(0, 300, 2), *random.uniform(20, 250, 2)]
        points = random.uniform([x, y], [x + width, y + height], (17, 2))
        seen = random.integers(0, 3, 17)
        annotations.append({
            'id': i + 1, 'image_id': i % images + 1, 'category_id': 1, 'iscrowd': int(i % 11 == 7),
            'bbox': [x, y, width, height], 'area': 0.5 * width * height,
            'keypoints': np.column_stack([points, seen]).ravel().tolist(),
            'num_keypoints': int((seen > 0).sum()),
        })  # fmt: skip
        for _ in range(random.integers(0, 3)):
            noise = random.choice([1, 5, 20]) * random.standard_normal((17, 2))
            found = np.column_stack([points + noise, random.random(17)])
            rows.append({
                'image_id': i % images + 1, 'category_id': 1, 'keypoints': found.ravel().tolist(),
                'score': float(random.random()),
            })  # fmt: skip
    content = {
        'images': [{'id': i + 1} for i in range(images)],
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'person'}],
    }
    return content, rows


def test_precision_of_perturbed_truth(tmp_path):
    content, rows = perturbed(0)
    file = tmp_path / 'a.json'
    file.write_text(json.dumps(content))
    expected = by_pycocotools(file, rows)
    assert 0.05 < expected['ap'] < 0.95
    assert precision(content, rows, SIGMAS) == pytest.approx(expected, abs=1e-12)
    other = by_pycocotools(file, rows, SIGMAS * 2)
    assert precision(content, rows, SIGMAS * 2) == pytest.approx(other, abs=1e-12)
    assert other['ap'] > expected['ap']


def test_crowds(tmp_path):
    """As CrowdPose: three levels of crowds instead of sizes; areas and counts by its rules."""
    content, rows = perturbed(1)
    for image, index in zip(
        content['images'], (0.0, 0.1, 0.2, 0.5, 0.79, 0.8, 0.9, 1), strict=True
    ):
        image |= {'crowdIndex': index, 'file_name': f'{1:012d}.png'}
    for person in content['annotations']:
        person['num_keypoints'] = max(person['num_keypoints'] - 11, 0)  # CrowdPose counts otherwise
        del person['area']
    content['categories'][0]['keypoints'] = list(poses.COCO.names)
    (tmp_path / 'val.json').write_text(json.dumps(content))
    poses.make_images(tmp_path / 'images')
    truth = people.open_people(f'folder:{tmp_path}', 'val', None).truth
    assert {k: len(ids) for k, ids in truth.crowds.items()} == {'easy': 2, 'medium': 3, 'hard': 3}
    for person in content['annotations']:
        person['area'] = 0.53 * person['bbox'][2] * person['bbox'][3]
    expected = {}
    levels = {'': range(1, 9), '_easy': (1, 2), '_medium': (3, 4, 5), '_hard': (6, 7, 8)}
    for level, ids in levels.items():
        held = {
            'images': [x for x in content['images'] if x['id'] in ids],
            'annotations': [x for x in content['annotations'] if x['image_id'] in ids],
        }
        (tmp_path / 'level.json').write_text(json.dumps(content | held))
        of_level = [row for row in rows if row['image_id'] in ids]
        expected[f'ap{level}'] = by_pycocotools(tmp_path / 'level.json', of_level)['ap']
    assert len(set(expected.values())) == 4
    metric = TASK.metric(None, truth=truth)
    found = metric.metrics(rows)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    assert list(found) == [
        'ap', 'ap50', 'ap75', 'ar', 'ar50', 'ar75', 'ap_easy', 'ap_medium', 'ap_hard',
    ]  # fmt: skip
    assert {figure.name for figure in TASK.figures_of(None, metric)} <= set(found)
    assert metric.metrics(rows, {1, 2})['ap'] == pytest.approx(expected['ap_easy'], abs=1e-12)


def plain_suppression(keypoints, scores, areas, threshold):
    """Person by person."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        alike = []
        for j in kept:
            total = 0.0
            for (xi, yi), (xj, yj), sigma in zip(keypoints[i], keypoints[j], SIGMAS, strict=True):
                square = (xi - xj) ** 2 + (yi - yj) ** 2
                area = (areas[i] + areas[j]) / 2 + np.spacing(1)
                total += np.exp(-square / (2 * sigma) ** 2 / area / 2)
            alike.append(total / 17)
        if not alike or max(alike) <= threshold:
            kept.append(i)
    return kept


@pytest.mark.parametrize('seed', range(5))
def test_suppression(seed):
    """Random people, many alike, many of equal scores."""
    random = np.random.default_rng(seed)
    centres = random.uniform(0, 400, (6, 17, 2))
    keypoints = centres[random.integers(0, 6, 40)] + random.normal(0, 2, (40, 17, 2))
    scores = random.integers(0, 5, 40) / 4
    areas = random.uniform(50, 200, 40) ** 2
    kept = suppressed(keypoints, scores, areas, SIGMAS)
    assert kept.tolist() == plain_suppression(keypoints, scores, areas, 0.9)
    assert 6 <= len(kept) < 40


def test_score_of_a_person():
    scores = np.array([[0.9, 0.5, 0.2, 0.1], [0.1, 0.0, 0.2, -1]])
    assert person_score(np.array([0.5, 1.0]), scores).tolist() == [0.35, 0]


def write_mpii(root, split, count):
    """Annotations of so many people, and three images; returns the former."""
    random = np.random.default_rng(count)
    found = [
        {
            'image': f'{1:012d}.png',
            'joints': random.uniform(10, 80, (16, 2)).tolist(),
            'joints_vis': [1] * 15 + [0],
            'center': [50.0, 40.0],
            'scale': 0.4,
        }
        for _ in range(count)
    ]
    (root / 'annotations').mkdir(exist_ok=True)
    (root / f'annotations/mpii_{split}.json').write_text(json.dumps(found))
    poses.make_images(root / 'images')
    return found


def write_heads(root):
    """Diagonals of 50, 10, 5."""
    heads = np.zeros((2, 2, 3))
    heads[1] = [[30, 6, 3], [40, 8, 4]]
    savemat(root / 'annotations/mpii_gt_val.mat', {'headboxes_src': heads})


def by_distance(points, sizes):
    """A set of one image with these people; what `Distances` says of keypoints beside them."""
    moved = points.copy()
    moved[..., 0] += 0.3 * sizes[:, None]  # 0.3 of each size
    moved[:, 0, 0] += sizes  # the first keypoint is far away
    examples = {
        'keypoints': moved[..., :2],
        'centre': np.full((len(points), 2), 0.5, np.float32),
        'scale': np.ones((len(points), 2), np.float32),
        'mask': np.array([True] * (len(points) - 1) + [False]),
    }
    return examples, {'num_examples': len(points) - 1, 'seen': len(points) - 1, 'not_finite': 0}


def test_mpii(tmp_path):
    """PCKh, by the sizes of the heads, without pelvis and thorax."""
    people_ = write_mpii(tmp_path, 'val', 3)
    with pytest.raises(UserError, match='mpii_gt_val.mat is missing'):
        people.open_people('mpii', None, str(tmp_path))
    write_heads(tmp_path)
    source = people.open_people('mpii', None, str(tmp_path))
    # 200 pixels a unit of scale; 15 times the scale lower; counted from 1.
    np.testing.assert_allclose(source.read.boxes[0], [49 - 40, 45 - 40, 80, 80, 1])
    np.testing.assert_allclose(source.truth.sizes, [30, 6, 3])
    points = source.truth.keypoints
    np.testing.assert_allclose(points[0, :, :2], np.array(people_[0]['joints']) - 1)
    examples, totals = by_distance(points, source.truth.sizes)
    metric = get_task('pose').metric(None, truth=source.truth)
    result = metric.result(totals, examples)
    # Of the 14 that count 13 are marked, one is too far away.
    assert result.metrics == {'pckh': pytest.approx(12 / 13), 'pckh10': 0}
    with pytest.raises(UserError, match='mpii is evaluated in the boxes of its annotations'):
        people.open_people('mpii', None, str(tmp_path), 'b.json')
    with pytest.raises(UserError, match='--predictions is for sets that are evaluated by AP'):
        get_task('pose').metric(None, truth=source.truth, predictions=str(tmp_path / 'p'))


def test_training_on_mpii(command, tmp_path):
    """The evaluations of a run are PCKh, by which the best checkpoint is found."""
    write_mpii(tmp_path, 'train', 8)
    source = people.open_people('mpii', 'train', str(tmp_path))
    assert source.keypoints.upper == (7, 8, 9, 10, 11, 12, 13, 14, 15)
    with pytest.raises(UserError, match='nobody has published the sizes of the heads'):
        TASK.metric(None, truth=source.truth)
    recipe = OwnPose(dataset='mpii', batch_size=4, bn_group_size=4, input_size=(64, 64))
    batch = next(TASK.training_data(source, recipe, 0, 1).batches())
    assert batch['image'].shape == (1, 4, 64, 64, 3)
    assert batch['rows'].shape == (1, 4, 16, 16)
    assert 0 < batch['seen'].sum() <= 4 * 15
    write_mpii(tmp_path, 'val', 3)
    write_heads(tmp_path)
    metric = TASK.metric(None, truth=people.open_people('mpii', None, str(tmp_path)).truth)
    assert [figure.name for figure in TASK.figures_of(None, metric)] == ['pckh', 'pckh10']


def test_faces(command, tmp_path):
    """NME, by the distance between the eyes; from the shell, of the HRNetV2 head."""
    random = np.random.default_rng(0)
    points = [
        [np.column_stack([random.uniform(10, 60, (98, 2)), np.full(98, 1)]) for _ in rows]
        for rows in poses.BOXES
    ]
    content = poses.annotations(points)
    content['categories'] = [{'id': 1, 'name': 'person'}]
    content['annotations'][0] |= {'center': [40.0, 30.0], 'scale': 0.25}
    (tmp_path / 'annotations').mkdir()
    file = tmp_path / 'annotations/face_landmarks_wflw_test.json'
    file.write_text(json.dumps(content))
    poses.make_images(tmp_path / 'images')
    source = people.open_people('wflw', None, str(tmp_path))
    assert source.num_classes == 98
    np.testing.assert_allclose(source.read.boxes[0], [15, 5, 50, 50, 1])
    first = points[0][0]
    np.testing.assert_allclose(
        source.truth.sizes[0], np.hypot(*(first[60, :2] - first[72, :2])), rtol=1e-6
    )
    examples, totals = by_distance(source.truth.keypoints, source.truth.sizes)
    result = get_task('pose').metric(None, truth=source.truth).result(totals, examples)
    assert result.metrics == {'nme': pytest.approx(30 + 100 / 98)}
    [figure] = TASK.figures_of(None, TASK.metric(None, truth=source.truth))
    assert not figure.higher_is_better
    model, variables = poses.network(num_keypoints=98, head='joined')
    protocol = TopDown.of('wflw', input_size=(64, 64), flip=False)
    poses.save(tmp_path / 'tiny', model, variables, protocol)
    result, out = evaluated(
        command, tmp_path / 'tiny', tmp_path, '--dataset', 'wflw', '--data-dir', tmp_path,
        '--batch-size', 4,
    )  # fmt: skip
    assert list(result['metrics']) == ['nme']
    assert 'NME' in out
    assert 'AP' not in out
    images = [np.asarray(source.read.image(i)) for i in (0, 3, 4)]
    boxes = [source.read.boxes[:3, :4], source.read.boxes[3:4, :4], source.read.boxes[4:, :4]]
    found = hrnet_jax.predict(
        model, variables, images, boxes=[x.tolist() for x in boxes], transform=protocol
    )
    ours = np.stack([person.keypoints for one in found for person in one])
    errors = np.linalg.norm(ours - source.truth.keypoints[..., :2], axis=-1)
    expected = 100 * (errors / source.truth.sizes[:, None]).mean()
    assert result['metrics']['nme'] == pytest.approx(expected, rel=1e-4)
