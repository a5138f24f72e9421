"""The end of a process that reads images."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

EXIT = """
import sys
from hrnet_jax import data
from hrnet_jax.data.preprocess import Transform
batches = data.batches(data.open_dataset('folder:' + sys.argv[1]), Transform(), 2)
next(batches)
"""


def test_python_ends_while_images_are_decoded(tmp_path):
    """By PIL, in threads of TensorFlow that need Python, with the iterator still there."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    for name in ('cats/0.bmp', 'dogs/0.bmp', *(f'dogs/{i}.bmp' for i in range(1, 30))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / name)
    root = Path(__file__).parents[1]
    command = [sys.executable, '-c', EXIT, str(tmp_path)]
    subprocess.run(command, check=True, timeout=100, env=os.environ | {'PYTHONPATH': str(root)})
