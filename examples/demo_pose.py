"""Pose from pictures to a file for mmpose, without a download.

    python examples/demo_pose.py --out demo_pose

Makes pictures of figures with known joints (examples/figures.py), trains a small network on them
from nothing with train.py, evaluates it, exports it to mmpose's layout, converts that back, and
compares the two results. predict.py draws the keypoints that it finds in held-out pictures.
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
ENOUGH = 0.7  # AP of the held-out figures
TRAINING = (
    '--head joined --input-size 128 96 --batch-size 16 --base-batch 16 --bn-group-size 16 '
    '--learning-rate 3e-3 --rotation 15 --scale 0.15 --shift 0 --half-body 0 --epochs 12 '
    '--eval-every 4 --dtype float32'
)


def main() -> None:
    parser = cli.Parser(description='Train, evaluate and convert a pose network.')
    parser.add_argument('--out', default='demo_pose', help='folder for all that is made')
    out = Path(parser.parse_args().out).absolute()
    names = ('figures', 'run', 'trained.pth', 'again', 'trained.json', 'again.json')
    q = {name: shlex.quote(str(out / name)) for name in (*names, 'boxes.json', 'pictures.png')}
    for name in ('figures', 'run'):
        shutil.rmtree(out / name, ignore_errors=True)
    run(f'examples/figures.py --out {q["figures"]}')
    data = f'--dataset folder:{q["figures"]}'
    run(
        f'train.py --arch tiny --recipe pose {data} --split train --eval-split val '
        f'--workdir {q["run"]} {TRAINING}'
    )

    def evaluate(folder: str, result: str) -> dict:
        run(f'eval.py --ckpt {q[folder]} {data} --split val --json {q[result]}')
        return json.loads((out / result).read_text())['metrics']

    trained = evaluate('run', 'trained.json')
    run(f'-m convert {q["run"]} --to mmpose --out {q["trained.pth"]} --force')
    run(f'-m convert {q["trained.pth"]} --out {q["again"]} --force')
    again = evaluate('again', 'again.json')
    content = json.loads((out / 'figures' / 'val.json').read_text())
    names = {image['id']: image['file_name'] for image in content['images'][:PICTURES]}
    boxes: dict[str, list] = {name: [] for name in names.values()}
    for person in content['annotations']:
        if person['image_id'] in names:
            boxes[names[person['image_id']]].append(person['bbox'])
    (out / 'boxes.json').write_text(json.dumps(boxes))
    files = ' '.join(shlex.quote(str(out / 'figures' / 'images' / 'val' / name)) for name in boxes)
    run(f'predict.py {files} --ckpt {q["run"]} --boxes {q["boxes.json"]} --out {q["pictures.png"]}')

    print(f'\n{"":24}{"AP":>8}{"AP at 0.5":>12}{"AR":>8}')
    for name, row in {'trained here': trained, 'to mmpose and back': again}.items():
        print(f'{name:24}{row["ap"]:8.3f}{row["ap50"]:12.3f}{row["ar"]:8.3f}')
    if trained != again:
        raise UserError('the results differ')
    if trained['ap'] < ENOUGH:
        raise UserError(f'training reached less than an AP of {ENOUGH}')
    print(f'the results agree; look at {out / "pictures.png"} and {out / "run" / "curves.png"}')


if __name__ == '__main__':
    cli.run(main)
