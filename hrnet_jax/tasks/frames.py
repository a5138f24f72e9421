"""Pictures of objects: the image under their boxes, each with the name of its class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.tasks.overlay import colours
from hrnet_jax.tasks.pictures import short, side_by_side


def draw(
    images: Sequence[Any],
    titles: Sequence[str],
    found: Sequence[Any],
    names: Sequence[str],
    path: str | Path,
    form: str | None = None,
) -> None:
    """Writes a picture of each image with its objects, the best on top.

    Args:
        images: uint8 (H, W, 3), or PIL images; found: the `Found` of each, best first.
        names: of the classes.
        path: the picture's file; form: its format, such as 'png'.
    """
    palette = colours(names) / 255
    arrays = [np.asarray(rgb_image(image)) for image in images]
    figure, grid = side_by_side(arrays, titles)
    for axes, objects in zip(grid, found, strict=True):
        axes.set_autoscale_on(False)
        for order, one in enumerate(reversed(objects)):
            x, y, width, height = one.box
            colour = palette[one.index]
            frame = Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=1.8)
            axes.add_patch(frame).set_zorder(2 + order)
            dark = colour @ [0.3, 0.59, 0.11] < 0.5
            label = axes.text(
                x, y, f'{short(one.name, 24)} {one.score:.2f}',
                color='white' if dark else 'black', fontsize=7, parse_math=False, clip_on=True,
                va='bottom' if y > 0.04 * axes.get_ylim()[0] else 'top', zorder=2 + order,
            )  # fmt: skip
            label.set_bbox({'facecolor': colour, 'edgecolor': 'none', 'pad': 1})
    figure.savefig(path, dpi=130, format=form)
