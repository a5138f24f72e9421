"""The published checkpoints: which file it is, how it was evaluated, what it reached.

`published.csv` has a line a checkpoint, `results.csv` one a figure, in percent, but for AP, AR and
PCKh, which are from 0 to 1. Where a detector found the people, the file of its boxes is in the name
of the split: 'val2017 with FILE'. Sources: the model page of mmpretrain 1.2.0; the results tables
and pretrained configurations of timm 1.0.31; the model pages of mmsegmentation 1.2.2, of mmpose
1.3.2 and of mmdetection 3.3.0; the README of deep-high-resolution-net.pytorch; that of
HRNet-Semantic-Segmentation, whose figures on LIP are of stretched images, which no protocol here
says, and whose windows are padded at the borders, where ours are moved back inside.

Of the 86 rows of mmpose 28 are left out: 7 of networks that this program does not have (associative
embedding, CID, DEKR), 2 with other outputs than heatmaps of the set's keypoints (UDP with offsets;
COCO and AIC combined), and 19 of sets whose keypoints are not in `keypoint_sets.csv` (PoseTrack18,
AnimalKingdom, DeepFashion, ExLPose). Of the 28 of mmdetection the 15 of Mask R-CNN, Cascade R-CNN
and HTC are left out; `details` has the schedule of the others.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from hrnet_jax.data.protocol import Protocol
from hrnet_jax.tasks import DEFAULT, get_task, task_of

Accuracy = dict[str, float]  # `Figure.name` -> value


@dataclasses.dataclass(frozen=True)
class Published:
    """One checkpoint.

    Attributes:
        name: what `--name` takes.
        arch: its architecture; num_classes: the length of its output.
        results: evaluation transform -> data set -> split -> accuracy; the first transform is the
            default.
        files: the names under which the file is distributed.
        hub: OWNER/REPO on the Hugging Face hub, if it is there.
        head_bias: whether its own implementation has biases before BatchNorm in the head.
        task: what it is for; head: the kind of its head.
        dataset: whose classes it has, where its task names them; of pose the protocol does.
        details: what is true of it that its file does not show.
    """

    name: str
    arch: str
    num_classes: int
    results: dict[Any, dict[str, dict[str, Accuracy]]]
    files: tuple[str, ...] = ()
    hub: str | None = None
    head_bias: bool = True
    task: str = DEFAULT
    head: str = 'classifier'
    dataset: str = ''
    details: frozenset[str] = frozenset()

    @property
    def transform(self) -> Any:
        """None where it has no figure."""
        return next(iter(self.results), None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Those that a checkpoint must say; ImageNet's go without saying."""
        return get_task(self.task).class_names(self.dataset) if self.dataset else None

    def fits(self, arch: str, num_classes: int | None, head: str) -> bool:
        """Whether a file of this content may be it."""
        return (self.arch, self.num_classes, self.head) == (arch, num_classes, head)

    def to_json(self) -> dict[str, Any]:
        return {
            'name': self.name,
            'hub': self.hub,
            'results': [
                {'transform': transform.to_json(), 'accuracy': accuracy}
                for transform, accuracy in self.results.items()
            ],
        }


def expected(meta: Mapping[str, Any], transform: Protocol, dataset: str, split: str) -> Accuracy:
    """The figures in a checkpoint's JSON for this transform and split; those that there are."""
    for entry in (meta.get('published') or {}).get('results', ()):
        known = type(transform).from_json(entry['transform'])
        if known == transform and (held := entry['accuracy'].get(dataset)):
            if isinstance(held, list):  # of the first release: all figures, of the usual split
                names = [figure.name for figure in task_of(meta).figures]
                return dict(zip(names, held, strict=False))
            return held.get(re.split(r'[\[+]', split)[0], {})
    return {}


def find_published(name: str | None, origin: str) -> Published | None:
    """The entry of that name, or else of that file name or hub id (`hf:OWNER/REPO`)."""
    named = (name or '').removeprefix('timm/')
    known = all_published()
    for spelling in (named, named.removeprefix('hrnet_')):
        if spelling in known:
            return known[spelling]
    hub = origin.removeprefix('hf:').split('@')[0] if origin.startswith('hf:') else None
    file = PurePosixPath(origin.replace('\\', '/')).name
    for entry in known.values():
        if (hub and hub == entry.hub) or (not hub and file in entry.files):
            return entry
    return None


@functools.cache
def all_published() -> dict[str, Published]:
    """Name -> entry; read when it is first asked for."""
    entries = {
        row['name']: Published(
            row['name'],
            row['arch'],
            int(row['classes']),
            {},
            tuple(row['files'].split()),
            row['hub'] or None,
            row['head_bias'] == '1',
            row['task'],
            row['head'],
            row['dataset'],
            frozenset(row['details'].split()),
        )
        for row in _rows('published.csv')
    }
    for row in _rows('results.csv'):
        entry = entries[row['checkpoint']]
        protocol = get_task(entry.task).protocol.from_text(row['protocol'])
        splits = entry.results.setdefault(protocol, {}).setdefault(row['dataset'], {})
        values = splits.setdefault(row['split'], {})
        if row['metric'] in values:  # from another source
            where = ', '.join(row[name] for name in ('checkpoint', 'protocol', 'dataset', 'split'))
            raise ValueError(f'results.csv: two figures for {row["metric"]} of {where}')
        values[row['metric']] = float(row['value'])
    return entries


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = resources.files('hrnet_jax.checkpoints').joinpath(name).read_text()
    return csv.DictReader(text.splitlines())
