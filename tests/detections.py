"""Made sets of boxes in COCO's form, and a checkpoint of a small detector."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import jax
import numpy as np
import segments
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import hrnet_jax
from hrnet_jax import checkpoint
from hrnet_jax.data.keep_ratio import KeepRatio
from hrnet_jax.tasks.box_metrics import NAMES

SIZES = ((90, 120), (120, 80), (64, 64), (70, 120))  # of the images of a set
# x, y, width, height, category, crowd; the third image has none.
BOXES = (
    [(10, 5, 40, 70, 3, 0), (60.5, 10.25, 50, 60, 7, 0), (0, 40, 100, 45, 3, 1)],
    [(5, 5, 60, 100, 7, 0)],
    [],
    [(20, 10, 30, 50, 3, 0), (0, 0, 64, 64, 12, 0)],
)
CATEGORIES = {3: 'cat', 7: 'dog', 12: 'bird'}
IDS = (139, 285, 632, 724)


def content(boxes=BOXES, sizes=SIZES) -> dict:
    """COCO's form."""
    images = [
        {'id': i, 'file_name': f'{i:012d}.png', 'height': h, 'width': w}
        for i, (h, w) in zip(IDS, sizes, strict=False)
    ]
    annotations = [
        {
            'id': 100 * i + j,
            'image_id': i,
            'category_id': category,
            'bbox': list(box),
            'area': 0.6 * box[2] * box[3],
            'iscrowd': crowd,
        }
        for i, rows in zip(IDS, boxes, strict=False)
        for j, (*box, category, crowd) in enumerate(rows)
    ]
    # Not in the order of the ids.
    categories = [{'id': i, 'name': CATEGORIES[i]} for i in (7, 3, 12)]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def make_coco(root: Path, sizes=SIZES) -> None:
    """As COCO lies on a disk."""
    (root / 'annotations').mkdir(parents=True)
    (root / 'annotations/instances_val2017.json').write_text(json.dumps(content(sizes=sizes)))
    for i, (identity, size) in enumerate(zip(IDS, sizes, strict=True)):
        segments.write(root / f'val2017/{identity:012d}.png', segments.picture(i, *size))


def by_pycocotools(held: dict, rows: list[dict]) -> dict[str, float]:
    """Its twelve figures, asked as its own demo does."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = held
        truth.createIndex()
        asked = COCOeval(truth, truth.loadRes(rows), 'bbox')
        asked.evaluate()
        asked.accumulate()
        asked.summarize()
    return dict(zip(NAMES, asked.stats.tolist(), strict=True))


def make_checkpoint(folder: Path, head: str = 'fcos') -> None:
    """A detector that finds something in many places, of the categories of `CATEGORIES`."""
    options = {'head': head, 'channels': 32, 'threshold': 0.01}
    model = hrnet_jax.create_model('tiny', 3, task='detection', **options)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: np.array(x) + 0.05 * random.standard_normal(x.shape).astype(np.float32),
        hrnet_jax.init(model, jax.random.key(0), 64),
    )
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    head_of = variables['params']['bbox_head']
    for name in ('conv_reg',) if head == 'fcos' else ():
        head_of[name]['bias'] = head_of[name]['bias'] + 3
    save(folder / 'tiny', model, variables)


def save(folder: Path, model, variables) -> None:
    protocol = KeepRatio(scale=(128, 96), categories=(3, 7, 12))
    meta = {
        **checkpoint.describe(model),
        'class_names': list(CATEGORIES.values()),
        'transform': protocol.to_json(),
        'published': None,
        'source': {'file': None, 'origin': 'made', 'sha256': None},
    }
    checkpoint.save(folder, variables, meta)
