"""Converts a PyTorch HRNet checkpoint to Flax, and back.

    python -m convert FILE --out DIR                   writes DIR/NAME/, a checkpoint of hrnet_jax
    python -m convert DIR/NAME --to timm --out FILE    writes a PyTorch file, and FILE.json

Installed, the command is hrnet-convert.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, get_args

from convert import files, folders
from convert.conversion import Converted, official
from convert.heads import KINDS
from hrnet_jax.archs import ARCHS, STRIDE
from hrnet_jax.checkpoints import beside, workdir
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints.published import all_published
from hrnet_jax.commands.arguments import add_arch, add_protocols, every_task, given
from hrnet_jax.errors import UserError
from hrnet_jax.heads.hrfpn import Pooling
from hrnet_jax.runtime import cli
from hrnet_jax.runtime.buckets import joined, output
from hrnet_jax.runtime.files import refuse_existing
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.flag import add_task, task_of_checkpoint
from hrnet_jax.upsampling import Upsample
from hrnet_jax.weights import loading

_HIDDEN = ('upsample', 'align_corners', 'pooling')  # fields that no file shows
_LAYOUTS = {layout.name: None for kind in KINDS for layout in kind.layouts}
_TO_FLAX = (
    *('name', 'prefix', 'backbone', 'ignore_digest', 'inplace_abn', 'verify', 'class_names'),
    *_HIDDEN,
)
_SHOWN = 6  # names in a note
TOLERANCE = 1e-4  # of --verify; float32 rounding gives 1e-6 to 3e-6


def parser() -> tuple[cli.Parser, list[str]]:
    """And which of its flags say how images are prepared."""
    # What argparse makes of `python -m convert` before Python 3.14 is no command.
    p = cli.Parser(description=__doc__)
    p.prog = 'python -m convert' if p.prog == '__main__.py' else p.prog
    p.add_argument(
        'source',
        metavar='SRC',
        help='PyTorch file (.pth, .pth.tar, .safetensors), or hf:OWNER/REPO of the Hugging Face '
        'hub; with --to: a converted checkpoint, a training folder, or a step in one',
    )
    p.add_argument(
        '--out',
        required=True,
        metavar='PATH',
        help='folder in which the folder NAME is made; with --to: the file to write, which ends '
        f'in {" or ".join(files.FORMATS)}',
    )
    add_arch(
        p,
        'refuse SRC if it is another architecture; with --to: which checkpoint to take, if SRC '
        'holds several',
    )
    p.add_argument(
        '--weights',
        choices=['ema', 'raw'],
        help='SRC may have both: the averaged weights (ema) and those of the last step (raw) '
        '(default: ema if there are any)',
    )
    p.add_argument('--force', action='store_true', help='replace what is there')
    g = p.add_argument_group('to Flax')
    g.add_argument(
        '--name',
        help='name of the folder that is made (default: the architecture). The name of a published '
        'checkpoint, such as w18 or w18.ms_in1k, adds its accuracy and its transform of images',
    )
    g.add_argument(
        '--prefix',
        metavar='P',
        help='if SRC holds several networks: take the one whose names begin with P',
    )
    g.add_argument(
        '--backbone',
        action='store_true',
        help='convert only the trunk, which gives maps; SRC may have any head or decoder, or none; '
        'of a detector with HRFPN the pyramid, too',
    )
    g.add_argument(
        '--upsample',
        choices=get_args(Upsample),
        help='how the fusion upsamples: nearest (classification, pose, detection), bilinear '
        '(official segmentation) or bilinear_two_step (mmsegmentation) (default: as networks with '
        'these names of tensors have it; of a backbone: nearest)',
    )
    g.add_argument(
        '--align-corners',
        action=argparse.BooleanOptionalAction,
        help="PyTorch's flag of that name, for the bilinear ways (default: as it is published; "
        'else yes for official files with OCR, no for others)',
    )
    g.add_argument(
        '--pooling',
        choices=get_args(Pooling),
        help='how the pyramid of a detector makes its coarser maps (default: average, as in all '
        'published ones)',
    )
    g.add_argument(
        '--inplace-abn',
        action=argparse.BooleanOptionalAction,
        help='the file is of a network with InPlaceABN, whose norms scale by |weight| + 1e-5: '
        'official segmentation of PyTorch 0.4 (default: as the name of the file says)',
    )
    g.add_argument(
        '--ignore-digest',
        action='store_true',
        help='take SRC even if it has another hash than its published name says, or than the JSON '
        'that this program wrote beside it',
    )
    g.add_argument(
        '--verify',
        action='store_true',
        help='run the PyTorch model, too, and compare the two on random images, stage by stage; '
        'needs PyTorch',
    )
    add_task(
        g,
        'what the network is for: another task of hrnet_jax, such as multilabel, or one of your '
        'own (default: as in the JSON beside SRC; else what its layers are for)',
    )
    numbers: dict[str, Any] = {'type': float, 'nargs': 3, 'metavar': ('R', 'G', 'B')}
    g.add_argument(
        '--mean',
        **numbers,
        help='what was subtracted from the pixels, from 0 to 1 (default: as of the published '
        'checkpoint, or as in the JSON beside SRC; else that of ImageNet)',
    )
    g.add_argument('--std', **numbers, help='what they were then divided by (default: likewise)')
    g.add_argument(
        '--class-names',
        metavar='FILE',
        help='text file: the name of class 0 in the first line, of class 1 in the second, ... '
        '(default: those of the JSON beside SRC, if there is one; else those in SRC)',
    )
    images = ['mean', 'std', *add_protocols(p, every_task(), 'add_file_flags')]
    g = p.add_argument_group('back to PyTorch')
    g.add_argument(
        '--to',
        choices=list(_LAYOUTS),
        help='write a PyTorch file whose tensors have the names of this implementation',
    )
    return p, images


def main() -> None:
    flags, images = parser()
    args = flags.parse_args()
    if not args.to:
        from_file(args, given(args, images))
        return
    _apart(args, '--to', *_TO_FLAX, *images)
    to_file(args)


def _apart(args: Any, flag: str, *others: str) -> None:
    """Raises UserError where one of the others is given, too."""
    if other := [f'--{name.replace("_", "-")}' for name in others if getattr(args, name)]:
        raise UserError(f'{", ".join(other)} cannot be combined with {flag}')


def from_file(args: Any, own: dict[str, Any]) -> None:
    """SRC -> OUT/NAME/; `own`: fields of the protocol."""
    source = Path(args.source)
    ours = any((source / name).is_file() for name in (checkpoint.JSON, workdir.META))
    if ours or workdir.is_run(source):
        raise UserError(
            f'{args.source} is converted already; --to LAYOUT writes a PyTorch file from it'
        )
    names = _class_names(args.class_names)
    hidden = given(args, _HIDDEN)
    if args.backbone:
        _apart(args, '--backbone', 'task', 'class_names')
    check_images(own)
    if args.name:
        if Path(args.name).name != args.name or args.name.startswith('.'):
            raise UserError(f'--name {args.name} is not a plain name')
        refuse_existing(joined(args.out, args.name), args.force, checkpoint.JSON)
    file = folders.read(
        args.source,
        args.arch,
        args.name,
        weights=args.weights,
        prefix=args.prefix,
        check_digest=not args.ignore_digest,
        backbone=args.backbone,
        inplace_abn=args.inplace_abn,
    )
    done, known, task = file.done, file.known, file.task(args.task)
    if other := hidden.keys() - done.fields.keys():
        flag = min(other).replace('_', '-')
        raise UserError(f'--{flag} is not for a {done.kind.title}')
    if names is not None and task.outputs != 'classes':
        raise UserError(f'--class-names is not for {task.name}, which has {task.outputs}')
    if names is not None and len(names) != done.num_classes:
        raise UserError(
            f'--class-names has {len(names)} names; the file has {done.num_classes} classes'
        )
    folder = args.name or done.arch.name
    if folder in ARCHS and folder != done.arch.name:
        raise UserError(f'--name {folder} is an architecture; the file holds {done.arch.name}')
    out = joined(args.out, folder)
    refuse_existing(out, args.force, checkpoint.JSON)

    transform, taken = file.protocol(task, STRIDE, names, **own)
    meta = folders.describe(file, transform, names, args.task, **hidden)
    if args.verify:
        verify(checkpoint.model_of(meta), done, file.source.tensors)
    checkpoint.save(out, done.variables, meta, args.force)
    guesses = *file.doubts(hidden), *_published(file, own | hidden), *taken
    for note in (*file.notes, *guesses):
        print(f'note: {note}')
    for line in beside.lines(meta, None) if meta['class_names'] else ():
        print(line)
    if args.backbone:
        maps = [f'{part.channels} (stride {part.stride})' for part in done.model.feature_info]
        print(f'{out}: the backbone of {done.arch.name}; channels of its maps: {", ".join(maps)}')
        return
    layout = ' or '.join(file.layouts)
    figures = ''
    if known and known.results:
        dataset, splits = next(iter(known.results[known.transform].items()))
        values = next(iter(splits.values()))
        said = [figure for figure in get_task(known.task).figures if figure.name in values]
        reached = [f'{values[x.name]} {x.unit} {x.label}'.replace('  ', ' ') for x in said]
        figures = f', published as {" and ".join(reached)} on {dataset}' * bool(reached)
    label = f'{done.kind.label}, ' * bool(done.kind.label)
    count = f'{done.num_classes} {task.outputs}'
    print(f'{out}: {done.arch.name}, {label}{count}, {layout} layout{figures}')


def check_images(own: dict[str, Any]) -> None:
    """Raises UserError for mistakes that show before the file is read."""
    for protocol in dict.fromkeys(task.protocol for task in every_task()):
        if own.keys() <= {field.name for field in dataclasses.fields(protocol)}:  # type: ignore[arg-type]
            protocol().override(STRIDE, **own)


def _published(file: folders.File, given: dict[str, Any]) -> list[str]:
    """The remark that it may be a published file."""
    content = file.done.arch.name, file.done.num_classes, file.done.kind.name
    fit = [p.name for p in all_published().values() if p.fits(*content)]
    if file.transform or given or not fit:
        return []
    names = '|'.join(fit[:_SHOWN]) + '|...' * (len(fit) > _SHOWN)
    return [f'not a published file by its name; if it is one, say --name {names}']


def verify(model: Any, done: Converted, tensors: Any) -> None:
    """Prints the worst relative difference of each stage.

    Raises:
        UserError: if one is above rounding, or PyTorch is not installed.
    """
    try:
        from convert import verification
    except ModuleNotFoundError:
        raise UserError('--verify needs PyTorch: pip install torch') from None
    print('compiling the network to verify it; it can take a minute ...', flush=True)
    worst = verification.verify(model, done.variables, official(done, tensors))
    print('worst difference from PyTorch, relative to the largest value:')
    for stage, difference in worst.items():
        print(f'  {stage:8} {difference:.1e}')
    if not all(difference <= TOLERANCE for difference in worst.values()):  # NaN is not
        raise UserError(f'the converted model differs from PyTorch by more than {TOLERANCE}')


def to_file(args: Any) -> None:
    """A converted or training folder -> a .pth or .safetensors file, and JSON beside it."""
    folder, meta = loading.described(args.source, args.arch, args.weights)
    task_of_checkpoint(args.task, meta)
    with output(args.out, args.force) as out:
        file = files.Written(out, args.to, meta, args.force)
        written = file.write(*loading.load(folder, args.arch, weights=args.weights))
    for line in beside.lines(meta, args.weights):
        print(line)
    print(written.replace(str(out), args.out))


def _class_names(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        return Path(file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'cannot read --class-names {file}: {error}') from None


def entry() -> None:
    cli.run(main)


if __name__ == '__main__':
    entry()
