"""Made segmentation sets, and a checkpoint of a narrow network."""

from __future__ import annotations

from pathlib import Path

import cv2
import jax
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import hrnet_jax
from convert import to_torch
from convert.verification import reference
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


def network(classes: int = len(CLASSES), **options):
    """A narrow segmenter and its variables, no layer of which does nothing."""
    model = hrnet_jax.create_model('tiny', classes, task='segmentation', **options)
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


def make_checkpoint(
    folder: Path, names: tuple[str, ...] = CLASSES, fit: tuple[int, int] | None = None
) -> None:
    model, variables = network(len(names))
    # Several classes win somewhere: the mean of the logits is taken away.
    with torch.no_grad():
        x = torch.from_numpy(np.stack([network_input(picture(i, 96, 128)) for i in range(3)]))
        mean = by_torch(model, variables)(x).mean((0, 2, 3))
    variables['params']['head']['last_layer_3']['bias'] -= mean.numpy()
    meta = {
        **checkpoint.describe(model),
        'transform': Views(fit).to_json(),
        'published': None,
        'class_names': list(names),
        'source': {'file': None, 'origin': 'made', 'sha256': None},
    }
    checkpoint.save(folder / 'tiny', variables, meta)


def by_torch(model, variables):
    return reference(model, to_torch(variables, model.arch, 'official'))


def network_input(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> normalised (3, H, W)."""
    x = pixels / np.float32(255)
    x = (x - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return x.transpose(2, 0, 1)


def maps_of_torch(ckpt: Path, images, size=None):
    """The label map of each image, and in how many pixels rounding could change it.

    Args:
        size: height and width to which OpenCV resizes them.
    """
    network = by_torch(*hrnet_jax.load(ckpt))
    maps, ties = [], 0
    for image in images:
        seen = image if size is None else cv2.resize(image, size[::-1])
        with torch.no_grad():
            logits = network(torch.from_numpy(network_input(seen)[None]))
            for to in (seen.shape[:2], image.shape[:2]):
                logits = F.interpolate(logits, to, mode='bilinear')
        first, second = logits[0].topk(2, 0).values
        ties += int((first - second < 1e-5 * logits.abs().max()).sum())
        maps.append(logits[0].argmax(0).numpy())
    return maps, ties


def counted(labels, predictions, classes: int = len(CLASSES)) -> np.ndarray:
    """A row for each label, a column for each prediction."""
    matrix = np.zeros((classes, classes), np.int64)
    for label, predicted in zip(labels, predictions, strict=True):
        counts = label != 255
        np.add.at(matrix, (label[counts], predicted[counts]), 1)
    return matrix
