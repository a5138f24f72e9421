"""What a training run is made of: data, model, teacher and the state it starts from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.data.classes import read_names
from hrnet_jax.data.sources import readable
from hrnet_jax.errors import UserError, listed
from hrnet_jax.inference import summary
from hrnet_jax.inference.evaluation import data_mesh, make_eval_step
from hrnet_jax.inference.folding import fold
from hrnet_jax.initialisation import init
from hrnet_jax.layers import Blocks
from hrnet_jax.models import Variables, variable_shapes
from hrnet_jax.runtime import distributed
from hrnet_jax.tasks import get_task, task_of
from hrnet_jax.tasks.base import Figure, Opened
from hrnet_jax.tasks.recipe import Recipe, evaluation_fields, inherited_fields
from hrnet_jax.training import saving
from hrnet_jax.training.home import Home
from hrnet_jax.training.step import (
    TrainState,
    create_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)
from hrnet_jax.weights import loading
from hrnet_jax.weights.transfer import transfer


@dataclasses.dataclass(frozen=True)
class Options:
    """What does not change the result: see train.py --help."""

    workdir: Path
    data_dir: str | None = None
    eval_batch_size: int | None = None
    log_every: int = 50
    checkpoint_steps: int = 2000
    checkpoint_minutes: float = 15.0
    keep: int = 2
    stop_at: int | None = None
    tensorboard: bool = True
    wandb: str | None = None
    profile: tuple[int, int] | None = None
    force: bool = False
    home: Home | None = None  # where workdir is kept, if not on a disk


class Experiment:
    """A run's data, opened and checked; its model, steps and checkpoints; alike in all processes.

    Args:
        say: gets lines for the user.

    Raises:
        UserError: in every process, if something is missing or does not fit together.
    """

    def __init__(self, arch: str, recipe: Recipe, options: Options, say: Callable[[str], None]):
        self.arch, self.options, self.say = arch, options, say
        self.task = get_task(recipe.task)
        self.home = options.home or Home(options.workdir)
        self.mesh = data_mesh()
        self.whole = NamedSharding(self.mesh, P())
        with distributed.fail_together():
            self.recipe = recipe = self._inheriting(recipe)
            self._open_data()
            self.model = self.task.build(arch, recipe, self.source)
            self.teacher, teacher_variables = self._load_teacher()
            if not workdir.steps(options.workdir):
                self._check_beginning()
            if distributed.is_main():
                fields = {*evaluation_fields(type(recipe)), 'class_names'}  # those are compared
                free = {f'recipe.{name}' for name in fields}
                changed = saving.prepare(options.workdir, self.config, options.force, free)
                if not options.force:
                    saving.require_classes(options.workdir, self.source.class_names)
                if changed:
                    say(f'note: until now the run was one with {"; ".join(changed)}')
        saving.require_shared(self.home)
        distributed.require_same(
            training_images=self.source.num_examples,
            evaluation_images=self.held_out.num_examples,
            class_names=self.source.class_names,
        )
        self.teacher_variables = self.place(teacher_variables)

        epoch = self.data.steps_per_epoch
        self.total = recipe.total_steps(epoch)
        self.eval_steps = max(round(recipe.eval_every * epoch), 1)
        schedule = make_schedule(recipe, epoch)
        self.peak = recipe.learning_rate * recipe.scaled
        self.tx = make_optimizer(recipe, schedule, self.task.parameter_groups(self.model, recipe))
        self.train_step = make_train_step(
            self.model, recipe, self.transform, self.tx, schedule, self.mesh, self.teacher,
            fields=[field.name for field in self.data.fields],
        )  # fmt: skip
        self.metric = self.task.metric(self.model, **self.context)
        self.figures = self.task.figures_of(self.model, self.metric)
        self.eval_step = make_eval_step(self.model, self.transform, self.mesh, self.metric)
        self.store = saving.Store(
            self.home,
            self._describe(),
            options.keep,
            lambda line: say(f'warning: {line}'),
            self.best.higher_is_better,
        )

    @property
    def config(self) -> dict[str, Any]:
        """What must be the same when the run goes on."""
        return {
            'task': self.task.name,
            'arch': self.arch,
            'num_classes': self.num_classes,
            'training_images': self.source.num_examples,
            'recipe': self.recipe.to_json(),
        }

    @property
    def best(self) -> Figure:
        """That which decides which checkpoint is best."""
        return self.figures[0]

    def start(self) -> TrainState:
        """The newest checkpoint's state on all devices, or a new one."""
        averaged = self.recipe.ema is not None
        create = jax.jit(
            lambda variables: create_state(variables, self.tx, averaged), out_shardings=self.whole
        )
        restored = self.store.restore(jax.eval_shape(create, variable_shapes(self.model)))
        fresh = restored is None
        state = create(self.place(self._variables())) if fresh else self.place(restored)
        with distributed.fail_together():
            if distributed.is_main():
                saving.write_config(self.options.workdir, self.config)
        return state

    def _variables(self) -> Variables:
        """Those to start from."""
        with distributed.fail_together():
            variables = init(self.model, jax.random.key(self.recipe.seed), self.recipe.size)
            if self.recipe.init:
                variables = self._initial(variables)
        return variables

    def place(self, tree: Any) -> Any:
        """NumPy arrays, the same in every process, onto every device."""

        def one(x: Any) -> jax.Array:
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, self.whole, lambda index: x[index])

        return jax.tree.map(one, tree)

    def flops(self) -> int:
        """Of one training image: a multiply-add is two, the backward pass twice the forward one."""
        size = self.recipe.size
        total = 6 * summary.multiply_adds(self.model, size)
        if self.teacher:
            total += 2 * summary.multiply_adds(self.teacher[0].clone(blocks=Blocks()), size)
        return total

    def introduce(self, start: int) -> None:
        """Says what was found."""
        r, devices, processes = self.recipe, jax.devices(), jax.process_count()
        of = f' of {self.num_classes} {self.task.outputs}' if self.source.num_classes else ''
        each, epoch = r.microbatch // self.mesh.size, self.data.steps_per_epoch
        height, width = r.size
        rows = {
            'model': f'{self.arch}, {summary.parameters(self.model) / 1e6:.2f} M '
            f'parameters, {summary.multiply_adds(self.model, r.size) / 1e9:.3f} G '
            f'multiply-adds an image of {height} x {width} pixels, {r.dtype}',
            'devices': f'{self.mesh.size} x {devices[0].device_kind} in {processes} '
            f'process{"es" * (processes > 1)}, {each} images each: batch {r.batch_size}'
            + (f' in {r.accumulate} parts' if r.accumulate > 1 else ''),
            'recipe': f'{r.optimizer}, learning rate {self.peak:g} ({r.schedule}), weight decay '
            f'{r.weight_decay:g}, BatchNorm {self._norm_over}'
            + (f', averaged {r.ema:g}' if r.ema else '')
            + (f', teacher {self.taught_by}' if self.taught_by else ''),
            'data': f'{r.dataset}, {self.source.num_examples:,} images{of}, {height} x {width}; '
            f'evaluated on {self.held_out.num_examples:,} of {self.held_out.split}: '
            f'{self.transform.text}',
            'steps': f'{self.total:,}, {epoch:,} an epoch for {self.total / epoch:.4g} epochs; '
            + (
                'finished, nothing to do'
                if start >= self.total
                else f'going on after {start:,}'
                if start
                else 'from the beginning'
            ),
            'pixels': ', '.join(
                f'{name} {" ".join(format(x, "g") for x in getattr(self.transform, name))}'
                for name in ('mean', 'std')
            )
            + self.pixels_as,
            'folder': self.home.name,
        }
        for name, text in rows.items():
            self.say(f'{name:8}{text}')
        for note in dict.fromkeys((*self.source.notes, *self.held_out.notes)):
            self.say(f'note: {note}')
        if self.mesh.size > 1 and each % r.bn_images:
            self.say(
                f'note: {each} images a device are no multiple of the {r.bn_images} that share '
                'BatchNorm statistics, which therefore travel between devices at every layer'
            )

    @property
    def _norm_over(self) -> str:
        frozen = getattr(self.model, 'frozen_norm', False)
        return 'with the statistics of --init' if frozen else f'over {self.recipe.bn_images}'

    def _open_data(self) -> None:
        r, data_dir = self.recipe, self.options.data_dir
        self.source = self._open(r.split)
        try:
            self.held_out = self._open(r.eval_split)
        except UserError as error:
            given = f'--eval-split {r.eval_split}' if r.eval_split else '--eval-split is not given'
            raise type(error)(f'{given}: {error}') from error
        self.task.check_training(self.source)
        self.transform = self.task.transform(r, self.source)
        self.num_classes = self.task.num_outputs(self.source)
        self.task.check_recipe(r, self.num_classes)
        names = [
            {str(x) for x in s.class_names or range(s.num_classes or 0)}
            for s in (self.source, self.held_out)
        ]
        if apart := sorted(names[0] ^ names[1]):
            raise UserError(
                f'{r.dataset}: {self.source.split} and {self.held_out.split} must have the same '
                f'{self.task.outputs}; they differ in {listed(apart)}'
            )
        self.task.check_evaluation({'class_names': self.source.class_names}, self.held_out)
        if distributed.is_main():
            self.task.check_files(self.held_out, self.transform, r.eval_max_corrupt)
        self.context = self.task.context(self.held_out, data_dir)
        places = jax.process_index(), jax.process_count()
        self.data = self.task.training_data(self.source, r, *places)
        if r.microbatch % self.mesh.size:
            raise UserError(
                f'{r.microbatch} images (batch_size / accumulate) do not divide over '
                f'{self.mesh.size} devices'
            )

    def _open(self, split: str | None) -> Opened:
        name = self.recipe.dataset
        with readable(name):
            source = self.task.open_dataset(name, split, self.options.data_dir)
        if self.recipe.class_names:
            source = self.task.renumbered(source, read_names(self.recipe.class_names))
        return source

    def _inheriting(self, recipe: Recipe) -> Recipe:
        """With what the run has until now, or else what it starts from, in the fields that the
        recipe leaves open. One of a release without these fields goes on without them."""
        names = {x for x in inherited_fields(type(recipe)) if getattr(recipe, x) in (None, ())}
        self.pixels_as = ''
        if not recipe.init or not names:
            return recipe
        if names & {'mean', 'std'}:
            self.pixels_as = f', as of {recipe.init}'
        before = saving.read_config(self.options.workdir)
        if before:
            known = before.get('recipe', {})
        else:
            meta = checkpoint.read_json(loading.find(recipe.init, self.arch))
            task = task_of(meta)
            known = dict(meta) if task is self.task else {}
            known |= task.protocol.from_json(meta.get('transform')).settings()
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value := known[name], list) else value
            for name in names
            if known.get(name) is not None
        }
        return dataclasses.replace(recipe, **given)

    def _load_teacher(self) -> tuple[Any, Variables]:
        self.taught_by = getattr(self.recipe, 'teacher', None)  # few recipes have one
        if self.taught_by is None:
            return None, {}
        folder = loading.find(self.taught_by)
        meta = checkpoint.read_json(folder)
        if task_of(meta) is not self.task:
            raise UserError(
                f'the teacher {folder} is for {task_of(meta).name}, not {self.task.name}'
            )
        if (theirs := meta.get('num_classes', self.num_classes)) != self.num_classes:
            raise UserError(
                f'the teacher {folder} has {theirs} classes, the data {self.num_classes}'
            )
        model, variables = loading.load(folder, dtype=self.model.dtype)
        folded = fold(model, variables)
        return (folded.model, self.task.protocol.from_json(meta.get('transform'))), folded.variables

    def _check_beginning(self) -> None:
        """Raises UserError for a recipe that no run can begin with, before there is a folder."""
        if self.recipe.init:
            folder = loading.find(self.recipe.init, self.arch)
            found = checkpoint.arch_name(checkpoint.read_json(folder))
            if found not in (None, self.arch):
                raise UserError(f'{folder} is a checkpoint of {found}, not {self.arch}')
        elif getattr(self.model, 'frozen_norm', False):
            raise UserError(
                'BatchNorm is to keep the statistics of --init, which is not given: add --init, or '
                '--no-frozen-norm'
            )

    def _initial(self, fresh: Variables) -> Variables:
        """The variables of the checkpoint `recipe.init`; the last layer stays fresh where the
        number of classes differs, and the head where it has none."""
        folder = loading.find(str(self.recipe.init), self.arch)
        before = checkpoint.read_json(folder)
        _, loaded = loading.load(folder)
        theirs = before.get('num_classes', self.num_classes)
        before_names, names = before.get('class_names') or [], self.source.class_names or ()
        others = bool(before_names and names) and before_names != list(names)
        new = theirs != self.num_classes or task_of(before) is not self.task or others
        last = ['^' + '/'.join(path) + '/' for path in self.task.head_layers(self.model)]
        variables, report = transfer(fresh, loaded, fresh=last if new else ())
        head = not all(any(re.search(p, name) for p in last) for name in report.initialised)
        part = 'head' if head else 'last layer'
        outputs = f'{self.num_classes} {self.task.outputs}'
        self.say(f'init    {folder}{f", {part} new for {outputs}" * new}')
        self.say(str(report))
        now = self.task.describe(self.model)
        for name in sorted(before.keys() & now.keys() - {'arch', 'num_classes'}):
            if before[name] != now[name]:
                self.say(f'note: {folder} has {name} {before[name]}, this run {now[name]}')
        return variables

    def _describe(self) -> dict[str, Any]:
        return {
            **checkpoint.describe(self.model, self.task),
            **self.task.facts(self.source),
            'transform': self.transform.to_json(),
            'published': None,
            'source': {'file': None, 'origin': 'train.py', 'sha256': None},
            'training': {
                'recipe': self.recipe.to_json(),
                'steps_per_epoch': self.data.steps_per_epoch,
            },
        }
