"""Compiled programs kept between runs of the commands."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
from pathlib import Path
from typing import Any

import jax

from hrnet_jax.errors import UserError
from hrnet_jax.runtime.files import cache_folder

LIMIT = 2 * 2**30  # bytes; then the programs unused for longest go
VARIABLES = ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE')


def enable_cache() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    Not where one of JAX's own `VARIABLES` is set, where that folder cannot be written, without the
    package filelock (JAX evicts nothing without it), nor for several processes on CPUs, whose
    programs are bound to the run.

    Raises:
        UserError: if JAX has no device, as with JAX_PLATFORMS=cuda and no GPU.
    """
    try:
        cpu = jax.default_backend() == 'cpu'
    except (RuntimeError, AssertionError) as error:  # the latter has no message
        asked = os.environ.get('JAX_PLATFORMS')
        where = f' for JAX_PLATFORMS={asked}' if asked else ''
        raise UserError(f'JAX finds no device{where}: {error}'.rstrip(': ')) from None
    if any(name in os.environ for name in VARIABLES) or not importlib.util.find_spec('filelock'):
        return
    if cpu and jax.process_count() > 1:
        return
    try:
        cache = cache_folder() / 'xla'
        if cpu:  # A home folder may be shared by machines with other instructions.
            cache /= hashlib.sha256(_processor().encode()).hexdigest()[:16]
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # nowhere to keep them: no reason to stop
        return
    if not os.access(cache, os.W_OK):
        return
    jax.config.update('jax_compilation_cache_dir', str(cache))
    if 'JAX_COMPILATION_CACHE_MAX_SIZE' not in os.environ:
        jax.config.update('jax_compilation_cache_max_size', LIMIT)


def known_options(options: dict[str, Any]) -> dict[str, Any] | None:
    """Those of XLA's options that this release knows; None if it knows none."""

    def known(options: dict[str, Any]) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:  # releases of XLA differ in their options
            return False
        return True

    if known(options):
        return options
    return {name: value for name, value in options.items() if known({name: value})} or None


def cores() -> int:
    """That this process may use."""
    known = hasattr(os, 'sched_getaffinity')
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _processor() -> str:
    """What tells processors with other instructions apart."""
    kinds = ('model name', 'flags', 'Features', 'CPU implementer', 'CPU part')
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    found = sorted({line for line in lines if line.startswith(kinds)})
    return '\n'.join((platform.system(), platform.machine(), platform.processor(), *found))
