"""The checkpoints of a training run: written while it goes on, checked when read."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hrnet_jax.checkpoints import description, workdir
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.data import imagenet
from hrnet_jax.errors import UserError, first_line, listed
from hrnet_jax.runtime import distributed, files
from hrnet_jax.tasks import DEFAULT
from hrnet_jax.training.home import Home
from hrnet_jax.training.step import TrainState

_EVALUATED = ('dataset', 'eval_split')  # with the transform: what an evaluation sees


def prepare(
    path: Path, config: dict[str, Any], force: bool, free: Collection[str] = ()
) -> list[str]:
    """Makes the training folder, or checks that it is one of the same run.

    Args:
        config: what must not change; `write_config` writes it once the run can go on.
        force: allow another configuration.
        free: names of what may change all the same, such as 'recipe.eval_every'.

    Returns:
        What has changed.

    Raises:
        UserError: if the folder cannot be written, or belongs to another run.
    """
    file = path / workdir.CONFIG
    ours = file.exists() or (path / workdir.CHECKPOINTS).exists()
    held = path.is_dir() and any(not file.name.startswith('.') for file in path.iterdir())
    if held and not ours and not force:
        raise UserError(f'{path} holds files of something else; name a new folder, or add --force')
    try:
        (path / workdir.CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        before = dict(files.read_json(file)) if file.exists() else None
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from None
    except (ValueError, TypeError):
        raise UserError(f'{file} is damaged, and the run cannot go on without it') from None
    begun = bool(workdir.steps(path))
    if before is None and begun and not force:
        raise UserError(f'{file} is missing, but checkpoints are there; --force goes on without it')
    if not begun:  # it was stopped before there was anything to keep
        return []
    changed = {} if before is None else dict(_changes({'task': DEFAULT, **before}, config))
    if (refused := [text for name, text in changed.items() if name not in free]) and not force:
        raise UserError(
            f'{path} is of a run with {"; ".join(refused)}; name another --workdir, or add '
            '--force to go on in spite of it'
        )
    return list(changed.values())


def require_classes(path: Path, names: Sequence[str] | None) -> None:
    """Raises UserError if the run has other classes than the data now, or in another order; there
    must be as many."""
    meta = workdir.described(path)
    ids = list(imagenet.classes())
    before = meta.get('class_names') or (ids if meta.get('num_classes') == len(ids) else None)
    if not before or not names or list(names) == before:
        return
    pairs = enumerate(itertools.zip_longest(before, names))
    number, (old, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    remedy = (
        f'--class-names FILE, a text file with the names in the order of the run, one a line, '
        f'keeps that order ({listed(before, 20)})'
        if set(before) == set(names)
        else 'name the classes as before, or take another --workdir'
    )
    raise UserError(
        f'{path}: class {number} of the run is {old}, class {number} of the data now is {new}; '
        f'{remedy}; --force goes on in spite of it'
    )


def read_config(path: Path) -> dict[str, Any] | None:
    """What `write_config` wrote, if it did; `prepare` refuses one that is damaged."""
    try:
        return files.read_json(path / workdir.CONFIG)
    except (OSError, ValueError):
        return None


def write_config(path: Path, config: dict[str, Any]) -> None:
    files.write(path / workdir.CONFIG, json.dumps(config, indent=1) + '\n')


def _changes(
    before: dict[str, Any], after: dict[str, Any], inside: str = ''
) -> Iterator[tuple[str, str]]:
    """Name and text of each difference."""
    for key in sorted(before.keys() | after.keys()):
        if key not in before:  # a field that a later version has added
            continue
        name, old, new = f'{inside}{key}', before[key], after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changes(old, new, f'{name}.')
        elif old != new:
            yield name, f'{name} {old}, not {new}'


def require_shared(home: Home) -> None:
    """Raises UserError in every process unless process 0 can write and all can read that."""
    value = distributed.broadcast(int.from_bytes(os.urandom(3)))
    token = f'.shared-{value}'
    try:
        with distributed.fail_together():
            if distributed.is_main():
                home.mark(token)
        with distributed.fail_together():
            if not home.marked(token):
                raise UserError(
                    f'{home.name} is not the folder that process 0 has; it must be shared'
                )
    finally:
        if distributed.is_main():
            with contextlib.suppress(UserError, OSError):
                home.unmark(token)


@dataclasses.dataclass
class Store:
    """The checkpoints of the training folder `home`; all its methods are for every process.

    Process 0 alone writes, because every process has the whole state; each reads for itself.
    Kept are the last `keep`, and the one with the best evaluation.

    Attributes:
        describe: the JSON of a checkpoint beside what `save` adds.
        higher_is_better: of the figure that decides.
        scores: step -> score, of the evaluations so far; a part of every checkpoint.
        warn: gets a line about a checkpoint that cannot be read, or scores that are left out.
    """

    home: Home
    describe: dict[str, Any]
    keep: int
    warn: Callable[[str], None] = print
    higher_is_better: bool = True
    scores: dict[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = self.home.path
        self.home.kept = self._kept
        self._manager: Any = None
        self._writing = False
        self._newest: int | None = None  # being written, or written

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """Orbax's preservation policy."""
        steps = [one.step for one in checkpoints]
        kept = {*self._kept(steps), *self.home.held}
        return [step in kept for step in steps]

    def _kept(self, steps: list[int]) -> set[int]:
        best = workdir.best(steps, self.scores)
        return {*steps[-self.keep :], *([] if best is None else [best])}

    def best(self) -> int | None:
        """The step of the best evaluation so far."""
        return workdir.best(list(self.scores), self.scores)

    def note(self, step: int, value: float) -> None:
        """An evaluation has given this figure; of scores the higher is the better."""
        self.scores[step] = value if self.higher_is_better else -value

    def figure(self, step: int) -> float:
        """What `note` was given."""
        return self.scores[step] if self.higher_is_better else -self.scores[step]

    def save(self, state: TrainState) -> None:
        """Starts to write the state, which may be donated as soon as this returns.

        Raises:
            UserError: if it cannot be written, or the one before could not, or has not got to
                where the home keeps it.
        """
        step = int(state.step)
        if not distributed.is_main() or step in (self._newest, *workdir.steps(self.path)):
            return
        import orbax.checkpoint as ocp

        # Copies: on a CPU, np.asarray would be a view of what the next step overwrites.
        trees = {k: jax.tree.map(np.array, tree) for k, tree in _parts(state).items() if tree}
        digests = {name: checkpoint.entries(tree) for name, tree in trees.items()}
        # Names are strings in JSON, and sorted as such in its digest.
        scores = {str(evaluated): value for evaluated, value in self.scores.items()}
        meta = description.with_digest(
            {
                **self.describe,
                'training': {**self.describe['training'], 'step': step, 'scores': scores},
                'arrays': digests['raw'],
                'ema': digests.get('ema'),
                'rest': digests['rest'],
            }
        )
        items = {name: ocp.args.PyTreeSave(tree) for name, tree in trees.items()}
        self._newest, self._writing = step, True
        with _errors(self.path):
            self._open().save(
                step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True
            )
        self.home.settle()  # not before: where this fails, the run ends, and keeps this state

    def check(self) -> None:
        """Raises UserError if writing in the background has failed."""
        if self._writing and not self._manager.is_saving_in_progress():
            self._writing = False
            with _errors(self.path):
                self._manager.wait_until_finished()  # no wait, but it raises what happened

    def close(self) -> None:
        """Waits until everything is written.

        Raises:
            UserError: if that failed.
        """
        if self._manager is not None:
            manager, self._manager, self._writing = self._manager, None, False
            self._newest = None
            with _errors(self.path):
                manager.wait_until_finished()
                manager.close()

    def restore(self, shapes: TrainState) -> TrainState | None:
        """The newest state that can be read, as NumPy arrays; None where there is none yet.

        One that cannot is put aside with a warning.

        Raises:
            UserError: if there are checkpoints and none can be read.
        """
        # Orbax takes one without its JSON for whole.
        steps = workdir.folders(self.path) if distributed.is_main() else []
        number, problem = distributed.broadcast(len(steps)), ''
        for left in reversed(range(number)):
            step = distributed.broadcast(steps[left] if steps else 0)
            with distributed.fail_together():  # what cannot be fetched is not damaged for that
                self.home.fetch(step)
            state, failure = None, 0
            try:
                state = self._read(step, shapes)
            except checkpoint.Misfit as error:
                failure, problem = 2, str(error)
            except UserError as error:
                failure, problem = 1, str(error)
            worst = distributed.all_max(failure)
            if worst == 0:
                return state
            problem = problem or f'step {step}: another process cannot read it'
            if worst == 2:  # by --force; older ones would not fit either
                raise UserError(
                    f'{problem}. To start anew from its weights: --init {self.path} and another '
                    '--workdir'
                )
            self.warn(f'{problem}; going back' + ', it is now in damaged/' * (left > 0))
            with distributed.fail_together():
                if distributed.is_main() and left:
                    self.home.put_aside(step)
        if number:
            raise UserError(
                f'{self.path}: none of its checkpoints can be read; the last: {problem}'
            )
        return None

    def _read(self, step: int, shapes: TrainState) -> TrainState:
        folder = self.path / workdir.CHECKPOINTS / str(step)
        meta = checkpoint.read_json(folder)
        if (task := meta.get('task', DEFAULT)) != self.describe['task']:
            raise checkpoint.Misfit(f'{folder} is for {task}, not {self.describe["task"]}')
        trees = {}
        for name, tree in _parts(shapes).items():
            expected = meta['arrays' if name == 'raw' else name]
            if tree and expected is None:
                raise checkpoint.Misfit(f'{folder} was written without averaged weights')
            if tree:
                trees[name] = checkpoint.restore(folder / name, tree, expected)
        leaves, structure = jax.tree_util.tree_flatten_with_path(shapes.opt_state)
        flat = [trees['rest']['opt_state'][_name(path)] for path, _ in leaves]
        self.scores = self._comparable(meta)
        return TrainState(
            step=trees['rest']['step'],
            opt_state=jax.tree_util.tree_unflatten(structure, flat),
            ema=trees.get('ema', {}),
            valid=np.ones((), bool),  # type: ignore[arg-type]
            **{'batch_stats': {}, **trees['raw']},
        )

    def _comparable(self, meta: dict[str, Any]) -> dict[int, float]:
        """The scores in a checkpoint's JSON, if the evaluation is still of the same images."""
        scores = workdir.scores(meta['training'])
        before, now = (
            {'transform': x['transform']}
            | {k: v for k, v in x['training'].get('recipe', {}).items() if k in _EVALUATED}
            for x in (meta, self.describe)
        )
        if scores and (changed := [text for _, text in _changes(before, now)]):
            self.warn(
                f'the best is chosen anew: the evaluations until now had {"; ".join(changed)}'
            )
            return {}
        return scores

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        if self._manager is None:
            alone = ocp.options.MultiprocessingOptions(0, {0}, 'run')
            options = ocp.CheckpointManagerOptions(
                preservation_policy=self,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                multiprocessing_options=alone,
                create=False,
            )
            folder = (self.path / workdir.CHECKPOINTS).absolute()
            self._manager = ocp.CheckpointManager(folder, options=options)
        return self._manager


def _parts(state: TrainState) -> dict[str, Any]:
    """The Orbax trees of a checkpoint; the optimiser's leaves under names of their own, because
    its structure has nodes without leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
    optimizer = {_name(path): leaf for path, leaf in leaves}
    rest = {'step': state.step, 'opt_state': optimizer}
    return {'raw': state.variables(), 'ema': state.ema, 'rest': rest}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='.')


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise, of many kinds, into a UserError."""
    try:
        yield
    except Exception as error:
        line = first_line(error)
        raise UserError(f'cannot write the checkpoint in {path}: {line}') from error
