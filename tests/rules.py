"""Rule-made weights and images: the same everywhere, from names and seeds alone."""

from __future__ import annotations

import zlib

import numpy as np


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 value (int64 for counters) of the PyTorch state-dict entry `key`."""
    if key.endswith('num_batches_tracked'):
        return np.zeros(shape, np.int64)
    n = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    n = np.asarray(n, np.float32)
    if key.endswith('running_var'):
        return np.exp(np.float32(0.2) * n)
    if len(shape) == 4:
        return n * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if len(shape) == 2:
        return n * np.float32(np.sqrt(1 / shape[1]))
    if key.endswith('weight'):
        return np.float32(0.5) + np.float32(0.1) * n
    return np.float32(0.02) * n


def image(seed: int, batch: int, height: int, width: int) -> np.ndarray:
    """(batch, height, width, 3) float32 images with structure at 1, 8 and 32 pixels."""
    random = np.random.RandomState(seed)
    x = 0.5 * random.standard_normal((batch, height, width, 3))
    for cell, gain in ((8, 0.7), (32, 1.0)):
        coarse = random.standard_normal((batch, height // cell, width // cell, 3))
        x += gain * coarse.repeat(cell, 1).repeat(cell, 2)
    return x.astype(np.float32)


def close(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |a - b| / max |b|."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
