"""Training batches: a function of seed and step, whoever reads them."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from imagenet import jpeg, make_imagenet
from PIL import Image

from hrnet_jax import data
from hrnet_jax.data import tfds as data_tfds
from hrnet_jax.data import training
from hrnet_jax.data.training import TrainData, aligned, beside
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.classification_recipes import Digits
from hrnet_jax.tasks.recipe import LabelRecipe as Recipe
from hrnet_jax.training.prefetch import Prefetch

COUNT, BATCH = 100, 6
RECIPE = Digits(batch_size=BATCH, bn_group_size=None)
EPOCH = COUNT // BATCH


def take(stream, count):
    return list(itertools.islice(stream, count))


def same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], name)


@pytest.fixture(scope='module', params=['in memory', 'from files'])
def source(request, digits_data):
    """In memory any order is possible; larger sets are read file by file."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 'from files':
            patch.setattr(data_tfds, 'IN_MEMORY', 0)
        opened = data.open_dataset('digits', f'train[:{COUNT}]', digits_data)
    assert (opened.pick is None) == (request.param == 'from files')
    return opened


@pytest.fixture(scope='module')
def reference(source):
    """The batches of two epochs."""
    return take(TrainData(source, RECIPE).batches(), 2 * EPOCH)


@pytest.mark.parametrize('start', [EPOCH - 1, EPOCH + 7])
def test_resumed_anywhere_they_are_the_same(source, reference, start):
    same(take(TrainData(source, RECIPE).batches(start), 3), reference[start : start + 3])


def test_any_number_of_processes_reads_the_same(source, reference):
    streams = [TrainData(source, RECIPE, i, 3).batches(EPOCH - 2) for i in range(3)]
    for step in range(EPOCH - 2, EPOCH + 1):
        parts = [next(stream) for stream in streams]
        joined = {k: np.concatenate([part[k] for part in parts], 1) for k in parts[0]}
        same([joined], [reference[step]])


@pytest.mark.parametrize('processes', [4, 16])
def test_more_processes_than_lanes_read_the_same(source, monkeypatch, processes):
    """6 lanes give 8 images each to a batch; with 16 processes a part is of one lane or of two."""
    monkeypatch.setattr(training, 'LANES', 6)
    recipe = dataclasses.replace(RECIPE, batch_size=48)

    def names(index, count, part):
        raw = TrainData(source, recipe, index, count)._raw(0, 1).take(2 * part)
        return [x['name'] for x in raw.map(source.parse).as_numpy_iterator()]

    size = 48 // processes
    parts = [names(i, processes, size) for i in range(processes)]
    joined = [name for step in (0, size) for part in parts for name in part[step : step + size]]
    assert joined == names(0, 1, 48)


def test_an_epoch_has_every_image_once_in_an_order_of_its_own(source, monkeypatch):
    """The labels tell how often, the file names which."""
    names = [[], []]
    plain = TrainData(source, RECIPE)
    for epoch in range(2):
        raw = plain._raw(epoch, 0).take(EPOCH * BATCH).map(source.parse)
        names[epoch] = [example['name'] for example in raw.as_numpy_iterator()]
        assert len(set(names[epoch])) == EPOCH * BATCH
    assert names[0] != names[1]
    other = TrainData(source, dataclasses.replace(RECIPE, seed=1))
    raw = other._raw(0, 0).take(BATCH).map(source.parse)
    assert [example['name'] for example in raw.as_numpy_iterator()] != names[0][:BATCH]


def test_parts_of_a_step_are_batches_of_their_own(source, reference):
    """Accumulation cuts a step into parts, each with its own share of every lane."""
    recipe = dataclasses.replace(RECIPE, batch_size=2 * BATCH, accumulate=2)
    [batch] = take(TrainData(source, recipe).batches(), 1)
    assert batch['image'].shape == (2, BATCH, 32, 32, 3)
    for part in range(2):
        np.testing.assert_array_equal(batch['label'][part], reference[part]['label'][0])
        np.testing.assert_array_equal(batch['image'][part], reference[part]['image'][0])


def test_augmentation_differs_between_epochs(source):
    recipe = dataclasses.replace(RECIPE, crop_scale=(0.3, 1.0), flip=0.5, randaugment_ops=1)
    first = take(TrainData(source, recipe).batches(), EPOCH + 1)
    again = take(TrainData(source, recipe).batches(EPOCH), 1)
    same(again, first[EPOCH:])
    assert len(np.unique([image.tobytes() for image in first[0]['image'][0]])) == BATCH


