"""The JSON beside a file that holds a model's arrays alone: PyTorch's, or an exported program.

FILE.json    what checkpoint.json says of the model: task, architecture, class names in order,
             transform, source; the step of a training run; FILE's sha256
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from hrnet_jax.checkpoints.format import of_the_model
from hrnet_jax.errors import listed
from hrnet_jax.runtime.files import read_json, replacing
from hrnet_jax.tasks import task_of


def place(file: Path) -> Path:
    """Where the JSON of a file is."""
    return Path(f'{file}.json')


def write(
    stack: contextlib.ExitStack,
    file: Path,
    written: Path,
    meta: dict[str, Any],
    force: bool,
    **more: Any,
) -> None:
    """The JSON of `file`, in its place when `stack` ends without an error.

    Args:
        written: where the content of `file` is now.
        meta: the JSON of the checkpoint.
        **more: other fields.
    """
    with written.open('rb') as opened:
        sha256 = hashlib.file_digest(opened, 'sha256').hexdigest()
    content = {'file': file.name, 'sha256': sha256, **more, **step_of(meta), **of_the_model(meta)}
    temporary = stack.enter_context(replacing(place(file), force))
    temporary.write_text(json.dumps(content, indent=1) + '\n')


def digest(file: Path) -> str | None:
    """The sha256 that the JSON beside a file says, if there is one of this program."""
    said = parsed(place(file)).get('sha256')
    return said if isinstance(said, str) else None


def read(file: Path, sha256: str) -> tuple[dict[str, Any] | None, str | None]:
    """What lies beside a file with this digest, if anything does; a remark if it cannot be used."""
    beside = place(file)
    if not beside.is_file():
        return None, None
    content = parsed(beside)
    if digest(file) is None:
        return None, f'nothing is taken from {beside.name}: it is not of this program'
    if content['sha256'] != sha256:
        return None, f'nothing is taken from {beside.name}: {file.name} has changed since'
    return content, None


def parsed(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is none."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def step_of(meta: dict[str, Any]) -> dict[str, int]:
    """{'step': its number} of a checkpoint in a training folder."""
    return {'step': meta['training']['step']} if 'training' in meta else {}


def lines(meta: dict[str, Any], weights: str | None) -> list[str]:
    """For the user: which step of a run was taken, and the order of the classes."""
    said = []
    if step := step_of(meta):
        averaged = bool(meta.get('ema')) and weights != 'raw'
        said.append(f'step {step["step"]} of the run{", averaged weights" * averaged}')
    if count := meta.get('num_classes'):
        task = task_of(meta)
        names = task.output_names(meta)
        order = f'in this order: {listed(names)}' if names else 'without names'
        said.append(f'{count} {task.outputs}, {order}')
    return said
