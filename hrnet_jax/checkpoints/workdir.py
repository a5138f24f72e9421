"""What lies where in a training folder.

config.json         architecture, data and recipe, as resolved at the start
checkpoints/STEP/   raw/, ema/ (where averaged) and rest/ (optimiser): Orbax trees; meta/: a JSON
                    as of a converted checkpoint, with a digest of each array
damaged/STEP/       checkpoints that could not be read, put aside
metrics.jsonl       one line an interval, an evaluation, an event
tensorboard/, curves.png, profile/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hrnet_jax.checkpoints import description
from hrnet_jax.errors import UserError
from hrnet_jax.runtime.files import read_json

CONFIG = 'config.json'
CHECKPOINTS = 'checkpoints'
DAMAGED = 'damaged'
META = 'meta/metadata'  # where Orbax puts the JSON item 'meta'
METRICS = 'metrics.jsonl'
FIELDS = ('arrays', 'ema', 'rest', 'training')  # of that JSON


def is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / CHECKPOINTS).is_dir()


def steps(workdir: Path) -> list[int]:
    """The steps of which there is a whole checkpoint, in order."""
    return [x for x in folders(workdir) if (workdir / CHECKPOINTS / str(x) / META).exists()]


def folders(workdir: Path) -> list[int]:
    """The steps of which there is a folder, in order."""
    found = (workdir / CHECKPOINTS).glob('*/')
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def recipe(workdir: Path) -> dict[str, Any]:
    """The recipe in config.json; empty where there is none, none that can be read, or no
    checkpoint that was made by it."""
    if not steps(workdir):
        return {}
    try:
        return dict(read_json(workdir / CONFIG)['recipe'])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def described(workdir: Path) -> dict[str, Any]:
    """The JSON of the newest checkpoint where that can be read; empty where there is none."""
    for step in reversed(steps(workdir)):
        try:
            return description.read(workdir / CHECKPOINTS / str(step) / META, FIELDS)
        except UserError:
            continue  # who reads the checkpoint will hear
    return {}


def evaluations(workdir: Path) -> dict[int, float]:
    """Step -> score, of the evaluations before the newest readable checkpoint; higher is better."""
    meta = described(workdir)
    return scores(meta['training']) if meta else {}


def scores(training: dict[str, Any]) -> dict[int, float]:
    """Step -> score, from a checkpoint's JSON; the first release named it after what it was."""
    found = training.get('scores', training.get('top1', {}))
    return {int(step): value for step, value in found.items()}


def best(among: list[int], scores: dict[int, float]) -> int | None:
    """The step of the highest score, the later of equals; None where none was evaluated."""
    return max((s for s in among if s in scores), key=lambda s: (scores[s], s), default=None)
