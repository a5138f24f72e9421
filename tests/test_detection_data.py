"""Sets of boxes in COCO's form, batches for evaluation and training; AP beside pycocotools."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import types

import cv2
import detections
import numpy as np
import prepared
import pytest
import segments

from hrnet_jax import checkpoint
from hrnet_jax.data import box_augment, box_batches, coco_boxes
from hrnet_jax.data.evaluation import Share
from hrnet_jax.data.keep_ratio import KeepRatio
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.box_metrics import BoxPrecision
from hrnet_jax.tasks.detection_recipes import Fcos1x, OwnBoxes
from hrnet_jax.training.experiment import Experiment, Options

TASK = get_task('detection')
SMALL = KeepRatio(scale=(128, 96))


@pytest.fixture(scope='module')
def coco(once):
    return once('coco_boxes', detections.make_coco)


@pytest.fixture(scope='module')
def opened(coco):
    return pickle.loads(pickle.dumps(coco_boxes.open_boxes('coco', None, str(coco))))


def test_what_a_set_holds(opened):
    assert (opened.split, opened.num_examples, opened.num_classes) == ('val2017', 4, 3)
    assert opened.class_names == ('cat', 'dog', 'bird')
    assert opened.truth.category_ids == (3, 7, 12)
    assert opened.image_hw([0, 3]).tolist() == [[90, 120], [70, 120]]
    first = opened.read(0)
    np.testing.assert_array_equal(first['image'], segments.picture(0, 90, 120))
    assert first['boxes'].tolist() == [[10, 5, 50, 75], [60.5, 10.25, 110.5, 70.25],
                                       [0, 40, 100, 85]]  # fmt: skip
    assert (first['labels'].tolist(), first['crowd'].tolist()) == ([0, 1, 0], [False, False, True])
    assert opened.read(2)['boxes'].shape == (0, 4)
    assert opened.with_boxes().num_examples == 3
    assert opened.with_boxes().names[2] == f'{detections.IDS[3]:012d}.png'


def test_classes_of_a_checkpoint(opened):
    """In its order, with one that the set has not."""
    other = TASK.renumbered(opened, ['dog', 'fish', 'bird', 'cat'])
    assert other.read(0)['labels'].tolist() == [3, 0, 3]
    assert other.truth.category_ids == (7, None, 12, 3)


def test_what_is_not_trained_on(tmp_path):
    """A box without a size, and one outside of its image; both stay in the truth."""
    held = detections.content([[(10, 10, 0.5, 9, 3, 0), (130, 10, 9, 9, 3, 0), (1, 1, 9, 9, 3, 0)]])
    held['images'] = held['images'][:1]
    (tmp_path / 'val.json').write_text(json.dumps(held))
    segments.write(tmp_path / held['images'][0]['file_name'], segments.picture(0, 90, 120))
    opened = coco_boxes.open_boxes(f'folder:{tmp_path}', None, None)
    assert opened.read(0)['boxes'].tolist() == [[1, 1, 10, 10]]
    assert len(opened.truth.content['annotations']) == 3
    assert opened.notes == ('2 boxes without a size or outside of their image: not trained on',)


def test_as_tfds_has_prepared_it(once, opened):
    """Boxes are there in parts of the image, float32; the classes are COCO's, by their names."""
    data_dir = once('coco_tfds', prepared.coco) / 'data'
    source = coco_boxes.open_boxes('coco/2017', None, str(data_dir))
    assert (source.split, source.num_examples, source.version) == ('validation', 4, '1.1.0')
    assert source.class_names == TASK.class_names('coco')
    ids, own = source.truth.category_ids, opened.truth.category_ids
    place = {name: i for i, name in enumerate(source.names)}
    for i, identity in enumerate(detections.IDS):
        ours = source.read(place[f'{identity:012d}.jpg'])
        theirs = opened.read(i)
        assert ours['image'].shape == theirs['image'].shape
        np.testing.assert_allclose(ours['boxes'], theirs['boxes'], atol=1e-4)
        labels = [prepared.OF_COCO[own[label]] for label in theirs['labels']]
        assert [ids[label] for label in ours['labels']] == labels
        np.testing.assert_array_equal(ours['crowd'], theirs['crowd'])
    part = coco_boxes.open_boxes('coco/2017:1.1.0', 'train[:2]', str(data_dir))
    assert (part.num_examples, part.is_partial, part.dataset.num_examples) == (2, True, 4)
    held = {row['id']: row['area'] for row in source.truth.content['annotations']}
    assert sum(held.values()) == sum(
        int(row['area']) for row in detections.content()['annotations']
    )


