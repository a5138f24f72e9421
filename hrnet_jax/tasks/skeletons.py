"""Pictures of people: the image under their skeletons."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection

from hrnet_jax.data import keypoint_sets
from hrnet_jax.data.preprocess import rgb_image
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.tasks.pictures import side_by_side


def colours(transform: TopDown) -> tuple[np.ndarray, np.ndarray]:
    """Of the keypoints and of the lines between them, (N, 3), 0 to 1: those of the published set
    with these keypoints, or hues around the circle; a line has the colour of its end."""
    known = keypoint_sets.known(transform.keypoints)
    if known and keypoint_sets.sets()[known].skeleton == transform.skeleton:
        held = keypoint_sets.sets()[known]
        points, links = np.array(held.colours) / 255, np.array(held.links) / 255
        return points, links.reshape(-1, 3)
    count = len(transform.keypoints)
    points = np.array([colorsys.hsv_to_rgb(i / count, 0.8, 1) for i in range(count)])
    ends = np.array([end for _, end in transform.skeleton], int)
    return points, points[ends].reshape(-1, 3)


def draw(
    images: Sequence[Any],
    titles: Sequence[str],
    found: Sequence[Any],
    transform: TopDown,
    threshold: float,
    path: str | Path,
    form: str | None = None,
) -> None:
    """Writes a picture of each image with its people.

    Args:
        images: uint8 (H, W, 3), or PIL images; found: the people of each.
        threshold: keypoints with a lower score, and lines to them, are left out.
        path: the picture's file; form: its format, such as 'png'.
    """
    arrays = [np.asarray(rgb_image(image)) for image in images]
    figure, grid = side_by_side(arrays, titles)
    points, links = colours(transform)
    for axes, people in zip(grid, found, strict=True):
        axes.set_autoscale_on(False)  # keypoints beyond the image do not make it smaller
        for person in people:
            seen = person.scores >= threshold
            ends = [i for i, (a, b) in enumerate(transform.skeleton) if seen[a] and seen[b]]
            lines = [person.keypoints[list(transform.skeleton[i])] for i in ends]
            axes.add_collection(LineCollection(lines, colors=links[ends], linewidths=2))
            x, y = person.keypoints[seen].T
            axes.scatter(x, y, s=14, c=points[seen], edgecolors='black', linewidths=0.5, zorder=3)
    figure.savefig(path, dpi=130, format=form)
