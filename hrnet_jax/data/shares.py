"""Training batches shared out among processes, so that each step has the same images as one has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

from hrnet_jax.data.sources import Field, too_many
from hrnet_jax.errors import UserError

NAMED = 5  # unreadable images that a message names: their names are looked for anew


class Plan(Protocol):
    """What is read: these fields of a `tasks.recipe.Recipe`."""

    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def microbatch(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def max_corrupt(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class Shares:
    """The batches of one process.

    Attributes:
        source: the training split.
        recipe: its batch_size, accumulate, seed and augmentation.
        process_index, process_count: which share of how many.

    Raises:
        UserError: if the split is smaller than a batch, or a batch cannot be shared out.
    """

    source: Any
    recipe: Any
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self) -> None:
        name, batch = self.source.dataset.name, self.recipe.batch_size
        if not self.steps_per_epoch:
            raise UserError(
                f'{name} has {self.source.num_examples} training images, less than a batch of '
                f'{batch}; take a smaller --batch-size'
            )
        if self.recipe.microbatch % self.process_count:
            raise UserError(
                f'{self.recipe.microbatch} images (batch_size / accumulate) cannot be shared out '
                f'among {self.process_count} processes; choose a multiple of {self.process_count}'
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches; what remains of an epoch's order is left out."""
        return self.source.num_examples // self.recipe.batch_size

    def size_at(self, step: int) -> tuple[int, int]:
        """Height and width of the images of a step."""
        return self.recipe.size

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a batch has beside image and weight."""
        return self.source.fields

    @property
    def shape(self) -> tuple[int, int]:
        """(A, N): recipe.accumulate, and this process's share of the images of a part."""
        return self.recipe.accumulate, self.recipe.microbatch // self.process_count

    @property
    def most_missing(self) -> int:
        """How many images of an epoch may be unreadable here."""
        return math.ceil(self.recipe.max_corrupt * self.source.num_examples / self.process_count)

    def too_many(self, epoch: int, count: int, named: Sequence[str]) -> UserError:
        what, allowed = f'{count} images of epoch {epoch}', self.recipe.max_corrupt
        return too_many(self.source, what, named, f'--max-corrupt, which is {allowed:g}')
