"""Pictures of label maps: the image under the colours of its classes, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch

from hrnet_jax.data import segmentation_sets
from hrnet_jax.tasks.pictures import short, side_by_side

_ALPHA = 0.55  # of the colours
_LEGEND = 12  # classes that it names


def colours(names: Sequence[str]) -> np.ndarray:
    """uint8 (classes, 3): those of the published set with these classes, or VOC's rule, which gives
    each number a colour that differs from its neighbours'."""
    for known in segmentation_sets.names():
        if segmentation_sets.classes(known) == tuple(names):
            return np.array(segmentation_sets.palette(known), np.uint8)
    # Bits 0, 3, 6, ... of the number are the highest bits of red, 1, 4, 7, ... of green, and so on.
    numbers = np.arange(1, len(names) + 1)[:, None]
    bits = [(numbers >> (3 * i + np.arange(3))) & 1 for i in range(8)]
    return np.sum([bit << (7 - i) for i, bit in enumerate(bits)], 0).astype(np.uint8)


def blended(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3): the image under its classes' colours, with white lines between classes."""
    mixed = (1 - _ALPHA) * image + _ALPHA * palette[labels]
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = 255
    return np.rint(mixed).astype(np.uint8)


def draw(
    images: Sequence[Any],
    titles: Sequence[str],
    found: Sequence[np.ndarray],
    names: Sequence[str],
    path: str | Path,
    form: str | None = None,
) -> None:
    """Writes a picture of each image with its labels.

    Args:
        images: uint8 (H, W, 3); found: uint8 (H, W) of each.
        names: of the classes.
        path: the picture's file; form: its format, such as 'png'.
    """
    palette = colours(names)
    shown = [blended(np.asarray(x), y, palette) for x, y in zip(images, found, strict=True)]
    figure, grid = side_by_side(shown, titles, beside=1.5)
    for axes, labels in zip(grid, found, strict=True):
        counts = np.bincount(labels.reshape(-1), minlength=len(names))
        order = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
        largest = order[:_LEGEND]
        # Names are shown as they are: a $ would begin a formula.
        parts = [f'{short(names[i], 24)}  {100 * counts[i] / labels.size:.1f} %' for i in largest]
        parts += [f'and {len(order) - len(largest)} more'] * (len(order) > len(largest))
        handles = [Patch(facecolor=palette[i] / 255, edgecolor='grey') for i in largest]
        handles += [Patch(alpha=0)] * (len(parts) - len(handles))
        legend = axes.legend(
            handles, parts, loc='upper left', bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    # 'tight' keeps the legends, which are outside of the axes.
    figure.savefig(path, dpi=130, format=form, bbox_inches='tight')
