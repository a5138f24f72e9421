"""Where data sets come from: what tfds has prepared on disk, or a folder of class folders.

Nothing is ever downloaded or prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hrnet_jax import imagenet
from hrnet_jax.errors import UserError

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
# Training: records that wait, undecoded, to be drawn from; and bytes of a split up to which it is
# held in memory, where any order is possible.
SHUFFLE = 256
_TOGETHER = 4  # files a lane of training reads at once: there are up to 64, and descriptors end
IN_MEMORY = 256 * 2**20
_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
_PREPARE = (
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('{name}', data_dir='{root}', file_format='tfrecord')"
    '.download_and_prepare({config})"'
)
_MANUAL = (
    "download_config=tfds.download.DownloadConfig(manual_dir='FOLDER WITH ILSVRC2012_img_val.tar')"
)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a data set once it is open.

    Attributes:
        dataset: its row of `DATASETS`, or one made for it.
        split: the split that is read.
        num_examples: in that split.
        num_classes, class_names: None where the data does not say.
        is_partial: it has another number of examples than published accuracies are of.
        notes: what the user should know beside the accuracy, a line each.
        official: the class of each file name, empty where not known.
    """

    dataset: Dataset
    split: str
    num_examples: int
    num_classes: int | None
    class_names: tuple[str, ...] | None = dataclasses.field(repr=False)
    is_partial: bool
    notes: tuple[str, ...]
    official: Mapping[str, int] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Source(Facts):
    """An opened data set.

    Attributes: as of `Facts`, and
        raw: (first, stop, seed, skip) -> tuples for `parse`, of these examples; in their fixed
            order, or in one drawn from `seed`: files first, then within a buffer.
            `skip` leaves out the first of those.
        pick: (numbers of examples) -> tuples for `parse`; None where only `raw` is fast.
        parse: a tuple -> one example as `records` has it.
    """

    raw: Callable[..., tf.data.Dataset] = dataclasses.field(repr=False)
    pick: Callable[[np.ndarray], tf.data.Dataset] | None = dataclasses.field(repr=False)
    parse: Callable[..., dict[str, tf.Tensor]] = dataclasses.field(repr=False)

    @property
    def facts(self) -> Facts:
        """What is known of it, without the functions that read it."""
        return Facts(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Facts)}
        )

    def records(self, first: int, stop: int) -> tf.data.Dataset:
        """These examples in their fixed order, undecoded: image (string), label (int32, scalar or
        (max_labels,)), original (int32) and name (string)."""
        tf = tensorflow()
        parse = tf.autograph.experimental.do_not_convert(self.parse)
        return self.raw(first, stop).map(parse, num_parallel_calls=tf.data.AUTOTUNE)


def open_folder(path: str, split: str | None) -> Source:
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
        inner = [name for name in classes if any(x.is_dir() for x in os.scandir(f'{root}/{name}'))]
        hint = f'; name a split: {", ".join(inner)}' if inner else ''
        raise UserError(f'{root} holds no folders of images, one for each class{hint}')

    paths, labels = (np.array(column) for column in zip(*files, strict=True))

    def pick(numbers):
        tf = tensorflow()
        slices = (tf.constant(paths[numbers], tf.string), tf.constant(labels[numbers], tf.int32))
        return tf.data.Dataset.from_tensor_slices(slices)

    def parse(path, label):
        image = tensorflow().io.read_file(path)
        return {'image': image, 'label': label, 'original': label, 'name': path}

    row = Dataset(path, split or '', len(files))
    empty = sorted(set(classes) - {names[label] for label in set(labels.tolist())})
    notes = []
    if len(classes) < len(names):
        notes.append(f'{len(classes)} of the {len(names)} classes of ImageNet; all compete')
    if empty:
        notes.append(f'{root}: no images of {", ".join(empty)}, which counts as a class')
    return Source(
        dataset=row,
        split=row.split,
        num_examples=len(files),
        num_classes=len(names),
        class_names=tuple(names),
        is_partial=False,
        notes=tuple(notes),
        official={},
        raw=lambda first, stop: pick(np.arange(first, stop)),
        pick=pick,
        parse=parse,
    )


