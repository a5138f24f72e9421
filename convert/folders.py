"""The checkpoint folder of a converted file."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from convert import readers, timm
from convert.conversion import Converted, convert
from convert.heads import BACKBONE, KINDS
from hrnet_jax.checkpoints import beside
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints.hub_files import PREFIX, NoFile, download, parse
from hrnet_jax.checkpoints.published import Published, find_published
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError
from hrnet_jax.heads.hrfpn import Pooling
from hrnet_jax.tasks import DEFAULT, get_task, task_of
from hrnet_jax.tasks.base import Task
from hrnet_jax.upsampling import Upsample
from hrnet_jax.version import __version__

log = logging.getLogger('hrnet_jax')


@dataclasses.dataclass(frozen=True)
class File:
    """A PyTorch file, and all that is known of it.

    Attributes:
        source, done: its tensors; what they turned out to hold.
        known: the published checkpoint that it is.
        told: what the JSON beside it says, as the JSON of a checkpoint would.
        notes: one-line remarks for the user.
    """

    source: readers.Source
    done: Converted
    known: Published | None
    told: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def layouts(self) -> list[str]:
        """Those that it may have: official and timm have the same names."""
        if 'layout' in self.told:
            return [self.told['layout']]
        network = self.done.network
        layouts = network.kind.layouts if network.kind else (network.layout,)
        return [layout.name for layout in layouts if layout.rules == network.layout.rules]

    @property
    def transform(self) -> Any:
        """Of the evaluation; None if nothing says it. What this program has written of this very
        file comes first."""
        said = self.told.get('transform')
        if self.known and not (said and 'sha256' in self.told):
            return self.known.transform
        return self.task().protocol.from_json(said) if said else None

    def protocol(
        self, task: Task, multiple: int = 1, names: Sequence[str] | None = None, **flags: Any
    ) -> tuple[Protocol, list[str]]:
        """Its `transform` with these flags, or else a guess; and what is taken for granted.

        Args:
            names: of the classes, where they are not those that the file says.
        """
        if self.transform:
            return self.transform.override(multiple, **flags), []
        said = self.source.meta.get('dataset_meta')
        meta = said if isinstance(said, Mapping) else {'classes': self.source.meta.get('CLASSES')}
        meta = meta if names is None else {**meta, 'classes': names}
        return task.protocol_of_file(self.done.model, meta, multiple, **flags)

    def task(self, asked: str | None = None) -> Task:
        """What it is for: as `asked`, or as what lies beside the file says, or as is usual."""
        known = self.known.task if self.known else self.done.model.task
        return get_task(asked) if asked else task_of({'task': known} | self.told)

    @property
    def fields(self) -> dict[str, Any]:
        """Those of the model that no file shows, if the published table or what lies beside the
        file says them."""
        own = {name: self.told[name] for name in self.done.fields if name in self.told}
        if self.known and 'align_corners' in self.done.fields and not own:
            own = {'align_corners': 'align_corners' in self.known.details}
        return own

    def doubts(self, given: Collection[str] = ()) -> list[str]:
        """What is taken for granted of the fields that no file shows, but for those `given`."""
        field, text = self.done.network.layout.doubt or ('', '')
        # One map alone is of a network for pose, which upsamples by nearest.
        one = getattr(self.done.model, 'outputs', 4) == 1
        return [text] if text and field not in {*given, *self.fields} and not one else []


def read(
    origin: str,
    arch: str | None = None,
    name: str | None = None,
    offline: bool = False,
    weights: str | None = None,
    prefix: str | None = None,
    check_digest: bool = True,
    backbone: bool | None = False,
    inplace_abn: bool | None = None,
) -> File:
    """A file, or `hf:OWNER/REPO`, and what lies beside it.

    Args:
        arch: refused unless it is this architecture.
        name: of a published checkpoint, which it must fit; or another.
        offline: a file of the hub is looked for in the cache alone.
        weights, prefix, backbone, inplace_abn: see `convert.from_torch`.
        check_digest: see `readers.read`.

    Raises:
        UserError: if it cannot be read, or is no HRNet.
    """
    source = readers.read(origin, offline, weights, check_digest)
    try:
        if inplace_abn is None:
            inplace_abn = readers.is_inplace_abn(source, name)
        done = convert(
            source.tensors, arch, prefix=prefix, weights=weights, backbone=backbone,
            inplace_abn=inplace_abn,
        )  # fmt: skip
        readers.require_weights(weights, source.weights or done.weights)
    except UserError as error:
        raise UserError(f'{origin}: {error}') from error
    told, notes = _told(source, done, offline)
    known = find_published(name, origin)
    known = known or find_published((told.get('published') or {}).get('name'), '')
    if done.kind is BACKBONE:  # a published checkpoint is more than its backbone
        known = None
    if known and not known.fits(done.arch.name, done.num_classes, done.kind.name):
        if find_published(name, ''):
            raise UserError(
                f'--name {name} is a published {known.head} {known.arch} with {known.num_classes} '
                f'{get_task(known.task).outputs}; the file holds {done.kind.name} '
                f'{done.arch.name} with {done.num_classes}'
            )
        known = None  # a file of another content under a published name
    if not known and done.num_classes and 'class_names' not in told:
        told, notes = _named(source.meta, done, told, notes)
    return File(source, done, known, told, (*source.notes, *done.notes, *notes))


def _named(
    meta: Mapping[str, Any], done: Converted, told: dict[str, Any], notes: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """With the class names that OpenMMLab writes into a file; and a remark."""
    inner = meta.get('dataset_meta')
    names = inner.get('classes') if isinstance(inner, Mapping) else meta.get('CLASSES')
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return told, notes
    if len(names) != done.num_classes:
        return told, [*notes, f'the file has {len(names)} class names, which are not taken']
    return told | {'class_names': list(names)}, [*notes, 'class names: taken from the file']


def describe(
    file: File,
    transform: Protocol | None = None,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The JSON of the checkpoint: see `hrnet_jax.checkpoint`. A classifier's file does not show
    whether one class is right or several: `task`, or what lies beside the file, says it.

    Args:
        **options: fields of the model that no file shows, such as how it upsamples.

    Raises:
        UserError: if the task is not converted from such files.
    """
    source, done = file.source, file.done
    found = file.task(task)
    if done.kind.name not in found.heads:
        raise UserError(f'{found.name} is not converted from files of a {done.kind.title}')
    if transform is None:
        transform = file.protocol(found, names=class_names)[0]
    transform.check_outputs(done.num_classes)
    names = file.told.get('class_names') if class_names is None else list(class_names)
    if names is None:
        names = file.known.class_names if file.known else found.usual_names(transform)
    return {
        **checkpoint.describe(done.model.clone(**file.fields | options), found),
        'hrnet_jax': __version__,
        'transform': transform.to_json(),
        'published': file.known.to_json() if file.known else None,
        'class_names': names,
        'source': {
            'file': source.path.name,
            'origin': source.origin if source.origin.startswith(PREFIX) else source.path.name,
            'sha256': source.sha256,
            'container': source.container,
            'layout': file.layouts[0],
            'head_bias': done.head_bias,
            'prefix': done.network.prefix,
            'weights': source.weights or done.weights,
        },
    }


