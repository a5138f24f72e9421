"""Evaluation sets: each example once, the right labels, and clear words when something is wrong."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys

import imagenet
import numpy as np
import pytest
import tensorflow_datasets as tfds
from imagenet import examples
from PIL import Image

from hrnet_jax import data
from hrnet_jax.data.preprocess import Transform, resize_crop
from hrnet_jax.errors import UserError

SMALL = Transform(36, 32)
COUNT = 23


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
    return imagenet.make_imagenet(tmp_path_factory.mktemp('imagenet'), COUNT)


@pytest.fixture(scope='module')
def source(data_dir):
    return data.open_dataset('imagenet2012', data_dir=data_dir)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError(f'tried to reach {args}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)


def official(number: int) -> int:
    folder = tfds.core.tfds_path('datasets/imagenet2012')
    synset = (folder / 'validation_labels.txt').read_text().split()[number - 1]
    return (folder / 'labels.txt').read_text().split().index(synset)


@functools.cache
def expected(numbers, transform=SMALL) -> dict[bytes, int]:
    """Pixels and label of each image, by PIL and the list that tfds brings."""
    found = {}
    for number in numbers:
        with Image.open(io.BytesIO(imagenet.jpeg(number))) as image:
            found[resize_crop(image, transform).tobytes()] = official(number)
    return found


def test_known_labels():
    assert [official(1), official(2)] == [65, 970]


def test_reads_every_image_with_its_label(source):
    assert (source.split, source.num_examples, source.num_classes) == ('validation', COUNT, 1000)
    assert source.class_names[65] == 'n01751748'
    transform = Transform()
    batches = list(data.batches(source, transform, 10))
    assert [batch['image'].shape for batch in batches] == [(10, 224, 224, 3)] * 3
    assert [batch['mask'].sum() for batch in batches] == [10, 10, 3]
    found = examples(batches)
    assert len(found) == COUNT
    assert dict(found) == expected(range(1, COUNT + 1), transform)


@pytest.mark.parametrize(
    ('processes', 'batch_size', 'limit'),
    [(1, 64, None), (2, 5, None), (3, 4, None), (5, 3, 2), (2, 2, 9), (1, 4, 1), (2, 8, 99)],
)
def test_shares(source, processes, batch_size, limit):
    total = min(limit or COUNT, COUNT)
    shares = [
        list(data.batches(source, SMALL, batch_size, i, processes, limit)) for i in range(processes)
    ]
    steps = math.ceil(math.ceil(total / processes) / batch_size)
    assert {len(share) for share in shares} == {steps}
    found = [example for share in shares for example in examples(share)]
    assert len(found) == total
    whole = examples(data.batches(source, SMALL, total, limit=limit))
    assert sorted(found) == sorted(whole)
    assert dict(found).items() <= expected(range(1, COUNT + 1)).items()
    assert len(dict(found)) == total


def test_order_is_fixed(source):
    first, second = (examples(data.batches(source, SMALL, 4)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize('arguments', [(0,), (4, 2, 2), (4, -1, 1), (4, 0, 1, 0)])
def test_shares_that_make_no_sense(source, arguments):
    with pytest.raises(UserError, match='sizes start at 1'):
        data.batches(source, SMALL, *arguments)


def test_part_of_a_split(data_dir):
    half, rest = (
        data.open_dataset('imagenet2012', f'validation[{part}]', data_dir)
        for part in (':50%', '50%:')
    )
    assert half.is_partial
    assert half.num_examples + rest.num_examples == COUNT
    found = [x for part in (half, rest) for x in examples(data.batches(part, SMALL, 4))]
    assert dict(found) == expected(range(1, COUNT + 1))


def test_partial_copy_is_flagged(source):
    assert source.is_partial


@pytest.mark.parametrize('options', [{'mislabel': True}, {'omit': (3,)}])
def test_shifted_labels_stop(tmp_path, options):
    data_dir = imagenet.make_imagenet(tmp_path, 12, **options)
    with pytest.raises(
        UserError, match=r'ILSVRC2012_val_\d{8}.JPEG has label \d+, not \d+'
    ) as stop:
        list(data.batches(data.open_dataset('imagenet2012', data_dir=data_dir), SMALL, 4))
    assert 'packed again' in str(stop.value)


def test_labels_without_known_file_names(source):
    unknown = dataclasses.replace(source, official={'ILSVRC2012_val_00000099.JPEG': 1})
    data.check_labels(unknown, {'name': [b'a.JPEG'], 'original': [5]})
    for label in (-1, 1000):
        with pytest.raises(UserError, match=f'label {label}: split validation has no labels'):
            data.check_labels(unknown, {'name': [b'a.JPEG'], 'original': [label]})


@pytest.mark.parametrize(
    ('name', 'split', 'words'),
    [
        ('imagenet2012', 'test', 'no split .test.; it has: validation'),
        ('imagenet2012', 'validation[', 'no split'),
        ('imagenet2012', 'validation[:0]', 'is empty'),
        ('imagenet2012:5.0.0', None, r"imagenet2012:5.0.0 is not .*builder\('imagenet2012:5.0.0'"),
        ('imagenet_v2', None, r"tfds.builder\('imagenet_v2/matched-frequency', data_dir='.*data'"),
        ('imagenet2012_real', None, 'ILSVRC2012_img_val.tar'),
    ],
)
def test_what_is_not_there(data_dir, name, split, words):
    with pytest.raises(UserError, match=words):
        data.open_dataset(name, split, data_dir)


def test_the_line_that_prepares_it_runs(tmp_path):
    """The message says what to run: it is run here."""
    archives = imagenet.make_archives(tmp_path / 'archives', 2)
    with pytest.raises(UserError) as missing:
        data.open_dataset('imagenet2012', data_dir=str(tmp_path / 'data'))
    assert '\n' not in str(missing.value)
    line = str(missing.value).partition('prepare it once: ')[2]
    line = line.replace('FOLDER WITH ILSVRC2012_img_val.tar', str(archives))
    program, *arguments = shlex.split(line)
    assert program == 'python'
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    assert data.open_dataset('imagenet2012', data_dir=str(tmp_path / 'data')).num_examples == 2


@pytest.fixture
def copy(data_dir, tmp_path):
    """A copy to damage: data_dir and the folder of the version."""
    shutil.copytree(data_dir, tmp_path / 'data')
    (version,) = (tmp_path / 'data' / 'imagenet2012').iterdir()
    return str(tmp_path / 'data'), version


def edit_info(version: pathlib.Path, **fields) -> None:
    info = json.loads((version / 'dataset_info.json').read_text())
    (version / 'dataset_info.json').write_text(json.dumps({**info, **fields}))


def test_array_record_is_refused(copy):
    edit_info(copy[1], fileFormat='array_record')
    with pytest.raises(UserError, match='array_record files; tfrecord is needed'):
        data.open_dataset('imagenet2012', data_dir=copy[0])


def test_second_format_is_found(copy):
    edit_info(copy[1], fileFormat='array_record', alternativeFileFormats=['tfrecord'])
    assert data.open_dataset('imagenet2012', data_dir=copy[0]).num_examples == COUNT


def test_copy_of_an_old_tfds(copy):
    (copy[1] / 'features.json').unlink()
    source = data.open_dataset('imagenet2012', data_dir=copy[0])
    assert len(examples(data.batches(source, SMALL, 8))) == COUNT


def test_newest_version_is_read(copy):
    old = copy[1].with_name('5.0.0')
    shutil.copytree(copy[1], old)
    (old / 'dataset_info.json').write_text('{}')
    copy[1].with_name('5.2.0.incompleteABC').mkdir()
    assert data.open_dataset('imagenet2012', data_dir=copy[0]).num_examples == COUNT
    with pytest.raises(UserError, match=r'cannot open .*5\.0\.0.*prepare it again'):
        data.open_dataset('imagenet2012:5.0.0', data_dir=copy[0])


def test_missing_file(copy):
    sorted(copy[1].glob('*validation*'))[-1].unlink()
    source = data.open_dataset('imagenet2012', data_dir=copy[0])
    with pytest.raises(UserError, match='cannot read a file: .*tfrecord-00003-of-00004'):
        list(data.batches(source, SMALL, 8))


def test_truncated_file(copy):
    path = sorted(copy[1].glob('*validation*'))[-1]
    path.write_bytes(path.read_bytes()[:-100])
    source = data.open_dataset('imagenet2012', data_dir=copy[0])
    with pytest.raises(UserError, match='truncated record'):
        list(data.batches(source, SMALL, 8))


def test_fewer_examples_than_promised(copy):
    import tensorflow as tf

    path = str(sorted(copy[1].glob('*validation*'))[-1])
    records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
    with tf.io.TFRecordWriter(path) as file:
        for record in records[:-1]:
            file.write(record)
    source = data.open_dataset('imagenet2012', data_dir=copy[0])
    with pytest.raises(UserError, match=f'hold {COUNT - 1} examples where .* says {COUNT}'):
        list(data.batches(source, SMALL, 8))


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Somebody's own data set: image and label, PNG, two configs, no file names."""

    VERSION = tfds.core.Version('1.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=x, version='1.0.0') for x in ('good', 'bad')]

    def _info(self):
        label = tfds.features.ClassLabel(names=['cat', 'dog', 'owl'])
        features = tfds.features.FeaturesDict({'image': tfds.features.Image(), 'label': label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {'test': self._generate_examples()}

    def _generate_examples(self):
        for i in range(8):
            image = np.asarray(imagenet.picture(i, 40 + i, 50))
            broken = self.builder_config.name == 'bad' and i == 5
            yield i, {'image': io.BytesIO(b'broken') if broken else image, 'label': i % 3}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    where = tmp_path_factory.mktemp('pictures')
    for config in ('good', 'bad'):
        imagenet.prepare(Pictures(data_dir=where, config=config), num_shards=2)
    return str(where)


def test_any_builder_with_image_and_label(pictures):
    source = data.open_dataset('pictures/good', data_dir=pictures)
    assert (source.num_examples, source.class_names) == (8, ('cat', 'dog', 'owl'))
    assert not source.is_partial
    assert not source.notes
    wanted = {
        resize_crop(imagenet.picture(i, 40 + i, 50), SMALL).tobytes(): i % 3 for i in range(8)
    }
    assert dict(examples(data.batches(source, SMALL, 3))) == wanted
    with pytest.raises(UserError, match='one of its configs: bad, good'):
        data.open_dataset('pictures', data_dir=pictures)


def test_undecodable_image_without_a_name(pictures):
    source = data.open_dataset('pictures/bad', data_dir=pictures)
    with pytest.raises(UserError, match=r'pictures-test\.tfrecord-0000\d-of-00002 example \d: '):
        list(data.batches(source, SMALL, 3))


def test_real_labels(tmp_path, monkeypatch):
    real = tfds.builder_cls('imagenet2012_real')
    names = [imagenet.name(number) for number in range(1, 7)]
    lists = dict(zip(names, ([65], [], [1, 2, 3], [970, 65], [0], [999]), strict=True))
    monkeypatch.setattr(real, '_get_real_labels', lambda *_: lists)
    archives = imagenet.make_archives(tmp_path / 'archives', 6)
    imagenet.prepare(real(data_dir=tmp_path, file_format='tfrecord'), archives, 2)

    source = data.open_dataset('imagenet2012_real', data_dir=str(tmp_path))
    batches = list(data.batches(source, SMALL, 4))
    assert [batch['label'].shape for batch in batches] == [(4, 32), (4, 32)]
    rows = np.concatenate([batch['label'] for batch in batches])
    mask = np.concatenate([batch['mask'] for batch in batches])
    assert (rows[~mask] == -1).all()
    found = sorted([label for label in row if label >= 0] for row in rows[mask].tolist())
    assert found == sorted(lists.values())
    assert data.competing_classes(source) is None


def test_restricted_classes(tmp_path, monkeypatch):
    folder = tmp_path / 'raw' / 'imagenet-a'
    for synset in ('n01498041', 'n12267677'):
        (folder / synset).mkdir(parents=True)
        (folder / synset / f'{synset}.jpg').write_bytes(imagenet.jpeg(int(synset[1:])))
    manager = tfds.download.DownloadManager
    monkeypatch.setattr(manager, 'download_and_extract', lambda *_: tmp_path / 'raw')
    builder = tfds.builder('imagenet_a', data_dir=tmp_path, file_format='tfrecord')
    imagenet.prepare(builder, num_shards=1)
    source = data.open_dataset('imagenet_a', data_dir=str(tmp_path))
    assert source.dataset.restricted
    assert source.num_classes == 1000
    assert data.competing_classes(source, str(tmp_path)).tolist() == [6, 988]
    with pytest.raises(UserError, match='tfds has imagenet_a in version 0.1.0, not 9.9.9'):
        data.open_dataset('imagenet_a:9.9.9', data_dir=str(tmp_path))
    newer = shutil.copytree(tmp_path / 'imagenet_a' / source.version, tmp_path / 'imagenet_a/9.9.9')
    for file in newer.glob('*.tfrecord*'):
        file.write_bytes(b'damaged')
    named = data.open_dataset(f'imagenet_a:{source.version}', data_dir=str(tmp_path))
    assert data.competing_classes(named, str(tmp_path)).tolist() == [6, 988]
    shutil.rmtree(newer)
    part = data.open_dataset('imagenet_a', 'test[:1]', str(tmp_path))
    assert data.competing_classes(part, str(tmp_path)).tolist() == [6, 988]


def test_without_tensorflow(tmp_path):
    """The modules import, and opening says what to install."""
    script = (
        'import sys; names = ("tensorflow", "tensorflow_datasets", "PIL")\n'
        'sys.modules.update(dict.fromkeys(names))\n'
        'from hrnet_jax import UserError, data, preprocess\n'
        'try: data.open_dataset("imagenet2012", data_dir=".")\n'
        'except UserError as error: print(error)\n'
    )
    output = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        text=True,
        check=True,
        cwd=pathlib.Path(__file__).parents[1],
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    ).stdout
    assert 'tensorflow' in output
    assert 'pip install tensorflow tensorflow-datasets' in output
