"""The figures of pose: AP beside pycocotools, suppression beside plain NumPy, distances."""

from __future__ import annotations

import json

import numpy as np
import poses
import pytest
from scipy.io import savemat

import hrnet_jax
from hrnet_jax.data import people
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.keypoint_metrics import precision
from hrnet_jax.tasks.pose import TASK
from hrnet_jax.tasks.pose_recipes import OwnPose
from hrnet_jax.tasks.similarity import person_score, suppressed

SIGMAS = np.array(poses.COCO.sigmas)


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
    expected = poses.by_pycocotools(file, rows)
    assert 0.05 < expected['ap'] < 0.95
    assert precision(content, rows, SIGMAS) == pytest.approx(expected, abs=1e-12)
    other = poses.by_pycocotools(file, rows, SIGMAS * 2)
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
        expected[f'ap{level}'] = poses.by_pycocotools(tmp_path / 'level.json', of_level)['ap']
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
    metric = TASK.metric(None, truth=source.truth)
    result = metric.result(totals, examples)
    # Of the 14 that count 13 are marked, one is too far away.
    assert result.metrics == {'pckh': pytest.approx(12 / 13), 'pckh10': 0}
    with pytest.raises(UserError, match='mpii is evaluated in the boxes of its annotations'):
        people.open_people('mpii', None, str(tmp_path), 'b.json')
    with pytest.raises(UserError, match='--predictions is for sets that are evaluated by AP'):
        TASK.metric(None, truth=source.truth, predictions=str(tmp_path / 'p'))


def test_training_on_mpii(tmp_path):
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
    result = TASK.metric(None, truth=source.truth).result(totals, examples)
    assert result.metrics == {'nme': pytest.approx(30 + 100 / 98)}
    [figure] = TASK.figures_of(None, TASK.metric(None, truth=source.truth))
    assert not figure.higher_is_better
    model, variables = poses.network(num_keypoints=98, head='joined')
    protocol = TopDown.of('wflw', input_size=(64, 64), flip=False)
    poses.save(tmp_path / 'tiny', model, variables, protocol)
    result, out = poses.evaluated(
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