def write(origin: str, folder: Path, offline: bool = False, weights: str | None = None) -> None:
    """Converts a file, or `hf:OWNER/REPO`, to a folder, as the command does without flags.

    Args: see `read`.

    Raises:
        UserError: if it cannot be read, or is no HRNet.
    """
    file = read(origin, offline=offline, weights=weights)
    for note in (*file.notes, *file.doubts()):
        log.info('%s: %s', origin, note)
    checkpoint.save(folder, file.done.variables, describe(file))


def _told(
    source: readers.Source, done: Converted, offline: bool
) -> tuple[dict[str, Any], list[str]]:
    """What the JSON beside a file says, if it fits: ours, or else timm's; and remarks."""
    content, remark = beside.read(source.path, source.sha256)
    notes = [remark] if remark else []
    if content and (wrong := _misfit(content, done)):
        return {}, [f'nothing is taken from {beside.place(source.path).name}: {wrong}']
    if content:
        content = _of_use(content, done)
        return content, [f'{_taken(content)}: taken from {beside.place(source.path).name}']
    config = beside.parsed(_config(source, offline))
    model = timm.model_of(config)
    if model is None:
        return {}, notes
    arch, classes = model
    of_other_classes = classes is not None and done.num_classes not in (None, classes)
    if arch != done.arch.name or of_other_classes:
        return {}, [*notes, f'nothing is taken from {timm.CONFIG}: it is of another model']
    told, more = timm.told(config)
    told = _of_use(told, done)
    names = told.get('class_names')
    if names and len(names) != done.num_classes:
        del told['class_names']
        more.append(f'{timm.CONFIG} has {len(names)} class names, which are not taken')
    return told, [*notes, *more, f'{_taken(told)}: taken from {timm.CONFIG}']


