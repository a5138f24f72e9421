"""What a training run says of itself: metrics.jsonl, TensorBoard, W&B, a bar, curves.png."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hrnet_jax.data.sources import tensorflow
from hrnet_jax.errors import UserError
from hrnet_jax.runtime.files import replacing, write
from hrnet_jax.tasks.base import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

PEAK_FLOPS = {
    'TPU v2': 23e12,
    'TPU v3': 61.5e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,
    'TPU v5p': 459e12,
    'TPU v6 lite': 918e12,
    'TPU v6e': 918e12,
    'TPU7x': 1153.5e12,
    'V100': 125e12,
    'V100-PCIE': 112e12,
    'T4': 65e12,
    'A100': 312e12,
    'A10G': 70e12,
    'L4': 121e12,
    'L40S': 362e12,
    'RTX 3090': 71e12,
    'RTX 4090': 165.2e12,
    'H100': 989.4e12,
    'H100 PCIe': 756e12,
    'H100 NVL': 835.5e12,
    'H200': 989.4e12,
    'H200 NVL': 835.5e12,
    'B200': 2250e12,
}
"""Words of `jax.Device.device_kind` -> dense bfloat16 FLOP/s, accumulated in float32.

From the vendors' data sheets: Google's of each Cloud TPU version (docs.cloud.google.com/tpu/docs),
NVIDIA's of each GPU and, for GeForce, the GA102 and Ada white papers; figures with sparsity are
halved. A v2, v3 or 7x chip is two devices, so these are half of the chip's. V100 and T4 have no
bfloat16: theirs is float16.
"""

_REDRAW = 60  # seconds between curves while training runs
_SCALARS = ('train', 'eval')  # the kinds of record that are no events
# The parts of an evaluation's line, each left out where its value is missing; the task's figures
# stand between the two.
_LINE = {'epoch': 'epoch {:.4g}', 'step': 'step {:,}', 'loss': 'loss {:.3f}'}
_LINE_END = {
    'images_per_second': '{:,.0f} images/s',
    'waited': 'waited {:.1f} % for data',
}
# The bar's, likewise.
_POSTFIX = {
    'loss': ('loss', '{:.3f}'),
    'images_per_second': ('images/s', '{:,.0f}'),
    'mfu': ('MFU', '{:.1%}'),
}
_BLUE, _ORANGE, _GREY, _INK = '#2f6db3', '#d9702b', '#8a929b', '#333a42'

_Logger = Callable[[int, Mapping[str, float]], None]  # of a step's scalars


def peak_flops(device_kind: str) -> float | None:
    """The peak of one JAX device in dense bfloat16 FLOP/s; None for a CPU and unknown kinds."""
    found = [name for name in PEAK_FLOPS if re.search(rf'\b{name}\b', device_kind)]
    return PEAK_FLOPS[max(found, key=len)] if found else None


_STEP = 'trainer/step'  # in W&B


class Reporter:
    """Records a training run in its folder and shows how it goes; for process 0 alone.

    `metrics.jsonl` is the record: one JSON object a line with `kind` ('train', 'eval' or that of an
    event), `step`, `time` (Unix seconds) and the values. TensorBoard, the bar and the picture of
    the curves are left out where tensorflow, tqdm or matplotlib is missing.

    Args:
        workdir: the run's folder.
        total_steps: of the whole run.
        start_step: those done before. What an earlier run recorded of later ones is dropped.
        tensorboard: whether to write `workdir/tensorboard/`.
        wandb: the W&B project to log to.
        config: the run's settings, for W&B.
        figures: of the task; the first is drawn.
        out: prints one line for each evaluation.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        start_step: int,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: dict | None = None,
        figures: Sequence[Figure] = (),
        out: Callable[[str], Any] = print,
    ):
        self._workdir, self._out, self._figures = workdir, out, figures
        self._loggers: list[_Logger] = []
        self._end = contextlib.ExitStack()  # closes the rest where one fails
        if wandb:  # first: it may refuse
            self._loggers.append(_wandb(wandb, workdir, config, self._end))
        path = workdir / 'metrics.jsonl'
        kept = [r for r in _read(path) if r['kind'] not in _SCALARS or r['step'] <= start_step]
        write(path, ''.join(json.dumps(row) + '\n' for row in kept))
        self._metrics = self._end.enter_context(path.open('a'))
        with contextlib.suppress(ModuleNotFoundError):
            if tensorboard:
                self._loggers.append(_tensorboard(workdir, start_step, self._end))
        self._bar = None
        with contextlib.suppress(ModuleNotFoundError):
            from tqdm import tqdm

            options: Any = {'unit': ' steps', 'dynamic_ncols': True, 'disable': None}
            self._bar = self._end.enter_context(
                tqdm(total=total_steps, initial=start_step, **options)
            )
        self._intervals: list[Mapping[str, float]] = []  # since the last evaluation
        self._last = time.monotonic()  # when the last interval or evaluation ended
        self._drawn = self._last

    def train(self, step: int, values: dict[str, float]) -> None:
        """Records an interval of training.

        Args:
            step: the last of the interval.
            values: loss, the task's figures, learning_rate, images_per_second, mfu (a fraction),
                data_wait (seconds), seconds (the interval's; by default those since the last
                record), epoch (passes so far, with a fraction) and others; none must be there.
        """
        now = time.monotonic()
        self._intervals.append({'seconds': now - self._last} | values)
        self._last = now
        self._record('train', step, values)
        if self._bar is not None:
            shown = {name: f.format(values[v]) for v, (name, f) in _POSTFIX.items() if v in values}
            self._bar.set_postfix(shown, refresh=False)

    def evaluation(self, step: int, values: dict[str, float]) -> None:
        """Records an evaluation, the task's figures, and prints it in one line.

        Loss, speed and wait in the line are those of the training since the evaluation before.
        """
        self._record('eval', step, values)
        line: dict[str, Any] = {'step': step} | values
        for name in ('loss', 'images_per_second', 'data_wait', 'seconds'):
            found = [float(interval[name]) for interval in self._intervals if name in interval]
            if found:
                line[name] = np.mean(found)
        if 'data_wait' in line:
            line['waited'] = 100 * line['data_wait'] / max(line['seconds'], 1e-9)
        parts = [
            *((name, form.format) for name, form in _LINE.items()),
            *((f.name, lambda value, f=f: f'{f.label} {f.text(value)}') for f in self._figures),
            *((name, form.format) for name, form in _LINE_END.items()),
        ]
        self.say('  '.join(form(line[name]) for name, form in parts if name in line))
        if left_out := values.get('unreadable'):
            self.say(
                f'note: {left_out:.0f} images of the evaluation cannot be read and are left out'
            )
        if time.monotonic() - self._drawn > _REDRAW:
            self._draw()
        self._intervals, self._last = [], time.monotonic()

    def event(self, step: int, kind: str, text: str) -> None:
        """Records something that happened, such as 'resumed', 'checkpoint' or 'stopped'."""
        self._write(kind, step, {'text': text})

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """Prints a line without tearing the bar."""
        with self._bar.external_write_mode() if self._bar is not None else contextlib.nullcontext():
            self._out(text)

    def close(self) -> None:
        """Ends the record and draws the curves."""
        with self._end:
            self._draw()

    def _draw(self) -> None:
        with contextlib.suppress(ModuleNotFoundError):
            draw_curves(self._workdir, self._figures[:1])
        self._drawn = time.monotonic()

    def _record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._write(kind, step, {name: _strict(value) for name, value in values.items()})
        for log in self._loggers:
            log(step, {f'{kind}/{name}': float(value) for name, value in values.items()})

    def _write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        row = {'kind': kind, 'step': int(step), 'time': time.time(), **values}
        self._metrics.write(json.dumps(row, allow_nan=False) + '\n')
        self._metrics.flush()


