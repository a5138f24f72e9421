"""Pictures of what the network sees; `draw` is that of `tasks.pictures`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from hrnet_jax.inference.visualize import View, components
from hrnet_jax.tasks.pictures import bars, draw, short

_ROWS = ('energy', 'components', 'Grad-CAM')
_LEGEND = """\
Energy: the root mean square
of the channels at each place.

Components: the first three
principal components of the
channels as red, green and blue;
grey where there is no contrast.

Grad-CAM: evidence for the
class in this map, as a part of
the most at any place of it."""

__all__ = ['draw', 'draw_view']


def draw_view(
    view: View, title: str, strides: Sequence[int], path: str | Path, form: str | None = None
) -> None:
    """Writes a picture of an image, its predictions, and for each stride the map in two ways and
    the Grad-CAM over the image.

    Args:
        view: of `hrnet_jax.visualize.view`.
        title: what the image is called.
        strides: of the maps that are shown.
        path, form: as of `draw`.
    """
    columns = 1 + len(strides)
    figure = Figure(figsize=(0.5 + 2.9 * columns, 8.6), layout='constrained')
    FigureCanvasAgg(figure)
    target = f'{short(view.target.name, 40)} ({100 * view.target.probability:.1f} %)'
    figure.suptitle(f'{short(title, 60)}: evidence for {target}', fontsize=13, parse_math=False)
    grid = figure.subplots(3, columns, squeeze=False)
    height, width = view.image.shape[:2]
    smooth = 'nearest' if max(height, width) < 100 else 'antialiased'
    place = (-0.5, width - 0.5, height - 0.5, -0.5)  # of every map: the whole image
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    grid[0][0].imshow(view.image, interpolation=smooth)
    grid[0][0].set_title(f'as the network sees it\n{height} × {width}', fontsize=10)
    bars(grid[1][0], view.best)
    grid[1][0].set_title('predictions', fontsize=10)
    grid[2][0].axis('off')
    grid[2][0].text(0, 1, _LEGEND, va='top', fontsize=9, linespacing=1.4)

    grey = view.image.mean(-1)
    for column, stride in enumerate(strides, 1):
        features, heat = view.maps[stride], view.heats[stride]
        top, middle, bottom = grid[:, column]
        h, w, channels = features.shape
        top.set_title(f'stride {stride}\n{h} × {w}, {channels} channels', fontsize=10)
        energy = np.sqrt(np.mean(np.square(features), -1))
        shown = top.imshow(energy, 'viridis', vmin=0, extent=place, interpolation='nearest')
        figure.colorbar(shown, ax=top, shrink=0.85)
        middle.imshow(components(features), extent=place, interpolation='nearest')
        bottom.imshow(grey, 'gray', vmin=0, vmax=255, interpolation=smooth)
        shown = bottom.imshow(
            heat, _heat_colours(), vmin=0, vmax=1, extent=place, interpolation='bilinear'
        )
        if not heat.any():
            bottom.set_xlabel('no evidence in this map', fontsize=9)
    figure.colorbar(shown, ax=grid[2][-1], shrink=0.85)
    for row, label in enumerate(_ROWS):
        grid[row][1].set_ylabel(label, fontsize=10)
    figure.savefig(path, dpi=110, format=form)


def _heat_colours() -> ListedColormap:
    """From nothing at 0 to bright at 1, to lie over a grey image."""
    colours = colormaps['inferno'](np.linspace(0.3, 0.95, 256))
    colours[:, 3] = np.linspace(0, 1, 256) ** 0.7 * 0.85
    return ListedColormap(colours)
