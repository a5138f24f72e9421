"""Segmentation from pictures to a file for mmsegmentation, without a download.

    python examples/demo_segmentation.py --out demo_segmentation

Makes pictures of digits in photographs (examples/scenes.py), trains a small network on them from
nothing with train.py, evaluates it, exports it to mmsegmentation's layout, converts that back, and
compares the two confusion matrices. predict.py draws what it finds in pictures of the held-out
split.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from demo import run

from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli

PICTURES = 8
ENOUGH = 80.0  # percent, mean IoU of the held-out pictures
TRAINING = (
    '--crop-size 96 96 --scale 0.75 1.25 --class-share 1 --flip 0 --batch-size 16 --base-batch 16 '
    '--bn-group-size 16 --learning-rate 0.05 --head-lr 1 --epochs 40 --eval-every 8 '
    '--dtype float32'
)


def main() -> None:
    parser = cli.Parser(description='Train, evaluate and convert a segmentation network.')
    parser.add_argument('--out', default='demo_segmentation', help='folder for all that is made')
    out = Path(parser.parse_args().out).absolute()
    names = ('scenes', 'run', 'trained.pth', 'again', 'trained.json', 'again.json', 'pictures.png')
    q = {name: shlex.quote(str(out / name)) for name in names}
    for name in ('scenes', 'run'):
        shutil.rmtree(out / name, ignore_errors=True)
    run(f'examples/scenes.py --out {q["scenes"]}')
    data = f'--dataset folder:{q["scenes"]}'
    run(
        f'train.py --arch tiny --recipe segment {data} --split train --eval-split val '
        f'--workdir {q["run"]} {TRAINING}'
    )

    def evaluate(folder: str, result: str) -> dict:
        run(f'eval.py --ckpt {q[folder]} {data} --split val --json {q[result]}')
        return json.loads((out / result).read_text())

    trained = evaluate('run', 'trained.json')
    run(f'-m convert {q["run"]} --to mmseg --out {q["trained.pth"]} --force')
    run(f'-m convert {q["trained.pth"]} --out {q["again"]} --force')
    again = evaluate('again', 'again.json')
    files = sorted((out / 'scenes' / 'val' / 'images').iterdir())[:PICTURES]
    quoted = ' '.join(shlex.quote(str(file)) for file in files)
    run(f'predict.py {quoted} --ckpt {q["run"]} --out {q["pictures.png"]}')

    figures = ('miou', 'mean_accuracy', 'pixel_accuracy')
    print(f'\n{"":24}{"mIoU":>10}{"accuracy":>10}{"of pixels":>11}')
    for name, row in {'trained here': trained, 'to mmseg and back': again}.items():
        values = [row['metrics'][figure] for figure in figures]
        print(f'{name:24}{values[0]:8.2f} %{values[1]:8.2f} %{values[2]:9.2f} %')
    if trained['confusion'] != again['confusion']:
        raise UserError('the confusion matrices differ')
    if trained['metrics']['miou'] < ENOUGH:
        raise UserError(f'training reached less than {ENOUGH} % mIoU')
    print(f'the matrices agree; look at {out / "pictures.png"} and {out / "run" / "curves.png"}')


if __name__ == '__main__':
    cli.run(main)
