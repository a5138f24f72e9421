"""Data sets whose examples are read one by one, by their number: label maps, keypoints, boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hrnet_jax.data.sources import Facts

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Indexed(Facts):
    """An opened data set in files that any process can read in any order.

    Attributes: as of `Facts`, and
        read: number -> one example: image, uint8 (H, W, 3) RGB, and the `fields`, in their own
            size. It can be pickled. Raises UserError with the file's name.
        names: of the images, in their order: paths in the data set.
        image_hw: (numbers) -> int32 (N, 2), heights and widths, without decoding.
    """

    read: Callable[[int], Example] = dataclasses.field(repr=False, kw_only=True)
    names: Sequence[str] = dataclasses.field(repr=False, kw_only=True)
    image_hw: Callable[[Sequence[int]], np.ndarray] = dataclasses.field(repr=False, kw_only=True)