def test_images_that_cannot_be_read(coco, tmp_path):
    """They count as such where some may be missing: in the evaluation, and in training."""
    shutil.copytree(coco, tmp_path, dirs_exist_ok=True)
    (tmp_path / f'val2017/{detections.IDS[1]:012d}.png').write_bytes(b'no image')
    opened = coco_boxes.open_boxes('coco', None, str(tmp_path))
    held = list(box_batches.batches(opened, SMALL, Share(4, max_corrupt=0.3)))
    assert sum(batch['unreadable'].sum() for batch in held) == 1
    assert sum(batch['mask'].sum() for batch in held) == 3
    with pytest.raises(UserError, match='1 of 4 images'):
        list(box_batches.batches(opened, SMALL, Share(4)))
    recipe = OwnBoxes(dataset='x', scale=(128, 96), batch_size=1, base_batch=1, max_corrupt=0.5)
    data = TASK.training_data(opened, recipe, 0, 1)
    weights = [batch['weight'].item() for batch in itertools.islice(data.batches(), 3)]
    assert sorted(weights) == [0, 1, 1]


def _change(held, change):
    change(held)
    return held


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        (lambda held: held.pop('categories'), 'is not in the form of COCO'),
        (lambda held: held.update(images=[]), 'lists no images|in images'),
        (lambda held: held['annotations'][0].update(image_id=1), 'boxes are in images 1, not'),
        (lambda held: held['annotations'][0].update(category_id=1), 'of categories 1, not listed'),
        (lambda held: held['annotations'][0].update(bbox=[1, 2, 3]), r'is not \[x, y, width'),
        (lambda held: held['annotations'][0].update(area='large'), "the area .* cannot be 'large'"),
        (lambda held: held['annotations'][0].update(area=float('nan')), 'area .* cannot be nan'),
        (lambda held: held['annotations'][0].update(iscrowd='0'), "the iscrowd .* cannot be '0'"),
        (lambda held: held['images'][0].update(width='120'), "the width of image .* be '120'"),
        (lambda held: held['images'][2].update(id='a'), 'ids of images are all numbers, or all'),
        (lambda held: held['images'][2].update(id=139), 'every image needs an id of its own'),
        (lambda held: held['categories'][0].update(id=3), 'an id and a name of its own'),
        (lambda held: held['categories'][0].update(name='cat'), 'an id and a name of its own'),
        (lambda held: held['categories'][0].update(id='a'), 'is not in the form of COCO'),
        (lambda held: held['images'][0].pop('file_name'), 'is not in the form of COCO|file_name'),
    ],
)
def test_files_of_another_form(tmp_path, change, said):
    (tmp_path / 'val.json').write_text(json.dumps(_change(detections.content(), change)))
    segments.write(tmp_path / f'{detections.IDS[0]:012d}.png', segments.picture(0, 90, 120))
    with pytest.raises(UserError, match=said) as stop:
        coco_boxes.open_boxes(f'folder:{tmp_path}', None, None)
    assert '\n' not in str(stop.value)


def test_each_array_is_of_the_least_shape(opened):
    """Resized by OpenCV; only images whose edges are the same multiples of 32 share a batch."""
    batches = box_batches.batches(opened, SMALL, Share(4))
    note = 'images of 4 sizes are padded to 3 shapes: 3 programs are compiled'
    assert batches.notes == (note,)
    held = list(batches)
    assert [batch['index'].tolist() for batch in held] == [[0, 3], [1], [2]]
    assert [batch['image'].shape[1:3] for batch in held] == [(96, 128), (128, 96), (96, 96)]
    assert [batch['image_hw'].tolist() for batch in held] == [
        [[96, 128], [75, 128]], [[128, 85]], [[96, 96]],
    ]  # fmt: skip
    for batch in held:
        for j, i in enumerate(batch['index']):
            height, width = batch['image_hw'][j]
            assert batch['full_hw'][j].tolist() == list(detections.SIZES[i])
            expected = cv2.resize(segments.picture(i, *detections.SIZES[i]), (width, height))
            np.testing.assert_array_equal(batch['image'][j, :height, :width], expected)
            assert not batch['image'][j, height:].any()
            assert not batch['image'][j, :, width:].any()
    one, two = (box_batches.batches(opened, SMALL, Share(4, True, i, 2, 1, 3)) for i in (0, 1))
    assert (one.steps, two.steps) == (3, 3)
    indices = [[batch['index'].tolist() for batch in part] for part in (one, two)]
    assert indices == [[[0], [1], [2]], [[-1], [-1], [-1]]]


