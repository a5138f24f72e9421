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
    """

    source: Indexed
    recipe: Plan
    augment: Callable[[Example, np.random.Generator], Example] = dataclasses.field(kw_only=True)
    size: tuple[int, int] = dataclasses.field(kw_only=True)
    outputs: tuple[Field, ...] = dataclasses.field(kw_only=True)

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
                yield self._joined(batch)
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
        return epoch, int(_order(r.seed, epoch, self.source.num_examples)[at])

    def _joined(self, examples: list[Example]) -> dict[str, np.ndarray]:
        """The batch; in the place of what cannot be read is another image, of weight 0."""
        good = [one for one in examples if _FAILED not in one] or [self._nothing]
        # Its image is one that BatchNorm may see; its labels count nowhere.
        instead = {**self._nothing, 'image': good[0]['image']}
        filled = [instead if _FAILED in one else one for one in examples]
        names = ('image', *(field.name for field in self.fields))
        weight = np.array([_FAILED not in one for one in examples], np.float32)
        batch = {name: np.stack([one[name] for one in filled]) for name in names}
        batch['weight'] = weight
        return {name: x.reshape((*self.shape, *x.shape[1:])) for name, x in batch.items()}

    @property
    def _nothing(self) -> Example:
        fields = {f.name: np.full(f.shape, f.padding, f.dtype) for f in self.fields}
        return {'image': np.zeros((*self.size, 3), np.uint8), **fields}


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, total: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(total)
