"""Pose from pictures to a file for mmpose, without a download.

    python examples/demo_pose.py --out demo_pose

Makes pictures of figures with known joints (examples/figures.py), trains a small network on them
from nothing with train.py, evaluates it, exports it to mmpose's layout, converts that back, and
compares the two results. predict.py draws the keypoints that it finds in held-out pictures.
"""

from __future__ import annotations

import json
import shlex

from there_and_back import conclude, draw, folder, there_and_back

from hrnet_jax.runtime import cli

PICTURES = 6
ENOUGH = 0.7  # AP of the held-out figures
TRAINING = (
    '--recipe pose --head joined --input-size 128 96 --batch-size 16 --base-batch 16 '
    '--bn-group-size 16 --learning-rate 3e-3 --rotation 15 --scale 0.15 --shift 0 --half-body 0 '
    '--epochs 12 --eval-every 4 --dtype float32'
)


def main() -> None:
    out = folder('pose')
    pair = there_and_back(out, 'figures', 'mmpose', TRAINING)
    content = json.loads((out / 'figures' / 'val.json').read_text())
    names = {image['id']: image['file_name'] for image in content['images'][:PICTURES]}
    boxes: dict[str, list] = {name: [] for name in names.values()}
    for person in content['annotations']:
        if person['image_id'] in names:
            boxes[names[person['image_id']]].append(person['bbox'])
    file = out / 'boxes.json'
    file.write_text(json.dumps(boxes))
    held = out / 'figures' / 'images' / 'val'
    draw(out, [held / name for name in boxes], f'--boxes {shlex.quote(str(file))}')
    titles = {'ap': 'AP', 'ap50': 'AP at 0.5', 'ar': 'AR'}
    conclude(out, 'mmpose', pair, titles, ENOUGH)


if __name__ == '__main__':
    cli.run(main)