def open_tfds(name: str, split: str | None, data_dir: str | None) -> Source:
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
    classes = getattr(info.features[row.label], 'feature', info.features[row.label])
    names = getattr(classes, 'names', None)
    return Source(
        dataset=row,
        split=split,
        num_examples=selected.num_examples,
        num_classes=getattr(classes, 'num_classes', None),
        class_names=tuple(names) if names else None,
        is_partial=is_partial,
        notes=(),
        official=_official_labels(tfds) if row.numbered and base.name == row.split else {},
        **_tfds_access(row, info.features, selected.file_instructions, base.num_bytes, tfds.decode),
    )


def _tfds_access(row, features, instructions, num_bytes, decode) -> dict[str, Any]:
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

        def read(path, before, take):
            file = tf.data.TFRecordDataset(path).enumerate().skip(before).take(take)
            return file.map(lambda number, serialized: (path, number, serialized))

        paths, skips, takes = zip(*ranges, strict=True) if ranges else ((), (), ())
        numbers = (tf.constant(x, tf.int64) for x in (skips, takes))
        table = tf.data.Dataset.from_tensor_slices((tf.constant(paths, tf.string), *numbers))
        # Several files at once: one alone is too slow from remote storage.
        data = table.interleave(
            tf.autograph.experimental.do_not_convert(read),
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

    @functools.lru_cache(maxsize=1)
    def columns():
        total = sum(file.take for file in instructions)
        found = next(raw(0, total).batch(total).as_numpy_iterator())
        if len(found[0]) < total:
            raise UserError(
                f'{row.name}: its files hold {len(found[0])} examples where dataset_info.json says '
                f'{total}; they are damaged, prepare it again'
            )
        return found

    def pick(numbers):
        chosen = tuple(tensorflow().constant(column[numbers]) for column in columns())
        return tensorflow().data.Dataset.from_tensor_slices(chosen)

    in_memory = 0 < num_bytes <= IN_MEMORY
    return {'raw': raw, 'pick': pick if in_memory else None, 'parse': parse}


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
        # With those of the community it would ask the network.
        known = tfds.list_builders(with_community_datasets=False)
        if row.name.split('/')[0] not in known and ':' not in row.name:
            raise UserError(f'{wanted} is not in {root}, and tfds has no data set of that name')
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


def tensorflow() -> Any:
    """The module, kept off the accelerators, which are JAX's."""
    with _without_extras():
        import tensorflow as tf

    for kind in ('GPU', 'TPU'):
        # An error means that someone used TensorFlow before: its devices are settled.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], kind)
    return tf


@contextlib.contextmanager
def _without_extras() -> Iterator[None]:
    """TensorFlow looks for Keras and JAX while it is imported: half of the time, for nothing used
    here. Who asks for `tf.keras` later gets it; `tf.lite` converts no JAX in this process."""
    extras = {'keras', 'jax'} - sys.modules.keys()
    if 'tensorflow' in sys.modules:
        extras = set()
    for name in extras:
        sys.modules[name] = None  # type: ignore[assignment]  # how Python says: not installed
    try:
        yield
    finally:
        for name in extras:
            sys.modules.pop(name, None)


def opened(data: tf.data.Dataset) -> Iterator[Any]:
    """`data.as_numpy_iterator()`, closed at the latest when Python begins to end: after that its
    threads, which run Python to decode some images, are waited for without an end."""
    held = [data.as_numpy_iterator()]

    def elements() -> Iterator[Any]:
        nothing = object()
        while held and (element := next(held[0], nothing)) is not nothing:
            yield element

    result = elements()
    weakref.finalize(result, held.clear)
    return result


def brief(error: Exception) -> str:
    """The first line of TensorFlow's message, without the names of its nodes."""
    text = getattr(error, 'message', str(error)) or 'no examples'
    return re.sub(r'{{.*?}}|\[Op:.*', '', text.strip().splitlines()[0]).strip()
