"""Random crops for training: through tf.data beside PIL in Python, alternating, on one core.

    python benchmarks/train_pipeline.py

On the images of benchmarks/eval_pipeline.py; with --ops N, ours adds RandAugment. Seconds
are those of the processor, over all threads, so that other programs disturb little.
"""

from __future__ import annotations

import io
import math
import random
import statistics
import time

import numpy as np
from eval_pipeline import endless, photos
from PIL import Image

from hrnet_jax.data.augment import rand_augment, random_flip, random_resized_crop
from hrnet_jax.runtime import cli


def by_pil(file: bytes) -> np.ndarray:
    """What a loader in Python does, with the boxes of torchvision."""
    image = Image.open(io.BytesIO(file)).convert('RGB')
    box = (0, 0, *image.size)
    for _ in range(10):
        area = image.width * image.height * random.uniform(0.08, 1.0)
        aspect = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = random.randint(0, image.width - width)
            top = random.randint(0, image.height - height)
            box = (left, top, left + width, top + height)
            break
    image = image.crop(box).resize((224, 224), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def main() -> None:
    parser = cli.Parser(description='Compare the speed of training transforms with PIL.')
    parser.add_argument('--images', type=int, default=256, help='of each kind')
    parser.add_argument('--rounds', type=int, default=7, help='alternations')
    parser.add_argument('--ops', type=int, default=0, help="RandAugment's, in ours")
    args = parser.parse_args()
    import tensorflow as tf

    def transform(number, file):
        seed = tf.stack((number, 0))
        image = random_resized_crop(file, seed, size=224)
        image = random_flip(image, seed, 0.5)
        return rand_augment(image, seed, ops=args.ops, magnitude=9) if args.ops else image

    for subsampling in ('4:2:0', '4:4:4'):
        files = photos(args.images, subsampling)
        size = sum(map(len, files)) / len(files) / 1000
        data = tf.data.Dataset.from_tensor_slices(files).enumerate()
        ours = endless(data.map(transform))
        for _ in files:
            next(ours)
        ratios, speeds = [], []
        for _ in range(args.rounds):
            start = time.process_time()
            for _ in files:
                next(ours)
            middle = time.process_time()
            for file in files:
                by_pil(file)
            end = time.process_time()
            ratios.append((end - middle) / (middle - start))
            speeds.append(len(files) / (middle - start))
        print(
            f'{subsampling} {size:4.0f} KB {statistics.median(speeds):5.0f} images/s a core, ratio '
            f'to PIL {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
        )


if __name__ == '__main__':
    cli.run(main)
