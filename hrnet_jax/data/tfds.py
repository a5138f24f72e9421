"""Data sets that tfds has prepared, read from their tfrecord files."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hrnet_jax.data import integrity
from hrnet_jax.data.prepared import open_builder, require_features, require_whole, split_of
from hrnet_jax.data.sources import (
    DATASETS,
    LABEL,
    Dataset,
    Facts,
    Field,
    Source,
    check_labels,
    label_list,
    tensorflow,
)

_ALIASES = {'imagenet_v2': 'imagenet_v2/matched-frequency'}

# Enough to notice shifted labels, should tfds no longer bring the list of all.
_KNOWN = {'ILSVRC2012_val_00000001.JPEG': 65, 'ILSVRC2012_val_00000002.JPEG': 970}
# SHUFFLE: how many undecoded records wait to be drawn from in training. IN_MEMORY: a split of at
# most so many bytes is held in memory, where any order is possible.
SHUFFLE = 256
_TOGETHER = 4  # files that one lane of training reads at once; of up to 64 lanes
IN_MEMORY = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Targets:
    """What is read from the records of a data set, beside the image.

    Attributes:
        features: those that must be there.
        fields: what comes of them.
        read: a record's features -> the fields, and what `check` looks at.
        num_classes, class_names, check: of `Source`.
    """

    features: tuple[str, ...]
    fields: tuple[Field, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    check: Callable[[Facts, Mapping[str, np.ndarray]], None] = check_labels


def class_targets(row: Dataset, features: Mapping[str, Any]) -> Targets:
    """One class an image, or the list of those that are right."""

    def read(example: Mapping[str, Any]) -> dict[str, Any]:
        tf = tensorflow()
        label = tf.cast(example[row.label], tf.int32)
        if row.max_labels:
            room = row.max_labels - tf.size(label)
            label = tf.pad(label, [(0, room)], constant_values=-1)
            label = tf.ensure_shape(label, (row.max_labels,))
        return {'label': label, 'original': tf.cast(example[row.original], tf.int32)}

    feature = dict(features.items()).get(row.label)
    classes = getattr(feature, 'feature', feature)
    names = getattr(classes, 'names', None)
    return Targets(
        features=(row.label, row.original),
        fields=(label_list(row.max_labels) if row.max_labels else LABEL,),
        read=read,
        num_classes=getattr(classes, 'num_classes', None),
        class_names=tuple(names) if names else None,
    )


def open_tfds(
    name: str,
    split: str | None,
    data_dir: str | None,
    targets_of: Callable[[Dataset, Mapping[str, Any]], Targets] = class_targets,
) -> Source:
    """A prepared data set; `targets_of` says which of its features are the targets."""
    import tensorflow_datasets as tfds

    name, _, version = name.partition(':')
    name = _ALIASES.get(name, name)
    row = DATASETS.get(name, Dataset(name))
    info = open_builder(name, version, data_dir, row.numbered * 'ILSVRC2012_img_val.tar').info
    split = split or row.split
    selected, base = split_of(info, name, split)
    targets = targets_of(row, info.features)
    require_features(info, name, ('image', *targets.features))
    whole = row.num_examples if base.name == row.split and row.num_examples else base.num_examples
    is_partial = selected.num_examples != whole
    access = _tfds_access(
        row, info.features, selected.file_instructions, base.num_bytes, tfds.decode, targets.read
    )
    return Source(
        dataset=row,
        split=split,
        num_examples=selected.num_examples,
        num_classes=targets.num_classes,
        class_names=targets.class_names,
        is_partial=is_partial,
        notes=(),
        official=official_labels() if row.numbered and base.name == row.split else {},
        fields=targets.fields,
        version=str(info.version),
        check=targets.check,
        **access,
    )


def _tfds_access(row, features, instructions, num_bytes, decode, read) -> dict[str, Any]:
    """`raw`, `pick` and `parse` of a split: its files, and which examples of each belong to it."""

    def raw(first, stop, seed=None, skip=0):
        tf = tensorflow()
        files = instructions
        if seed is not None:
            files = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
        ranges, start = [], 0
        for file in files:
            before, end = max(first - start, 0), min(stop - start, file.take)
            if before < end:
                ranges.append((file.filename, file.skip + before, end - before))
            start += file.take

        def part(path, before, take):
            file = tf.data.TFRecordDataset(path).enumerate().skip(before).take(take)
            return file.map(lambda number, serialized: (path, number, serialized))

        paths, skips, takes = zip(*ranges, strict=True) if ranges else ((), (), ())
        numbers = (tf.constant(x, tf.int64) for x in (skips, takes))
        table = tf.data.Dataset.from_tensor_slices((tf.constant(paths, tf.string), *numbers))
        # Several files at once: one alone is too slow from remote storage.
        data = table.map(_opened()).interleave(
            tf.autograph.experimental.do_not_convert(part),
            cycle_length=16 if seed is None else _TOGETHER,
            block_length=16,
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        if seed is not None:
            buffer_seed = np.random.SeedSequence([*seed, first]).generate_state(1)[0]
            data = data.shuffle(SHUFFLE, int(buffer_seed), reshuffle_each_iteration=False)
        return data.skip(skip)

    def parse(path, number, serialized):
        tf = tensorflow()
        example = features.deserialize_example(
            serialized, decoders={'image': decode.SkipDecoding()}
        )
        file = tf.strings.split(path, '/')[-1]
        name = tf.strings.join((file, ' example ', tf.strings.as_string(number)))
        return {
            'image': example['image'],
            'name': example.get('file_name', name),
            **read(example),
        }

    @functools.lru_cache(maxsize=1)
    def columns():
        total = sum(file.take for file in instructions)
        found = next(raw(0, total).batch(total).as_numpy_iterator())
        require_whole(row.name, len(found[0]), total)
        return found

    def pick(numbers):
        chosen = tuple(tensorflow().constant(column[numbers]) for column in columns())
        return tensorflow().data.Dataset.from_tensor_slices(chosen)

    in_memory = 0 < num_bytes <= IN_MEMORY
    files = tuple(str(file.filename) for file in instructions)
    return {'raw': raw, 'pick': pick if in_memory else None, 'parse': parse, 'files': files}


@functools.cache
def _opened() -> Any:
    """Path and range of a file -> the same; what cannot be opened is read for its error, which then
    comes once. A TFRecordDataset repeats it, and who ignores errors would wait without an end.

    Traced once: there are up to 64 lanes in training."""
    tf = tensorflow()

    def opened(path, skip, take):
        fine = tf.numpy_function(integrity.opens, [path], tf.bool)
        error = tf.cond(fine, lambda: '', lambda: tf.io.read_file(path))
        with tf.control_dependencies([error]):
            return tf.identity(path), skip, take

    specs = [tf.TensorSpec((), kind) for kind in (tf.string, tf.int64, tf.int64)]
    return tf.function(opened, input_signature=specs, autograph=False)


def official_labels() -> Mapping[str, int]:
    """The class of each file of ILSVRC2012_img_val.tar, from the lists that tfds brings."""
    import tensorflow_datasets as tfds

    folder = tfds.core.tfds_path('datasets/imagenet2012')
    try:
        classes = (folder / 'labels.txt').read_text().split()
        labels = (folder / 'validation_labels.txt').read_text().split()
    except FileNotFoundError:
        return _KNOWN
    number = {name: i for i, name in enumerate(classes)}
    return {f'ILSVRC2012_val_{i:08}.JPEG': number[x] for i, x in enumerate(labels, start=1)}
