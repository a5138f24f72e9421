"""The flag by which the commands learn of a task of one's own."""

from __future__ import annotations

import argparse

from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.base import Task


def add_task(parser: argparse.ArgumentParser) -> Task | None:
    """The flag --task; the task becomes known at once, because other flags depend on it.

    Returns:
        The task that is named, if one is.

    Raises:
        UserError: if it cannot be imported.
    """
    parser.add_argument(
        '--task',
        metavar='MODULE:NAME',
        help="a task of your own, in a module that Python finds; hrnet_jax's own need no flag",
    )
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument('--task')
    task = first.parse_known_args()[0].task
    return get_task(task) if task else None
