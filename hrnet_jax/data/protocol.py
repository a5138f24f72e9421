"""What an evaluation does with an image: how it is prepared, and what the network is asked.

A checkpoint holds the protocol of its published figures; each task has its class of them.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from hrnet_jax.errors import UserError, first_line

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from PIL import Image


class Protocol(abc.ABC):
    """A frozen dataclass whose fields are JSON, with tuples for lists.

    Attributes:
        mean, std: of the three channels R, G, B, in units of the full range.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """One line, without mean and std: what results.csv and the reports have."""

    @classmethod
    @abc.abstractmethod
    def from_text(cls, text: str) -> Self:
        """The inverse of `text`, with the published mean and std."""

    @abc.abstractmethod
    def prepare(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """What the network gets of an image before it is normalised, uint8 (H, W, 3)."""

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of what the network gets; None where they are not always the same."""
        return None

    def at_size(self, height: int, width: int) -> Self:
        """This protocol for a network that gets images of another size; the same unless overridden.

        Raises:
            UserError: if it has no such images.
        """
        return self

    def outputs(self, forward: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """The network's outputs, traced.

        Args:
            forward: (pixels, method='__call__') -> what that method of the network gives for
                them, normalised; called more than once where outputs are averaged: see
                `inference.forward.Forward`.
            batch: with image, uint8 (N, H, W, 3), and what else its data gives.
        """
        return forward(batch['image'])

    @classmethod  # noqa: B027
    def add_flags(cls, group: argparse._ArgumentGroup) -> None:
        """Flags of eval.py and predict.py, None by default; their names are fields."""

    @classmethod  # noqa: B027
    def add_file_flags(cls, group: argparse._ArgumentGroup) -> None:
        """Flags of the converter for what no file shows, None by default; `override` takes them."""

    @classmethod
    def of_file(
        cls, outputs: int | None, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Self, list[str]]:
        """For a network of a file which does not say it; and what is taken for granted.

        Args:
            outputs: how many the network has.
            meta: what the file says of its data set, as OpenMMLab writes it.
            multiple, **flags: see `override`.
        """
        return cls().override(multiple, **flags), images_taken([], [], flags)

    def check_outputs(self, count: int | None) -> None:  # noqa: B027
        """Raises UserError if it cannot be of a network with so many outputs."""

    def override(self, multiple: int = 1, **flags: Any) -> Self:
        """This protocol with what is not None instead of its own.

        Args:
            multiple: that the edges of images must have.

        Raises:
            UserError: for a field that it does not have, or values that make no sense.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        if unknown := given.keys() - {field.name for field in dataclasses.fields(self)}:  # type: ignore[arg-type]
            flag = min(unknown).replace('_', '-')
            raise UserError(f'--{flag} is not for this checkpoint, which has: {self.text}')
        for name in ('mean', 'std'):
            if max(given.get(name, (0,))) > 1:
                raise UserError(
                    f'{name} {" ".join(f"{x:g}" for x in given[name])} is above 1: pixels are from '
                    '0 to 1 here; divide mean and std by 255, and give them in the order R G B'
                )
        return dataclasses.replace(self, **given)  # type: ignore[type-var]

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON types."""
        return {name: _listed(value) for name, value in vars(self).items()}

    def settings(self) -> dict[str, Any]:
        """The fields as those of a recipe: mean and std are in the order R G B there."""
        return self.to_json()

    @classmethod
    def from_json(cls, fields: dict[str, Any] | None) -> Self:
        """The inverse of `to_json`; a missing field has its default.

        Raises:
            UserError: if a field is unknown or has no sensible value, or there are none.
        """
        if not isinstance(fields, dict):
            raise UserError('nothing says how images are prepared: there is no "transform"')
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := set(fields) - known:
            raise UserError(f'transform: unknown fields: {", ".join(sorted(unknown))}')
        try:
            return cls(**{name: _hashable(value) for name, value in fields.items()})
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f'transform: a value of another kind: {first_line(error)}') from None


def images_taken(taken: list[str], say: list[str], flags: Mapping[str, Any]) -> list[str]:
    """The remark on what is taken for granted of images."""
    if not any(flags.get(name) for name in ('mean', 'std')):
        taken, say = [*taken, 'normalised'], [*say, '--mean', '--std']
    text = f'images are taken to be {" and ".join(taken)} as for ImageNet; else say {" ".join(say)}'
    return [text] if taken else []


def _listed(value: Any) -> Any:
    return [_listed(x) for x in value] if isinstance(value, tuple) else value


def _hashable(value: Any) -> Any:
    return tuple(_hashable(x) for x in value) if isinstance(value, list) else value
