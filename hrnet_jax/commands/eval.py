"""hrnet-eval --arch A --ckpt DIR: the accuracy of a converted checkpoint; or python eval.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrnet_jax.archs import STRIDE
from hrnet_jax.checkpoints import workdir
from hrnet_jax.checkpoints.published import expected
from hrnet_jax.commands.arguments import (
    add_checkpoint,
    add_data,
    add_evaluations,
    add_protocols,
    every_task,
    given,
    given_to,
)
from hrnet_jax.data import sources
from hrnet_jax.data.classes import read_names
from hrnet_jax.data.evaluation import Share
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.data.reader import Reader, Request
from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli, files
from hrnet_jax.tasks import DEFAULT, get_task
from hrnet_jax.tasks.flag import task_of_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hrnet_jax.tasks.base import Figure, Result, Task

# Files below --ckpt that name a task: of checkpoints, of a training folder, of a step in one.
_DESCRIBED = ('checkpoint.json', '*/checkpoint.json', workdir.CONFIG, workdir.META)


def parser() -> tuple[cli.Parser, list[str], list[str], list[str]]:
    """And which of its flags change the checkpoint's protocol; which are of a task's data; of its
    metric."""
    p = cli.Parser(description=__doc__)
    add_checkpoint(p)
    p.add_argument(
        '--dataset',
        help=f'{", ".join(sources.DATASETS)}, another tfds data set, or folder:PATH'
        + ''.join(
            f'; of {task.name}: {", ".join(task.datasets)}, or folder:PATH'
            for task in every_task()
            if task.datasets
        )
        + "; default: a training folder's own, or imagenet2012",
    )
    p.add_argument('--split', help='tfds split, such as validation[:10%%]; default: the usual one')
    p.add_argument('--data-dir', metavar='D', help='where the data set lies; default: that of tfds')
    p.add_argument(
        '--batch-size',
        type=int,
        help='images a step, over all devices and hosts; default: 128; on CPUs 4 a core, '
        'at most 64, and 16 over several hosts',
    )
    p.add_argument(
        '--dtype',
        choices=['float32', 'bfloat16'],
        default='float32',
        help='type of the computation',
    )
    p.add_argument('--limit', type=int, metavar='N', help='only the first N images')
    p.add_argument(
        '--class-names',
        metavar='FILE',
        help="text file of the data set's classes, one a line: the first is the checkpoint's class "
        '0; default: by the names in the checkpoint, or in the order of the data set',
    )
    p.add_argument(
        '--restrict',
        action='store_true',
        help="only the data set's classes compete, where the checkpoint has more",
    )
    p.add_argument(
        '--max-corrupt',
        type=float,
        default=0.0,
        metavar='PART',
        help='part of the images that may be unreadable; they are left out and counted',
    )
    p.add_argument('--json', metavar='FILE', help='write the result there')
    protocol = add_protocols(p, every_task())
    data, own = add_data(p, every_task()), add_evaluations(p, every_task())
    p.add_hosts()
    return p, protocol, data, own


def main() -> None:
    flags, of_protocol, of_data, of_metric = parser()
    args = flags.parse_args()
    for name in ('batch_size', 'limit'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} must be at least 1, not {value}')
    if not 0 <= args.max_corrupt <= 1:
        raise UserError(f'--max-corrupt must be from 0 to 1, not {args.max_corrupt:g}')
    order = read_names(args.class_names) if args.class_names else None
    if args.json:
        files.refuse_unwritable(Path(args.json))
    with files.uninterrupted():  # extensions of JAX crash if they are interrupted
        reader = Reader(reads_with_tensorflow(args))
        # Only now: this takes a second, in which the reader begins to import what it needs.
        import jax
        import jax.numpy as jnp

        from hrnet_jax.inference.evaluation import evaluate
        from hrnet_jax.inference.folding import fold
        from hrnet_jax.runtime import compilation, distributed
        from hrnet_jax.weights import loading

    distributed.start(args)
    compilation.enable_cache()
    with distributed.fail_together():
        folder, meta = loading.described(args.ckpt, args.arch, args.weights)
        task = task_of_checkpoint(args.task, meta)
        if not task.figures:
            task.refuse('evaluation')
        transform = task.protocol.from_json(meta.get('transform'))
        transform = transform.override(STRIDE, **given(args, of_protocol))
        if args.dataset is None:
            recipe = meta.get('training', {}).get('recipe', {})
            args.dataset = recipe.get('dataset', task.default_dataset)
            if args.dataset is None:
                raise UserError(f'--dataset is needed: {folder} does not name a data set')
            args.split = args.split or recipe.get('eval_split')
        own = given_to(args, of_metric, task, task.add_evaluation_flags)
        if args.restrict and not task.one_class:
            raise UserError(f'--restrict is for one class an image, not for {task.name}')
        share = Share(
            args.batch_size or default_batch(),
            args.batch_size is not None,
            jax.process_index(),
            jax.process_count(),
            jax.local_device_count(),
            args.limit,
            args.max_corrupt,
        )
        request = Request(
            name=args.dataset,
            split=args.split,
            data_dir=args.data_dir,
            num_classes=meta.get('num_classes'),
            transform=transform,
            share=share,
            class_names=meta.get('class_names'),
            order=order,
            restrict=args.restrict,
            opener=task,
            options=given_to(args, of_data, task, task.add_data_flags),
        )
        reader.read(request)  # while the model is loaded
        fast = fold(
            *loading.load(folder, args.arch, weights=args.weights, dtype=jnp.dtype(args.dtype))
        )
        opened = reader.opened()
        task.check_evaluation(meta, opened.facts)
        metric = task.metric(fast.model, **opened.context, **own)
    source, total, batches = opened.facts, opened.total, reader.batches()
    main_process = distributed.is_main()
    for note in source.notes if main_process else ():
        print(f'note: {note}')
    distributed.require_same(
        examples=total, batch_size=share.batch_size, class_names=source.class_names
    )
    result = evaluate(
        fast.model,
        fast.variables,
        cli.progress(batches, total=opened.steps, desc=args.dataset) if main_process else batches,
        transform,
        metric,
    )
    result.check(total)
    if main_process:
        figures = task.figures_of(fast.model, metric)
        report(args, meta, task, source, transform, result, total, figures)


def reads_with_tensorflow(args: argparse.Namespace) -> bool:
    """Whether the task does, as far as one sees that without JAX."""
    try:
        if args.task:
            return get_task(args.task).tensorflow
        found = [file for name in _DESCRIBED for file in Path(args.ckpt).glob(name)]
        names = {json.loads(file.read_text()).get('task', DEFAULT) for file in found}
        return not names or any(get_task(name).tensorflow for name in names)
    except (OSError, ValueError, AttributeError, UserError):  # of which `main` will hear
        return True


def default_batch() -> int:
    """The same on every host, whose cores may differ."""
    import jax

    from hrnet_jax.inference.folding import at_a_time
    from hrnet_jax.runtime import distributed

    if jax.default_backend() != 'cpu':
        return 128
    return min(at_a_time(), 64) if distributed.alone() else 16


def report(
    args: argparse.Namespace,
    meta: dict[str, Any],
    task: Task,
    source: sources.Facts,
    transform: Protocol,
    result: Result,
    total: int,
    figures: Sequence[Figure],
) -> None:
    """Prints the table and writes the JSON."""
    from hrnet_jax.checkpoints.format import arch_name

    name, unreadable = source.dataset.name, result.unreadable
    partial = source.is_partial or total < source.num_examples or unreadable > 0
    published = {} if partial else expected(meta, transform, *source.published)
    known = (meta.get('published') or {}).get('name')
    if 'training' in meta:
        print(f'step {meta["training"]["step"]} of a run with train.py')
    print(
        f'{arch_name(meta) or task.name}{f", published as {known}," if known else ""} on {name}, '
        f'split {source.split or "-"}, {transform.text}'
    )
    if partial:
        whole = max(source.dataset.num_examples or 0, source.num_examples)
        count = total - unreadable
        print(f'PARTIAL: {count:,} of {whole:,} images; not comparable with published figures')
    if unreadable:
        print(f'* {unreadable:,} of {total:,} images cannot be read and are left out')
    rows = [['', 'measured', 'correct', 'published', 'difference']]
    for figure in figures:
        if figure.name not in result.metrics:  # of a split without labels
            continue
        value = result.metrics[figure.name]
        correct = result.counts.get(figure.count or '')
        theirs = ['', '']
        if (reached := published.get(figure.name)) is not None:
            theirs = [f'{reached:.3f}', f'{value - reached:+.3f}']
        number = '' if correct is None else f'{correct:,}'
        rows.append([figure.label + '*' * bool(unreadable), f'{value:.3f}', number, *theirs])
    rows.append(['examples', f'{result.num_examples:,}', '', '', ''])
    known = [column for column in zip(*rows, strict=True) if any(column[1:])]
    for label, *cells in zip(*known, strict=True):
        print(f'{label:14}{"".join(f"{cell:>12}" for cell in cells)}'.rstrip())
    for line in result.lines:
        print(line)
    if args.json:
        content = {
            **result.metrics,
            **result.counts,
            **result.details,
            'arch': arch_name(meta),
            'dataset': name,
            'version': source.version,
            'split': source.split,
            'num_examples': result.num_examples,
            'unreadable': unreadable,
            'task': task.name,
            'metrics': dict(result.metrics),
            'partial': partial,
            'restricted': source.dataset.restricted,
            'published': published or None,
            'transform': transform.to_json(),
            'protocol': transform.text,
            'dtype': args.dtype,
            'checkpoint': (meta.get('published') or {}).get('name'),
            'source_sha256': (meta.get('source') or {}).get('sha256'),
        }
        files.write(args.json, json.dumps(content, indent=1) + '\n')
        print(f'written: {args.json}')


def entry() -> None:
    cli.run(main)