def _strict(value: float) -> float | str:
    """JSON has no NaN and no infinity; float() reads these strings."""
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl: the last may have been cut short, others be damaged."""
    rows = []
    for line in path.read_text(errors='replace').splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and {'kind', 'step'} <= row.keys():
                rows.append(row)
    return rows


def _tensorboard(workdir: Path, start_step: int, end: contextlib.ExitStack) -> _Logger:
    tf = tensorflow()
    v1 = tf.compat.v1  # the writer of TensorFlow 2 needs the package tensorboard
    folder, suffix = str(workdir / 'tensorboard'), f'.{start_step}'  # no file is written twice
    with tf.Graph().as_default():  # it refuses to be made in eager mode
        writer = end.enter_context(v1.summary.FileWriter(folder, filename_suffix=suffix))
    # TensorBoard then forgets what earlier files have from this step on.
    writer.add_session_log(v1.SessionLog(status=v1.SessionLog.START), start_step + 1)

    def log(step: int, scalars: Mapping[str, float]) -> None:
        values = [v1.Summary.Value(tag=tag, simple_value=x) for tag, x in scalars.items()]
        writer.add_summary(v1.Summary(value=values), step)
        writer.flush()

    return log


def _wandb(project: str, workdir: Path, config: dict | None, end: contextlib.ExitStack) -> _Logger:
    try:
        import wandb
    except ModuleNotFoundError:
        raise UserError('wandb is missing: pip install wandb') from None
    path = workdir / 'wandb_id.txt'  # after a restart, the same run goes on
    if not path.exists():
        write(path, uuid.uuid4().hex)
    id = path.read_text().strip()
    run = wandb.init(project=project, dir=str(workdir), config=config, resume='allow', id=id)
    end.callback(wandb.finish)
    # W&B drops what is logged for a step below its own last one, as after a restart from an older
    # checkpoint. A metric that counts our steps may go back.
    run.define_metric('*', step_metric=_STEP)
    return lambda step, scalars: run.log({**scalars, _STEP: step})


def draw_curves(workdir: Path, figures: Sequence[Figure]) -> Path | None:
    """Draws `workdir/metrics.jsonl` as `workdir/curves.png`; None if there is nothing to draw."""
    rows = [row for row in _read(workdir / 'metrics.jsonl') if row['kind'] in _SCALARS]
    if not rows:
        return None
    path = workdir / 'curves.png'
    with replacing(path, force=True) as temporary:
        curves(rows, figures).savefig(temporary, dpi=130, format='png')
    return path


def curves(rows: Sequence[Mapping[str, Any]], figures: Sequence[Figure]) -> Picture:
    """The loss, the figures and the learning rate over the steps, the best evaluation marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture
    from matplotlib.ticker import MaxNLocator

    figure = Picture(figsize=(9, 8), layout='constrained')
    FigureCanvasAgg(figure)
    marked = {f.name: f for f in figures}
    panels = [('loss', 'loss', 3.0)]  # value, axis label, relative height
    panels += [(f.name, f'{f.label} ({f.unit})' if f.unit else f.label, 3.0) for f in figures]
    panels += [('learning_rate', 'learning rate', 1.3)]
    heights = [height for *_, height in panels]
    grid = figure.subplots(len(panels), sharex=True, gridspec_kw={'height_ratios': heights})
    for axes, (name, label, _) in zip(grid, panels, strict=True):
        steps, values = _series(rows, 'train', name)
        if name != 'learning_rate':
            axes.plot(steps, values, color=_BLUE, alpha=0.25, linewidth=0.7)
            values = _smoothed(values)
        dot = '.' if len(steps) == 1 else None  # one point makes no line
        axes.plot(steps, values, color=_BLUE, linewidth=1.8, marker=dot, label='training')
        steps, values = _series(rows, 'eval', name)
        if len(steps):
            axes.plot(steps, values, color=_ORANGE, marker='.', markersize=5, label='evaluation')
        if len(steps) and name in marked:
            top = np.max(values) if marked[name].higher_is_better else np.min(values)
            i = np.flatnonzero(values == top)[-1]  # as the checkpoint that is kept
            best = f'best: {marked[name].text(values[i])} at step {steps[i]:,.0f}'
            axes.plot(
                steps[i], values[i], '*', color=_ORANGE, markeredgecolor='white', markersize=15,
                linestyle='', label=best, clip_on=False, zorder=3,
            )  # fmt: skip
        axes.set_ylabel(label, color=_INK)
        axes.set_ylim(bottom=0)
        axes.grid(color=_GREY, alpha=0.25, linewidth=0.6)
        axes.spines[['top', 'right']].set_visible(False)
        axes.spines[['left', 'bottom']].set_color(_GREY)
        axes.tick_params(color=_GREY, labelcolor=_INK)

    top, bottom = grid[0], grid[-1]
    grid[-2].legend(loc='lower right', frameon=False, labelcolor=_INK)
    bottom.set_xlim(0, 1.01 * max(max(row['step'] for row in rows), 1))
    bottom.set_xlabel('step', color=_INK)
    bottom.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    bottom.xaxis.set_major_formatter('{x:,.0f}')
    lengths = [row['step'] / row['epoch'] for row in rows if row['step'] and row.get('epoch')]
    if lengths:
        epoch = lengths[-1]  # in steps
        above = top.secondary_xaxis('top', functions=(lambda x: x / epoch, lambda x: x * epoch))
        above.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
        above.set_xlabel('epoch', color=_INK)
        above.spines['top'].set_color(_GREY)
        above.tick_params(color=_GREY, labelcolor=_INK)
    return figure


def _series(rows: Iterable[Mapping[str, Any]], kind: str, name: str) -> np.ndarray:
    """Steps and values, as two rows; NaN and infinity cannot be drawn."""
    pairs = [(r['step'], float(r[name])) for r in rows if r['kind'] == kind and name in r]
    array = np.array(pairs, float).reshape(-1, 2).T
    return array[:, np.isfinite(array[1])]


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential means from the first value on, over the more points the more there are."""
    rate, smooth = 1 / max(math.isqrt(len(values)) // 2, 1), np.array(values, float)
    for i in range(1, len(smooth)):
        smooth[i] += (1 - rate) * (smooth[i - 1] - smooth[i])
    return smooth
