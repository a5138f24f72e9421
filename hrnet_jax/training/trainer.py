"""The training loop.

Every process runs the same steps and makes the same decisions. What a decision depends on, such as
a request to stop, travels with the batches (`step.SIGNALS`), and all processes read it after the
same step.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hrnet_jax.data import evaluation
from hrnet_jax.errors import UserError
from hrnet_jax.inference.evaluation import NotFinite, evaluate
from hrnet_jax.runtime import distributed
from hrnet_jax.tasks.base import Batch
from hrnet_jax.training.experiment import Experiment
from hrnet_jax.training.interrupt import Interrupt
from hrnet_jax.training.prefetch import Prefetch
from hrnet_jax.training.reporting import Reporter, peak_flops
from hrnet_jax.training.step import SIGNALS, TrainState

# The host reads the figures of a step when this many later steps have started, so that it stays
# ahead of the device.
LAG = 2


class Trainer:
    """Trains `experiment` to its end, or until it is stopped."""

    def __init__(self, experiment: Experiment, reporter: Reporter | None):
        """`reporter` is None in all processes but the first."""
        self.experiment, self.reporter = experiment, reporter
        self.interrupt = Interrupt()
        self.recipe, self.options = experiment.recipe, experiment.options
        self.store, self.say = experiment.store, experiment.say
        self.split = {
            'signals': NamedSharding(experiment.mesh, P('data')),
            'batch': NamedSharding(experiment.mesh, P(None, 'data')),
        }
        self.failure: Exception | None = None
        self.pending: collections.deque[tuple[int, dict[str, jax.Array]]] = collections.deque()
        self.meter = Meter(experiment)
        self.profiling = False

    def run(self, state: TrainState) -> int:
        """Trains; returns the exit code, 0 or 128 + the signal that was the reason to stop.

        Raises:
            UserError: in every process, if the run cannot go on. What can be saved has been.
        """
        step = int(state.step)
        last = min(self.experiment.total, self.options.stop_at or self.experiment.total)
        self.feed = Prefetch(self.experiment.data.batches(step), self._place)
        with contextlib.ExitStack() as stack:
            stack.callback(self.feed.close)
            stack.callback(self._guard, self._profile, None)
            stack.enter_context(self.interrupt)
            state, verdict = self._loop(state, step, last)
            step = int(state.step)
            if verdict in ('stop', 'failed'):
                self._save(state)
            self._guard(self.store.close)
        if verdict == 'not finite':
            raise self.failure or UserError(
                f'loss, gradient or update are not finite in step {step + 1:,}; the last '
                'checkpoint, if there is one, is kept. To go on from it, lower --learning-rate or '
                'add --clip-norm, and add --force'
            )
        if self.failure:
            raise self.failure
        if verdict == 'failed':
            raise UserError('stopped: another process failed, and says why')
        if verdict == 'stop':
            self._event(step, 'stopped', 'asked to stop; the same command goes on from here')
            return self.interrupt.exit_code if self.interrupt else 128 + signal.SIGTERM
        if step < self.experiment.total:
            self._event(step, 'stopped', 'at --stop-at; the same command without it goes on')
        return 0

    def _loop(self, state: TrainState, step: int, last: int) -> tuple[TrainState, str | None]:
        saved, no_batch = time.monotonic(), False
        while True:
            if self._due(step) and step not in self.store.scores:
                try:
                    self._evaluate(state, step)
                except distributed.Stopped:
                    return state, 'stop'
                except Exception as error:  # in every process, each with its own
                    self.failure = error
                    return state, 'not finite' if isinstance(error, NotFinite) else 'failed'
            if step > 0 and (self._due(step) or step == last):
                self._save(state)
                saved = time.monotonic()
            if step >= last:
                return state, None
            self._guard(self._profile, step)
            batch = None if no_batch else self.feed.get(lambda: bool(self.interrupt))
            # From the first missing batch on, no step is taken any more.
            no_batch = batch is None
            batch = batch or self._nothing(step)
            signals = self._signals(batch.pop('skipped'), no_batch)
            arguments = {**batch, 'signals': signals}, self.experiment.teacher_variables
            with contextlib.nullcontext() if self.interrupt.armed else self._compiling():
                state, metrics = self.experiment.train_step(state, *arguments)
            step += 1
            self.pending.append((step, metrics))
            if self.reporter:
                self._guard(self.reporter.advance, step)
            by_step = step % self.options.checkpoint_steps == 0
            settled = self._due(step) or by_step or step == last
            verdict = self._look(0 if settled else LAG)
            if verdict:
                return state, verdict
            late = time.monotonic() - saved > 60 * self.options.checkpoint_minutes
            if (by_step and not self._due(step)) or (late and self._valid()):
                self._save(state)
                saved = time.monotonic()

    @contextlib.contextmanager
    def _compiling(self) -> Iterator[None]:
        """Around the first step."""
        start = time.perf_counter()
        self.say('compiling the training step; it can take a minute or more ...')
        yield
        self.say(f'compiled, after {time.perf_counter() - start:.0f} s')
        self.interrupt.armed = True

    def _due(self, step: int) -> bool:
        """Whether an evaluation belongs after this step."""
        end = self.experiment.total
        return step > 0 and (step % self.experiment.eval_steps == 0 or step == end)

    def _look(self, leave: int) -> str | None:
        """Looks at the figures of all steps but the last `leave`: the reason to end, if any."""
        while len(self.pending) > leave:
            step, metrics = self.pending.popleft()
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            if not values['finite'] and not values['no_batch']:
                return 'not finite'
            for name in ('failed', 'stop'):
                if values[name]:
                    return name
            report = self.meter.add(step, values, self.feed.waited)
            if report and self.reporter:
                self._guard(self.reporter.train, step, report)
        return None

    def _valid(self) -> bool:
        """Whether the steps under way were taken; for process 0, which saves alone.

        Nothing here may be an operation on the devices of all.
        """
        if not distributed.is_main():
            return False
        under_way = jax.device_get([metrics for _, metrics in self.pending])
        return all(metrics['finite'] and not metrics['no_batch'] for metrics in under_way)

    def _guard(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls what one process does alone: if it fails, all must hear of it and stop."""
        try:
            function(*arguments)
        except Exception as error:
            self.failure = self.failure or error

    def _evaluate(self, state: TrainState, step: int) -> None:
        start = time.perf_counter()
        source, options = self.experiment.held_out, self.options
        size = min(options.eval_batch_size or self.recipe.microbatch, source.num_examples)
        share = evaluation.Share(
            size,
            options.eval_batch_size is not None,
            jax.process_index(),
            jax.process_count(),
            jax.local_device_count(),
            max_corrupt=self.recipe.eval_max_corrupt,
        )

        def batches() -> Iterator[Batch]:
            task = self.experiment.task
            for batch in task.batches(source, self.experiment.transform, share):
                if self.interrupt:
                    raise distributed.Stopped
                yield batch

        result = evaluate(
            self.experiment.model,
            state.variables(averaged=True),
            batches(),
            self.experiment.transform,
            self.experiment.metric,
            mesh=self.experiment.mesh,
            step=self.experiment.eval_step,
        )
        result.check(source.num_examples)
        seconds = time.perf_counter() - start
        self.store.note(step, result.metrics[self.experiment.best.name])
        if self.reporter:
            values = {**result.metrics, 'num_examples': result.num_examples, **result.counts}
            values |= {'unreadable': result.unreadable} if result.unreadable else {}
            values |= {'seconds': seconds, 'epoch': step / self.experiment.data.steps_per_epoch}
            self._guard(self.reporter.evaluation, step, values)
            self.experiment.home.poke()
        self.meter.pause(time.perf_counter() - start)

    def _save(self, state: TrainState) -> None:
        start = time.perf_counter()
        self._guard(self.store.save, state)
        self.meter.pause(time.perf_counter() - start)

    def _event(self, step: int, kind: str, text: str) -> None:
        self.say(f'{kind} after step {step:,}: {text}')
        if self.reporter:
            self._guard(self.reporter.event, step, kind, text)

    def _place(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A process's batch as its part of a global one, on the devices."""
        skipped = int((batch['weight'] == 0).sum())
        placed = {
            k: jax.make_array_from_process_local_data(self.split['batch'], v)
            for k, v in batch.items()
        }
        return {**placed, 'skipped': skipped}

    def _nothing(self, step: int) -> dict[str, Any]:
        """In the place of a step's batch that will not come."""
        r = self.recipe
        shape = (r.accumulate, r.microbatch // jax.process_count())
        batch = {
            field.name: np.full((*shape, *field.shape), field.padding, field.dtype)
            for field in self.experiment.data.fields
        }
        batch['image'] = np.zeros((*shape, *self.experiment.data.size_at(step), 3), np.uint8)
        batch['weight'] = np.ones(shape, np.float32)
        return self._place(batch)

    def _signals(self, skipped: int, no_batch: bool) -> jax.Array:
        self._guard(self.store.check)
        self.failure = self.failure or self.feed.error
        values = {
            'stop': bool(self.interrupt),
            'failed': self.failure is not None,
            'no_batch': no_batch,
            'skipped': skipped,
        }
        rows = np.zeros((jax.local_device_count(), len(SIGNALS)), np.float32)
        rows[0] = [values[name] for name in SIGNALS]
        return jax.make_array_from_process_local_data(self.split['signals'], rows)

    def _profile(self, step: int | None) -> None:
        """Starts and ends the trace of `options.profile`; None ends it in any case."""
        first, last = self.options.profile or (-1, -1)
        if step == first and self.reporter:
            jax.profiler.start_trace(str(self.options.workdir / 'profile'))
            self.profiling = True
        elif self.profiling and (step is None or step >= last):
            jax.block_until_ready([metrics for _, metrics in self.pending])
            jax.profiler.stop_trace()
            self.profiling = False
            self.say(f'profile  {self.options.workdir / "profile"}')


@dataclasses.dataclass
class Meter:
    """Means of the figures since the last report, and the speed."""

    experiment: Experiment

    def __post_init__(self) -> None:
        kind = jax.devices()[0].device_kind
        self.peak = (peak_flops(kind) or 0.0) * self.experiment.mesh.size
        self.flops = self.experiment.flops() * self.experiment.recipe.batch_size
        task = self.experiment.task
        self.units = {f.name: f.unit for f in task.figures if f.name in task.training_figures}
        self.start: float | None = None  # not before the first step, which compiles
        self.timed = 0  # steps since `start`
        self.waited = 0.0
        self.skipped = 0
        self._reset()

    def _reset(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.paused = 0.0

    def pause(self, seconds: float) -> None:
        """Something else than training took so long."""
        self.paused += seconds

    def add(self, step: int, values: dict[str, float], waited: float) -> dict[str, float] | None:
        """Takes the figures of a step; returns what to report, every `log_every` steps and at
        least as often as an epoch is long."""
        now = time.perf_counter()
        self.rows.append(values)
        self.skipped += int(values['skipped'])
        if self.start is None:
            self.start, self.waited, self.paused = now, waited, 0.0
        else:
            self.timed += 1
        r = self.experiment.recipe
        every = min(self.experiment.options.log_every, self.experiment.data.steps_per_epoch)
        if step % every and step != self.experiment.total:
            return None

        def mean(name: str) -> float:
            return sum(row[name] for row in self.rows) / len(self.rows)

        report = {
            'loss': mean('loss'),
            **{name: mean(name) * (100 if unit == '%' else 1) for name, unit in self.units.items()},
            'gradient_norm': mean('gradient_norm'),
            'learning_rate': values['learning_rate'],
            'epoch': step / self.experiment.data.steps_per_epoch,
            'skipped_images': self.skipped,
        }
        seconds = now - self.start - self.paused
        if self.timed and seconds > 0:
            rate = self.timed / seconds
            report |= {'images_per_second': rate * r.batch_size, 'seconds': seconds}
            report['data_wait'] = waited - self.waited
            if self.peak:
                report['mfu'] = rate * self.flops / self.peak
        self.start, self.waited, self.timed = now, waited, 0
        self._reset()
        return report
