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
_LARGE = 7.5  # inches, the width of images `side_by_side`
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


def side_by_side(
    images: Sequence[np.ndarray], titles: Sequence[str], beside: float = 0.0
) -> tuple[Figure, list[Any]]:
    """A figure of images under their titles, two in a row, and the axes of each image.

    Args:
        images: uint8 (H, W, 3).
        beside: inches that a legend takes at the side of an image.
    """
    columns = min(len(images), 2)
    ratios = [min(image.shape[0] / image.shape[1], 1.5) for image in images]
    heights = [max(ratios[i : i + columns]) for i in range(0, len(ratios), columns)]  # of rows
    size = _LARGE * columns, (_LARGE - beside) * sum(heights) + 0.4 * len(heights)
    figure = Figure(figsize=size, layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights).ravel()
    for axes in grid:
        axes.axis('off')
    for axes, image, title in zip(grid, images, titles, strict=False):
        axes.imshow(image)
        axes.set_title(short(title, 60), fontsize=9, parse_math=False)
    return figure, list(grid[: len(images)])