def _found(opened, random):
    """The boxes that are marked, moved by noise, some of another class, and false ones."""
    rows = [opened.read(i) for i in range(opened.num_examples)]
    boxes = random.uniform(0, 60, (4, 5, 4))
    boxes[..., 2:] += boxes[..., :2] + 5
    labels, valid = random.integers(0, 3, (4, 5)), random.random((4, 5)) > 0.3
    for i, row in enumerate(rows):
        count = len(row['boxes'])
        boxes[i, :count] = row['boxes'] + random.normal(0, 3, (count, 4))
        labels[i, :count], valid[i, :count] = row['labels'], True
    scores = np.sort(random.random((4, 5)), 1)[:, ::-1]
    return boxes, scores.astype(np.float32), labels.astype(np.int32), valid


@pytest.mark.parametrize('seed', range(3))
def test_ap_is_that_of_pycocotools(opened, tmp_path, seed):
    """Of what is found in the resized images, with crowds, an empty image, and padding."""
    boxes, scores, labels, valid = _found(opened, np.random.default_rng(seed))
    sizes = [SMALL.size(size) for size in detections.SIZES]
    held = {'image_hw': sizes, 'full_hw': detections.SIZES}
    batch = {name: np.array(rows, np.int32) for name, rows in held.items()}
    batch['mask'] = np.ones(4, bool)
    factors = np.tile((batch['image_hw'] / batch['full_hw'])[:, ::-1], 2)[:, None]
    outputs = {
        'boxes': (boxes * factors).astype(np.float32),
        'scores': scores,
        'labels': labels,
        'valid': valid,
    }
    context = TASK.context(opened, None)
    metric = TASK.metric(None, **context, predictions=str(tmp_path / 'p.json'))
    assert isinstance(metric, BoxPrecision)
    examples = {k: np.asarray(v) for k, v in metric.update(outputs, batch)['examples'].items()}
    result = metric.result({'num_examples': 4, 'seen': 4, 'not_finite': 0}, examples)
    rows = [
        {
            'image_id': detections.IDS[i],
            'category_id': (3, 7, 12)[labels[i, j]],
            'bbox': [*boxes[i, j, :2].tolist(), *(boxes[i, j, 2:] - boxes[i, j, :2]).tolist()],
            'score': float(scores[i, j]),
        }
        for i, j in zip(*np.nonzero(valid), strict=True)
    ]
    expected = detections.by_pycocotools(detections.content(), rows)
    assert 0.1 < expected['ap'] < 0.9
    assert result.metrics == expected
    assert result.details['class_ap'].keys() == {'cat', 'dog', 'bird'}
    known = [ap for ap in result.details['class_ap'].values() if ap > -1]
    assert np.mean(known) == pytest.approx(expected['ap'])
    written = json.loads((tmp_path / 'p.json').read_text())
    for ours, theirs in zip(written, rows, strict=True):
        np.testing.assert_allclose(ours['bbox'], theirs['bbox'], atol=1e-4)


def test_nothing_found(opened):
    metric = TASK.metric(None, **TASK.context(opened, None))
    examples = {
        'boxes': np.zeros((4, 2, 4)), 'scores': np.zeros((4, 2)),
        'labels': np.zeros((4, 2), int), 'valid': np.zeros((4, 2), bool),
        'mask': np.array([True, True, True, False]),
    }  # fmt: skip
    result = metric.result({'num_examples': 3, 'seen': 3, 'not_finite': 0}, examples)
    assert result.metrics['ap'] == 0


