"""The flag by which the commands learn of a task of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task, task_of
from hrnet_jax.tasks.base import Task

TEXT = (
    'a task of your own, in a module that Python finds; a checkpoint and a recipe say theirs '
    'without it'
)


def add_task(parser: argparse._ActionsContainer, text: str = TEXT) -> Task | None:
    """The flag --task; the task becomes known at once, because other flags depend on it.

    Returns:
        The task that is named, if one is.

    Raises:
        UserError: if it cannot be imported.
    """
    parser.add_argument('--task', metavar='MODULE:NAME', help=text)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument('--task')
    task = first.parse_known_args()[0].task
    return get_task(task) if task else None


def task_of_checkpoint(asked: str | None, meta: Mapping[str, Any]) -> Task:
    """The task of the checkpoint with this JSON.

    Raises:
        UserError: if the flag names another.
    """
    task = task_of(meta)
    if asked and get_task(asked) is not task:
        raise UserError(f'--task {asked}: the checkpoint is for {task.name}')
    return task
