"""Several labels an image: data, metric and loss; the runs are in test_multilabel_runs.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from labelled import LABELS, digits, labels_of, make_photos
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import hrnet_jax
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.multilabel import Multilabel, Precision, average_precision
from hrnet_jax.tasks.multilabel_data import open_multilabel

TASK = get_task('multilabel')


@pytest.fixture(scope='session')
def photos(once):
    """`labelled.make_photos`."""
    return once('photos', make_photos)


@pytest.mark.parametrize(
    ('name', 'split', 'table'),
    [
        ('{}/train.csv', None, 'train'),
        ('folder:{}/val.csv', None, 'val'),
        ('{}/none.csv', None, 'none'),
        ('folder:{}', 'val', 'val'),
        ('{}', 'train', 'train'),
    ],
)
def test_a_csv_file_for_a_classifier(photos, name, split, table):
    with pytest.raises(UserError) as stop:
        get_task('classification').open_dataset(name.format(photos), split, None)
    assert str(stop.value) == (
        f'{photos}/{table}.csv: a CSV file is for several labels an image (train.py --recipe '
        'multilabel); for one class an image, name a folder that holds a folder of images for each '
        'class'
    )


@pytest.mark.parametrize('digits_of_scores', [1, 8])
def test_average_precision_as_scikit_learn(digits_of_scores):
    """With one digit, many scores are equal."""
    random = np.random.default_rng(0)
    for n in (1, 2, 50, 3000):
        labels = random.random(n) < 0.2
        labels[0] = True
        scores = np.round(random.standard_normal(n) + labels, digits_of_scores).astype(np.float32)
        expected = average_precision_score(labels, scores)
        assert abs(average_precision(labels, scores) - expected) < 1e-12


def test_metric_sums_as_scikit_learn():
    random = np.random.default_rng(1)
    scores = random.standard_normal((20, 4)).astype(np.float32)
    labels = (random.random((20, 4)) < 0.4).astype(np.uint8)
    labels[:, 2] = 0  # a class that does not occur
    metric, mask = Precision(), np.arange(20) < 17
    batch = {'label': labels, 'mask': jnp.asarray(mask)}
    sums = jax.device_get(jax.jit(metric.update)(scores, batch))
    examples = {k: v[mask] for k, v in sums.pop('examples').items()}
    totals = {**sums, 'num_examples': 17, 'seen': 17, 'not_finite': 0}
    result = metric.result(totals, examples)
    occur = [0, 1, 3]
    expected = average_precision_score(
        labels[mask][:, occur], scores[mask][:, occur], average='macro'
    )
    assert result.map == pytest.approx(100 * expected, abs=1e-10)
    expected = f1_score(labels[mask], scores[mask] >= 0, average='micro')
    assert result.f1 == pytest.approx(100 * expected, abs=1e-10)
    assert (result.num_examples, result.classes_that_occur) == (17, 3)
    with pytest.raises(UserError, match='none of the 17 images has a label'):
        metric.result(totals, {**examples, 'label': np.zeros_like(examples['label'])})


def test_loss_as_pytorch():
    random = np.random.default_rng(2)
    logits = random.standard_normal((6, 3)).astype(np.float32)
    labels = (random.random((6, 3)) < 0.5).astype(np.uint8)
    model = hrnet_jax.create_model('tiny', 3, task='multilabel')
    recipe = Multilabel(dataset='x', positive_weights=(1.0, 2.0, 0.5))
    batch = {'image': np.zeros((6, 32, 32, 3), np.uint8), 'label': jnp.asarray(labels)}
    batch = TASK.prepare(batch, jax.random.key(0), recipe, model)
    each, _ = TASK.loss(jnp.asarray(logits), batch, recipe)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(labels).float(),
        pos_weight=torch.tensor(recipe.positive_weights), reduction='none',
    )  # fmt: skip
    np.testing.assert_allclose(each, expected.mean(-1), rtol=1e-6)
    wrong = Multilabel(dataset='x', positive_weights=(1.0, 2.0))
    with pytest.raises(UserError, match='one number or 3, not 2'):
        TASK.prepare(batch, jax.random.key(0), wrong, model)


def test_both_forms_of_a_csv(photos):
    train, val = (open_multilabel(f'folder:{photos}', split, None) for split in ('train', 'val'))
    assert train.class_names == val.class_names == LABELS
    assert (train.num_examples, val.num_examples) == (96, 61)
    for source, start in ((train, 0), (val, 96)):
        found = next(source.records(0, 5).batch(5).as_numpy_iterator())
        for i, row in enumerate(found['label']):
            digit = int(digits.scans()['test'][1][start + i])
            assert [LABELS[j] for j in np.flatnonzero(row)] == labels_of(digit)
    assert open_multilabel(f'{photos}/val.csv', None, None).num_examples == 61


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'names no images'),
        ('file,labels\n', 'names no images'),
        ('file,a,b\n0.png,1,2\n', 'values are 0 or 1, unlike 2'),
        ('file,a,b\n0.png,1\n', '0.png has 2 columns, the first line 3'),
        ('file,a,a\n0.png,1,0\n', 'names a class in two columns'),
        ('0.png,a\n0.png,b\n', 'names 0.png more than once'),
        ('0.png,a\n9.png,b\n', 'these images are not there: .*/9.png'),
        ('9.png,a\n0.png,b\n', 'these images are not there: .*/9.png'),
        ('0.png,"a, b"\n', 'separated by spaces, unlike a,'),
        ('file,a,\n0.png,1,\n', 'a column has no name'),
        ('file,labels\n0.png,\n', 'no image has a label'),
        ('file,a,b\n0.png,0,0\n', 'no image has a label'),
    ],
)
def test_a_wrong_csv_is_one_line(tmp_path, text, words):
    Image.new('L', (8, 8)).save(tmp_path / '0.png')
    (tmp_path / 'part.csv').write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        open_multilabel(f'folder:{tmp_path}', 'part', None)
    assert '\n' not in str(caught.value)


def test_a_missing_split_and_an_unknown_label(tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / '0.png')
    (tmp_path / 'part.csv').write_text('0.png,a b\n')
    with pytest.raises(UserError, match='no other.csv; it holds part'):
        open_multilabel(f'folder:{tmp_path}', 'other', None)
    with pytest.raises(UserError, match='part.csv is one split'):
        open_multilabel(f'{tmp_path}/part.csv', 'other', None)
    (tmp_path / 'classes.txt').write_text('a\na\n')
    with pytest.raises(UserError, match='names a more than once'):
        open_multilabel(f'{tmp_path}/part.csv', None, None)
    (tmp_path / 'classes.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='cannot read .*classes.txt'):
        open_multilabel(f'{tmp_path}/part.csv', None, None)
    (tmp_path / 'classes.txt').write_text('\ufeffa\r\nc\r\n')
    with pytest.raises(UserError, match='0.png has b, which are no classes'):
        open_multilabel(f'{tmp_path}/part.csv', None, None)


def test_tfds_with_a_list_of_labels(tmp_path):
    import tensorflow_datasets as tfds

    class Several(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(8, 8, 1)),
                'labels': tfds.features.Sequence(tfds.features.ClassLabel(names=LABELS)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for i, labels in enumerate(([0, 2], [], [1], [0, 1, 2])):
                yield i, {'image': np.full((8, 8, 1), i, np.uint8), 'labels': labels}

    Several(data_dir=tmp_path, file_format='tfrecord').download_and_prepare()
    source = open_multilabel('several', 'train', str(tmp_path))
    assert source.class_names == LABELS
    rows = next(source.records(0, 4).batch(4).as_numpy_iterator())['label']
    assert sorted(rows.tolist()) == [[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]]


def test_labels_in_another_order(tmp_path):
    """By the names of a checkpoint, or of --class-names."""
    for i in range(3):
        Image.new('RGB', (20, 20)).save(tmp_path / f'{i}.png')
    (tmp_path / 'a.csv').write_text('file,cat,dog,owl\n0.png,1,0,0\n1.png,0,1,1\n2.png,0,0,1\n')
    task = get_task('multilabel')
    source = task.open_dataset(f'folder:{tmp_path}', 'a', None)
    for names, wanted in (
        (['owl', 'cat', 'dog'], [[0, 1, 0], [1, 0, 1], [1, 0, 0]]),
        (['dog', 'owl', 'cat'], [[0, 0, 1], [1, 1, 0], [0, 1, 0]]),
    ):
        changed = task.renumbered(source, names)
        found = [x['label'].tolist() for x in changed.records(0, 3).as_numpy_iterator()]
        assert found == wanted
    with pytest.raises(UserError, match='has 3 labels, but 4 are needed'):
        task.renumbered(source, ['owl', 'cat', 'dog', 'cow'])