def test_an_image_in_training(opened):
    """Resized, mirrored with its boxes, at the upper left of its array."""
    sizes = ((96, 128), (128, 96))
    augment = box_augment.Augmentation(SMALL, sizes, 4, flip=1.0)
    example = opened.read(0)
    made = augment(example, np.random.default_rng(0))
    image = cv2.resize(example['image'], (128, 96))[:, ::-1]
    np.testing.assert_array_equal(made['image'], image)
    factor = 128 / 120, 96 / 90
    expected = [(120 - 50) * factor[0], 5 * factor[1], (120 - 10) * factor[0], 75 * factor[1]]
    np.testing.assert_allclose(made['boxes'][0], expected, rtol=1e-6)
    assert made['valid'].tolist() == [True, True, True, False]
    assert made['crowd'].tolist() == [False, False, True, False]
    assert made['image_hw'].tolist() == [96, 128]
    high = augment(opened.read(1), np.random.default_rng(0))
    assert high['image'].shape == (128, 96, 3)
    assert high['image_hw'].tolist() == [128, 85]
    assert not high['image'][:, 85:].any()
    with_scale = box_augment.Augmentation(SMALL, sizes, 4, (0.5, 0.5))
    assert with_scale(example, np.random.default_rng(0))['image_hw'].tolist() == [48, 64]


def test_images_of_like_aspect_together(opened):
    """A batch is of wide images or of high ones, an epoch of each once; resumed it is the same."""
    recipe = OwnBoxes(dataset='x', scale=(128, 96), resize=(1, 1), batch_size=1, base_batch=1)
    data = TASK.training_data(opened, recipe, 0, 1)
    assert data.steps_per_epoch == 3
    sizes = [data.size_at(step) for step in range(6)]
    assert sorted(sizes[:3]) == [(96, 128), (96, 128), (128, 96)]
    batches = data.batches()
    found = [next(batches) for _ in range(6)]
    assert [batch['image'].shape[2:4] for batch in found] == sizes
    again = next(data.batches(4))
    for name, values in again.items():
        np.testing.assert_array_equal(values, found[4][name])
    every = TASK.training_data(
        opened, OwnBoxes(dataset='x', scale=(128, 96), batch_size=2, base_batch=2, empty=True), 0, 1
    )
    # One high image alone would make no batch.
    assert (every.size_at(0), every.steps_per_epoch) == ((128, 128), 2)


def test_recipes():
    assert Fcos1x().transform == KeepRatio(
        channels='bgr', mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229)
    )
    assert Fcos1x(channels='rgb').transform == KeepRatio()
    given = OwnBoxes(dataset='x', channels='bgr', mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (given.transform.mean, given.transform.std) == ((0.3, 0.2, 0.1), (0.6, 0.5, 0.4))
    fcos = Fcos1x().transform.override(mean=(0.1, 0.2, 0.3))  # as of a flag: R G B
    assert (fcos.mean, fcos.std) == ((0.3, 0.2, 0.1), (0.225, 0.224, 0.229))
    with pytest.raises(
        UserError, match='mean 123.7 116.3 103.5 is above 1: .*; divide mean and std'
    ):
        KeepRatio().override(mean=(123.7, 116.3, 103.5))
    assert Fcos1x().sizes == ((800, 1344), (1344, 800))
    own = OwnBoxes(dataset='x', channels='bgr')
    assert own.transform.mean == (0.406, 0.456, 0.485)
    with pytest.raises(UserError, match='resize must be two increasing numbers'):
        OwnBoxes(dataset='x', resize=(2.0, 1.0))
    with pytest.raises(UserError, match='scale must be two sizes, the longer first'):
        OwnBoxes(dataset='x', scale=(100, 200))


@pytest.mark.parametrize('channels', [None, 'rgb', 'bgr'])
def test_pixels_of_the_detector_that_a_run_starts_from(once, tmp_path, channels):
    """Its order of channels, or another, with mean and std in that order."""
    folder = once('detector', detections.make_checkpoint) / 'tiny'
    meta = checkpoint.read_json(folder)
    meta['transform'] |= {'channels': 'bgr', 'mean': [0.1, 0.2, 0.3], 'std': [0.4, 0.5, 0.6]}
    checkpoint.save(tmp_path / 'c', checkpoint.load(folder)[1], meta)
    options = Options(tmp_path / 'run')
    run = types.SimpleNamespace(task=TASK, arch='tiny', options=options)
    recipe = OwnBoxes(dataset='x', init=str(tmp_path / 'c'), channels=channels)
    found = Experiment._inheriting(run, recipe).transform
    turned = -1 if channels == 'rgb' else 1
    assert found.channels == (channels or 'bgr')
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3)[::turned], (0.4, 0.5, 0.6)[::turned])
