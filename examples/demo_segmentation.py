"""Segmentation from pictures to a file for mmsegmentation, without a download.

    python examples/demo_segmentation.py --out demo_segmentation

Makes pictures of digits in photographs (examples/scenes.py), trains a small network on them from
nothing with train.py, evaluates it, exports it to mmsegmentation's layout, converts that back, and
compares the two confusion matrices. predict.py draws what it finds in pictures of the held-out
split.
"""

from __future__ import annotations

from there_and_back import conclude, draw, folder, there_and_back

from hrnet_jax.runtime import cli

PICTURES = 8
ENOUGH = 80.0  # percent, mean IoU of the held-out pictures
TRAINING = (
    '--recipe segment --crop-size 96 96 --scale 0.75 1.25 --class-share 1 --flip 0 '
    '--batch-size 16 --base-batch 16 --bn-group-size 16 --learning-rate 0.05 --head-lr 1 '
    '--epochs 40 --eval-every 8 --dtype float32'
)


def main() -> None:
    out = folder('segmentation')
    pair = there_and_back(out, 'scenes', 'mmseg', TRAINING)
    draw(out, sorted((out / 'scenes' / 'val' / 'images').iterdir())[:PICTURES])
    titles = {'miou': 'mIoU, %', 'mean_accuracy': 'accuracy, %', 'pixel_accuracy': 'of pixels, %'}
    conclude(out, 'mmseg', pair, titles, ENOUGH)


if __name__ == '__main__':
    cli.run(main)
