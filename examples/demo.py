"""The main job on real data, without a download: python examples/demo.py --out demo

Prepares scikit-learn's digit scans as a tfds data set, converts the PyTorch checkpoint beside
this script, evaluates it, compares the count with PyTorch's, and draws predictions.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import digits
from PIL import Image

from hrnet_jax import cli
from hrnet_jax.errors import UserError

HERE = Path(__file__).parent
PICTURES = 12


def run(command: str) -> None:
    """Shows a command of the README's kind, and runs it."""
    print(f'\n$ python {command}', flush=True)
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=HERE.parent)
    if done.returncode:
        raise UserError(f'that command failed with exit code {done.returncode}')


def main() -> None:
    parser = cli.Parser(description='Convert, evaluate and predict on the digit scans.')
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
    q = {name: shlex.quote(str(out / name)) for name in ('tfds', 'converted', 'eval.json')}
    quoted = ' '.join(shlex.quote(str(file)) for file in files)
    run(f'examples/digits.py --data-dir {q["tfds"]}')
    run(f'-m convert examples/tiny_digits.pth --out {q["converted"]} {edge} --verify --force')
    run(
        f'eval.py --arch tiny --ckpt {q["converted"]} --dataset digits --split test '
        f'--data-dir {q["tfds"]} --json {q["eval.json"]}'
    )
    picture = shlex.quote(str(out / 'predictions.png'))
    run(f'predict.py {quoted} --arch tiny --ckpt {q["converted"]} --topk 3 --out {picture}')

    ours = json.loads((out / 'eval.json').read_text())
    torch = json.loads((HERE / 'tiny_digits.json').read_text())
    print(f'\n{"":16}{"correct":>8}{"of":>6}{"accuracy":>11}')
    for name, row in (('PyTorch', torch), ('hrnet_jax', ours)):
        right, total = row['top1_correct'], row['num_examples']
        print(f'{name:16}{right:8}{total:6}{100 * right / total:9.3f} %')
    if any(ours[key] != torch[key] for key in ('top1_correct', 'top5_correct', 'num_examples')):
        raise UserError('the counts differ')
    print(f'the same count; predictions drawn in {out / "predictions.png"}')


if __name__ == '__main__':
    cli.run(main)
