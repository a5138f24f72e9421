"""python -m hrnet_jax.visualize IMAGE --arch A --ckpt DIR --out PICTURE: what the network sees."""

from __future__ import annotations

from pathlib import Path

from hrnet_jax.archs import STRIDE
from hrnet_jax.commands.arguments import add_checkpoint
from hrnet_jax.data.imagenet import default_class_names, readable
from hrnet_jax.data.preprocess import Transform, open_image
from hrnet_jax.errors import UserError
from hrnet_jax.inference.visualize import FORMATS, STRIDES, find_class, require_classifier, view
from hrnet_jax.runtime import cli, compilation, files
from hrnet_jax.tasks.flag import task_of_checkpoint
from hrnet_jax.weights import loading


def main() -> None:
    p = cli.Parser(
        prog='python -m hrnet_jax.visualize',
        description='Draw the four maps of an image and the Grad-CAM in each.',
    )
    p.add_argument('image', metavar='IMAGE', help='file of any common format')
    add_checkpoint(p)
    p.add_argument('--out', required=True, metavar='PICTURE', help=f'ends in {", ".join(FORMATS)}')
    p.add_argument(
        '--map',
        choices=[*map(str, STRIDES), 'all'],
        default='all',
        help='stride of the map to draw',
    )
    p.add_argument(
        '--class', dest='target', metavar='CLASS', help='name or number; default: the most probable'
    )
    p.add_argument('--resize', type=int, help="shorter edge in pixels, instead of the checkpoint's")
    p.add_argument('--crop', type=int, help='edge of the central square; larger: finer maps')
    args = p.parse_args()

    out = Path(args.out)
    files.refuse_unwritable(out)
    if out.suffix.lower() not in FORMATS:
        raise UserError(f'--out {out}: the ending must be one of {", ".join(FORMATS)}')
    from hrnet_jax.inference.drawing import draw_view

    folder, meta = loading.described(args.ckpt, args.arch, args.weights)
    require_classifier(task_of_checkpoint(args.task, meta))
    names = readable(meta.get('class_names') or default_class_names(meta['num_classes']))
    target = None if args.target is None else find_class(args.target, names)
    transform = Transform.from_json(meta.get('transform'))
    transform = transform.override(STRIDE, resize=args.resize, crop=args.crop)
    compilation.enable_cache()
    image = open_image(args.image)
    model, variables = loading.load(folder, args.arch, weights=args.weights)
    seen = view(model, variables, image, target=target, transform=transform, class_names=names)
    for one in seen.best:
        print(f'{100 * one.probability:6.2f} %  {one.name}')
    strides = STRIDES if args.map == 'all' else (int(args.map),)
    with files.replacing(out, force=True) as temporary:
        draw_view(seen, Path(args.image).name, strides, temporary, out.suffix[1:])
    print(f'drawn, for {seen.target.name}: {out}')


def entry() -> None:
    cli.run(main)
