"""The main job on real data, without a download: python examples/demo.py --out demo

Prepares scikit-learn's digit scans as a tfds data set, converts the PyTorch checkpoint beside
this script, evaluates it, compares the count with PyTorch's, and draws predictions. Then it trains
the same network from nothing with train.py, exports the result to PyTorch's layout, converts that
back, and compares the counts.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import digits
from PIL import Image

from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli

HERE = Path(__file__).parent
PICTURES = 12
ENOUGH = 98.0  # percent of the held-out scans, after training


def run(command: str) -> None:
    """Shows a command of the README's kind, and runs it."""
    print(f'\n$ python {command}', flush=True)
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=HERE.parent)
    if done.returncode:
        raise UserError(f'that command failed with exit code {done.returncode}')


def main() -> None:
    parser = cli.Parser(description='Convert, evaluate, predict and train on the digit scans.')
    parser.add_argument('--out', default='demo', help='folder for everything that is made')
    out = Path(parser.parse_args().out).absolute()
    images = out / 'scans'
    images.mkdir(parents=True, exist_ok=True)
    scans, labels = digits.scans()['test']
    files = []
    for i in range(PICTURES):
        files.append(images / f'test_{i:04d}_is_{labels[i]}.png')
        Image.fromarray(scans[i][..., 0]).save(files[-1])

    edge = f'--resize {digits.TRANSFORM.resize} --crop {digits.TRANSFORM.crop}'
    names = ('tfds', 'converted', 'eval.json', 'run', 'trained.pth', 'again', 'trained.json')
    q = {name: shlex.quote(str(out / name)) for name in (*names, 'again.json')}
    quoted = ' '.join(shlex.quote(str(file)) for file in files)
    run(f'examples/digits.py --data-dir {q["tfds"]}')
    run(f'-m convert examples/tiny_digits.pth --out {q["converted"]} {edge} --verify --force')

    def evaluate(folder: str, result: str) -> dict:
        run(
            f'eval.py --arch tiny --ckpt {folder} --dataset digits --split test '
            f'--data-dir {q["tfds"]} --json {q[result]}'
        )
        return json.loads((out / result).read_text())

    ours = evaluate(q['converted'], 'eval.json')
    picture = shlex.quote(str(out / 'predictions.png'))
    run(f'predict.py {quoted} --arch tiny --ckpt {q["converted"]} --topk 3 --out {picture}')

    shutil.rmtree(out / 'run', ignore_errors=True)
    run(
        f'train.py --arch tiny --recipe digits --data-dir {q["tfds"]} --workdir {q["run"]} '
        '--log-every 10'
    )
    run(f'-m convert {q["run"]} --to official --out {q["trained.pth"]} --force')
    run(f'-m convert {q["trained.pth"]} --out {q["again"]} {edge} --force')
    trained = evaluate(q['run'], 'trained.json')
    again = evaluate(q['again'], 'again.json')

    torch = json.loads((HERE / 'tiny_digits.json').read_text())
    print(f'\n{"":20}{"correct":>8}{"of":>6}{"accuracy":>11}')
    rows = {
        'PyTorch': torch,
        'hrnet_jax': ours,
        'trained here': trained,
        'to PyTorch and back': again,
    }
    for name, row in rows.items():
        right, total = row['top1_correct'], row['num_examples']
        print(f'{name:20}{right:8}{total:6}{100 * right / total:9.3f} %')
    counts = ('top1_correct', 'top5_correct', 'num_examples')
    for a, b in ((ours, torch), (again, trained)):
        if any(a[key] != b[key] for key in counts):
            raise UserError('the counts differ')
    if trained['top1'] < ENOUGH:
        raise UserError(f'training reached less than {ENOUGH} %')
    print(f'both pairs agree; look at {out / "predictions.png"} and {out / "run" / "curves.png"}')


if __name__ == '__main__':
    cli.run(main)
