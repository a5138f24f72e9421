"""Training batches of a set that is read by number: a function of (seed, step).

Every process knows the whole order of an epoch and reads its share of each batch. An example is
augmented by what is drawn from (seed, epoch, its number), whoever reads it.

Grain reads ahead in threads. OpenCV and NumPy work without Python's lock, so that threads keep all
cores busy; worker processes would cost a copy of each image and start the user's script anew.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from hrnet_jax.data.indexed import Example, Indexed
from hrnet_jax.data.opencv import WrongLabel
from hrnet_jax.data.shares import NAMED, Plan, Shares
from hrnet_jax.data.sources import Field
from hrnet_jax.errors import UserError

AHEAD = 2  # batches
_FAILED = 'failed'


@dataclasses.dataclass(frozen=True)
class IndexedData(Shares):
    """The batches of one process: see `Shares`.

    Attributes:
        augment: (example of the source, generator of random numbers) -> image, uint8 (*size, 3),
            and the `outputs`, each of its shape.
        size: height and width.
        outputs: what a batch has beside image and weight.
        kinds: int (num_examples,): the images of a batch are of one kind. None: of any.
        sizes: of the images of each kind, where they differ from `size`.
    """

    source: Indexed
    recipe: Plan
    augment: Callable[[Example, np.random.Generator], Example] = dataclasses.field(kw_only=True)
    size: tuple[int, int] = dataclasses.field(kw_only=True)
    outputs: tuple[Field, ...] = dataclasses.field(kw_only=True)
    kinds: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
    sizes: tuple[tuple[int, int], ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of one kind; what remains of an epoch's order is left out."""
        if self.kinds is None:
            return super().steps_per_epoch
        return int(sum(np.bincount(self.kinds) // self.recipe.batch_size))

    def size_at(self, step: int) -> tuple[int, int]:
        if self.kinds is None or not self.sizes:
            return self.size
        _, number = self.number(step * math.prod(self.shape))
        return self.sizes[self.kinds[number]]

    @property
    def fields(self) -> tuple[Field, ...]:
        return self.outputs

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Those of `tasks.base.TrainingData`."""
        import cv2
        import grain

        cv2.setNumThreads(1)  # parallel over images, not inside one
        each = math.prod(self.shape)
        threads = min(os.cpu_count() or 1, AHEAD * each)
        data = grain.MapDataset.range(start * each, sys.maxsize).map(self.example)
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=AHEAD * each)
        examples = iter(data.to_iter_dataset(ahead))
        try:
            failed: list[str] = []
            for step in itertools.count(start):
                epoch, within = divmod(step, self.steps_per_epoch)
                failed = failed if within else []
                batch = list(itertools.islice(examples, each))
                failed += [one[_FAILED] for one in batch if _FAILED in one]
                if len(failed) > self.most_missing:
                    raise self.too_many(epoch, len(failed), failed[:NAMED])
                yield self._joined(batch, self.size_at(step))
        finally:
            examples.close()

    def example(self, place: int) -> Example:
        """What this process reads as number `place`, counted from the beginning of the training;
        or why it cannot be read."""
        epoch, number = self.number(place)
        try:
            example = self.source.read(number)
        except WrongLabel:
            raise
        except UserError as error:
            return {_FAILED: str(error)}
        random = np.random.default_rng((self.recipe.seed, epoch, number))
        return self.augment(example, random)

    def number(self, place: int) -> tuple[int, int]:
        """The epoch of that place, and the number of its example in the set."""
        r, (parts, share) = self.recipe, self.shape
        step, rest = divmod(place, parts * share)
        (epoch, step), (part, within) = divmod(step, self.steps_per_epoch), divmod(rest, share)
        at = step * r.batch_size + part * r.microbatch + self.process_index * share + within
        return epoch, int(self._order(epoch)[at])

    def _order(self, epoch: int) -> np.ndarray:
        r = self.recipe
        kinds = None if self.kinds is None else self.kinds.tobytes()
        return _order(r.seed, epoch, self.source.num_examples, kinds, r.batch_size)

    def _joined(self, examples: list[Example], size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The batch; in the place of what cannot be read is another image, of weight 0."""
        good = [one for one in examples if _FAILED not in one] or [self._nothing(size)]
        # Its image is one that BatchNorm may see; its labels count nowhere.
        instead = {**self._nothing(size), 'image': good[0]['image']}
        filled = [instead if _FAILED in one else one for one in examples]
        names = ('image', *(field.name for field in self.fields))
        weight = np.array([_FAILED not in one for one in examples], np.float32)
        batch = {name: np.stack([one[name] for one in filled]) for name in names}
        batch['weight'] = weight
        return {name: x.reshape((*self.shape, *x.shape[1:])) for name, x in batch.items()}

    def _nothing(self, size: tuple[int, int]) -> Example:
        fields = {f.name: np.full(f.shape, f.padding, f.dtype) for f in self.fields}
        return {'image': np.zeros((*size, 3), np.uint8), **fields}


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int, kinds: bytes | None, batch: int) -> np.ndarray:
    """The numbers of an epoch; of kinds, int64 each, whole batches of one, in any order."""
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(total)
    if kinds is None:
        return order
    of = np.frombuffer(kinds, np.int64)[order]
    each = [order[of == kind] for kind in range(of.max() + 1)]
    batches = [x[: len(x) // batch * batch].reshape(-1, batch) for x in each]
    return random.permutation(np.concatenate(batches)).ravel()
