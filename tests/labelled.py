"""Digit scans with several labels an image."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / 'examples'))
import digits  # noqa: E402

LABELS = ('even', 'large', 'prime')


def labels_of(digit):
    held = (digit % 2 == 0, digit > 4, digit in (2, 3, 5, 7))
    return [name for name, there in zip(LABELS, held, strict=True) if there]


def make_photos(folder):
    """A folder of digit scans with train.csv (labels) and val.csv (columns)."""
    (folder / 'images').mkdir(parents=True)
    images, numbers = digits.scans()['test']
    rows = []
    for i, (image, digit) in enumerate(zip(images[:157], numbers[:157], strict=True)):
        Image.fromarray(image[..., 0]).save(folder / 'images' / f'{i}.png')
        rows.append((f'images/{i}.png', labels_of(int(digit))))
    lines = ['file,labels', *(f'{file},{" ".join(names)}' for file, names in rows[:96])]
    (folder / 'train.csv').write_text('\n'.join(lines) + '\n')
    lines = [f'file,{",".join(LABELS)}']
    lines += [
        f'{file},{",".join(str(int(n in names)) for n in LABELS)}' for file, names in rows[96:]
    ]
    (folder / 'val.csv').write_text('\n'.join(lines) + '\n')
    (folder / 'classes.txt').write_text('\n'.join(LABELS) + '\n')
