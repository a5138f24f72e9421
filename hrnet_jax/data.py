"""Evaluation sets: each example exactly once, in order, over any number of processes.

Reads what tfds has prepared on disk, or a folder of class folders; never downloads or prepares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hrnet_jax import imagenet
from hrnet_jax.errors import UserError
from hrnet_jax.preprocess import Transform, evaluation_image

if TYPE_CHECKING:
    import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Dataset:
    """How a data set is read.

    Attributes:
        name: the tfds builder, with its config.
        split: the split that published accuracies are of.
        num_examples: in that split; None where not known beforehand.
        label: the feature with the class, or the classes.
        max_labels: room for the classes of one example; 0 where `label` is one class.
        restricted: only the classes that occur are told apart, 200 of the 1000.
        original: the feature with the class that ILSVRC2012 gives to the image.
        numbered: the images are those of ILSVRC2012_img_val.tar: a file name tells the class.
    """

    name: str
    split: str = 'test'
    num_examples: int | None = None
    label: str = 'label'
    max_labels: int = 0
    restricted: bool = False
    original: str = 'label'
    numbered: bool = False


DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        Dataset('imagenet2012', 'validation', 50_000, numbered=True),
        Dataset(
            'imagenet2012_real', 'validation', 50_000, 'real_label', 32,
            original='original_label', numbered=True,
        ),
        Dataset('imagenet_v2/matched-frequency', num_examples=10_000),
        Dataset('imagenet_v2/threshold-0.7', num_examples=10_000),
        Dataset('imagenet_v2/topimages', num_examples=10_000),
        Dataset('imagenet_sketch', num_examples=50_889),
        Dataset('imagenet_a', num_examples=7_500, restricted=True),
        Dataset('imagenet_r', num_examples=30_000, restricted=True),
    )
}  # fmt: skip
_ALIASES = {'imagenet_v2': 'imagenet_v2/matched-frequency'}

# Enough to notice shifted labels, should tfds no longer bring the list of all.
_KNOWN = {'ILSVRC2012_val_00000001.JPEG': 65, 'ILSVRC2012_val_00000002.JPEG': 970}
_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
_PREPARE = (
    "import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{root}', "
    "file_format='tfrecord').download_and_prepare({config})"
)
_MANUAL = (
    "download_config=tfds.download.DownloadConfig(manual_dir='FOLDER WITH ILSVRC2012_img_val.tar')"
)


@dataclasses.dataclass(frozen=True)
class EvalSource:
    """An opened evaluation set.

    Attributes:
        dataset: its row of `DATASETS`, or one made for it.
        split: the split that is read.
        num_examples: in that split.
        num_classes, class_names: None where the data does not say.
        is_partial: it has another number of examples than published accuracies are of.
        notes: what the user should know beside the accuracy, a line each.
        official: the class of each file name, empty where not known.
        records: (first, stop) -> these examples, undecoded: image (string), label (int32, scalar or
            (max_labels,)), original (int32) and name (string). The order is fixed.
    """

    dataset: Dataset
    split: str
    num_examples: int
    num_classes: int | None
    class_names: tuple[str, ...] | None = dataclasses.field(repr=False)
    is_partial: bool
    notes: tuple[str, ...]
    official: Mapping[str, int] = dataclasses.field(repr=False)
    records: Callable[[int, int], tf.data.Dataset] = dataclasses.field(repr=False)


def open_dataset(name: str, split: str | None = None, data_dir: str | None = None) -> EvalSource:
    """Opens an evaluation set and reads its first example.

    Args:
        name: of `DATASETS` or another prepared tfds data set with image and label, as builder,
            builder/config or builder/config:version; or 'folder:PATH', or a path with a / or . or ~
            first, to a folder of class folders: WordNet ids, or names that in sorted order are the
            classes 0, 1, ...
        split: a tfds split such as 'validation[:10%]', or a folder in PATH; None is the usual one.
        data_dir: where tfds keeps its data; None is its own default.

    Raises:
        UserError: if it is not there, cannot be read, or its labels are wrong.
    """
    try:
        tf = _tensorflow()
        if name.startswith(('folder:', '/', '.', '~')):
            source = _open_folder(name.removeprefix('folder:'), split)
        else:
            source = _open_tfds(name, split, data_dir)
    except ImportError as error:
        raise UserError(
            f"{error}; data sets need more packages: pip install 'hrnet_jax[data]'"
        ) from error
    if not source.num_examples:
        raise UserError(f'{source.dataset.name}: split {source.split} is empty')
    # Damaged files and labels of another set show here, before a model is compiled.
    try:
        first = next(source.records(0, 1).batch(1).as_numpy_iterator())
    except (tf.errors.OpError, StopIteration) as error:
        raise UserError(f'{source.dataset.name}: cannot read a file: {_brief(error)}') from error
    _check(source, first)
    if source.official and _basename(first['name'][0]) not in source.official:
        note = f'labels could not be checked: {_basename(first["name"][0])} is no known file name'
        source = dataclasses.replace(source, notes=(*source.notes, note))
    return source


def batches(
    source: EvalSource,
    transform: Transform,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The share of one process, in as many batches on every process.

    Labels are checked against their file names in passing: that covers every example that counts
    and costs nothing, where a pass of its own would read the whole set once more.

    Args:
        batch_size: of this process.
        process_index, process_count: which share of how many.
        limit: only so many examples, the first of the whole set.

    Yields:
        image: uint8 (batch_size, crop, crop, 3).
        label: int32 (batch_size,); or (batch_size, max_labels), filled up with -1.
        mask: bool (batch_size,), False for padding, whose image and label are 0 (-1 in a list).

    Raises:
        UserError: if an image cannot be decoded, a label is wrong, or examples are missing.
    """
    if limit is None:
        limit = source.num_examples
    if batch_size < 1 or limit < 1 or not 0 <= process_index < process_count:
        raise UserError(
            f'batch size {batch_size}, limit {limit}, process {process_index} of {process_count}: '
            'sizes start at 1 and processes at 0'
        )
    total = min(limit, source.num_examples)
    first, stop = (total * i // process_count for i in (process_index, process_index + 1))
    largest = -(-total // process_count)
    return _batches(source, transform, batch_size, first, stop, -(-largest // batch_size))


def _batches(
    source: EvalSource, transform: Transform, batch_size: int, first: int, stop: int, steps: int
) -> Iterator[dict[str, np.ndarray]]:
    tf = _tensorflow()

    def decode(record):
        return {**record, 'image': evaluation_image(record['image'], transform)}

    def pad(array, value=0):
        width = [(0, batch_size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, width, constant_values=value) if width[0][1] else array

    options = tf.data.Options()
    options.deterministic = True
    options.threading.max_intra_op_parallelism = 1  # Parallel over images, not inside one.
    records = source.records(first, stop)
    data = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size).prefetch(2)
    data = data.with_options(options)
    nothing = {
        name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
        for name, spec in data.element_spec.items()
    }
    iterator, done = data.as_numpy_iterator(), 0
    for _ in range(steps):
        try:
            batch = next(iterator, nothing)
        except tf.errors.OpError as error:
            raise _culprit(source, records.skip(done), transform, error) from error
        _check(source, batch)
        count = len(batch['label'])
        done += count
        yield {
            'image': pad(batch['image']),
            'label': pad(batch['label'], -1 if source.dataset.max_labels else 0),
            'mask': np.arange(batch_size) < count,
        }
    if done != stop - first:
        raise UserError(
            f'{source.dataset.name}: its files hold {done} examples where dataset_info.json says '
            f'{stop - first}; they are damaged, prepare it again'
        )


def present_classes(source: EvalSource) -> np.ndarray:
    """The sorted classes that occur in the split; reads labels, decodes no image."""
    tf = _tensorflow()
    labels = source.records(0, source.num_examples).map(lambda record: record['label']).batch(1024)
    try:
        found = np.unique(np.concatenate([np.unique(x) for x in labels.as_numpy_iterator()]))
    except tf.errors.OpError as error:
        raise UserError(f'{source.dataset.name}: cannot read a file: {_brief(error)}') from error
    return found[found >= 0]


def _check(source: EvalSource, batch: Mapping[str, np.ndarray]) -> None:
    """Stops at a label that is out of range or not that of its file name."""
    for name, label in zip(batch['name'], batch['original'], strict=True):
        name = _basename(name)
        if not 0 <= label < (source.num_classes or np.inf):
            raise UserError(
                f'{source.dataset.name}: {name} has label {label}: split {source.split} has no '
                'labels, or they are damaged'
            )
        if source.official.get(name, label) != label:
            raise UserError(
                f'{source.dataset.name}: {name} has label {label}, not {source.official[name]}. '
                'tfds labels the images of ILSVRC2012_img_val.tar by position, so it was prepared '
                'from an archive that someone packed again with a folder inside or an image '
                'missing; get the original or pack the 50,000 files alone (cd val && tar cf '
                '../ILSVRC2012_img_val.tar *.JPEG), then delete the prepared copy and prepare again'
            )


def _culprit(
    source: EvalSource, records: tf.data.Dataset, transform: Transform, error: Exception
) -> UserError:
    """Names the image on which a batch failed: reads it again, one image at a time."""
    tf = _tensorflow()
    decode = tf.function(lambda encoded: evaluation_image(encoded, transform))
    where = ''
    try:
        for record in records:
            where = f'{record["name"].numpy().decode()}: '
            decode(record['image'])
            where = ''
    except tf.errors.OpError as again:
        error = again
    return UserError(f'{source.dataset.name}: cannot read {where or "a file: "}{_brief(error)}')


def _basename(name: bytes) -> str:
    return os.path.basename(name.decode())


def _brief(error: Exception) -> str:
    """The first line of TensorFlow's message, without the names of its nodes."""
    text = getattr(error, 'message', str(error)) or 'no examples'
    return re.sub(r'{{.*?}}|\[Op:.*', '', text.strip().splitlines()[0]).strip()


def _open_folder(path: str, split: str | None) -> EvalSource:
    root = os.path.join(os.path.expanduser(path), split or '')
    if not os.path.isdir(root):
        raise UserError(f'{root} is not a folder; it should hold a folder of images for each class')
    classes = sorted(x.name for x in os.scandir(root) if x.is_dir() and x.name[0] != '.')
    # Folders named by WordNet ids are ImageNet's classes, however many of the 1000 there are.
    known = list(imagenet.classes())
    names = known if set(classes) <= set(known) else classes
    number = {name: i for i, name in enumerate(names)}
    files = [
        (os.path.join(root, name, file), number[name])
        for name in classes
        for file in sorted(os.listdir(os.path.join(root, name)))
        if file.lower().endswith(_EXTENSIONS)
    ]
    if not files:
        raise UserError(f'{root} holds no folders of images, one for each class')

    def records(first, stop):
        tf = _tensorflow()

        def read(path, label):
            return {'image': tf.io.read_file(path), 'label': label, 'original': label, 'name': path}

        paths, labels = zip(*files[first:stop], strict=True) if first < stop else ((), ())
        slices = (tf.constant(paths, tf.string), tf.constant(labels, tf.int32))
        return tf.data.Dataset.from_tensor_slices(slices).map(read, tf.data.AUTOTUNE)

    row = Dataset(path, split or '', len(files))
    notes = (
        (f'{len(classes)} of the {len(names)} classes of ImageNet; all compete',)
        if len(classes) < len(names)
        else ()
    )
    return EvalSource(
        row, row.split, len(files), len(names), tuple(names), False, notes, {}, records
    )


def _open_tfds(name: str, split: str | None, data_dir: str | None) -> EvalSource:
    import tensorflow_datasets as tfds

    name, _, version = name.partition(':')
    name = _ALIASES.get(name, name)
    row = DATASETS.get(name, Dataset(name))
    info = _builder(row, version, data_dir).info
    split = split or row.split
    try:
        selected = info.splits[split]
        base = info.splits[re.split(r'[\[+]', split)[0]]
    except (KeyError, ValueError) as error:
        known = ', '.join(info.splits)
        raise UserError(f'{name} has no split {split!r}; it has: {known}') from error
    missing = sorted({'image', row.label, row.original} - set(info.features))
    if missing:
        known = ', '.join(info.features)
        raise UserError(f'{name} has no feature {" or ".join(missing)}; it has: {known}')
    whole = row.num_examples if base.name == row.split and row.num_examples else base.num_examples
    is_partial = selected.num_examples != whole
    notes = (f'partial: {selected.num_examples:,} of {whole:,} examples',) if is_partial else ()
    classes = getattr(info.features[row.label], 'feature', info.features[row.label])
    names = getattr(classes, 'names', None)
    return EvalSource(
        dataset=row,
        split=split,
        num_examples=selected.num_examples,
        num_classes=getattr(classes, 'num_classes', None),
        class_names=tuple(names) if names else None,
        is_partial=is_partial,
        notes=notes,
        official=_official_labels(tfds) if row.numbered and base.name == row.split else {},
        records=_tfds_records(row, info.features, selected.file_instructions, tfds.decode),
    )


def _tfds_records(row, features, instructions, decode) -> Callable[[int, int], tf.data.Dataset]:
    """The `EvalSource.records` of a split: its files, and which examples of each belong to it."""

    def records(first, stop):
        tf = _tensorflow()
        ranges, start = [], 0
        for file in instructions:
            skip, end = max(first - start, 0), min(stop - start, file.take)
            if skip < end:
                ranges.append((file.filename, file.skip + skip, end - skip))
            start += file.take

        def parse(path, number, serialized):
            example = features.deserialize_example(
                serialized, decoders={'image': decode.SkipDecoding()}
            )
            label = tf.cast(example[row.label], tf.int32)
            if row.max_labels:
                room = row.max_labels - tf.size(label)
                label = tf.pad(label, [(0, room)], constant_values=-1)
                label = tf.ensure_shape(label, (row.max_labels,))
            file = tf.strings.split(path, '/')[-1]
            name = tf.strings.join((file, ' example ', tf.strings.as_string(number)))
            return {
                'image': example['image'],
                'label': label,
                'original': tf.cast(example[row.original], tf.int32),
                'name': example.get('file_name', name),
            }

        def read(path, skip, take):
            file = tf.data.TFRecordDataset(path).enumerate().skip(skip).take(take)
            return file.map(lambda number, serialized: parse(path, number, serialized))

        paths, skips, takes = zip(*ranges, strict=True) if ranges else ((), (), ())
        numbers = (tf.constant(x, tf.int64) for x in (skips, takes))
        files = tf.data.Dataset.from_tensor_slices((tf.constant(paths, tf.string), *numbers))
        # Several files at once: one alone is too slow from remote storage.
        return files.interleave(
            read, cycle_length=16, block_length=16, num_parallel_calls=tf.data.AUTOTUNE
        )

    return records


def _builder(row: Dataset, version: str, data_dir: str | None) -> Any:
    """The newest copy on disk, by its own metadata: without the network or the builder's code."""
    import tensorflow_datasets as tfds
    from etils import epath

    root = data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    root = epath.Path(os.path.expanduser(root))
    prepare = _PREPARE.format(name=row.name, root=root, config=_MANUAL if row.numbered else '')
    copies = [
        path.parent
        for pattern in ('*/dataset_info.json', '*/*/dataset_info.json')
        for path in (root / row.name).glob(pattern)
        if re.fullmatch(re.escape(version) or r'\d+\.\d+\.\d+', path.parent.name)
    ]
    if not copies:
        wanted = f'{row.name}:{version}' if version else row.name
        raise UserError(f'{wanted} is not prepared in {root}; prepare it once: {prepare}')
    configs = sorted({copy.parent.name for copy in copies})
    if len(configs) > 1:
        raise UserError(f'{row.name}: add one of its configs: {", ".join(configs)}')
    newest = max(copies, key=lambda copy: [int(x) for x in copy.name.split('.')])
    try:
        # Written by tfds before 4.0: only the builder's code knows the features.
        if not (newest / 'features.json').exists():
            return tfds.builder(f'{row.name}:{newest.name}', data_dir=root, try_gcs=False)
        builder = tfds.builder_from_directory(newest)
    except ImportError:
        raise
    except Exception as error:  # Damaged metadata: tfds has no error of its own for it.
        raise UserError(f'cannot open {newest}: {error}; prepare it again: {prepare}') from error
    formats = {x.value for x in (builder.info.file_format, *builder.info.alternative_file_formats)}
    if 'tfrecord' not in formats:
        raise UserError(
            f'{newest} holds {" and ".join(sorted(formats))} files; tfrecord is needed, prepare it '
            f'in another folder: {prepare}'
        )
    if builder.info.file_format.value != 'tfrecord':
        builder.info.set_file_format('tfrecord', override=True, override_if_initialized=True)
    return builder


def _official_labels(tfds: Any) -> Mapping[str, int]:
    """The class of each file of ILSVRC2012_img_val.tar, from the lists that tfds brings."""
    folder = tfds.core.tfds_path('datasets/imagenet2012')
    try:
        classes = (folder / 'labels.txt').read_text().split()
        labels = (folder / 'validation_labels.txt').read_text().split()
    except FileNotFoundError:
        return _KNOWN
    number = {name: i for i, name in enumerate(classes)}
    return {f'ILSVRC2012_val_{i:08}.JPEG': number[x] for i, x in enumerate(labels, start=1)}


def _tensorflow() -> Any:
    """The module, kept off the accelerators, which are JAX's."""
    import tensorflow as tf

    for kind in ('GPU', 'TPU'):
        # An error means that someone used TensorFlow before: its devices are settled.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], kind)
    return tf
