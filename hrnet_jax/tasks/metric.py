"""What an evaluation counts, and what comes of it."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import jax

    Array = jax.Array
else:
    Array = Any
Totals = dict[str, Any]
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of an evaluation.

    Attributes:
        name: its key; `label`: what people call it.
        unit: '%' where 0 to 1 of a training step is shown as 0 to 100; '' where it is not.
        higher_is_better: for the choice of the best checkpoint.
        count: the name of the count behind it, which is printed beside it.
    """

    name: str
    label: str
    unit: str = '%'
    higher_is_better: bool = True
    count: str | None = None

    def text(self, value: float, digits: int | None = None) -> str:
        """By default with three digits from 0 to 1, and with two in percent."""
        digits = digits or (2 if self.unit else 3)
        return f'{value:.{digits}f}{" " * bool(self.unit)}{self.unit}'


@dataclasses.dataclass(frozen=True)
class Result:
    """What an evaluation found; its `metrics` and `counts` are attributes, too: result.top1.

    Attributes:
        num_examples: examples that count.
        seen: examples that went through the network, counted or not.
        not_finite: examples with NaN or infinity in the network's output; `evaluate` refuses them.
        metrics: `Figure.name` -> value, in the figure's unit.
        counts: integers behind them.
        details: what is for the JSON alone, such as a figure for each class: JSON types.
        unreadable: examples that were left out, because their images cannot be read.
        lines: what is printed below the metrics.
    """

    num_examples: int
    seen: int
    not_finite: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unreadable: int = 0
    lines: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        for held in ('metrics', 'counts'):
            if name in (values := self.__dict__.get(held, {})):
                return values[name]
        raise AttributeError(f'no metric or count {name!r}')

    def check(self, total: int) -> None:
        """Raises RuntimeError unless every one of `total` examples was seen or cannot be read."""
        if self.seen + self.unreadable != total:
            raise RuntimeError(f'counted {self.seen} of {total} examples')


class Metric(abc.ABC):
    """Sums over a set, made in the compiled step and added up exactly on the host."""

    @abc.abstractmethod
    def update(self, outputs: Any, batch: Batch) -> Totals:
        """The sums of one batch, traced: int32 or float32 arrays of any shapes.

        Args:
            outputs: of the model, float32.
            batch: the fields, and mask, bool (N,), False for padding; index, int32 (N,), the place
                of an example in the set.

        The key 'examples', if there, holds a dict of arrays (N, ...) that `result` needs whole;
        'collected' one of arrays that `collect` is given after each step.
        """

    def collect(self, arrays: Mapping[str, np.ndarray]) -> None:  # noqa: B027
        """Takes what `update` gave as 'collected', of all hosts, on process 0; to write it."""

    @abc.abstractmethod
    def result(self, totals: Totals, examples: Mapping[str, np.ndarray]) -> Result:
        """The result, on the host of process 0.

        Args:
            totals: the sums over all batches and hosts, int64 or float64; with num_examples (of
                the mask, unless `update` has its own), seen and not_finite.
            examples: those of all hosts, without padding, in the order of the set.
        """


def percent(part: float, whole: float) -> float:
    """0 of nothing is 0."""
    return 100 * part / max(whole, 1)
