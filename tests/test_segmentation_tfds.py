"""Segmentation sets that tfds has prepared: what is read, and what is said of mistakes."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import prepared
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from hrnet_jax.checkpoints.published import expected, find_published
from hrnet_jax.data import reader, segmentation_sets
from hrnet_jax.data.evaluation import Share
from hrnet_jax.data.records import examples
from hrnet_jax.data.segmentation import open_segmentation
from hrnet_jax.data.segmentation_folders import TRAIN_IDS
from hrnet_jax.data.views import Views
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task

CITYSCAPES = 'cityscapes/semantic_segmentation'


@pytest.fixture(scope='module')
def data_dir(once):
    return str(once('cityscapes', prepared.cityscapes) / 'data')


@pytest.fixture
def copy(data_dir, tmp_path):
    """A copy to damage: its data_dir, and its first file of validation."""
    shutil.copytree(data_dir, tmp_path / 'data')
    return tmp_path / 'data', min((tmp_path / 'data').glob('**/*validation.tfrecord*'))


def mapped(label):
    table = np.full(256, 255, np.uint8)
    table[list(TRAIN_IDS)] = list(TRAIN_IDS.values())
    return table[label]


def test_cityscapes(data_dir):
    """In the order and with the pixels of tfds; labels are the 19 classes."""
    source = open_segmentation(CITYSCAPES, None, data_dir)
    assert (source.num_examples, source.num_classes, source.split) == (5, 19, 'validation')
    assert source.class_names == segmentation_sets.classes('cityscapes')
    made = dict(zip(prepared.STEMS, prepared.pairs(prepared.IDS), strict=True))
    read = pickle.loads(pickle.dumps(source.read))  # other processes take it
    undecoded = dict.fromkeys(('image_left', 'segmentation_label'), tfds.decode.SkipDecoding())
    found = tfds.builder(CITYSCAPES, data_dir=data_dir).as_dataset('validation', decoders=undecoded)
    for i, theirs in enumerate(found.as_numpy_iterator()):
        assert theirs['image_id'].decode() == source.names[i]
        ours, (image, label) = read(i), made[source.names[i]]
        np.testing.assert_array_equal(ours['image'], tf.io.decode_png(theirs['image_left'], 3))
        np.testing.assert_array_equal(ours['image'], image)
        ids = tf.io.decode_png(theirs['segmentation_label'], 1).numpy()[..., 0]
        np.testing.assert_array_equal(ours['label'], mapped(ids))
        np.testing.assert_array_equal(ids, label)
        assert source.image_hw([i]).tolist() == [list(label.shape)]
    assert not source.is_partial


@pytest.mark.parametrize(
    ('split', 'numbers'),
    [('val', range(5)), ('validation[1:4]', [1, 2, 3]), ('validation[80%:]', [4])],
)
def test_parts_of_a_split(data_dir, split, numbers):
    whole = open_segmentation(CITYSCAPES, 'validation', data_dir)
    part = open_segmentation(f'{CITYSCAPES}:1.0.0', split, data_dir)
    assert part.names == tuple(whole.names[i] for i in numbers)
    np.testing.assert_array_equal(part.read(0)['label'], whole.read(numbers[0])['label'])
    assert part.is_partial == (len(numbers) < 5)
    assert part.published == ('cityscapes', 'val')


@pytest.mark.parametrize('colours', [True, False])
def test_scene_parse150(tmp_path, colours):
    """Colours: objects of 100 kinds in the red channel. Grey: the classes of ADE20K."""
    folder = prepared.scene_parse150(tmp_path, colours)
    source = open_segmentation('scene_parse150', None, folder)
    assert source.num_classes == (100 if colours else 150)
    assert source.class_names == (None if colours else segmentation_sets.classes('ade20k'))
    assert bool(source.notes) == colours
    assert source.published == (('scene_parse150', 'test') if colours else ('ade20k', 'val'))
    assert len(set(map(Path, source.names))) == source.num_examples == 5
    found = tfds.builder('scene_parse150', data_dir=folder).as_dataset('test')
    for i, theirs in enumerate(found.as_numpy_iterator()):
        ours, ids = source.read(i), theirs['annotation'][..., 0]
        expected = np.where(ids == 0, 255, ids - 1)
        np.testing.assert_array_equal(ours['label'], expected)
        assert ours['image'].shape == theirs['image'].shape
        assert np.abs(ours['image'] - theirs['image'].astype(int)).max() < 9  # another decoder


def test_tensorflow_is_not_needed(data_dir):
    code = (
        'import sys\n'
        'from hrnet_jax.data.segmentation import open_segmentation\n'
        f'source = open_segmentation({CITYSCAPES!r}, None, {data_dir!r})\n'
        "assert source.read(0)['label'].size\n"
        "assert not {'tensorflow', 'jax'} & sys.modules.keys()\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, '-c', code], check=True, cwd=root)


def parts(name, data_dir, classes):
    """What the reading process of eval.py sends for a checkpoint of these classes."""
    setting = (len(classes), Views(), Share(3), classes)
    task = get_task('segmentation')
    return reader.parts(reader.Request(name, None, data_dir, *setting, opener=task))


def test_what_evaluation_gets(data_dir):
    """All that eval.py does before the network."""
    names = segmentation_sets.classes('cityscapes')
    opened, *batches, end = parts(CITYSCAPES, data_dir, names)
    assert (opened.total, opened.steps, end) == (5, len(batches), None)
    assert set(opened.context['files']) == set(prepared.STEMS)
    labels = np.concatenate([batch['label'][batch['mask']].reshape(-1) for batch in batches])
    made = np.concatenate([mapped(x).reshape(-1) for _, x in prepared.pairs(prepared.IDS)])
    counts = [np.bincount(x, minlength=256)[:19].tolist() for x in (labels, made)]
    assert counts[0] == counts[1]


def test_published_figures(data_dir):
    """As of the folders of the same set; those of training are not known."""
    entry = find_published('fcn_hr18_4xb2-80k_cityscapes-512x1024', '')
    meta = {'published': entry.to_json()}
    validation, train = (
        open_segmentation(CITYSCAPES, split, data_dir) for split in ('validation', 'train')
    )
    assert expected(meta, entry.transform, *validation.published) == {'miou': 78.65}
    assert expected(meta, entry.transform, *train.published) == {}


def test_a_checkpoint_of_other_classes(tmp_path):
    folder = prepared.scene_parse150(tmp_path, colours=True)
    words = (
        'scene_parse150 has 100 classes, the checkpoint 150; tfds has the label maps of 100 .*'
        '--dataset ade20k reads the folder ADEChallengeData2016'
    )
    with pytest.raises(UserError, match=words):
        next(parts('scene_parse150', folder, segmentation_sets.classes('ade20k')))


@pytest.mark.parametrize(
    ('name', 'split', 'words'),
    [
        ('scene_parse150', None, 'is not prepared in .*; prepare it once: python -c "import'),
        (f'{CITYSCAPES}:9.0.0', None, f'tfds has {CITYSCAPES} in version 1.0.0, not 9.0.0'),
        (CITYSCAPES, 'nothing', "has no split 'nothing'; it has: train, validation, test"),
        (CITYSCAPES, 'train[:0]', r'split train\[:0\] has no images'),
        ('cityscapes', None, f'holds what tfds has prepared: --dataset {CITYSCAPES}'),
        ('cityscapes/stereo_disparity', None, f'unknown .* known: cityscapes, .*{CITYSCAPES}'),
    ],
)
def test_mistakes_in_a_name(data_dir, name, split, words):
    with pytest.raises(UserError, match=words):
        open_segmentation(name, split, data_dir)


def test_archives_to_get_by_hand(tmp_path):
    words = 'FOLDER WITH leftImg8bit_trainvaltest.zip AND gtFine_train'
    with pytest.raises(UserError, match=words):
        open_segmentation(CITYSCAPES, None, str(tmp_path))


def test_files_that_are_cut_off(copy):
    folder, file = copy
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match='its files hold 4 examples where dataset_info.json says 5'):
        open_segmentation(CITYSCAPES, None, str(folder))
    assert open_segmentation(CITYSCAPES, 'validation[:1]', str(folder)).num_examples == 1
    file.unlink()
    with pytest.raises(UserError, match='cannot read .*: No such file or directory'):
        open_segmentation(CITYSCAPES, None, str(folder))


@pytest.mark.parametrize(
    ('place', 'words'),
    [
        ('example', 'tfrecord-00000-of-00002: example 0 is damaged; prepare the data set again'),
        ('name', 'example 0 has no segmentation_label; prepare the data set again'),
        ('image_left', 'cannot read image_left of .* example 0 as an image'),
        ('segmentation_label', 'cannot read segmentation_label of .* example 0 as a label map'),
    ],
)
def test_damaged_examples(copy, place, words):
    folder, file = copy
    content, spans = bytearray(file.read_bytes()), examples(str(file))[0]
    if place == 'example':
        content[14] ^= 64  # a length
    elif place == 'name':
        start = content.index(b'segmentation_label')
        content[start] ^= 1
    else:
        start = sum(spans[place]) // 2
        content[start : start + 9] = bytes(9)
    file.write_bytes(content)
    with pytest.raises(UserError, match=words):
        open_segmentation(CITYSCAPES, None, str(folder)).read(0)
