"""Digit scans in photographs, with a label map for each picture: a folder for segmentation.

    python examples/scenes.py --out demo/scenes

All pixels are real: scikit-learn's 1,797 scans of handwritten digits (E. Alpaydin and C. Kaynak,
UCI Machine Learning Repository), enlarged, and its two photographs, china.jpg and flower.jpg
(licences: scikit-learn, datasets/images/README.txt). The strokes of a digit show the flower, and
what is around them is China. Pictures of `val` have scans and parts of the photographs that no
picture of `train` has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import digits
import numpy as np
from PIL import Image

from hrnet_jax.runtime import cli

SIZE = 96
EDGE = 72  # of an enlarged scan
CLASSES = ('around', 'zero', 'one')
COUNTS = {'train': 480, 'val': 60}


def photographs() -> list[np.ndarray]:
    """uint8 (427, 640, 3) each."""
    from sklearn.datasets import load_sample_images

    return [np.asarray(image) for image in load_sample_images().images]


def scene(
    scan: np.ndarray, digit: int, photos: list[np.ndarray], random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A picture, uint8 (SIZE, SIZE, 3), and its classes, uint8 (SIZE, SIZE)."""
    around, inside = (_crop(photo, random) for photo in photos)
    enlarged = Image.fromarray(scan[..., 0]).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
    top, left = random.integers(0, SIZE - EDGE + 1, 2)
    stroke = np.zeros((SIZE, SIZE), bool)
    stroke[top : top + EDGE, left : left + EDGE] = np.asarray(enlarged) > 110
    label = np.where(stroke, digit + 1, 0).astype(np.uint8)
    return np.where(stroke[..., None], inside, around), label


def _crop(photo: np.ndarray, random: np.random.Generator) -> np.ndarray:
    top, left = (random.integers(0, n - SIZE + 1) for n in photo.shape[:2])
    return photo[top : top + SIZE, left : left + SIZE]


def make(folder: Path, counts: Mapping[str, int] = COUNTS) -> None:
    """Writes SPLIT/images, SPLIT/labels and classes.txt; so many pictures a split."""
    random, photos = np.random.default_rng(0), photographs()
    middle = photos[0].shape[1] // 2
    parts = {'train': slice(None, middle), 'val': slice(middle, None)}
    held = digits.scans()
    for split, count in counts.items():
        scans, numbers = held['test' if split == 'val' else 'train']
        halves = [photo[:, parts[split]] for photo in photos]
        for kind in ('images', 'labels'):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            wanted = np.flatnonzero(numbers == i % 2)
            chosen = random.choice(wanted)
            picture, label = scene(scans[chosen], int(numbers[chosen]), halves, random)
            Image.fromarray(picture).save(folder / split / 'images' / f'{i:03}.png')
            Image.fromarray(label).save(folder / split / 'labels' / f'{i:03}.png')
    (folder / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')


def main() -> None:
    parser = cli.Parser(description='Make pictures of digits in photographs, with label maps.')
    parser.add_argument('--out', required=True, help='the folder to make')
    make(Path(parser.parse_args().out))


if __name__ == '__main__':
    cli.run(main)
