"""What the commands share: one-line errors, exit code 2, quiet logs, a progress bar."""

from __future__ import annotations

import argparse
import difflib
import errno
import gc
import io
import logging
import os
import platform
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any, NoReturn, TypeVar

from hrnet_jax.errors import UserError
from hrnet_jax.version import __version__

T = TypeVar('T')
_LONGEST = 8000  # characters of a message
# Module -> what to install for it.
PACKAGES = {
    'PIL': 'pillow',
    'pycocotools': 'pycocotools',
    'matplotlib': 'matplotlib',
    'safetensors': 'safetensors',
    'torch': 'torch',
    'optax': 'optax',
    'cv2': '"opencv-python-headless<5"',
    'grain': 'grain',
    'wandb': 'wandb',
    'tensorflow': 'tensorflow',
    'tensorflow_datasets': 'tensorflow-datasets importlib_resources',
}


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        others = (f'{name} {metadata.version(name)}' for name in ('jax', 'flax'))
        print(f'hrnet_jax {__version__} ({", ".join(others)}, Python {platform.python_version()})')
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with defaults in its help and one line for each mistake."""

    def __init__(self, **kwargs: Any):
        super().__init__(formatter_class=_Help, allow_abbrev=False, **kwargs)
        self.add_argument('--version', action=_Version, nargs=0, help='print versions and exit')

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does, with the names that are near."""
        choices = [] if action.choices is None else list(map(str, action.choices))
        near = [] if value in choices else difflib.get_close_matches(str(value), choices)
        if near:
            known = f'perhaps {" or ".join(near)}; known: {", ".join(choices)}'
            raise argparse.ArgumentError(action, f'invalid choice: {value!r}; {known}')
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r'unrecognized arguments: (--[\w-]+)', message)
        if unknown and (near := difflib.get_close_matches(unknown[1], self._option_string_actions)):
            message += f'; perhaps {" or ".join(near)}'
        self.exit(2, f'{self.prog}: error: {message}; see {self.prog} --help\n')

    def add_hosts(self) -> None:
        """The flags of `distributed.start`."""
        group = self.add_argument_group(
            'many hosts', 'found by themselves on TPU pods, Slurm and Open MPI'
        )
        group.add_argument('--coordinator', metavar='HOST:PORT', help='address of process 0')
        group.add_argument('--num-processes', type=int, help='how many processes there are')
        group.add_argument('--process-id', type=int, help='which of them this is, from 0')


def run(main: Callable[[], None]) -> NoReturn:
    """Calls `main` and exits: 0, 2 for a user's mistake (75 for none), 130 when interrupted."""
    prepare()
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        unread = error.errno == errno.EPIPE and _output_is_unread()
        if not unread and error.errno != errno.ENOSPC:
            raise
        try:
            if sys.stdout:
                sys.stdout.flush()
        except OSError:  # what it still holds would fail once more at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if unread:  # of `| head`: the rest is not wanted
            raise SystemExit(1) from None
        print(f'error: {error.strerror}', file=sys.stderr)
        raise SystemExit(2) from None
    except UserError as error:
        message = ' '.join(str(error).split())[:_LONGEST]  # a file may have any names
        print(f'error: {message}', file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except ModuleNotFoundError as error:
        module = (error.name or '').split('.')[0]
        if module not in PACKAGES:
            raise
        print(f'error: {module} is missing: pip install {PACKAGES[module]}', file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0)


def _output_is_unread() -> bool:
    """Whether standard output is a pipe whose reader has ended."""
    if not sys.stdout:
        return False
    poll = select.poll()
    poll.register(sys.stdout, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def prepare() -> None:
    """What every process of a command begins with."""
    quiet()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files and classes may be no Unicode
            stream.reconfigure(errors='backslashreplace')
    # Imports and tracing make millions of objects that stay alive. The search for garbage among
    # them took a quarter of the time, so it is done less often.
    gc.set_threshold(100_000, 50, 50)


def quiet() -> None:
    """Silences the chatter of TensorFlow, OpenCV, absl and Orbax; exceptions still show."""
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    # After a failed write, Orbax and asyncio report every array; `run` reports the error once.
    for name in ('absl', 'asyncio', 'orbax', 'jax', 'tensorflow', 'etils'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings('ignore', module='orbax')
    shown = sys.unraisablehook

    def hook(event: Any) -> None:
        # TensorStore reports to Orbax's event loop after an error has closed it.
        if 'Event loop is closed' not in str(event.exc_value):
            shown(event)

    sys.unraisablehook = hook


def progress(items: Iterable[T], **kwargs: Any) -> Iterable[T]:
    """A tqdm bar over `items`; nothing when stderr is not a terminal or tqdm is missing."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    return tqdm(items, disable=None if sys.stderr else True, leave=False, **kwargs)
