"""What the demonstrations of segmentation and pose share: a tiny network is trained with train.py,
evaluated, written for another program and converted back."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from demo import run

from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli

Result = dict[str, Any]  # of eval.py --json


def folder(task: str) -> Path:
    """Where all is made, as the command line says."""
    parser = cli.Parser(description=f'Train, evaluate and convert a network for {task}.')
    parser.add_argument('--out', default=f'demo_{task}', help='folder for all that is made')
    return Path(parser.parse_args().out).absolute()


def there_and_back(out: Path, pictures: str, layout: str, training: str) -> tuple[Result, Result]:
    """The results of the trained network, and of the same network after its way to `layout` and
    back. The pictures are those of examples/{pictures}.py; `training` has flags of train.py."""
    names = (pictures, 'run', 'trained.pth', 'again', 'run.json', 'again.json')
    q = {name: shlex.quote(str(out / name)) for name in names}
    for name in (pictures, 'run'):
        shutil.rmtree(out / name, ignore_errors=True)
    run(f'examples/{pictures}.py --out {q[pictures]}')
    data = f'--dataset folder:{q[pictures]}'
    run(
        f'train.py --arch tiny {data} --split train --eval-split val --workdir {q["run"]} '
        f'{training}'
    )

    def evaluate(name: str) -> Result:
        run(f'eval.py --ckpt {q[name]} {data} --split val --json {q[f"{name}.json"]}')
        return json.loads((out / f'{name}.json').read_text())

    trained = evaluate('run')
    run(f'-m convert {q["run"]} --to {layout} --out {q["trained.pth"]} --force')
    run(f'-m convert {q["trained.pth"]} --out {q["again"]} --force')
    return trained, evaluate('again')


def draw(out: Path, files: Iterable[Path], flags: str = '') -> None:
    """What the trained network finds in the files."""
    quoted = ' '.join(shlex.quote(str(file)) for file in files)
    picture = shlex.quote(str(out / 'pictures.png'))
    run(f'predict.py {quoted} --ckpt {shlex.quote(str(out / "run"))} {flags} --out {picture}')


def conclude(
    out: Path, layout: str, pair: tuple[Result, Result], titles: Mapping[str, str], enough: float
) -> None:
    """Prints a table of both results.

    Args:
        titles: metrics -> titles of their columns.
        enough: least value of the first metric.

    Raises:
        UserError: if the results differ, or if the training did not reach `enough`.
    """
    print('\n' + ' ' * 24 + ''.join(f'{title:>14}' for title in titles.values()))
    for name, result in zip(('trained here', f'to {layout} and back'), pair, strict=True):
        print(f'{name:24}' + ''.join(f'{result["metrics"][metric]:14.3f}' for metric in titles))
    trained, again = ({k: x.get(k) for k in ('metrics', 'confusion')} for x in pair)
    if trained != again:
        raise UserError('the results differ')
    first = next(iter(titles))
    if trained['metrics'][first] < enough:
        raise UserError(f'training reached less than {enough:g} of {titles[first]}')
    print(f'the results agree; look at {out / "pictures.png"} and {out / "run" / "curves.png"}')
