"""Joining many hosts into one JAX run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pickle
import re
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from hrnet_jax.errors import Unavailable, UserError
from hrnet_jax.runtime import launchers


def start(args: argparse.Namespace) -> None:
    """Calls `jax.distributed.initialize` when asked to or when the environment is a cluster's.

    Raises:
        UserError: if the flags are incomplete or the other processes cannot be reached.
    """
    flags = (args.coordinator, args.num_processes, args.process_id)
    asked = [flag is not None for flag in flags]
    if any(asked) and not all(asked):
        raise UserError('--coordinator, --num-processes and --process-id belong together')
    on_tpu = not any(asked) and _may_be_tpu()
    cluster = not all(asked) and launchers.found()
    if not all(asked) and not cluster and not on_tpu:
        return
    if all(asked) and not re.fullmatch(r'\S+:\d+', args.coordinator):
        raise UserError(f'--coordinator {args.coordinator} is not HOST:PORT')
    try:
        jax.distributed.initialize(*(flags if all(asked) else ()))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX would catch it and go on
    except (RuntimeError, ValueError) as error:
        if on_tpu and not cluster and isinstance(error, ValueError):
            return  # libtpu is installed, but this is no TPU VM
        line = str(error).splitlines()[0]
        raise Unavailable(f'cannot join the other processes: {line}') from error


def _may_be_tpu() -> bool:
    """Whether to ask JAX, which asks the metadata server of Cloud TPU VMs for the other hosts."""
    platforms = (
        os.environ.get('JAX_PLATFORMS') or getattr(jax.config, 'jax_platforms', None) or 'tpu'
    )
    return 'tpu' in platforms and importlib.util.find_spec('libtpu') is not None


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """A step that all processes take: where it fails in one, it fails in all.

    Without it the others would wait in their next collective for a process that has stopped.
    """
    if alone():
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    state = 2 if isinstance(failure, Stopped) else int(failure is not None)
    states = multihost_utils.process_allgather(np.array([state], np.int32)).ravel()
    if failure:
        raise failure
    if (states == 1).any():
        processes = ', '.join(map(str, np.flatnonzero(states == 1)))
        raise UserError(f'stopped: process {processes} failed, and says why')
    if states.any():
        raise Stopped


class Stopped(Exception):
    """A process was asked to stop; raised in `fail_together` in one, it comes out of it in all."""


def all_max(number: int) -> int:
    """The largest of the numbers that the processes have."""
    if alone():
        return number
    return int(multihost_utils.process_allgather(np.array([number], np.int32)).max())


def broadcast(number: int) -> int:
    """Process 0's number, below 2^31."""
    if alone():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def broadcast_object(value: Any) -> Any:
    """Process 0's object, pickled; what the others give is not looked at."""
    if alone():
        return value
    with fail_together():
        data = np.frombuffer(pickle.dumps(value) if is_main() else b'', np.uint8)
    size = broadcast(len(data))
    data = data if is_main() else np.zeros(size, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


def require_same(**values: Any) -> None:
    """Raises UserError in every process unless all have the same values: numbers below 2^31, or
    others with the same repr."""
    if alone():
        return
    numbers = [x if type(x) is int else zlib.crc32(repr(x).encode()) >> 1 for x in values.values()]
    rows = multihost_utils.process_allgather(np.array(numbers, np.int32))
    columns = np.reshape(rows, (-1, len(values))).T
    for (name, own), each in zip(values.items(), columns, strict=True):
        if len(set(each.tolist())) > 1:
            found = ', '.join(map(str, each)) if type(own) is int else f'here {own!r:.100}'
            raise UserError(f'the processes differ in {name.replace("_", " ")}: {found}')
