"""hrnet-train --arch A --recipe R --workdir W: trains HRNet, on one device or a pod.

`python train.py` is the same. Start it once on every host. It may be killed at any moment: the same
command goes on from the last checkpoint, and the result is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
import traceback

from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.commands.arguments import add_arch
from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli, compilation, distributed
from hrnet_jax.tasks import recipes
from hrnet_jax.tasks.flag import add_task
from hrnet_jax.tasks.recipe import Recipe
from hrnet_jax.tasks.recipe_flags import add_arguments, describe, going_on
from hrnet_jax.training.home import Home, open_home
from hrnet_jax.weights import loading

DEFAULT = 'official'


def parser() -> tuple[cli.Parser, type[Recipe]]:
    """With the flags of the recipe that is asked for."""
    p = cli.Parser(description=__doc__)
    own = add_task(p)
    known = dict(own.recipes) if own else recipes()
    usual = next(iter(known)) if own and known else DEFAULT
    if not known:
        raise UserError(f'the task {own.name if own else ""} has no recipe')
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument('--recipe')
    asked = first.parse_known_args()[0].recipe
    cls = known.get(asked, known[usual])
    p.epilog = describe(known, asked)
    add_arch(p, 'the network; needed unless --init is given, which has one')
    p.add_argument(
        '--recipe',
        choices=list(known),
        default=usual,
        help='see below; the defaults in this help are those of the recipe',
    )
    p.add_argument(
        '--workdir',
        required=True,
        help='training folder; the same for all hosts: on shared storage, or gs:// or s3://',
    )
    p.add_argument(
        '--data-dir', metavar='D', help='where tfds data sets lie (default: where tfds has them)'
    )
    add_arguments(p.add_argument_group('recipe', 'what the result depends on'), cls)
    g = p.add_argument_group('run', 'what the result does not depend on')
    g.add_argument(
        '--eval-batch-size',
        type=int,
        help='images at once in an evaluation (default: as in training)',
    )
    g.add_argument(
        '--log-every', type=int, default=50, help='steps between records, at most an epoch'
    )
    g.add_argument('--checkpoint-steps', type=int, default=2000, help='steps between checkpoints')
    g.add_argument(
        '--checkpoint-minutes', type=float, default=15.0, help='longest time between checkpoints'
    )
    g.add_argument('--keep', type=int, default=2, help='last checkpoints kept, beside the best')
    g.add_argument(
        '--stop-at',
        type=int,
        metavar='STEP',
        help='end after this step; the same command without this flag goes on',
    )
    g.add_argument('--tensorboard', action=argparse.BooleanOptionalAction, default=True,
                   help='write WORKDIR/tensorboard')  # fmt: skip
    g.add_argument('--wandb', metavar='PROJECT', help='log to Weights & Biases too')
    g.add_argument('--profile', type=int, nargs=2, metavar=('FIRST', 'LAST'),
                   help='trace these steps into WORKDIR/profile')  # fmt: skip
    g.add_argument('--force', action='store_true', help='go on with another recipe than before')
    p.add_hosts()
    return p, cls


def main() -> None:
    p, cls = parser()
    args = p.parse_args()
    for name in ('log_every', 'checkpoint_steps', 'keep', 'stop_at', 'eval_batch_size'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name.replace("_", "-")} must be at least 1, not {value}')
    with open_home(args.workdir) as home:
        code = run(args, cls, home)
    if code:
        sys.exit(code)


def run(args: argparse.Namespace, cls: type[Recipe], home: Home) -> int:
    """Trains as the flags say; returns the exit code."""
    recipe, kept = going_on(cls, args, workdir.recipe(home.path))
    if args.arch is None:
        if not recipe.init:
            raise UserError('--arch or --init is needed')
        args.arch = checkpoint.arch_name(checkpoint.read_json(loading.find(recipe.init)))
        if args.arch is None:
            raise UserError(f'--arch is needed: {recipe.init} does not say one')
    if args.wandb and importlib.util.find_spec('wandb') is None:
        raise UserError('wandb is missing: pip install wandb')
    if args.profile and args.profile[0] >= args.profile[1]:
        raise UserError(f'--profile {args.profile[0]} {args.profile[1]}: the first must come first')
    distributed.start(args)
    own = ('process_id', 'data_dir')  # may differ between hosts
    shared = {name: value for name, value in sorted(vars(args).items()) if name not in own}
    compilation.enable_cache()
    # Some fields of the recipe are from the training folder.
    distributed.require_same(**shared, fields_of_the_recipe=recipe.to_json())

    # Imported after `start`, so that nothing has touched a device before it.
    from hrnet_jax.training.experiment import Experiment, Options
    from hrnet_jax.training.reporting import Reporter
    from hrnet_jax.training.trainer import Trainer

    reporter: Reporter | None = None

    def say(line: str) -> None:
        if reporter:
            reporter.say(line)
        elif distributed.is_main():
            print(line, flush=True)

    fields = {field.name for field in dataclasses.fields(Options)}
    values = {name: value for name, value in vars(args).items() if name in fields}
    profile = tuple(args.profile) if args.profile else None
    options = Options(**values | {'workdir': home.path, 'profile': profile, 'home': home})
    experiment = Experiment(args.arch, recipe, options, say)
    if kept:
        say(f'note: evaluated as before, {" ".join(kept)}; to change that, give these flags')
    state = experiment.start()
    step = int(state.step)
    experiment.introduce(step)
    with distributed.fail_together():
        if distributed.is_main():
            reporter = Reporter(
                options.workdir,
                total_steps=experiment.total,
                start_step=step,
                tensorboard=options.tensorboard,
                wandb=options.wandb,
                config=experiment.config,
                figures=experiment.figures,
            )
            home.start(lambda line: say(f'warning: {line}'))
            if 0 < step < experiment.total:
                reporter.event(step, 'resumed', f'on {experiment.mesh.size} devices')
    try:
        code = Trainer(experiment, reporter).run(state)
    except UserError:
        raise
    except Exception:
        if distributed.alone():
            raise
        traceback.print_exc()
        os._exit(1)  # an exit in order would wait for the others, who wait for this process
    finally:
        if reporter:
            try:
                reporter.close()
            except Exception as error:  # must not hide what ended the run
                print(f'warning: {error}', file=sys.stderr)
    best = experiment.store.best()
    if best is not None:
        figure = experiment.best
        value = figure.text(experiment.store.figure(best), 3)
        say(f'best    {value} {figure.label} at step {best:,}')
    return code


def entry() -> None:
    cli.run(main)