def _of_use(told: dict[str, Any], done: Converted) -> dict[str, Any]:
    """Of a backbone alone only how images are prepared."""
    if done.kind is not BACKBONE:
        return told
    kept = {name: told[name] for name in ('layout', *done.fields) if name in told}
    protocol = get_task(done.model.task).protocol
    known = protocol().to_json()
    if transform := {k: v for k, v in (told.get('transform') or {}).items() if k in known}:
        kept['transform'] = transform
    return kept


def _misfit(content: dict[str, Any], done: Converted) -> str | None:
    """What cannot be right in the JSON beside a file."""
    transform = content.get('transform')
    layouts = {layout.name for kind in KINDS for layout in kind.layouts}
    names, published = content.get('class_names'), content.get('published') or {}
    fits = {
        'task': isinstance(content.get('task', DEFAULT), str),
        'layout': content.get('layout') in list(layouts),
        'class_names': names is None
        or (isinstance(names, list) and all(isinstance(name, str) for name in names)),
        'published': isinstance(published, dict) and isinstance(published.get('name', ''), str),
        'transform': transform is None or isinstance(transform, dict),
        'upsample': content.get('upsample', 'nearest') in get_args(Upsample),
        'align_corners': isinstance(content.get('align_corners', False), bool),
        'pooling': content.get('pooling', 'average') in get_args(Pooling),
    }
    if wrong := [field for field, fit in fits.items() if not fit]:
        return f'{wrong[0]} is {content.get(wrong[0])!r:.60}'
    if names and done.num_classes not in (None, len(names)):
        return f'it has {len(names)} class names, the file has {done.num_classes} classes'
    try:
        if transform:
            task_of(content).protocol.from_json(transform).check_outputs(done.num_classes)
    except (UserError, TypeError) as error:
        return str(error)
    return None


def _taken(told: dict[str, Any]) -> str:
    fields = {'task': 'task', 'class_names': 'class names', 'transform': 'transform'}
    found = [said for field, said in fields.items() if told.get(field)]
    return ', '.join([*found, 'layout'])


def _config(source: readers.Source, offline: bool) -> Path:
    """timm's JSON, of the same commit where the file is of the hub."""
    local = source.path.with_name(timm.CONFIG)
    if source.origin.startswith(PREFIX) and not local.is_file():
        commit = f'{PREFIX}{parse(source.origin)[0]}@{source.path.parent.name}'
        try:
            return download(commit, (timm.CONFIG,), offline)
        except NoFile:
            pass
        except UserError as error:
            raise UserError(f'{source.origin} {error}') from error
    return local
