"""Data sets: their table, and what an open one offers.

Nothing is ever downloaded or prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hrnet_jax.errors import UserError, listed

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
        published: the set and split that `split` is a copy of; None: it is itself.
    """

    name: str
    split: str = 'test'
    num_examples: int | None = None
    label: str = 'label'
    max_labels: int = 0
    restricted: bool = False
    original: str = 'label'
    numbered: bool = False
    published: tuple[str, str] | None = None


NAMED = 100  # unreadable images that a message names
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


@dataclasses.dataclass(frozen=True)
class Field:
    """What an example has beside its image.

    Attributes:
        name: its key in a batch.
        dtype: of the array, such as 'int32'.
        shape: of one example; what varies is filled up to it.
        padding: the value in the place of an example that is not there.
    """

    name: str
    dtype: str = 'int32'
    shape: tuple[int, ...] = ()
    padding: float = 0


LABEL = Field('label')


def label_list(room: int) -> Field:
    """Up to `room` classes an example, filled up with -1."""
    return Field('label', shape=(room,), padding=-1)


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
        fields: what its examples have beside the image.
        version: of the copy that tfds has prepared.
        present: the names of the classes that occur; None where not known.
    """

    dataset: Dataset
    split: str
    num_examples: int
    num_classes: int | None
    class_names: tuple[str, ...] | None = dataclasses.field(repr=False)
    is_partial: bool
    notes: tuple[str, ...]
    official: Mapping[str, int] = dataclasses.field(repr=False)
    fields: tuple[Field, ...] = (LABEL,)
    version: str | None = None
    present: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)

    @property
    def facts(self) -> Facts:
        """What is known of it, without the functions that read it."""
        return Facts(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Facts)}
        )

    @property
    def published(self) -> tuple[str, str]:
        """The set and split that published figures of these examples name."""
        whole = re.split(r'[\[+]', self.split)[0] == self.dataset.split
        return (whole and self.dataset.published) or (self.dataset.name, self.split)

    def noted(self, *notes: str) -> Self:
        """This one with more of `notes`."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))


@dataclasses.dataclass(frozen=True)
class Source(Facts):
    """An opened data set.

    Attributes: as of `Facts`, and
        raw: (first, stop, seed, skip) -> tuples for `parse`, of these examples; in their fixed
            order, or in one drawn from `seed`: files first, then within a buffer.
            `skip` leaves out the first of those.
        pick: (numbers of examples) -> tuples for `parse`; None where only `raw` is fast.
        parse: a tuple -> one example as `records` has it.
        check: (source, batch) raises UserError at an example that cannot be right.
        paths: of the files of the images, if each has its own.
        files: of the others, which hold many examples each.
    """

    raw: Callable[..., tf.data.Dataset] = dataclasses.field(repr=False, kw_only=True)
    pick: Callable[[np.ndarray], tf.data.Dataset] | None = dataclasses.field(
        repr=False, kw_only=True
    )
    parse: Callable[..., dict[str, tf.Tensor]] = dataclasses.field(repr=False, kw_only=True)
    check: Callable[[Source, Mapping[str, np.ndarray]], None] = dataclasses.field(
        repr=False, kw_only=True, default=lambda source, batch: check_labels(source, batch)
    )
    paths: tuple[str, ...] = dataclasses.field(default=(), repr=False, kw_only=True)
    files: tuple[str, ...] = dataclasses.field(default=(), repr=False, kw_only=True)

    def records(self, first: int, stop: int) -> tf.data.Dataset:
        """These examples in their fixed order, undecoded: image (string), name (string), the
        `fields`, and what `check` looks at."""
        tf = tensorflow()
        parse = tf.autograph.experimental.do_not_convert(self.parse)
        return self.raw(first, stop).map(parse, num_parallel_calls=tf.data.AUTOTUNE)


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """While a data set is opened: what is wrong with its files or their content is a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        text = ' '.join(str(error).split())
        if isinstance(error, OSError) and error.filename:
            text = f'{error.filename}: {error.strerror}'
        raise UserError(f'cannot read {name}: {text or type(error).__name__}') from error


def too_many(
    source: Facts,
    what: str,
    found: Sequence[str],
    flag: str = '--max-corrupt (train.py: --eval-max-corrupt)',
) -> UserError:
    """That images cannot be read, such as '3 of 40 images', more than the flag allows."""
    return UserError(
        f'{source.dataset.name}: {what} cannot be read: {listed(found, NAMED, "; ")}; remove '
        f'them, or leave out a part of the images: {flag}'
    )


def check_labels(source: Facts, batch: Mapping[str, np.ndarray]) -> None:
    """Stops at a class, `original`, that is out of range or not that of its file name."""
    for name, label in zip(batch['name'], batch['original'], strict=True):
        name = basename(name)
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


def basename(name: bytes) -> str:
    return os.path.basename(os.fsdecode(name))


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
