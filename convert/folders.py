"""The checkpoint folder of a converted file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from convert import readers
from convert.conversion import Converted, convert
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints.published import Published, find_published
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError
from hrnet_jax.models import create_model
from hrnet_jax.tasks import DEFAULT
from hrnet_jax.version import __version__

log = logging.getLogger('hrnet_jax')


def describe(
    source: readers.Source,
    done: Converted,
    known: Published | None,
    transform: Transform,
    class_names: list[str] | None,
    task: str = DEFAULT,
) -> dict[str, Any]:
    """The JSON of the checkpoint: see `hrnet_jax.checkpoint`. A classifier's file does not show
    whether one class is right or several: `task` says it."""
    model = create_model(done.arch, done.num_classes, in_channels=done.in_channels)
    return {
        **checkpoint.describe(model, task),
        'hrnet_jax': __version__,
        'transform': transform.to_json(),
        'published': known.to_json() if known else None,
        'class_names': class_names,
        'source': {
            'file': source.path.name,
            'origin': source.origin if source.origin.startswith('hf:') else source.path.name,
            'sha256': source.sha256,
            'container': source.container,
            'layout': done.layout,
            'head_bias': done.head_bias,
        },
    }


def write(origin: str, folder: Path, offline: bool = False) -> None:
    """Converts a file, or `hf:OWNER/REPO`, to a folder, as the command does without flags.

    `offline`: a file of the hub is looked for in the cache alone.

    Raises:
        UserError: if it cannot be read, or is no HRNet.
    """
    source = readers.read(origin, offline)
    try:
        done = convert(source.tensors)
    except UserError as error:
        raise UserError(f'{origin}: {error}') from error
    for note in (*source.notes, *done.notes):
        log.info('%s: %s', origin, note)
    known = find_published(None, origin)
    if known and (known.arch, 1000) != (done.arch.name, done.num_classes):
        known = None  # a file of another content under a published name
    transform = known.transform if known else Transform()
    checkpoint.save(folder, done.variables, describe(source, done, known, transform, None))
