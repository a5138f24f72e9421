"""python -m hrnet_jax.export --arch A --ckpt DIR --out FILE: see `hrnet_jax.inference.export`."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import numpy as np

from hrnet_jax.archs import STRIDE
from hrnet_jax.checkpoints import loading
from hrnet_jax.checkpoints.format import read_json
from hrnet_jax.commands.arguments import add_checkpoint
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError
from hrnet_jax.inference import export
from hrnet_jax.runtime import cli, compilation
from hrnet_jax.runtime.files import refuse_existing, refuse_unwritable, replacing


def parser() -> cli.Parser:
    p = cli.Parser(prog='python -m hrnet_jax.export', description=export.__doc__)
    add_checkpoint(p)
    p.add_argument('--out', required=True, metavar='FILE', help='the file to write')
    p.add_argument('--batch', default='dynamic', metavar='N', help='images a call, or dynamic')
    p.add_argument(
        '--image-size', type=int, metavar='N', help="edge of the images; None: the checkpoint's"
    )
    p.add_argument(
        '--platforms',
        metavar='P,P',
        help=f"of {', '.join(export.PLATFORMS)}; None: this machine's. For one kind it is in that "
        "kind's fastest form",
    )
    p.add_argument(
        '--preprocess',
        action='store_true',
        help='take uint8 images, resized and cropped, and normalise them inside',
    )
    p.add_argument('--weights-beside', action='store_true', help='write the weights to FILE.npz')
    p.add_argument('--force', action='store_true', help='replace what exists')
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
    out, beside = Path(args.out), Path(f'{args.out}.npz')
    for path in (out, beside)[: 1 + args.weights_beside]:
        refuse_unwritable(path)
        refuse_existing(path, args.force)
    folder = loading.find(args.ckpt, args.arch)
    meta = read_json(folder)
    transform = Transform.from_json(meta['transform']).override(STRIDE, crop=args.image_size)
    compilation.enable_cache()
    model, variables = loading.load(folder, args.arch, weights=args.weights)
    fast = export.fold_for(model, variables, platforms)
    program = export.export(
        fast.model,
        fast.variables,
        image_size=transform.crop,
        batch=batch,
        platforms=platforms,
        transform=transform if args.preprocess else None,
        weights_beside=args.weights_beside,
    )
    with contextlib.ExitStack() as stack:
        stored = None
        if args.weights_beside:
            stored = stack.enter_context(replacing(beside, args.force))
            with open(stored, 'wb') as file:  # NumPy would add an ending to a name
                np.savez(file, **export.flat_weights(fast.variables))
        temporary = stack.enter_context(replacing(out, args.force))
        temporary.write_bytes(program.serialize())
        result = export.check(temporary, stored, model, variables, transform)
    images, logits = (aval.str_short() for aval in (program.in_avals[-1], program.out_avals[0]))
    print(
        f'{out}: {meta["arch"]["name"]}, {images} -> {logits}, for {", ".join(platforms)}, '
        f'{out.stat().st_size / 1e6:.1f} MB'
    )
    print(result)


def entry() -> None:
    cli.run(main)
