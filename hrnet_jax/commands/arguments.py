"""Flags that several commands have."""

from __future__ import annotations

import argparse

from hrnet_jax import tasks
from hrnet_jax.archs import list_models
from hrnet_jax.runtime.cli import Parser


def add_checkpoint(parser: Parser) -> None:
    """The flags that say which checkpoint: arguments of `loading.find` and `load`."""
    parser.add_argument('--arch', choices=list_models(), help='which checkpoint in DIR')
    parser.add_argument(
        '--ckpt',
        required=True,
        metavar='DIR',
        help='converted checkpoint, or the folder of it; or a training folder, or a step in '
        'it; or hf:OWNER/REPO',
    )
    parser.add_argument(
        '--weights',
        choices=['ema', 'raw'],
        help='of a training folder; None: ema if it has them',
    )
    add_task(parser)


def add_task(parser: Parser) -> None:
    """The flag --task; the task becomes known at once, because other flags depend on it.

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
    if task:
        tasks.get_task(task)
