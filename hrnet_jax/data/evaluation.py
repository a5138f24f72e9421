"""Evaluation sets: each example exactly once, in order, over any number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from hrnet_jax.data.classes import renumbered
from hrnet_jax.data.folder import open_folder
from hrnet_jax.data.integrity import suspects
from hrnet_jax.data.pixels import evaluation_image
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.data.sources import (
    DATASETS,
    NAMED,
    Source,
    basename,
    opened,
    tensorflow,
    too_many,
)
from hrnet_jax.data.tfds import open_tfds
from hrnet_jax.errors import UserError, first_line
from hrnet_jax.runtime import cli


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
        line = 'no examples' if isinstance(error, StopIteration) else first_line(error)
        raise UserError(f'{source.dataset.name}: cannot read a file: {line}') from error
    source.check(source, first)
    if source.official and basename(first['name'][0]) not in source.official:
        note = f'labels could not be checked: {basename(first["name"][0])} is no known file name'
        source = dataclasses.replace(source, notes=(*source.notes, note))
    return source


def missing(error: ImportError) -> UserError:
    """What to install where `error` has come up."""
    if (error.name or '').split('.')[0] in cli.PACKAGES.keys() - {'tensorflow', 'PIL'}:
        name = str(error.name).split('.')[0]
        return UserError(f'{name} is missing: pip install {cli.PACKAGES[name]}')
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
    max_corrupt: float = 0.0,
) -> Iterator[dict[str, np.ndarray]]:
    """The share of one process, in as many batches on every process; decoding begins at once.

    Labels are checked against their file names in passing: that covers every example that counts
    and costs nothing, where a pass of its own would read the whole set once more.

    Args:
        batch_size: of this process.
        process_index, process_count: which share of how many.
        limit: only so many examples, the first of the whole set.
        max_corrupt: part of the images that may be unreadable; they are left out.

    Yields:
        image: uint8 (batch_size, crop, crop, 3), 0 in padding.
        The fields of the source: label, int32 (batch_size,), or (batch_size, room), filled up with
            -1; or others.
        index: int32 (batch_size,), the place of the example in the whole set; -1 in padding.
        mask: bool (batch_size,), False for padding and for an image that cannot be read.
        unreadable: bool (batch_size,), True for the latter.

    Raises:
        UserError: if more images cannot be read, which it names; if a label is wrong, or examples
            are missing.
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
    return _batches(
        source, transform, batch_size, first, stop, -(-largest // batch_size), max_corrupt
    )


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process reads of an evaluation set.

    Attributes:
        batch_size: of all processes.
        given: the user has chosen it; else a task may take fewer, of larger images.
        process_index, process_count: which share of how many.
        devices: of this process; its part of a batch is a multiple.
        limit: only so many examples, the first of the whole set.
        max_corrupt: part of the images that may be unreadable; they are left out.
    """

    batch_size: int
    given: bool = True
    process_index: int = 0
    process_count: int = 1
    devices: int = 1
    limit: int | None = None
    max_corrupt: float = 0.0

    def local(self, batch_size: int) -> int:
        """This process's part of a batch of all."""
        return local_batch(batch_size, self.process_count, self.devices)


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batches of one process: how many there are, they, and what the user should know."""

    steps: int
    items: Iterator[dict[str, np.ndarray]]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self.items


def shared(source: Source, transform: Transform, share: Share) -> Batches:
    """`batches` of one process."""
    total = min(share.limit or source.num_examples, source.num_examples)
    size = share.local(min(share.batch_size, total))
    steps = math.ceil(math.ceil(total / share.process_count) / size)
    places = share.process_index, share.process_count
    items = batches(source, transform, size, *places, share.limit, share.max_corrupt)
    return Batches(steps, items)


def local_batch(batch_size: int, processes: int, devices: int) -> int:
    """One host's share of `batch_size` images, rounded up to fill its devices evenly."""
    return -(-batch_size // (processes * devices)) * devices


def _batches(
    source: Source,
    transform: Transform,
    batch_size: int,
    first: int,
    stop: int,
    steps: int,
    max_corrupt: float,
) -> Iterator[dict[str, np.ndarray]]:
    tf = tensorflow()

    @tf.autograph.experimental.do_not_convert  # There is nothing to convert, and it takes a second.
    def decode(number, raw):
        record = source.parse(*raw)
        return {**record, 'image': evaluation_image(record['image'], transform), 'number': number}

    options = tf.data.Options()
    options.deterministic = True
    options.experimental_warm_start = True  # While the model is loaded and compiled.
    options.threading.max_intra_op_parallelism = 1  # Parallel over images, not inside one.
    raw = source.raw(first, stop).map(lambda *parts: parts).enumerate()
    data = raw.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    held = {
        name: np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)
        for name, spec in data.element_spec.items()
    }
    paddings = {'image': 0, **{field.name: field.padding for field in source.fields}}

    def batched(data: Any) -> Iterator[dict[str, np.ndarray]]:
        return opened(data.batch(batch_size).prefetch(2).with_options(options))

    def every() -> Iterator[dict[str, np.ndarray]]:
        done = 0
        try:
            for batch in first_try:
                yield batch
                done += len(batch['number'])
        except tf.errors.OpError:
            # An image, or the files of the data set? To ignore errors of these may never end.
            with _files_of(source):
                for _ in raw:
                    pass
            rest = raw.skip(done).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
            yield from batched(rest.ignore_errors())

    first_try = batched(data)
    iterator = every()

    def part(end: int) -> dict[str, np.ndarray]:
        """What can be read of the examples before number `end`, without those of the last call."""
        nonlocal held
        while not len(held['number']) or held['number'][-1] < end - 1:
            more = next(iterator, None)
            if more is None:
                break
            held = {k: np.concatenate([v, more[k]]) if len(v) else more[k] for k, v in held.items()}
        count = int(np.searchsorted(held['number'], end))
        batch = {k: v[:count] for k, v in held.items()}
        held = {k: v[count:] for k, v in held.items()}
        return batch

    def whole() -> Iterator[dict[str, np.ndarray]]:
        missing: list[int] = []
        for step in range(steps):
            start = min(step * batch_size, stop - first)
            end = min(start + batch_size, stop - first)
            batch = part(end)
            source.check(source, batch)
            places = batch['number'] - start
            mask = np.zeros(batch_size, bool)
            mask[places] = True
            unreadable = (np.arange(batch_size) < end - start) & ~mask
            missing += (np.flatnonzero(unreadable) + start).tolist()
            if len(missing) > math.floor(max_corrupt * (stop - first)):
                # The rest is read, too: all are named at once.
                later = part(stop - first)['number']
                missing += sorted(set(range(end, stop - first)) - set(later.tolist()))
                break

            def placed(values: np.ndarray, padding: float, places: np.ndarray = places) -> Any:
                if len(values) == batch_size:
                    return values
                whole = np.full((batch_size, *values.shape[1:]), padding, values.dtype)
                whole[places] = values
                return whole

            yield {
                **{name: placed(batch[name], value) for name, value in paddings.items()},
                'index': placed((batch['number'] + first).astype(np.int32), -1),
                'mask': mask,
                'unreadable': unreadable,
            }
        if missing:
            found = _unreadable(source, transform, first, stop, missing)
            if len(missing) > math.floor(max_corrupt * (stop - first)):
                raise too_many(source, f'{len(missing)} of {stop - first} images', found)

    return whole()


@contextlib.contextmanager
def _files_of(source: Source) -> Iterator[None]:
    """What is wrong with the files of a data set, not with an image in them, is a UserError."""
    try:
        yield
    except tensorflow().errors.OpError as error:
        raise UserError(
            f'{source.dataset.name}: cannot read a file: {first_line(error)}'
        ) from error


def check_files(source: Source, transform: Transform, max_corrupt: float) -> None:
    """Stops before a long run at image files that its evaluation could not read.

    Only files that look cut off are decoded: see `integrity`. Tfds data sets are not looked at.

    Raises:
        UserError: if they are more than the part `max_corrupt`; names them.
    """
    total, numbers = source.num_examples, suspects(source.paths)
    if len(numbers) <= math.floor(max_corrupt * total) or source.pick is None:
        return
    tf, found = tensorflow(), []
    for number in numbers:
        try:
            [record] = source.records(number, number + 1)
            evaluation_image(record['image'], transform)
        except tf.errors.OpError as error:
            path = source.paths[number]
            found.append(f'{path}: {first_line(error).removeprefix(f"{path}; ")}')
    if len(found) > math.floor(max_corrupt * total):
        raise too_many(source, f'{len(found)} of {total} images', found)


def _unreadable(
    source: Source, transform: Transform, first: int, stop: int, numbers: list[int]
) -> list[str]:
    """Name and reason of images, by their numbers after `first`.

    Raises:
        UserError: if it is not they, but the files of the data set that cannot be read.
    """
    tf, wanted = tensorflow(), np.array(numbers[:NAMED], np.int64)
    raw = source.raw(first, stop).map(lambda *parts: parts).enumerate()
    chosen = raw.filter(lambda number, parts: tf.reduce_any(number == wanted))

    def decode(number, parts):
        return evaluation_image(source.parse(*parts)['image'], transform)

    # The name alone: a file that is not there is then not read.
    names = chosen.map(lambda number, parts: source.parse(*parts)['name'])
    found, fine = [], []
    with _files_of(source):
        named = [os.fsdecode(name.numpy()) for name in names]
    images = iter(chosen.map(tf.autograph.experimental.do_not_convert(decode)))
    for name in named:
        try:
            next(images)
            fine.append(name)
        except tf.errors.OpError as error:
            found.append(f'{name}: {first_line(error).removeprefix(f"{name}; ")}')
    if len(named) < len(wanted):
        raise UserError(
            f'{source.dataset.name}: its files hold {stop - first - len(numbers)} examples where '
            f'dataset_info.json says {stop - first}; they are damaged, prepare it again'
        )
    return [*found, *(f'{name}: at the second attempt it can be read' for name in fine)]


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
