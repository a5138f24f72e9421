"""What lies where in a training folder.

config.json         architecture, data and recipe, as resolved at the start
checkpoints/STEP/   raw/, ema/ (where averaged) and rest/ (optimiser): Orbax trees; meta/: a JSON
                    as of a converted checkpoint, with a digest of each array
damaged/STEP/       checkpoints that could not be read, put aside
metrics.jsonl       one line an interval, an evaluation, an event
tensorboard/, curves.png, profile/
"""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = 'config.json'
CHECKPOINTS = 'checkpoints'
DAMAGED = 'damaged'
META = 'meta/metadata'  # where Orbax puts the JSON item 'meta'
METRICS = 'metrics.jsonl'


def is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / CHECKPOINTS).is_dir()


def steps(workdir: Path) -> list[int]:
    """The steps of which there is a whole checkpoint, in order."""
    found = (workdir / CHECKPOINTS).glob(f'*/{META}')
    return sorted(int(p.parts[-3]) for p in found if p.parts[-3].isdecimal())


def evaluations(workdir: Path) -> dict[int, float]:
    """Step -> top-1 in percent, of the evaluations before the newest readable checkpoint."""
    for step in reversed(steps(workdir)):
        try:
            meta = json.loads((workdir / CHECKPOINTS / str(step) / META).read_text())
            return {int(k): v for k, v in meta['training']['top1'].items()}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `format.read_json` says what is wrong with it
    return {}


def best(among: list[int], top1: dict[int, float]) -> int | None:
    """The step of the highest accuracy, the later of equals; None where none was evaluated."""
    return max((s for s in among if s in top1), key=lambda s: (top1[s], s), default=None)
