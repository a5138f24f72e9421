"""Flags that several commands have."""

from __future__ import annotations

from hrnet_jax.archs import list_models
from hrnet_jax.runtime.cli import Parser
from hrnet_jax.tasks.flag import add_task


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
