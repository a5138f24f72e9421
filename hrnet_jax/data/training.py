"""Training batches as a function of (seed, step): a resumed run sees what it would have seen.

An epoch is cut into lanes, up to 64, each with its own part of the shuffled examples; every batch
takes equally many of each lane, in order. A process reads the lanes that its part of a batch is
of, so that neither the batches nor the order within them depend on how many processes there are.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hrnet_jax.data.augment import rand_augment, random_flip, random_resized_crop
from hrnet_jax.data.integrity import unopened
from hrnet_jax.data.shares import NAMED, Plan, Shares
from hrnet_jax.data.sources import Source, opened, tensorflow
from hrnet_jax.errors import UserError, first_line, listed

if TYPE_CHECKING:
    import tensorflow as tf

LANES = 64
AHEAD = 100  # steps before the end of an epoch, or more, at which the next is opened


class SquarePlan(Plan, Protocol):
    """How it is augmented: these fields of a `tasks.recipe.SquareRecipe`."""

    @property
    def image_size(self) -> int: ...
    @property
    def crop_scale(self) -> tuple[float, float]: ...
    @property
    def crop_ratio(self) -> tuple[float, float]: ...
    @property
    def flip(self) -> float: ...
    @property
    def randaugment_ops(self) -> int: ...
    @property
    def randaugment_magnitude(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class TrainData(Shares):
    """The batches of one process: see `Shares`."""

    source: Source
    recipe: SquarePlan

    @property
    def lanes(self) -> int:
        """The largest divisor of the images in a microbatch, up to 64."""
        return max(n for n in range(1, LANES + 1) if self.recipe.microbatch % n == 0)

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches from step `start` on, without end.

        Yields:
            image: uint8 (A, N, image_size, image_size, 3), A = recipe.accumulate and N this
                process's share of the images that go through the network at once.
            The fields of the source, such as label, int32 (A, N).
            weight: float32 (A, N): 1, or 0 in the place of an image that cannot be read.

        Raises:
            UserError: if too many images cannot be read, or the files are damaged.
        """
        errors = tensorflow().errors.OpError  # named here: at exit the module may be gone
        epoch, first = divmod(start, self.steps_per_epoch)
        ahead = max(self.steps_per_epoch // 5, AHEAD)
        try:
            data, following = self._open(epoch, first), None
            while True:
                for i, batch in enumerate(self._epoch(epoch, first, data), first + 1):
                    yield batch
                    # Before this one ends, because it takes seconds to fill the buffers.
                    if following is None and i >= self.steps_per_epoch - ahead:
                        following = beside(self._open, epoch + 1, 0)
                epoch, first = epoch + 1, 0
                data = following.result() if following else self._open(epoch, first)
                following = None
        except (errors, EOFError) as error:
            raise UserError(
                f'{self.source.dataset.name}: its files cannot be read to the end of their '
                f'{self.source.num_examples} examples; they or the storage are damaged '
                f'({first_line(error)})'
            ) from error

    def _open(self, epoch: int, first: int) -> Iterator[dict[str, np.ndarray]]:
        """An epoch's examples from batch `first` on, with its first batch already made."""
        tf, r = tensorflow(), self.recipe
        if self.source.pick is None and (closed := unopened(self.source.files)):
            name = self.source.dataset.name
            raise UserError(f'{name}: these of its files cannot be opened: {listed(closed)}')
        size = r.batch_size // self.process_count
        steps = self.steps_per_epoch - first
        raw = self._raw(epoch, first * r.accumulate).take(steps * size)
        # A mark at the end, numbered like the examples, tells whether all came before it.
        end = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), raw.element_spec)
        marked = raw.map(lambda *x: (x, False)).concatenate(
            tf.data.Dataset.from_tensors((end, True))
        )
        options = tf.data.Options()
        options.deterministic = True
        options.threading.max_intra_op_parallelism = 1  # Parallel over images, not inside one.
        places, read = (tf.constant(x, tf.int64) for x in (epoch, first)), self._read
        example = functools.partial(read, *places)
        data = (
            marked.enumerate()
            .map(tf.autograph.experimental.do_not_convert(example), tf.data.AUTOTUNE)
            .ignore_errors()
            .batch(size)
            .prefetch(2)
            .with_options(options)
        )
        iterator = opened(data)
        return itertools.chain([next(iterator)], iterator)

    def _epoch(
        self, epoch: int, first: int, data: Iterator[dict[str, np.ndarray]]
    ) -> Iterator[dict[str, np.ndarray]]:
        missing: list[int] = []
        for batch in aligned(data, self.steps_per_epoch - first, math.prod(self.shape)):
            missing += batch.pop('missing').tolist()
            if len(missing) > self.most_missing:
                names = self._names(epoch, first, missing[:NAMED])
                raise self.too_many(epoch, len(missing), names)
            self.source.check(self.source, batch)
            kept = ('image', *(field.name for field in self.source.fields), 'weight')
            yield {k: batch[k].reshape((*self.shape, *batch[k].shape[1:])) for k in kept}

    def _names(self, epoch: int, first: int, numbers: list[int]) -> list[str]:
        raw = self._raw(epoch, first * self.recipe.accumulate)
        names = []
        # Where there is no direct way to an example, each costs a pass over those before it.
        for number in numbers if self.source.pick else numbers[-1:]:
            try:
                # The name alone: a file that is not there is then not read.
                [name] = raw.skip(number).take(1).map(lambda *x: self.source.parse(*x)['name'])
                names.append(os.fsdecode(name.numpy()))
            except (ValueError, tensorflow().errors.OpError) as error:
                names.append(f'a record ({first_line(error)})')
        return names

    def _raw(self, epoch: int, first: int) -> tf.data.Dataset:
        """This process's examples of an epoch, from its `first` part on, a block of each lane.

        With more processes than lanes, several read one lane, and each takes its part of a block.
        """
        total, block = self.source.num_examples, self.recipe.microbatch // self.lanes
        start, end = (self.shape[1] * (self.process_index + i) for i in (0, 1))
        own = range(start // block, -(-end // block))
        parts = [(max(start - i * block, 0), min(end - i * block, block)) for i in own]
        bounds = [total * lane // self.lanes for lane in range(self.lanes + 1)]
        seed = (self.recipe.seed, epoch)
        skip = first * block
        if self.source.pick is not None:
            order = np.random.default_rng(seed).permutation(total)
            length = total // self.lanes // block * block
            blocks = [
                order[bounds[i] + skip : bounds[i] + length].reshape(-1, block)[:, a:b]
                for i, (a, b) in zip(own, parts, strict=True)
            ]
            return self.source.pick(np.concatenate(blocks, 1).ravel())

        def part(lane: Any, a: int, b: int) -> Any:
            if b - a == block:
                return lane
            numbered = lane.enumerate().filter(lambda i, x: (i % block >= a) & (i % block < b))
            return numbered.map(lambda i, x: x)

        # Prefetched so that all lanes skip at the same time.
        lanes = [
            part(self.source.raw(bounds[i], bounds[i + 1], seed, skip), a, b).prefetch(block)
            for i, (a, b) in zip(own, parts, strict=True)
        ]
        turn = np.repeat(np.arange(len(lanes)), [b - a for a, b in parts])
        datasets = tensorflow().data.Dataset
        turns = datasets.from_tensor_slices(turn).repeat()
        return datasets.choose_from_datasets(lanes, turns)

    @functools.cached_property
    def _read(self) -> Any:
        """`_example`, traced once: it takes seconds, and every epoch would wait for it."""
        tf, source = tensorflow(), self.source
        number, end = tf.TensorSpec((), tf.int64), tf.TensorSpec((), tf.bool)
        return tf.function(
            functools.partial(self._example, source.records(0, 1).element_spec),
            input_signature=(number, number, number, (source.raw(0, 1).element_spec, end)),
            autograph=False,
        )

    def _example(
        self, specs: dict[str, Any], epoch: Any, first: Any, number: Any, marked: Any
    ) -> dict[str, Any]:
        """Parses, decodes and augments one example, given its number in `_raw`."""
        tf = tensorflow()
        r, (raw, end) = self.recipe, marked
        share = r.microbatch // self.process_count
        index, within = number // share, number % share
        place = (first * r.accumulate + index) * r.microbatch + self.process_index * share + within
        seed = tf.stack([tf.constant(r.seed, tf.int64), epoch * self.source.num_examples + place])
        crop, flip, policy = tf.unstack(tf.random.split(seed, 3))

        def read():
            example = self.source.parse(*raw)
            image = random_resized_crop(
                example['image'], crop, size=r.image_size, scale=r.crop_scale, ratio=r.crop_ratio
            )
            image = random_flip(image, flip, r.flip)
            if r.randaugment_ops:
                image = rand_augment(
                    image, policy, ops=r.randaugment_ops, magnitude=r.randaugment_magnitude
                )
            return {**example, 'image': image}

        def nothing():
            image = tf.zeros((r.image_size, r.image_size, 3), tf.uint8)
            return {**{k: tf.zeros(s.shape, s.dtype) for k, s in specs.items()}, 'image': image}

        return {**tf.cond(end, nothing, read), 'number': number, 'end': end}


def beside(function: Any, *arguments: Any) -> futures.Future:
    """Calls the function in a thread that does not keep the program from ending."""
    result: futures.Future = futures.Future()

    def run() -> None:
        try:
            result.set_result(function(*arguments))
        except Exception as error:  # raised where the result is used
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result


def aligned(
    batches: Iterator[dict[str, np.ndarray]], steps: int, size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches in which every example is at its place, out of such that lack some.

    Args:
        batches: of examples in the order of their 'number', which counts from 0; the last is the
            mark 'end'.
        steps, size: how many batches of which size to make.

    Yields:
        The batches with 'weight', 0 where an example was missing, whose place is taken by a
        neighbour, and 'missing', the numbers of those.

    Raises:
        EOFError: if the mark comes before its time.
    """
    held = next(batches)
    for step in range(steps):
        stop = (step + 1) * size
        while not len(held['number']) or held['number'][-1] < stop - 1:
            if held['end'].any():
                raise EOFError(f'after {held["number"][-1]} of {steps * size}')
            more = next(batches)
            held = {k: np.concatenate([v, more[k]]) if len(v) else more[k] for k, v in held.items()}
        count = int(np.searchsorted(held['number'], stop))
        batch = {k: v[:count] for k, v in held.items()}
        held = {k: v[count:] for k, v in held.items()}
        places = batch.pop('number') - step * size
        if batch['end'].any():
            raise EOFError(f'after {places[-1] + step * size} of {steps * size}')
        weight = np.zeros(size, np.float32)
        weight[places] = 1
        if count < size:
            filled = {k: np.zeros((size, *v.shape[1:]), v.dtype) for k, v in batch.items()}
            filled['name'] = np.full(size, b'', object)
            if count:
                nearest = np.minimum(np.searchsorted(places, np.arange(size)), count - 1)
                filled = {k: v[nearest] for k, v in batch.items()}
            batch = filled
        missing = np.flatnonzero(weight == 0) + step * size
        yield {**batch, 'weight': weight, 'missing': missing}
