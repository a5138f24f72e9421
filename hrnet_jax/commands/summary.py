"""python -m hrnet_jax.summary --arch A: what a model costs, by module."""

from __future__ import annotations

from hrnet_jax.commands.arguments import add_arch
from hrnet_jax.errors import UserError
from hrnet_jax.inference.summary import render, table
from hrnet_jax.models import create_model
from hrnet_jax.runtime import cli


def main() -> None:
    p = cli.Parser(
        prog='python -m hrnet_jax.summary',
        description='Parameters, multiply-adds and output sizes of a network.',
    )
    add_arch(p, 'the network', required=True)
    p.add_argument('--num-classes', type=int, default=1000, help='outputs of the classifier')
    p.add_argument(
        '--image-size', type=int, nargs='+', default=[224], metavar='N',
        help='edge of the images in pixels, or height and width',
    )  # fmt: skip
    p.add_argument('--depth', type=int, default=2, help='1: stages, 2: their modules, ... 7')
    args = p.parse_args()
    if len(args.image_size) > 2:
        raise UserError('--image-size takes one number, or height and width')
    size = (args.image_size[0], args.image_size[-1])
    print(render(table(create_model(args.arch, args.num_classes), size, args.depth)))


def entry() -> None:
    cli.run(main)
