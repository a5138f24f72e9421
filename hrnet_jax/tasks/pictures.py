"""Pictures of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hrnet_jax.tasks.base import Prediction

_COLUMNS = 4  # pictures side by side, once there are more than three
_BLUE, _GREY = '#2f6db3', '#8a929b'


def draw(
    images: Sequence[Any],
    titles: Sequence[str],
    predictions: Sequence[Sequence[Prediction]],
    path: str | Path,
    form: str | None = None,
    right: int | None = 1,
) -> None:
    """Writes a picture of each image above the bars of its predictions.

    Args:
        images: PIL images or uint8 arrays (H, W, 3), shown whole.
        titles: one line above each.
        predictions: of each image, most probable first.
        path: the picture's file.
        form: its format, such as 'png'; by default what its ending says.
        right: how many of an image's predictions are what it shows; the others are grey. None: all.
    """
    columns = len(images) if len(images) < _COLUMNS else _COLUMNS
    rows = -(-len(images) // columns)
    height = 0.3 * max(1, *(len(p) for p in predictions)) + 0.3
    figure = Figure(figsize=(3.2 * columns, rows * (3.2 + height)), layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        2 * rows, columns, squeeze=False, gridspec_kw={'height_ratios': [3, height] * rows}
    )
    for axes in grid.flat:
        axes.axis('off')
    for i, (image, title, found) in enumerate(zip(images, titles, predictions, strict=True)):
        image = np.asarray(image)
        top = grid[2 * (i // columns)][i % columns]
        top.imshow(image, interpolation='nearest' if max(image.shape) < 100 else 'antialiased')
        # Names are shown as they are: a $ would begin a formula.
        top.set_title(short(title, 34), fontsize=9, parse_math=False)
        bars(grid[2 * (i // columns) + 1][i % columns], found, right)
    figure.savefig(path, dpi=110, format=form)


def bars(axes, found: Sequence[Prediction], right: int | None = 1) -> None:
    """Horizontal bars from 0 to 1, the name written over each."""
    at = np.arange(len(found))
    probabilities = [p.probability for p in found]
    first = len(found) if right is None else right
    colours = [_BLUE] * first + [_GREY] * (len(found) - first)
    axes.barh(at, probabilities, 0.82, color=colours[: len(found)], alpha=0.35)
    for y, p in zip(at, found, strict=True):
        axes.text(0.015, y, short(p.name, 28), va='center', fontsize=9, parse_math=False)
        axes.text(0.985, y, f'{100 * p.probability:.1f} %', va='center', ha='right', fontsize=9)
    if not found:
        axes.text(0.015, 0, 'no label', va='center', fontsize=9, color=_GREY)
    axes.set(xlim=(0, 1), ylim=(max(len(found), 1) - 0.5, -0.5))


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + '…'
