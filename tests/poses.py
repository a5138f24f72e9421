"""Made sets of people in COCO's form, a checkpoint of a narrow pose network, rule-made heatmaps."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import segments
from pycocotools.coco import COCO as Truth
from pycocotools.cocoeval import COCOeval
from rules import image, weight

import eval as eval_command
import hrnet_jax
from convert.layouts import canonical_key
from hrnet_jax import checkpoint
from hrnet_jax.data import keypoint_sets
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.models import variable_shapes
from hrnet_jax.tasks.keypoint_metrics import NAMES

COCO = keypoint_sets.sets()['coco']
SMALL = TopDown(input_size=(64, 32))
SIZES = ((90, 120), (120, 80), (64, 64))  # of the images of a set
BOXES = (
    [[10, 5, 40, 70], [60.5, 10.25, 50, 60], [-8, 40, 60, 45]],
    [[5, 5, 60, 100]],
    [[20, 10, 30, 50], [0, 0, 64, 64]],
)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3), as of the oracle; multiples of 32."""
    return np.clip(128 + 45 * image(seed, 1, height, width)[0], 0, 255).astype(np.uint8)


def heatmaps(seed: int, k: int, height: int, width: int) -> np.ndarray:
    """float32 (1, H, W, K): peaks and noise, as of the oracle."""
    random = np.random.RandomState(seed)
    at = random.uniform([-1, -1], [width, height], (k, 2))
    spread, peak = random.uniform(1.5, 3.0, k), random.uniform(0.2, 1.0, k)
    noise = 0.02 * random.standard_normal((k, height, width))
    y, x = np.mgrid[:height, :width]
    maps = [
        peak[j] * np.exp(-((x - at[j, 0]) ** 2 + (y - at[j, 1]) ** 2) / (2 * spread[j] ** 2))
        for j in range(k)
    ]
    return (np.stack(maps) + noise).astype(np.float32).transpose(1, 2, 0)[None]


def by_rule(model):
    """Its variables by the rule for weights, under mmpose's names."""

    def value(path, leaf):
        names = tuple(entry.key for entry in path)
        key, order = canonical_key(names, len(leaf.shape))
        shape = tuple(leaf.shape[i] for i in order)
        return weight(key, shape).transpose(np.argsort(order))

    return jax.tree_util.tree_map_with_path(value, variable_shapes(model))


def network(**options):
    """A narrow pose network with maxima in many places, and its variables."""
    model = hrnet_jax.create_model('tiny', task='pose', **options)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: np.array(x) + 0.05 * random.standard_normal(x.shape).astype(np.float32),
        hrnet_jax.init(model, jax.random.key(0), 32),
    )
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    return model, variables


def make_checkpoint(folder: Path) -> None:
    save(folder / 'tiny', *network(), SMALL)


def save(folder: Path, model, variables, protocol: TopDown) -> None:
    meta = {
        **checkpoint.describe(model),
        'transform': protocol.to_json(),
        'published': None,
        'source': {'file': None, 'origin': 'made', 'sha256': None},
    }
    checkpoint.save(folder, variables, meta)


def make_images(folder: Path) -> list[np.ndarray]:
    images = [segments.picture(i, *size) for i, size in enumerate(SIZES)]
    for i, array in enumerate(images):
        segments.write(folder / f'{i + 1:012d}.png', array)
    return images


def annotations(keypoints, boxes=BOXES, category=None) -> dict:
    """COCO's form.

    Args:
        keypoints: of each image, of each person, (K, 3).
    """
    images = [
        {'id': i + 1, 'file_name': f'{i + 1:012d}.png', 'height': size[0], 'width': size[1]}
        for i, size in enumerate(SIZES)
    ]
    people = [
        {
            'id': 100 * i + j + 1,
            'image_id': i + 1,
            'category_id': 1,
            'iscrowd': 0,
            'bbox': list(box),
            'area': 0.5 * box[2] * box[3],
            'keypoints': np.ravel(points).tolist(),
            'num_keypoints': int((np.asarray(points)[:, 2] > 0).sum()),
        }
        for i, (held, each) in enumerate(zip(keypoints, boxes, strict=True))
        for j, (points, box) in enumerate(zip(held, each, strict=True))
    ]
    category = category or {'keypoints': list(COCO.names), 'skeleton': []}
    return {
        'images': images,
        'annotations': people,
        'categories': [{'id': 1, 'name': 'person', **category}],
    }


def write_coco(root: Path, content: dict) -> None:
    """As COCO lies on a disk, its images in val2017/."""
    (root / 'annotations').mkdir(parents=True, exist_ok=True)
    file = root / 'annotations/person_keypoints_val2017.json'
    file.write_text(json.dumps(content))


def evaluated(command, ckpt, tmp_path, *more):
    code, out, err = command(
        eval_command.main, '--ckpt', ckpt, '--json', tmp_path / 'r.json', *more
    )
    assert code == 0, err
    return json.loads((tmp_path / 'r.json').read_text()), out


def by_pycocotools(file, rows, sigmas=COCO.sigmas):
    """Its ten figures, asked as its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = Truth(str(file))
        asked = COCOeval(truth, truth.loadRes(rows), 'keypoints')
        asked.params.kpt_oks_sigmas = np.array(sigmas)
        asked.evaluate()
        asked.accumulate()
        asked.summarize()
    return dict(zip(NAMES, asked.stats, strict=True))
