"""hrnet-predict IMAGE... --arch A --ckpt DIR: what is in the pictures; or python predict.py."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import loading
from hrnet_jax.commands.arguments import add_checkpoint
from hrnet_jax.data.preprocess import Transform, open_image
from hrnet_jax.errors import UserError
from hrnet_jax.inference.predict import predict
from hrnet_jax.runtime import cli, compilation, files


def main() -> None:
    p = cli.Parser(description=__doc__)
    p.add_argument('images', nargs='+', metavar='IMAGE', help='files of any common format')
    add_checkpoint(p)
    p.add_argument('--topk', type=int, default=5, help='classes an image')
    p.add_argument('--json', metavar='FILE', help='write the predictions there')
    p.add_argument(
        '--out', metavar='PICTURE', help='draw every image with its bars (.png, .pdf, .svg, .jpg)'
    )
    args = p.parse_args()

    for file in (args.json, args.out):
        if file:
            files.refuse_unwritable(Path(file))
    if args.out and Path(args.out).suffix.lower() not in ('.png', '.pdf', '.svg', '.jpg'):
        raise UserError(f'--out {args.out}: the ending must be .png, .pdf, .svg or .jpg')
    if args.out:
        from hrnet_jax.inference.drawing import draw
    folder = loading.find(args.ckpt, args.arch)
    meta = checkpoint.read_json(folder)
    if not 1 <= args.topk <= meta['num_classes']:
        raise UserError(
            f'--topk {args.topk} is not between 1 and the {meta["num_classes"]} classes'
        )
    compilation.enable_cache()
    images = [open_image(path) for path in args.images]
    model, variables = loading.load(folder, args.arch, weights=args.weights)
    found = predict(
        model,
        variables,
        images,
        topk=args.topk,
        transform=Transform.from_json(meta['transform']),
        class_names=meta.get('class_names'),
    )
    for path, best in zip(args.images, found, strict=True):
        print(path)
        for prediction in best:
            print(f'  {100 * prediction.probability:6.2f} %  {prediction.name}')
    if args.json:
        rows = [
            {'image': path, 'predictions': [dataclasses.asdict(one) for one in best]}
            for path, best in zip(args.images, found, strict=True)
        ]
        files.write(args.json, json.dumps(rows, indent=1) + '\n')
    if args.out:
        with files.replacing(Path(args.out), force=True) as temporary:
            titles = [Path(path).name for path in args.images]
            draw(images, titles, found, temporary, Path(args.out).suffix[1:])
        print(f'drawn: {args.out}')


def entry() -> None:
    cli.run(main)
