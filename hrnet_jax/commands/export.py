"""python -m hrnet_jax.export --arch A --ckpt DIR --out FILE: see `hrnet_jax.inference.export`."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import jax
import numpy as np

from hrnet_jax.checkpoints import beside
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.commands.arguments import add_checkpoint
from hrnet_jax.errors import UserError
from hrnet_jax.inference import export
from hrnet_jax.runtime import cli, compilation
from hrnet_jax.runtime.files import refuse_existing, refuse_unwritable, replacing
from hrnet_jax.tasks.flag import task_of_checkpoint
from hrnet_jax.weights import loading


def parser() -> cli.Parser:
    p = cli.Parser(prog='python -m hrnet_jax.export', description=export.__doc__)
    add_checkpoint(p)
    p.add_argument(
        '--out',
        required=True,
        metavar='FILE',
        help='the file to write; FILE.json, beside it, describes it',
    )
    p.add_argument(
        '--batch', default='dynamic', metavar='N', help='images in a call; dynamic: any number'
    )
    p.add_argument(
        '--image-size',
        type=int,
        nargs='+',
        metavar='N',
        help='edge of the images, or height and width; multiples of 32 (default: those of the '
        'checkpoint)',
    )
    p.add_argument(
        '--platforms',
        metavar='P,P',
        help=f'where the program will run: one or several of {", ".join(export.PLATFORMS)}, with a '
        'comma between (default: as this machine). For one kind it has the form that is fastest '
        'there',
    )
    p.add_argument(
        '--preprocess',
        action='store_true',
        help='the program takes uint8 images, which you have resized and cropped, and normalises '
        'them',
    )
    p.add_argument(
        '--weights-beside', action='store_true', help='write the weights to FILE.npz, not into FILE'
    )
    p.add_argument('--force', action='store_true', help='replace what is there')
    return p


def main() -> None:
    args = parser().parse_args()
    if importlib.util.find_spec('flatbuffers') is None:
        raise UserError('flatbuffers is missing: pip install flatbuffers')
    if args.batch != 'dynamic' and not (args.batch.isdecimal() and int(args.batch)):
        raise UserError(f'--batch {args.batch} is neither a number above 0 nor dynamic')
    batch = None if args.batch == 'dynamic' else int(args.batch)
    platforms = export.known_platforms(
        args.platforms.split(',') if args.platforms is not None else None
    )
    out, weights_file = Path(args.out), Path(f'{args.out}.npz')
    described_in = beside.place(out)
    for path in (out, described_in, weights_file)[: 2 + args.weights_beside]:
        refuse_unwritable(path)
        refuse_existing(path, args.force)
    folder, meta = loading.described(args.ckpt, args.arch, args.weights)
    transform = task_of_checkpoint(args.task, meta).protocol.from_json(meta.get('transform'))
    given = args.image_size
    size = transform.image_size if given is None else (given[0], given[-1])
    if size is None or len(given or ()) > 2:
        raise UserError('--image-size is needed: one number, or height and width')
    try:  # now, not after the model is loaded
        export.check_size(checkpoint.model_of(meta), *size)
        transform = transform.at_size(*size) if given else transform
    except UserError as error:
        flag = f'--image-size {" ".join(map(str, given))}' if given else f'{folder}'
        raise UserError(f'{flag}: {error}') from None
    compilation.enable_cache()
    model, variables = loading.load(folder, args.arch, weights=args.weights)
    fast = export.fold_for(model, variables, platforms)
    program = export.export(
        fast.model,
        fast.variables,
        image_size=size,
        batch=batch,
        platforms=platforms,
        transform=transform if args.preprocess else None,
        weights_beside=args.weights_beside,
    )
    with contextlib.ExitStack() as stack:
        stored = None
        if args.weights_beside:
            stored = stack.enter_context(replacing(weights_file, args.force))
            with open(stored, 'wb') as file:  # NumPy would add an ending to a name
                np.savez(file, **export.flat_weights(fast.variables))
        temporary = stack.enter_context(replacing(out, args.force))
        temporary.write_bytes(program.serialize())
        result = export.check(temporary, stored, model, variables, transform)
        said = {
            'images': program.in_avals[-1].str_short(),
            'outputs': [aval.str_short() for aval in program.out_avals],
            'platforms': platforms,
            'normalised_inside': args.preprocess,
            'jax': jax.__version__,
        }
        described = meta | {'transform': transform.to_json()}
        beside.write(stack, out, temporary, described, args.force, **said)
    name = checkpoint.arch_name(meta) or type(model).__name__
    print(
        f'{out}: {name}, {said["images"]} -> {", ".join(said["outputs"])}, for '
        f'{", ".join(platforms)}, {out.stat().st_size / 1e6:.1f} MB; beside it {described_in.name}'
    )
    promise = (
        f'written by JAX {jax.__version__}; JAX promises to read it for 6 months, in newer releases'
    )
    for line in (*beside.lines(meta, args.weights), result, promise):
        print(line)


def entry() -> None:
    cli.run(main)
