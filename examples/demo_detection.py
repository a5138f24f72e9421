"""Detection from pictures to a file for mmdetection, without a download.

    python examples/demo_detection.py --out demo_detection

Makes pictures of digits of several sizes in photographs (examples/signs.py), trains a small FCOS on
them from nothing with train.py, evaluates it, exports it to mmdetection's layout, converts that
back, and compares the two results. predict.py draws what it finds in pictures of the held-out
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

PICTURES = 6
ENOUGH = 0.8  # AP at 0.5 of the held-out pictures
TRAINING = (
    '--scale 128 128 --resize 1 1 --flip 0 --pyramid 32 --no-frozen-norm --bn-group-size 16 '
    '--batch-size 16 --base-batch 16 --learning-rate 0.02 --epochs 20 --eval-every 10 '
    '--dtype float32'
)


def main() -> None:
    parser = cli.Parser(description='Train, evaluate and convert a detector.')
    parser.add_argument('--out', default='demo_detection', help='folder for all that is made')
    out = Path(parser.parse_args().out).absolute()
    names = ('signs', 'run', 'trained.pth', 'again', 'trained.json', 'again.json', 'pictures.png')
    q = {name: shlex.quote(str(out / name)) for name in names}
    for name in ('signs', 'run'):
        shutil.rmtree(out / name, ignore_errors=True)
    run(f'examples/signs.py --out {q["signs"]}')
    data = f'--dataset folder:{q["signs"]}'
    run(
        f'train.py --arch tiny --recipe detect {data} --split train --eval-split val '
        f'--workdir {q["run"]} {TRAINING}'
    )

    def evaluate(folder: str, result: str) -> dict:
        run(f'eval.py --ckpt {q[folder]} {data} --split val --json {q[result]}')
        return json.loads((out / result).read_text())['metrics']

    trained = evaluate('run', 'trained.json')
    run(f'-m convert {q["run"]} --to mmdet --out {q["trained.pth"]} --force')
    run(f'-m convert {q["trained.pth"]} --out {q["again"]} --force')
    again = evaluate('again', 'again.json')
    files = sorted((out / 'signs' / 'images' / 'val').iterdir())[:PICTURES]
    quoted = ' '.join(shlex.quote(str(file)) for file in files)
    run(f'predict.py {quoted} --ckpt {q["run"]} --out {q["pictures.png"]}')

    print(f'\n{"":24}{"AP":>8}{"AP at 0.5":>12}{"AR":>8}')
    for name, row in {'trained here': trained, 'to mmdet and back': again}.items():
        print(f'{name:24}{row["ap"]:8.3f}{row["ap50"]:12.3f}{row["ar"]:8.3f}')
    if trained != again:
        raise UserError('the results differ')
    if trained['ap50'] < ENOUGH:
        raise UserError(f'training reached less than an AP at 0.5 of {ENOUGH}')
    print(f'the results agree; look at {out / "pictures.png"} and {out / "run" / "curves.png"}')


if __name__ == '__main__':
    cli.run(main)
