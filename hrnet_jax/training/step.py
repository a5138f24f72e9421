"""The train state, the optimiser and the compiled train step: what one step computes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hrnet_jax.data.preprocess import normalize
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.inference.padding import computed_wide
from hrnet_jax.layers import matmul_precision
from hrnet_jax.models import Variables
from hrnet_jax.runtime import compilation
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.recipe import Group, Recipe
from hrnet_jax.weights.transfer import matching

Array = jax.Array
Batch = dict[str, Any]
_FORWARD = 2**31 - 1  # folded into a step's key for what the network draws itself
# Each process sends these four facts with each batch: it was asked to stop; it has failed; it had
# no data for this step; how many images it skipped.
SIGNALS = ('stop', 'failed', 'no_batch', 'skipped')


@flax.struct.dataclass
class TrainState:
    """All that a step changes.

    Attributes:
        step: int32, steps taken.
        ema: {'params': ..., 'batch_stats': ...} averaged, or empty where not averaged.
        valid: False from the first step on that could not be taken: none after it is, either.
    """

    step: Array
    params: Variables
    batch_stats: Variables
    opt_state: Any
    ema: Variables
    valid: Array

    def variables(self, averaged: bool = False) -> Variables:
        """For `model.apply`; the averaged weights and statistics if asked and there are any."""
        return self.ema if averaged and self.ema else _variables(self.params, self.batch_stats)


def _variables(params: Variables, batch_stats: Variables) -> Variables:
    """As of the model, which may be without BatchNorm."""
    return {'params': params} | ({'batch_stats': batch_stats} if batch_stats else {})


def create_state(variables: Variables, tx: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step."""
    params, batch_stats = variables['params'], variables.get('batch_stats', {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
        # Its own memory: the buffers of a donated state must not be the same twice.
        ema=jax.tree.map(jnp.copy, _variables(params, batch_stats)) if ema else {},
        valid=jnp.ones((), bool),
    )


def make_schedule(recipe: Recipe, steps_per_epoch: int) -> optax.Schedule:
    """Step -> learning rate: its increase, then one of `SCHEDULES`."""
    peak = recipe.learning_rate * recipe.scaled
    warmup = recipe.warmup_steps or round(recipe.warmup_epochs * steps_per_epoch)
    left = max(recipe.total_steps(steps_per_epoch) - warmup, 1)
    milestones = [round(m * steps_per_epoch) - warmup for m in recipe.milestones]
    main = SCHEDULES[recipe.schedule](recipe, peak, left, milestones)
    if recipe.by_epoch:
        by_step = main

        def main(count):
            # Counted from the end of the warm-up; epochs from the beginning.
            start = (count + warmup) // steps_per_epoch * steps_per_epoch - warmup
            return by_step(jnp.maximum(start, 0))

    whole = main
    if warmup:
        start = recipe.warmup_factor * peak
        constant = recipe.warmup == 'constant'
        increase = optax.linear_schedule(start, start if constant else peak, warmup)
        whole = optax.join_schedules([increase, main], [warmup])

    def schedule(count):
        with jax.numpy_dtype_promotion('standard'):  # Optax multiplies counters by floats
            return whole(count)

    return schedule


def _drops(recipe: Recipe, peak: float, steps: int, milestones: Sequence[int]) -> optax.Schedule:
    factors: dict[int, float] = {}
    for step in milestones:
        factors[step] = factors.get(step, 1.0) * recipe.gamma
    return optax.piecewise_constant_schedule(peak, factors)


def _cosine(recipe: Recipe, peak: float, steps: int, milestones: Sequence[int]) -> optax.Schedule:
    lowest = recipe.min_rate * recipe.scaled / peak if peak else 0.0
    return optax.cosine_decay_schedule(peak, steps, lowest)


def _poly(recipe: Recipe, peak: float, steps: int, milestones: Sequence[int]) -> optax.Schedule:
    """(peak - min) * (1 - step / steps)^power + min."""
    return optax.polynomial_schedule(peak, recipe.min_rate * recipe.scaled, recipe.power, steps)


# Name -> (recipe, peak, steps after the warm-up, milestones counted from there) -> schedule.
SCHEDULES = {'step': _drops, 'cosine': _cosine, 'poly': _poly}


def make_optimizer(
    recipe: Recipe, schedule: optax.Schedule, groups: Sequence[Group] | None = None
) -> optax.GradientTransformation:
    """SGD and Adam as PyTorch's (decay joins the gradient), or AdamW.

    Args:
        groups: of `Task.parameter_groups`; by default those of a classifier.

    Its `init` raises UserError where a group's pattern matches no array.
    """
    if groups is None:
        groups = recipe.parameter_groups([('head', 'classifier')])

    def decayed(updates: Variables, params: Variables) -> Variables:
        factors = _factors([(group.pattern, group.decay) for group in groups], params)
        rate = recipe.weight_decay
        return jax.tree.map(lambda u, p, f: u + rate * f * p if f else u, updates, params, factors)

    def rated(updates: Variables, params: Variables) -> Variables:
        factors = _factors([(group.pattern, group.rate) for group in groups], params)
        return jax.tree.map(lambda u, f: u if f == 1 else u * f, updates, factors)

    def init(params: Variables) -> Any:
        matching(params, *(group.pattern for group in groups))  # refuses what matches nothing
        return whole.init(params)

    decay = optax.stateless(decayed)
    rules = {
        'sgd': (decay, optax.trace(recipe.momentum, recipe.nesterov)),
        'adam': (decay, optax.scale_by_adam()),
        'adamw': (optax.scale_by_adam(), decay),
    }
    # Always in these places, so that the names in a checkpoint do not depend on what is in use.
    whole = optax.chain(
        optax.identity()
        if recipe.clip_norm is None
        else optax.clip_by_global_norm(recipe.clip_norm),
        optax.chain(*rules[recipe.optimizer]),
        optax.stateless(rated),
        optax.scale_by_learning_rate(schedule),
    )

    def update(updates: Variables, state: Any, params: Variables) -> Any:
        with jax.numpy_dtype_promotion('standard'):  # Optax raises floats to counters
            return whole.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _factors(groups: Sequence[tuple[str, float]], params: Variables) -> Variables:
    """For each array the product of the factors whose pattern its path matches."""

    def factor(path: Any, _: Any) -> float:
        name = '/'.join(key.key for key in path)
        return math.prod(value for pattern, value in groups if re.search(pattern, name))

    return jax.tree_util.tree_map_with_path(factor, params)


def make_loss(
    model: Any,
    recipe: Any,
    transform: Protocol,
    teacher: Teacher | None = None,
    channel_multiple: int = 1,
) -> Callable[..., tuple[Array, tuple[Variables, dict[str, Array]]]]:
    """The function (params, batch_stats, batch, key, teacher's variables) -> (sum over images of
    weight * loss, (new batch_stats, figures)), float32; of the recipe's task.

    The batch has image, uint8 (N, H, W, 3), the fields of the data set, and weight, float32 (N,).
    The figures are those that the task gives for each step, summed as the loss is.

    Args:
        transform: its mean and standard deviation.
        teacher: the model, and its transform.
        channel_multiple: of the branches' channels while they are computed: see `padding`.
    """
    wide, widen, narrow = computed_wide(model, channel_multiple)
    task = get_task(recipe.task)

    def loss(params, batch_stats, batch, key, teacher_variables):
        batch = task.prepare(batch, key, recipe, model)
        variables = widen({'params': params, 'batch_stats': batch_stats})
        apply = functools.partial(wide.apply, variables, train=True, mutable=['batch_stats'])
        images = normalize(batch['image'], transform, model.dtype)
        outputs, new = task.forward(apply, images, batch, jax.random.fold_in(key, _FORWARD))
        each, figures = task.loss(outputs, batch, recipe)
        if teacher is not None:
            other, theirs = teacher
            soft = other.apply(teacher_variables, normalize(batch['image'], theirs, other.dtype))
            apart = task.distance(outputs, soft, recipe)
            each = recipe.distill_weight * apart + (1 - recipe.distill_weight) * each
        sums = {name: jnp.sum(batch['weight'] * values) for name, values in figures.items()}
        return jnp.sum(batch['weight'] * each), (narrow(new.get('batch_stats', {})), sums)

    return loss


Teacher = tuple[Any, Protocol]


def make_train_step(
    model: Any,
    recipe: Recipe,
    transform: Protocol,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    teacher: Teacher | None = None,
    *,
    fields: Sequence[str] = ('label',),
    channel_multiple: int = 1,
) -> Callable[[TrainState, Batch, Variables], tuple[TrainState, dict[str, Array]]]:
    """The compiled step (state, batch, teacher's variables or {}) -> (state, metrics).

    The state is donated and lies on every device; it stays as it was where a process signals
    'no_batch', or where loss, gradient or update are not finite, and ever after.

    Args:
        transform, teacher: see `make_loss`.
        fields: names of what a batch has beside its images.
        channel_multiple: see `make_loss`.

    A batch has, split over the mesh's axis 'data':
    image uint8 (A, N, H, W, 3), the fields (A, N, ...), weight float32 (A, N), 0 for an image that
    does not count, for A = recipe.accumulate; and signals float32 (devices, len(SIGNALS)).

    Metrics are float32 scalars: loss and the task's figures, means over the images that count,
    gradient_norm, finite, learning_rate, and the sums of the signals.
    """
    whole = NamedSharding(mesh, P())
    parts, rows = NamedSharding(mesh, P(None, 'data')), NamedSharding(mesh, P('data'))
    objective = make_loss(model, recipe, transform, teacher, channel_multiple)
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    figures = get_task(recipe.task).training_figures

    def step(state: TrainState, batch: Batch, teacher_variables: Variables):
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)

        def microbatch(carry, xs):
            grads, batch_stats, sums = carry
            index, part = xs
            part = {**part, 'weight': part['weight'] / recipe.batch_size}
            (value, (batch_stats, found)), new = value_and_grad(
                state.params, batch_stats, part, jax.random.fold_in(key, index), teacher_variables
            )
            grads = new if grads is None else jax.tree.map(jnp.add, grads, new)
            sums = jax.tree.map(jnp.add, sums, {'loss': value, **found})
            return (grads, batch_stats, sums), None

        inputs = {name: batch[name] for name in ('image', *fields, 'weight')}
        xs = (jnp.arange(recipe.accumulate), inputs)
        sums = dict.fromkeys(('loss', *figures), jnp.zeros((), jnp.float32))
        with matmul_precision(model):
            if recipe.accumulate == 1:
                first = jax.tree.map(lambda x: x[0], xs)
                carry, _ = microbatch((None, state.batch_stats, sums), first)
            else:
                zeros = jax.tree.map(jnp.zeros_like, state.params)
                carry, _ = jax.lax.scan(microbatch, (zeros, state.batch_stats, sums), xs)
        # The mean is over the images that count. We divide by their number after the backward
        # pass; inside the loss it would need a collective of its own.
        counted = jnp.maximum(jnp.sum(batch['weight']), 1.0)
        grads, means = jax.tree.map(
            lambda x: x * (recipe.batch_size / counted), (carry[0], carry[2])
        )
        batch_stats, norm = carry[1], optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if recipe.ema is not None:
            # The average spans at most a tenth of the steps so far, so that a short run does not
            # average mostly its beginning.
            count = state.step.astype(jnp.float32) + 1
            rate = 1 - jnp.minimum(recipe.ema, count / (count + 9))
            ema = optax.incremental_update(_variables(params, batch_stats), ema, rate)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema, state.valid)
        signals = jnp.sum(batch['signals'], 0)
        # A step is not taken if a process has no data or if the result is not finite. Later steps
        # are not taken either, because their batches would be at the wrong place.
        finite = (
            jnp.isfinite(means['loss'])
            & jnp.isfinite(norm)
            & jnp.isfinite(optax.tree.norm(updates))
        )
        valid = state.valid & finite & (signals[SIGNALS.index('no_batch')] == 0)
        new = jax.tree.map(lambda after, before: jnp.where(valid, after, before), new, state)
        new = new.replace(valid=valid)
        metrics = {
            **means,
            'gradient_norm': norm,
            'finite': finite.astype(jnp.float32),
            'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
            **{name: signals[i] for i, name in enumerate(SIGNALS)},
        }
        return new, metrics

    split = dict.fromkeys(('image', *fields, 'weight'), parts) | {'signals': rows}
    return jax.jit(
        step,
        in_shardings=(whole, split, whole),
        out_shardings=whole,
        donate_argnums=0,
        compiler_options=_options(mesh),
    )


def _options(mesh: Mesh) -> dict[str, Any] | None:
    """On several cores of a CPU, YNN, XLA's library there, is slow at convolutions, and fast at all
    else (docs/experiments.md)."""
    if mesh.devices.flat[0].platform != 'cpu' or compilation.cores() < 2:
        return None
    kinds = 'LIBRARY_FUSION_TYPE_REDUCE,LIBRARY_FUSION_TYPE_DOT'
    return compilation.known_options({'xla_cpu_experimental_ynn_fusion_type': kinds})
