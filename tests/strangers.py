"""All that reads files of strangers: whole files, how they are changed, and what reads them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutants
import strangers_data as data
import strangers_weights as weights


@dataclasses.dataclass(frozen=True)
class Stranger:
    """A kind of file.

    Attributes:
        make: writes whole files into a folder and returns their names.
        mutate: (bytes, random numbers) -> bytes.
        read: of the path of a changed file; what it returns does not matter.
        count: inputs of `make test-faults`.
        refusals: the errors beside UserError that all who call it turn into one.
    """

    make: Callable[[Path], list[str]]
    mutate: Callable[..., bytes]
    read: Callable[[Path], Any]
    count: int
    refusals: Callable[[], tuple[type[Exception], ...]] = tuple


STRANGERS = {
    'pth': Stranger(
        functools.partial(weights.torch, 'zip'), mutants.of_zip, weights.tensors, 15_000
    ),
    'legacy': Stranger(
        functools.partial(weights.torch, 'legacy'), mutants.of_legacy, weights.tensors, 15_000
    ),
    'safetensors': Stranger(
        functools.partial(weights.torch, 'safetensors'),
        mutants.of_safetensors,
        weights.tensors,
        15_000,
    ),
    'network': Stranger(weights.network, mutants.of_json, weights.convert, 1_000),
    'checkpoint': Stranger(weights.checkpoint, weights.signed_json, weights.described, 5_000),
    'arrays': Stranger(weights.arrays, mutants.of_json_or_bytes, weights.loaded, 500),
    'run': Stranger(weights.run, weights.run_json, weights.read_run, 5_000),
    'beside': Stranger(weights.beside, mutants.of_json, weights.told, 8_000),
    'images of a classifier': Stranger(
        data.images, mutants.of_png, data.classified, 15_000, data.tf_errors
    ),
    'images': Stranger(data.images, mutants.of_png, data.seen, 15_000),
    'label maps': Stranger(data.labels, mutants.of_png, data.label_map, 10_000),
    'objects': Stranger(data.objects, mutants.of_json, data.marked, 5_000),
    'people': Stranger(data.people, mutants.of_json, data.annotated, 5_000),
    'boxes': Stranger(data.detector, mutants.of_json, data.boxes, 10_000),
    'mpii': Stranger(data.mpii, mutants.of_json_or_bytes, data.measured, 5_000),
    'lists': Stranger(data.lists, mutants.of_text, data.listed, 10_000),
    'records': Stranger(
        data.records, mutants.of_bytes, data.recorded, 5_000, lambda: (OSError, ValueError)
    ),
}
