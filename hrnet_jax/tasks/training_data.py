"""What a task gives the trainer to train on."""

from __future__ import annotations

import typing
from collections.abc import Iterator

import numpy as np

from hrnet_jax.data.sources import Field


class TrainingData(typing.Protocol):
    """The training batches of one process: a function of seed and step.

    Attributes:
        steps_per_epoch: whole batches; what remains of an epoch's order is left out.
        fields: what a batch has beside image and weight.
    """

    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def fields(self) -> tuple[Field, ...]: ...

    def size_at(self, step: int) -> tuple[int, int]:
        """Height and width of the images of a step: one of few sizes, as each needs a program."""
        ...

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """The batches from step `start` on, without end.

        Yields:
            image: uint8 (A, N, *size_at(step), 3), A = recipe.accumulate and N this process's share
                of the images that go through the network at once.
            The fields, (A, N, ...).
            weight: float32 (A, N): 1, or 0 in the place of an image that cannot be read.

        Raises:
            UserError: if too many images cannot be read.
        """
        ...
