"""hrnet-convert SRC --out DIR: a PyTorch HRNet checkpoint to Flax, and back with --to.

`python -m convert` is the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from convert import folders, readers
from convert.conversion import Converted, array, convert, official_names, to_torch
from convert.layouts import LAYOUTS
from hrnet_jax.archs import ARCHS, STRIDE, list_models
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import loading
from hrnet_jax.checkpoints.published import PUBLISHED, Published, find_published
from hrnet_jax.data.preprocess import SUPPORT, Transform
from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli
from hrnet_jax.runtime.files import refuse_existing, replacing
from hrnet_jax.tasks import DEFAULT, get_task, task_of
from hrnet_jax.tasks.flag import add_task

TOLERANCE = 1e-4  # of --verify; float32 rounding gives 1e-6 to 3e-6
FORMATS = ('.pth', '.safetensors')


def parser() -> cli.Parser:
    # What argparse makes of `python -m convert` before Python 3.14 is no command.
    p = cli.Parser(description=__doc__)
    p.prog = 'python -m convert' if p.prog == '__main__.py' else p.prog
    p.add_argument(
        'source',
        metavar='SRC',
        help='.pth, .pth.tar, .safetensors, hf:OWNER/REPO, or a converted folder',
    )
    p.add_argument(
        '--out', required=True, help='folder that receives NAME/; with --to, the file to write'
    )
    p.add_argument(
        '--arch', choices=list_models(), help='refuse the file unless it is this architecture'
    )
    p.add_argument(
        '--name', help='name of the checkpoint; a published one adds its figures and transform'
    )
    p.add_argument(
        '--verify',
        action='store_true',
        help='compare with PyTorch on random images, stage by stage',
    )
    add_task(p)
    p.add_argument('--to', choices=list(LAYOUTS), help='write a PyTorch file in this layout')
    p.add_argument('--weights', choices=['ema', 'raw'], help='with --to, of a training folder')
    p.add_argument('--resize', type=int, help='evaluation: length of the shorter edge')
    p.add_argument('--crop', type=int, help='evaluation: edge of the central square')
    p.add_argument(
        '--interpolation', choices=list(SUPPORT), help='evaluation: filter of the resizing'
    )
    p.add_argument('--class-names', metavar='FILE', help='text file with one class name a line')
    p.add_argument('--force', action='store_true', help='replace what exists')
    return p


def main() -> None:
    args = parser().parse_args()
    if args.to:
        own = ('name', 'verify', 'resize', 'crop', 'interpolation', 'class_names')
        if other := [f'--{k.replace("_", "-")}' for k in own if getattr(args, k)]:
            raise UserError(f'{", ".join(other)} cannot be combined with --to')
        write_torch(args.source, args.to, Path(args.out), args.arch, args.force, args.weights)
    else:
        from_file(args)


def from_file(args: Any) -> None:
    """SRC -> OUT/NAME/."""
    if (Path(args.source) / checkpoint.JSON).is_file():
        raise UserError(
            f'{args.source} is converted already; --to LAYOUT writes a PyTorch file from it'
        )
    known = find_published(args.name, args.source)
    names = _class_names(args.class_names)
    own = {name: getattr(args, name) for name in ('resize', 'crop', 'interpolation')}
    Transform().override(STRIDE, **own)  # mistakes show before the work
    if args.name:
        if Path(args.name).name != args.name or args.name.startswith('.'):
            raise UserError(f'--name {args.name} is not a plain name')
        refuse_existing(Path(args.out) / args.name, args.force, checkpoint.JSON)
    source = readers.read(args.source)
    try:
        done = convert(source.tensors, args.arch)
    except UserError as error:
        raise UserError(f'{args.source}: {error}') from error
    known = _checked(done, known, names, args.name)
    folder = args.name or done.arch.name
    if folder in ARCHS and folder != done.arch.name:
        raise UserError(f'--name {folder} is an architecture; the file holds {done.arch.name}')
    out = Path(args.out) / folder
    refuse_existing(out, args.force, checkpoint.JSON)

    transform = (known.transform if known else Transform()).override(STRIDE, **own)
    task = get_task(args.task or DEFAULT)
    if done.layout not in task.layouts:
        raise UserError(f'{task.name} is not converted from files of the {done.layout} layout')
    meta = folders.describe(source, done, known, transform, names, task.name)
    if args.verify:
        verify(checkpoint.model_of(meta), done, source.tensors)
    checkpoint.save(out, done.variables, meta, args.force)
    for note in (*source.notes, *done.notes):
        print(f'note: {note}')
    figures = ''
    if known:
        top1, top5 = known.results[known.transform]['imagenet2012']
        figures = f', published as {top1} % top-1 and {top5} % top-5'
    elif done.num_classes == 1000:
        near = [name for name, entry in PUBLISHED.items() if entry.arch == done.arch.name]
        if near:
            print(
                f'note: not a published file by its name; if it is one, say --name {"|".join(near)}'
            )
    elif not (args.resize or args.crop or args.interpolation):
        print(
            'note: images are taken to be resized and cropped as for ImageNet, to '
            f'{transform.resize} and {transform.crop} pixels; else say --resize and --crop'
        )
    print(f'{out}: {done.arch.name}, {done.num_classes} classes, {done.layout} layout{figures}')


def verify(model: Any, done: Converted, tensors: Any) -> None:
    """Prints the worst relative difference of each stage.

    Raises:
        UserError: if one is above rounding, or PyTorch is not installed.
    """
    try:
        from convert import reference
    except ModuleNotFoundError:
        raise UserError('--verify needs PyTorch: pip install torch') from None
    state = {key: array(tensors[name]) for key, name in official_names(tensors).items()}
    worst = reference.verify(model, done.variables, state)
    print('worst difference from PyTorch, relative to the largest value:')
    for stage, difference in worst.items():
        print(f'  {stage:8} {difference:.1e}')
    if not all(difference <= TOLERANCE for difference in worst.values()):  # NaN is not
        raise UserError(f'the converted model differs from PyTorch by more than {TOLERANCE}')


def write_torch(
    source: str,
    layout: str,
    out: Path,
    arch: str | None = None,
    force: bool = False,
    weights: str | None = None,
) -> None:
    """A converted or training folder -> a .pth or .safetensors file."""
    folder = loading.find(source, arch)
    if out.suffix not in FORMATS:
        raise UserError(f'--out {out}: the file must end in {" or ".join(FORMATS)}')
    meta = checkpoint.read_json(folder)
    task = task_of(meta)
    if layout not in task.layouts:
        known = f'known: {", ".join(task.layouts)}' if task.layouts else 'it has none'
        raise UserError(f'{folder} is for {task.name}, which has no layout {layout}; {known}')
    model, variables = loading.load(folder, arch, weights=weights)
    state = to_torch(variables, model.arch, layout, head_bias=_head_bias(meta, layout))
    with replacing(out, force) as temporary:
        if out.suffix == '.safetensors':
            from safetensors.numpy import save_file

            save_file(state, temporary, {'format': 'pt'})
            temporary.chmod(0o644)  # the library makes it its owner's alone
        else:
            try:
                import torch
            except ModuleNotFoundError:
                raise UserError(
                    'writing .pth needs PyTorch (pip install torch); .safetensors not'
                ) from None
            torch.save({k: torch.from_numpy(v.copy()) for k, v in state.items()}, temporary)
    print(f'{out}: {len(state)} tensors, {layout} layout, {os.path.getsize(out) / 1e6:.1f} MB')


def _head_bias(meta: dict[str, Any], layout: str) -> bool | None:
    """False for a model whose own implementation has none, so that it loads there strictly."""
    published = PUBLISHED.get((meta.get('published') or {}).get('name', ''))
    source = meta.get('source', {})
    bare = source.get('head_bias') is False and LAYOUTS[source.get('layout', 'official')].head_bias
    return False if bare or (published and not published.head_bias) else None


def _checked(
    done: Converted, known: Published | None, names: list[str] | None, name: str | None
) -> Published | None:
    """`known` if it fits what the file holds."""
    if names is not None and len(names) != done.num_classes:
        raise UserError(
            f'--class-names has {len(names)} names; the file has {done.num_classes} classes'
        )
    if known is None or (known.arch, 1000) == (done.arch.name, done.num_classes):
        return known
    if find_published(name, ''):
        raise UserError(
            f'--name {name} is a published {known.arch} with 1000 classes; the file holds '
            f'{done.arch.name} with {done.num_classes}'
        )
    return None  # a file of another content under a published name


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
