"""Flags that several commands have."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from hrnet_jax.archs import get_arch, list_models
from hrnet_jax.errors import UserError
from hrnet_jax.runtime.cli import Parser
from hrnet_jax.tasks import get_task, names
from hrnet_jax.tasks.base import Task
from hrnet_jax.tasks.flag import add_task


def add_checkpoint(parser: Parser) -> None:
    """The flags that say which checkpoint: arguments of `loading.find` and `load`."""
    add_arch(parser, 'which checkpoint to take, if DIR holds several')
    parser.add_argument(
        '--ckpt',
        required=True,
        metavar='DIR',
        help='a converted checkpoint, or the folder that holds it; or a training folder, or a step '
        'in it; or hf:OWNER/REPO of the Hugging Face hub',
    )
    parser.add_argument(
        '--weights',
        choices=['ema', 'raw'],
        help='a training folder or a repository may have both: the averaged weights (ema) and '
        'those of the step (raw) (default: ema if there are any)',
    )
    add_task(parser)


def add_arch(parser: Parser, text: str, required: bool = False) -> None:
    """The flag --arch: a name of the table of architectures."""
    text += f'; one of {", ".join(list_models())}'
    parser.add_argument('--arch', type=_arch, metavar='ARCH', required=required, help=text)


def _arch(name: str) -> str:
    try:
        return get_arch(name).name
    except UserError as error:  # of which argparse would not print the text
        raise argparse.ArgumentTypeError(str(error)) from None


def every_task() -> list[Task]:
    """Those that evaluate and predict."""
    return [task for task in map(get_task, names()) if task.figures]


def add_protocols(parser: Parser, tasks: Iterable[Task], method: str = 'add_flags') -> list[str]:
    """The flags of how images are prepared, which this method of a protocol adds; returns the names
    of their values."""
    users: dict[Any, list[str]] = {}
    for task in tasks:
        users.setdefault(task.protocol, []).append(task.name)
    return [
        name
        for protocol, titles in users.items()
        for name in _add(parser, f'images: {", ".join(titles)}', getattr(protocol, method))
    ]


def add_predictions(parser: Parser, tasks: Iterable[Task]) -> list[str]:
    """The flags of what is named and drawn; returns the names of their values."""
    return [name for task in tasks for name in _add(parser, task.name, task.add_prediction_flags)]


def add_evaluations(parser: Parser, tasks: Iterable[Task]) -> list[str]:
    """The flags of what an evaluation writes beside its figures; returns the names of their
    values."""
    return [name for task in tasks for name in _add(parser, task.name, task.add_evaluation_flags)]


def add_data(parser: Parser, tasks: Iterable[Task]) -> list[str]:
    """The flags of what is read; returns the names of their values."""
    return [name for task in tasks for name in _add(parser, task.name, task.add_data_flags)]


def given_to(
    args: argparse.Namespace, flags: Iterable[str], task: Task, add: Callable[[Any], None]
) -> dict[str, Any]:
    """The values of those flags that are on the command line; raises UserError for one that the
    task's `add` does not add."""
    own = argparse.ArgumentParser(add_help=False)
    add(own)
    values = given(args, flags)
    for name in values.keys() - {action.dest for action in own._actions}:
        raise UserError(f'--{name.replace("_", "-")} is not for {task.name}')
    return values


def refuse_others(parser: Parser, own: Task) -> None:
    """Where a flag is given that another task alone has, one line names that task."""
    for task in every_task():
        flags: Any = argparse.ArgumentParser(add_help=False)
        task.protocol.add_flags(flags)
        task.add_prediction_flags(flags)
        said = f'is for {task.name}; the checkpoint is for {own.name}'
        for flag in flags._option_string_actions.keys() - parser._option_string_actions.keys():
            parser.add_argument(
                flag, action=_Refused, const=said, nargs='*', help=argparse.SUPPRESS
            )


class _Refused(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.error(f'{self.option_strings[0]} {self.const}')


def given(args: argparse.Namespace, flags: Iterable[str]) -> dict[str, Any]:
    """The values of those flags that are on the command line."""
    return {name: getattr(args, name) for name in flags if getattr(args, name) is not None}


def _add(parser: Parser, title: str, add: Callable[[Any], None]) -> list[str]:
    """Adds flags in a group of their own; one that another task has, too, means the same."""
    own = argparse.ArgumentParser(add_help=False)
    add(own)
    if not own._actions:
        return []
    group = parser.add_argument_group(title)
    for action in own._actions:
        known = parser._option_string_actions.get(action.option_strings[0])
        if known is None:
            group._add_action(action)
        elif (type(known), known.type, known.nargs) != (type(action), action.type, action.nargs):
            raise UserError(f'{title}: {action.option_strings[0]} is another flag already')
    return [action.dest for action in own._actions]
