"""From keypoints to the heatmaps that a network should give, as mmpose and the official code draw.

A peak is a Gaussian, which is the product of one along x and one along y. A batch carries these
two, which are many times smaller than the maps; the training step multiplies them.
"""

from __future__ import annotations

import numpy as np

from hrnet_jax.data.crops import Size

STRIDE = 4  # of a heatmap's pixel in the crop
REACH = 3  # sigmas to which a peak is drawn, and beyond which it is out of the map


def targets(
    points: np.ndarray, seen: np.ndarray, codec: str, input_size: Size, sigma: float
) -> dict[str, np.ndarray]:
    """The heatmap of keypoint k is rows[:, None, k] * columns[None, :, k]; its maximum is 1.

    Args:
        points: (K, 2), x and y in pixels of the crop.
        seen: bool (K,), which of them are marked.
        codec: 'quarter' and 'official': around the nearest pixel; 'udp': around the point itself,
            in a square around the nearest pixel; 'dark': around the point, over the whole map.
        input_size: height and width of the crop.

    Returns:
        rows: float64 (H, K); columns: (W, K); seen: (K,), 1 where the loss counts: where a keypoint
        is marked and some of its peak may be in the map. Other keypoints have empty maps.
    """
    height, width = input_size
    scale = [
        (edge - 1) / (edge // STRIDE - 1) if codec == 'udp' else STRIDE for edge in (width, height)
    ]
    at = points / scale
    nearest = at if codec == 'dark' else np.trunc(at + 0.5)
    peak = nearest if codec in ('quarter', 'official') else at
    reach = REACH * sigma
    size = np.array([width, height]) // STRIDE
    inside = (nearest - reach < size) & (nearest + reach + 1 >= 0)
    counts = seen & inside.all(-1)

    def along(axis: int) -> np.ndarray:
        steps = np.arange(size[axis])[:, None]
        values = np.exp(-((steps - peak[:, axis]) ** 2) / (2 * sigma**2))
        drawn = (codec == 'dark') | (abs(steps - nearest[:, axis]) <= reach)
        return np.where(drawn & counts, values, 0)

    return {'rows': along(1), 'columns': along(0), 'seen': counts.astype(np.float64)}