@pytest.mark.parametrize(
    ('change', 'processes', 'said'),
    [
        ({'batch_size': COUNT + 1}, 1, f'less than a batch of {COUNT + 1}'),
        ({'batch_size': 48}, 5, 'cannot be shared out among 5 processes'),
    ],
)
def test_impossible_shares(source, change, processes, said):
    with pytest.raises(UserError, match=said):
        TrainData(source, dataclasses.replace(RECIPE, **change), 0, processes)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 16 photographs; returns the folder and the paths."""
    files = []
    for i in range(32):
        file = tmp_path / ('cat', 'dog')[i % 2] / f'{i:02}.jpg'
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(jpeg(i + 1))
        files.append(file)
    return tmp_path, files


SMALL = Recipe(batch_size=8, bn_group_size=None, image_size=32, max_corrupt=0.1)


def test_a_broken_image_is_left_out_and_everything_else_stays(folder):
    root, files = folder
    source = data.open_dataset(str(root))
    whole = take(TrainData(source, SMALL).batches(), 8)
    files[9].write_bytes(files[9].read_bytes()[:100])
    files[20].write_bytes(b'no image')
    broken = take(TrainData(data.open_dataset(str(root)), SMALL).batches(), 8)
    for epoch in (0, 4):
        gone = [
            (s, *place)
            for s in range(epoch, epoch + 4)
            for place in np.argwhere(broken[s]['weight'] == 0)
        ]
        assert len(gone) == 2
    for before, after in zip(whole, broken, strict=True):
        valid = after['weight'] > 0
        for name in ('image', 'label'):
            np.testing.assert_array_equal(before[name][valid], after[name][valid])
    resumed = take(TrainData(data.open_dataset(str(root)), SMALL).batches(3), 5)
    same(resumed, broken[3:])


def test_too_many_broken_images_stop_the_run_by_name(folder):
    root, files = folder
    for file in files[4:9]:
        file.write_bytes(file.read_bytes()[:50])
    stream = TrainData(data.open_dataset(str(root)), SMALL).batches()
    with pytest.raises(UserError, match=r'5 images of epoch 0 cannot be read.*0[4-8]\.jpg'):
        take(stream, 4)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """48 training images in four files."""
    return make_imagenet(tmp_path_factory.mktemp('imagenet'), 8, train=48)


@pytest.fixture
def copy(prepared, tmp_path):
    """To damage."""
    return str(shutil.copytree(prepared, tmp_path / 'data'))


def test_imagenet_as_tfds_prepares_it(prepared, monkeypatch):
    """Real builder, real archives, several files, read by one process and by one of two."""
    monkeypatch.setattr(data_tfds, 'IN_MEMORY', 0)
    source = data.open_dataset('imagenet2012', 'train', prepared)
    whole = take(TrainData(source, SMALL).batches(), 9)
    assert whole[0]['image'].shape == (1, 8, 32, 32, 3)
    assert set(np.concatenate([b['label'] for b in whole], 1)[0].tolist()) <= set(range(1000))
    half = take(TrainData(source, SMALL, 1, 2).batches(5), 4)
    same(half, [{k: v[:, 4:] for k, v in batch.items()} for batch in whole[5:]])


def test_damaged_record_files_stop_the_run(copy, monkeypatch):
    monkeypatch.setattr(data_tfds, 'IN_MEMORY', 0)
    source = data.open_dataset('imagenet2012', 'train', copy)
    file = sorted(Path(copy).rglob('*train.tfrecord*'))[-1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(UserError, match='files end before their 48 examples|cannot be read'):
        take(TrainData(source, SMALL).batches(), 6)


@pytest.mark.parametrize('gone', [(1,), (0, 1, 2, 3)])
@pytest.mark.parametrize('when', ['before the epoch', 'within it'])
def test_a_record_file_that_is_not_there(copy, monkeypatch, gone, when):
    """To ignore that none can be opened had no end; one alone was not missed."""
    monkeypatch.setattr(data_tfds, 'IN_MEMORY', 0)
    source = data.open_dataset('imagenet2012', 'train', copy)
    every = sorted(map(str, Path(copy).rglob('*train.tfrecord*')))
    assert list(source.files) == every
    stream = TrainData(source, SMALL).batches()
    if when == 'within it':  # the storage is lost after it was looked at
        monkeypatch.setattr(training, 'unopened', lambda files: [])
    for i in gone:
        Path(every[i]).unlink()
    names = ', '.join(every[i] for i in gone)
    words = {
        'before the epoch': f'^imagenet2012: these of its files cannot be opened: {names}$',
        'within it': '^imagenet2012: .* cannot be read',
    }[when]
    with pytest.raises(UserError, match=words):
        beside(take, stream, 7).result(timeout=60)


def test_aligned_puts_every_example_at_its_place():
    present = [0, 1, 3, 4, 5, 8, 9, 11]
    numbers = np.array([*present, 12])
    batches = (
        {
            'number': numbers[i : i + 3],
            'end': numbers[i : i + 3] == 12,
            'x': numbers[i : i + 3] * 10,
        }
        for i in range(0, 9, 3)
    )
    found = list(aligned(batches, 3, 4))
    weight = np.concatenate([batch['weight'] for batch in found])
    assert np.flatnonzero(weight).tolist() == present
    x = np.concatenate([batch['x'] for batch in found])
    assert (x[present] == np.array(present) * 10).all()
    assert np.concatenate([batch['missing'] for batch in found]).tolist() == [2, 6, 7, 10]
    early = iter([{'number': np.arange(5), 'end': np.arange(5) == 4, 'x': np.arange(5)}])
    with pytest.raises(EOFError):
        list(aligned(early, 2, 4))


def test_prefetch_counts_waiting_and_hands_errors_on():
    def items():
        yield 1
        raise UserError('broken')

    feed = Prefetch(items(), lambda x: x + 1)
    assert feed.get(lambda: False) == 2
    assert feed.get(lambda: False) is None
    assert str(feed.error) == 'broken'
    feed.close()
    never = Prefetch(iter(lambda: __import__('time').sleep(0.05), 1), lambda x: x)
    never.close()
    slow = Prefetch((__import__('time').sleep(0.5) for _ in range(9)), lambda x: 'late')
    assert slow.get(lambda: True) is None
    assert slow.waited > 0.05
    assert slow.get(lambda: False) == 'late'
    slow.close()


def test_grey_and_odd_pictures_are_three_channels(tmp_path):
    for i in range(8):
        file = tmp_path / 'abc'[i % 3] / f'{i}.png'
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((5 + i, 40), 30 * i, np.uint8)).save(file)
    [batch] = take(TrainData(data.open_dataset(str(tmp_path)), SMALL).batches(), 1)
    assert batch['image'].shape == (1, 8, 32, 32, 3)
    assert sorted(np.unique(batch['image']).tolist()) == [30 * i for i in range(8)]


def test_the_pipeline_is_traced_once(folder, monkeypatch):
    """Not in every epoch: it took half a second, for which a small set's training waited."""
    traces = []
    crop = training.random_resized_crop
    monkeypatch.setattr(
        training, 'random_resized_crop', lambda *a, **k: traces.append(1) or crop(*a, **k)
    )
    plain = TrainData(data.open_dataset(str(folder[0])), SMALL)
    take(plain.batches(), 5 * plain.steps_per_epoch)
    assert len(traces) == 1


def test_images_that_are_not_there(folder):
    root, files = folder
    paths = [*map(str, files), f'{root}/dog/none.jpg', f'{root}/cow/0.jpg']
    with pytest.raises(UserError) as stop:
        data.open_files(data.Dataset('mine', 'train'), paths, {})
    absent = f'{root}/dog/none.jpg, {root}/cow/0.jpg'
    assert str(stop.value) == f'mine: these images are not there: {absent}'


def test_an_image_that_goes_while_it_is_trained_on(folder):
    """Its name, not TensorFlow's words."""
    root, files = folder
    source = data.open_dataset(str(root))
    for file in files[3:8]:
        file.unlink()
    with pytest.raises(UserError, match='cannot be read') as stop:
        take(TrainData(source, SMALL).batches(), 4)
    assert f'{files[4]}' in str(stop.value)
    assert 'No such file' not in str(stop.value)
    assert '[' not in str(stop.value)
