"""Compiled programs kept between runs of the commands."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import jax

LIMIT = 2 * 2**30  # bytes; then the programs unused for longest go


def keep() -> None:
    """Turns JAX's persistent compilation cache on, in the user's cache folder.

    Where JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE is set, that holds. Several
    processes on CPUs compile anew: their programs are bound to the run.
    """
    settings = jax.config.values
    chosen = settings['jax_compilation_cache_dir'] or not settings['jax_enable_compilation_cache']
    cpu = jax.default_backend() == 'cpu'
    if chosen or (cpu and jax.process_count() > 1):
        return
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'hrnet_jax' / 'xla'
    if cpu:  # A home folder may be shared by machines with other instructions.
        cache /= hashlib.sha256(_processor().encode()).hexdigest()[:16]
    jax.config.update('jax_compilation_cache_dir', str(cache))
    if importlib.util.find_spec('filelock'):  # which JAX needs to evict
        jax.config.update('jax_compilation_cache_max_size', LIMIT)


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return ' '.join(os.uname()[::4]) if hasattr(os, 'uname') else ''
    return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags'))}))
