"""hrnet-predict IMAGE... --arch A --ckpt DIR: what is in the pictures; or python predict.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hrnet_jax.archs import STRIDE
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.commands.arguments import (
    add_checkpoint,
    add_predictions,
    add_protocols,
    every_task,
    given,
    refuse_others,
)
from hrnet_jax.errors import UserError
from hrnet_jax.inference.predict import predict
from hrnet_jax.runtime import cli, compilation, files
from hrnet_jax.tasks import task_of
from hrnet_jax.tasks.base import Task
from hrnet_jax.tasks.flag import task_of_checkpoint
from hrnet_jax.weights import loading


def main() -> None:
    p = cli.Parser(description=__doc__)
    p.add_argument('images', nargs='+', metavar='IMAGE', help='files of any common format')
    add_checkpoint(p)
    p.add_argument('--json', metavar='FILE', help='write the predictions there')
    p.add_argument(
        '--out',
        metavar='PICTURE',
        help='draw what was found (.png, .pdf, .svg, .jpg)',
    )
    tasks = _tasks()
    of_protocol, of_prediction = add_protocols(p, tasks), add_predictions(p, tasks)
    if len(tasks) == 1:
        refuse_others(p, tasks[0])
    args = p.parse_args()

    for file in (args.json, args.out):
        if file:
            files.refuse_unwritable(Path(file))
    if args.out and Path(args.out).suffix.lower() not in ('.png', '.pdf', '.svg', '.jpg'):
        raise UserError(f'--out {args.out}: the ending must be .png, .pdf, .svg or .jpg')
    folder, meta = loading.described(args.ckpt, args.arch, args.weights)
    task = task_of_checkpoint(args.task, meta)
    transform = task.protocol.from_json(meta.get('transform'))
    transform = transform.override(STRIDE, **given(args, of_protocol))
    options = task.file_options(args.images, given(args, of_prediction))
    helpers = {flag: options.pop(flag) for flag in task.helpers if flag in options}
    for flag, place in helpers.items():
        other = loading.described(place)[1]
        task.check_helper(flag, task_of(other), other)
    described = checkpoint.model_of(meta)
    try:  # now, not after the images are read
        chosen = task.prediction_options(described, meta.get('class_names'), **options)
        chosen = {**chosen, 'transform': transform}
    except UserError as error:
        raise UserError(f'{"--" * str(error).startswith(tuple(options))}{error}') from None
    compilation.enable_cache()
    images = [task.open_image(path, **given(args, of_protocol)) for path in args.images]
    for flag, place in helpers.items():
        options = task.helped(flag, predict(*loading.load(place), images), options)
    model, variables = loading.load(folder, args.arch, weights=args.weights)
    found = predict(
        model,
        variables,
        images,
        task=task,
        transform=transform,
        class_names=meta.get('class_names'),
        **options,
    )
    for path, one in zip(args.images, found, strict=True):
        print(path, *task.lines(one, chosen), sep='\n')
    task.write(args.images, found, chosen)
    if args.json:
        rows = task.json_rows(args.images, found, chosen)
        files.write(args.json, json.dumps(rows, indent=1) + '\n')
        print(f'written: {args.json}')
    if args.out:
        with files.replacing(Path(args.out), force=True) as temporary:
            titles = [Path(path).name for path in args.images]
            task.draw(images, titles, found, temporary, Path(args.out).suffix[1:], chosen)
        print(f'drawn: {args.out}')


def _tasks() -> list[Task]:
    """The checkpoint's; all that there are, for --help, where there is no checkpoint."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ('--ckpt', '--arch', '--weights'):
        first.add_argument(flag)
    known = first.parse_known_args()[0]
    if not known.ckpt:
        return every_task()
    try:
        return [task_of(loading.described(known.ckpt, known.arch, known.weights)[1])]
    except UserError:  # of which `main` will hear
        return every_task()


def entry() -> None:
    cli.run(main)
