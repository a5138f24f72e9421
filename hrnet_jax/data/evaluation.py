"""Evaluation sets: each example exactly once, in order, over any number of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hrnet_jax.data.classes import renumbered
from hrnet_jax.data.folder import open_folder
from hrnet_jax.data.pixels import evaluation_image
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.data.sources import DATASETS, Source, basename, first_line, opened, tensorflow
from hrnet_jax.data.tfds import open_tfds
from hrnet_jax.errors import UserError

if TYPE_CHECKING:
    import tensorflow as tf


def open_dataset(name: str, split: str | None = None, data_dir: str | None = None) -> Source:
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
        tensorflow()
        if name.startswith(('folder:', '/', '.', '~')):
            source = open_folder(name.removeprefix('folder:'), split)
        else:
            source = open_tfds(name, split, data_dir)
    except ImportError as error:
        raise missing(error) from error
    return checked(source)


def checked(source: Source) -> Source:
    """The source, once its first example has been read.

    Raises:
        UserError: if it has none, a file cannot be read, or its labels are wrong.
    """
    tf = tensorflow()
    if not source.num_examples:
        raise UserError(f'{source.dataset.name}: split {source.split} is empty')
    # Damaged files and labels of another set show here, before a model is compiled.
    try:
        first = next(source.records(0, 1).batch(1).as_numpy_iterator())
    except (tf.errors.OpError, StopIteration) as error:
        raise UserError(
            f'{source.dataset.name}: cannot read a file: {first_line(error)}'
        ) from error
    source.check(source, first)
    if source.official and basename(first['name'][0]) not in source.official:
        note = f'labels could not be checked: {basename(first["name"][0])} is no known file name'
        source = dataclasses.replace(source, notes=(*source.notes, note))
    return source


def missing(error: ImportError) -> UserError:
    """What to install where `error` has come up."""
    return UserError(
        f'{error}; data sets need: pip install tensorflow tensorflow-datasets '
        'importlib_resources pillow'
    )


def batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    limit: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The share of one process, in as many batches on every process; decoding begins at once.

    Labels are checked against their file names in passing: that covers every example that counts
    and costs nothing, where a pass of its own would read the whole set once more.

    Args:
        batch_size: of this process.
        process_index, process_count: which share of how many.
        limit: only so many examples, the first of the whole set.

    Yields:
        image: uint8 (batch_size, crop, crop, 3), 0 in padding.
        The fields of the source: label, int32 (batch_size,), or (batch_size, room), filled up with
            -1; or others.
        index: int32 (batch_size,), the place of the example in the whole set; -1 in padding.
        mask: bool (batch_size,), False for padding.

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


def local_batch(batch_size: int, processes: int, devices: int) -> int:
    """One host's share of `batch_size` images, rounded up to fill its devices evenly."""
    return -(-batch_size // (processes * devices)) * devices


def _batches(
    source: Source, transform: Transform, batch_size: int, first: int, stop: int, steps: int
) -> Iterator[dict[str, np.ndarray]]:
    tf = tensorflow()

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and it takes a second.
    def decode(record):
        return {**record, 'image': evaluation_image(record['image'], transform)}

    def pad(array, value=0):
        width = [(0, batch_size - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, width, constant_values=value) if width[0][1] else array

    options = tf.data.Options()
    options.deterministic = True
    options.experimental_warm_start = True  # While the model is loaded and compiled.
    options.threading.max_intra_op_parallelism = 1  # Parallel over images, not inside one.
    records = source.records(first, stop)
    data = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size).prefetch(2)
    data = data.with_options(options)
    nothing = {
        name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
        for name, spec in data.element_spec.items()
    }
    iterator = opened(data)

    def whole() -> Iterator[dict[str, np.ndarray]]:
        done = 0
        for _ in range(steps):
            try:
                batch = next(iterator, nothing)
            except tf.errors.OpError as error:
                raise _culprit(source, records.skip(done), transform, error) from error
            source.check(source, batch)
            count = len(batch['image'])
            index = np.arange(first + done, first + done + count, dtype=np.int32)
            done += count
            yield {
                'image': pad(batch['image']),
                **{field.name: pad(batch[field.name], field.padding) for field in source.fields},
                'index': pad(index, -1),
                'mask': np.arange(batch_size) < count,
            }
        if done != stop - first:
            raise UserError(
                f'{source.dataset.name}: its files hold {done} examples where dataset_info.json '
                f'says {stop - first}; they are damaged, prepare it again'
            )

    return whole()


def competing_classes(source: Source, data_dir: str | None = None) -> np.ndarray | None:
    """The classes that are told apart on a set that has only some: those of its whole split.

    Reads labels, decodes no image. None for the other sets, where all classes compete.

    Raises:
        UserError: if the whole split cannot be read.
    """
    if not source.dataset.restricted:
        return None
    if source.present is not None and source.class_names is not None:
        return np.flatnonzero(np.isin(source.class_names, source.present))
    tf, known = tensorflow(), source.dataset.name in DATASETS
    name = f'{source.dataset.name}:{source.version}'
    whole = open_tfds(name, source.dataset.split if known else source.split, data_dir)
    if source.class_names not in (None, whole.class_names):
        whole = renumbered(whole, source.class_names)
    labels = whole.records(0, whole.num_examples).map(lambda record: record['label']).batch(1024)
    try:
        return np.unique(np.concatenate([np.unique(x) for x in labels.as_numpy_iterator()]))
    except tf.errors.OpError as error:
        raise UserError(f'cannot read {source.dataset.name}: {first_line(error)}') from error


def competing(source: Source, restrict: bool) -> Source:
    """The source with a note on classes that do not occur; `restrict`: only the others compete."""
    dataset, present = source.dataset, source.present
    if restrict:
        source = dataclasses.replace(source, dataset=dataclasses.replace(dataset, restricted=True))
    if present is None or len(present) == source.num_classes:
        return source
    which = (
        f'only those {len(present)} compete'
        if restrict
        else (f'all {source.num_classes} compete (--restrict: only those {len(present)})')
    )
    return source.noted(f'{len(present)} of the {source.num_classes} classes occur; {which}')


def _culprit(
    source: Source, records: tf.data.Dataset, transform: Transform, error: Exception
) -> UserError:
    """Names the image on which a batch failed: reads it again, one image at a time."""
    tf = tensorflow()
    decode = tf.function(lambda encoded: evaluation_image(encoded, transform))
    where = ''
    try:
        for record in records:
            where = f'{record["name"].numpy().decode()}: '
            decode(record['image'])
            where = ''
    except tf.errors.OpError as again:
        error = again
    return UserError(f'{source.dataset.name}: cannot read {where or "a file: "}{first_line(error)}')
