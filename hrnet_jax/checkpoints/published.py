"""The published checkpoints: which file it is, how it was evaluated, what it reached.

The figures are in `published.csv`, top-1 and top-5 in percent. Sources: the model page of
mmpretrain 1.2.0; the results tables and pretrained configurations of timm 1.0.31.
"""

from __future__ import annotations

import csv
import dataclasses
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from hrnet_jax.data.preprocess import Transform

Accuracy = tuple[float, float]  # top-1, top-5


@dataclasses.dataclass(frozen=True)
class Published:
    """One checkpoint.

    Attributes:
        name: what `--name` takes.
        arch: its architecture.
        results: evaluation transform -> data set -> accuracy; the first transform is the default.
        files: the names under which the file is distributed.
        hub: OWNER/REPO on the Hugging Face hub, if it is there.
        head_bias: whether its own implementation has biases before BatchNorm in the head.
    """

    name: str
    arch: str
    results: dict[Transform, dict[str, Accuracy]]
    files: tuple[str, ...] = ()
    hub: str | None = None
    head_bias: bool = True

    @property
    def transform(self) -> Transform:
        return next(iter(self.results))

    def to_json(self) -> dict[str, Any]:
        return {
            'name': self.name,
            'hub': self.hub,
            'results': [
                {'transform': transform.to_json(), 'accuracy': accuracy}
                for transform, accuracy in self.results.items()
            ],
        }


def expected(
    published: dict[str, Any] | None, transform: Transform, dataset: str
) -> Accuracy | None:
    """The figure in a checkpoint's JSON for this transform and data set, if there is one."""
    for entry in (published or {}).get('results', ()):
        if Transform.from_json(entry['transform']) == transform and dataset in entry['accuracy']:
            top1, top5 = entry['accuracy'][dataset]
            return top1, top5
    return None


def find_published(name: str | None, origin: str) -> Published | None:
    """The entry of that name, or else of that file name or hub id (`hf:OWNER/REPO`)."""
    named = (name or '').removeprefix('timm/').removeprefix('hrnet_')
    if named in PUBLISHED:
        return PUBLISHED[named]
    hub = origin.removeprefix('hf:').split('@')[0] if origin.startswith('hf:') else None
    file = PurePosixPath(origin.replace('\\', '/')).name
    for entry in PUBLISHED.values():
        if (hub and hub == entry.hub) or (not hub and file in entry.files):
            return entry
    return None


def _read() -> dict[str, Published]:
    entries: dict[str, Published] = {}
    table = resources.files('hrnet_jax.checkpoints').joinpath('published.csv').read_text()
    for row in csv.DictReader(table.splitlines()):
        transform = Transform(int(row['resize']), int(row['crop']), row['interpolation'])
        cells = {name: row[name].split() for name in list(row)[_FIRST_SET:]}
        accuracy = {name: (float(c[0]), float(c[1])) for name, c in cells.items() if c}
        if row['name'] not in entries:
            entries[row['name']] = Published(
                row['name'],
                row['arch'],
                {},
                tuple(row['files'].split()),
                row['hub'] or None,
                row['head_bias'] == '1',
            )
        entries[row['name']].results[transform] = accuracy
    return entries


_FIRST_SET = 8  # column of published.csv where the data sets begin; a cell is "top-1 top-5"
PUBLISHED = _read()
