"""Made segmentation sets, and a checkpoint of a narrow network."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from PIL import Image

import hrnet_jax
from hrnet_jax import checkpoint
from hrnet_jax.data.views import Views

CLASSES = ('sky', 'road', 'tree', 'car', 'house')
SIZES = ((96, 128),) * 3
MANY = ((97, 131), (64, 160), (128, 96), (40, 33))  # none a multiple of 32 on both edges


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3), smooth."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def label_map(seed: int, height: int, width: int, values: list[int]) -> np.ndarray:
    """uint8 (H, W): rectangles of these values."""
    small = np.random.default_rng(seed).choice(np.array(values, np.uint8), (6, 6))
    small.flat[: len(values)] = values  # each occurs
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))


def write(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image = image.convert('P')
        image.putdata(array.reshape(-1).tolist())
        image.putpalette([i * 37 % 256 for i in range(768)])
    image.save(path)


def make_folder(root: Path, sizes=SIZES, split: str = 'val', names: bool = True) -> list:
    """folder:PATH of one's own; returns images and labels as they are stored."""
    made = []
    for i, size in enumerate(sizes):
        image, label = picture(i, *size), label_map(i, *size, [0, 1, 2, 3, 4, 255])
        write(root / 'images' / split / f'p{i}.png', image)
        write(root / 'labels' / split / f'p{i}.png', label, palette=i % 2 == 1)
        made.append((image, label))
    if names:
        (root / 'classes.txt').write_text('\n'.join(CLASSES) + '\n')
    return made


def network(**options):
    """A narrow segmenter and its variables, no layer of which does nothing."""
    model = hrnet_jax.create_model('tiny', len(CLASSES), task='segmentation', **options)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: np.array(x) + 0.05 * random.standard_normal(x.shape).astype(np.float32),
        hrnet_jax.init(model, jax.random.key(0), 32),
    )
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    head = variables['params']['head']
    last = head['last_layer_3' if model.head == 'fcn' else 'cls_head']
    last['bias'] = np.zeros_like(last['bias'])
    return model, variables


def make_checkpoint(folder: Path) -> None:
    model, variables = network()
    # Several classes win somewhere: the mean of the logits is taken away.
    x = np.stack([picture(i, 96, 128) for i in range(3)]) / np.float32(255)
    normalised = (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    logits = np.asarray(jax.jit(model.apply)(variables, normalised))
    variables['params']['head']['last_layer_3']['bias'] -= logits.mean((0, 1, 2))
    meta = {
        **checkpoint.describe(model),
        'transform': Views().to_json(),
        'published': None,
        'class_names': list(CLASSES),
        'source': {'file': None, 'origin': 'made', 'sha256': None},
    }
    checkpoint.save(folder / 'tiny', variables, meta)
