"""Digit scans of several sizes in photographs, with a box for each: a folder for detection.

    python examples/signs.py --out demo_detection/signs

All pixels are real: scikit-learn's 1,797 scans of handwritten digits (E. Alpaydin and C. Kaynak,
UCI Machine Learning Repository), enlarged and in a colour, and its two photographs, china.jpg and
flower.jpg (licences: scikit-learn, datasets/images/README.txt). Pictures of `val` have scans and
parts of the photographs that no picture of `train` has.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import digits
import numpy as np
from PIL import Image
from scenes import photographs

from hrnet_jax.runtime import cli

SIZES = ((128, 128),)  # height and width of the pictures, in turn
EDGES = (24, 60)  # of a scan in a picture, from and to
MOST = 4  # digits in a picture
NAMES = ('zero', 'one', 'two', 'three', 'four')
COUNTS = {'train': 480, 'val': 60}
_STROKE = 100  # what is darker in a scan is no part of the digit
Box = tuple[int, int, int, int]  # x, y, width, height


def picture(
    photo: np.ndarray,
    scans: Sequence[np.ndarray],
    size: tuple[int, int],
    random: np.random.Generator,
) -> tuple[np.ndarray, list[Box | None]]:
    """A picture, uint8 (*size, 3), and the boxes of the scans, None of what found no place."""
    top, left = (
        random.integers(0, n - part + 1) for n, part in zip(photo.shape, size, strict=False)
    )
    image = photo[top : top + size[0], left : left + size[1]].astype(np.float32)
    image = image * random.uniform(0.3, 0.6)
    taken = np.zeros(size, bool)
    return image, [_put(image, taken, scan, random) for scan in scans]


def _put(
    image: np.ndarray, taken: np.ndarray, scan: np.ndarray, random: np.random.Generator
) -> Box | None:
    """Draws a scan where nothing is; the box around its strokes."""
    edge = int(random.integers(*EDGES))
    large = Image.fromarray(scan[..., 0]).resize((edge, edge), Image.Resampling.BICUBIC)
    stroke = np.asarray(large, np.float32)[..., None] / 255
    for _ in range(20):
        y, x = (int(random.integers(0, n - edge + 1)) for n in taken.shape)
        place = slice(y, y + edge), slice(x, x + edge)
        if not taken[place].any():
            break
    else:
        return None
    taken[place] = True
    colour = random.uniform(170, 255, 3)
    image[place] = image[place] * (1 - stroke) + colour * stroke
    rows, columns = (np.flatnonzero((stroke[..., 0] > _STROKE / 255).any(axis)) for axis in (1, 0))
    width, height = int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
    return x + int(columns[0]), y + int(rows[0]), width, height


def make(
    folder: Path,
    counts: Mapping[str, int] = COUNTS,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> None:
    """Writes SPLIT.json and images/SPLIT; so many pictures a split."""
    random, photos = np.random.default_rng(0), photographs()
    middle = photos[0].shape[1] // 2
    halves = {'train': slice(None, middle), 'val': slice(middle, None)}
    held = digits.scans()
    for split, count in counts.items():
        scans, numbers = held['test' if split == 'val' else 'train']
        (folder / 'images' / split).mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            photo = photos[i % 2][:, halves[split]]
            wanted = np.flatnonzero(numbers < len(NAMES))
            chosen = random.choice(wanted, random.integers(1, MOST + 1))
            size = sizes[i % len(sizes)]
            image, boxes = picture(photo, scans[chosen], size, random)
            name = f'{i:03}.png'
            Image.fromarray(image.astype(np.uint8)).save(folder / 'images' / split / name)
            row = {'id': i + 1, 'file_name': name, 'height': size[0], 'width': size[1]}
            images.append(row)
            annotations += [
                {
                    'id': len(annotations) + j + 1,
                    'image_id': i + 1,
                    'category_id': int(numbers[k]) + 1,
                    'bbox': list(box),
                    'area': box[2] * box[3],
                    'iscrowd': 0,
                }
                for j, (k, box) in enumerate(zip(chosen, boxes, strict=True))
                if box
            ]
        categories = [{'id': i, 'name': name} for i, name in enumerate(NAMES, 1)]
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        (folder / f'{split}.json').write_text(json.dumps(content))


def main() -> None:
    parser = cli.Parser(description='Make pictures of digits in photographs, with boxes.')
    parser.add_argument('--out', required=True, help='the folder to make')
    make(Path(parser.parse_args().out))


if __name__ == '__main__':
    cli.run(main)
