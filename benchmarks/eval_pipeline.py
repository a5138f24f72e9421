"""Exact evaluation pixels: our TensorFlow operations beside PIL in Python, alternating, one core.

    taskset -c 0 python benchmarks/eval_pipeline.py

Images are made (500 x 375, JPEG 4:2:0 and 4:4:4); the pixels of both are compared first. Seconds
are those of the processor, over all threads, so that other programs disturb little.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from hrnet_jax.data.pixels import evaluation_image
from hrnet_jax.data.preprocess import Transform, resize_crop
from hrnet_jax.runtime import cli

if TYPE_CHECKING:
    import tensorflow as tf


def photos(count: int, subsampling: str) -> list[bytes]:
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        pixels = smooth + random.normal(0, 8, smooth.shape)
        file = io.BytesIO()
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        image.save(file, 'JPEG', quality=88, subsampling=subsampling)
        files.append(file.getvalue())
    return files


def endless(data: tf.data.Dataset) -> Iterator[Any]:
    """All rounds from one iterator, on one thread that does nothing between them.

    To start a pipeline takes as long as dozens of images, and is done once in an epoch.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    return data.repeat().with_options(options).as_numpy_iterator()


def main() -> None:
    parser = cli.Parser(description='Compare the speed of exact preprocessing with PIL.')
    parser.add_argument('--images', type=int, default=128, help='of each kind')
    parser.add_argument('--rounds', type=int, default=7, help='alternations')
    args = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)

    def by_pil(files, transform):
        return [resize_crop(Image.open(io.BytesIO(file)), transform) for file in files]

    for subsampling in ('4:2:0', '4:4:4'):
        files = photos(args.images, subsampling)
        size = sum(map(len, files)) / len(files) / 1000
        for interpolation in ('bilinear', 'bicubic'):
            transform = Transform(interpolation=interpolation)
            data = tf.data.Dataset.from_tensor_slices(files)
            ours = endless(data.map(lambda file, t=transform: evaluation_image(file, t)))
            for expected in by_pil(files, transform):
                assert np.array_equal(next(ours), expected), 'the pixels differ'
            ratios, speeds = [], []
            for _ in range(args.rounds):
                start = time.process_time()
                for _ in files:
                    next(ours)
                middle = time.process_time()
                by_pil(files, transform)
                end = time.process_time()
                ratios.append((end - middle) / (middle - start))
                speeds.append(len(files) / (middle - start))
            print(
                f'{subsampling} {size:4.0f} KB {interpolation:9} '
                f'{statistics.median(speeds):5.0f} images/s, ratio to PIL '
                f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
            )


if __name__ == '__main__':
    cli.run(main)
