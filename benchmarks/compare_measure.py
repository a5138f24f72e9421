"""What compare.py measures with: the same inputs for all, the check of results, turns, floors."""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from compare_tasks import RIVALS, TASKS, Cell, create_model, network, size
from compare_worker import Failed, Worker
from PIL import Image

import hrnet_jax
from convert import to_torch
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError
from hrnet_jax.inference import summary
from hrnet_jax.models import variable_shapes
from hrnet_jax.runtime import cli
from hrnet_jax.tasks.classification_recipes import Official

OURS = 'hrnet_jax'
CELL = ('task', 'arch', 'head', 'mode', 'dtype', 'batch', 'image_size')  # what a contender is told
TRAINING = 3  # forward passes that a step costs
LIMITS = {'float32': 1e-4, 'bfloat16': 5e-2}  # relative to the largest value


def variables_of(model: Any, seed: int = 0) -> dict[str, Any]:
    """Random variables; BatchNorm's are not 0 and 1, so that a mistake with them would show."""
    random = np.random.default_rng(seed)

    def value(path: Any, leaf: Any) -> np.ndarray:
        n, name = random.standard_normal(leaf.shape).astype(np.float32), path[-1].key
        if leaf.ndim != 1 or path[-2].key == 'classifier':
            return np.asarray(leaf)
        if name == 'var':
            return np.exp(np.float32(0.2) * n)
        return np.float32(0.5) + np.float32(0.1) * n if name == 'scale' else np.float32(0.02) * n

    return jax.tree_util.tree_map_with_path(value, hrnet_jax.init(model, jax.random.key(seed)))


def write_inputs(folder: Path, cell: Cell, rivals: Sequence[str]) -> None:
    """What all contenders read: variables, state dicts, images, labels; a picture of people."""
    batch = cell['batch']
    variables = variables_of(create_model(cell))
    flat = {
        '/'.join(k.key for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    np.savez(folder / 'variables.npz', **flat)
    for name in {RIVALS[rival].package for rival in rivals}:
        np.savez(folder / f'{name}.npz', **to_torch(variables, cell['arch'], name))
    random, transform = np.random.default_rng(1), Transform()
    pixels = random.integers(0, 256, (batch, *cell['image_size'], 3), np.uint8)
    mean, std = np.float32(transform.mean), np.float32(transform.std)
    images = ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32)
    labels = random.integers(0, 1000, batch).astype(np.int32)
    boxes = random.uniform((0, 0, 60, 120), (500, 240, 200, 400), (batch, 4)).round(1)
    np.savez(folder / 'batch.npz', pixels=pixels, images=images, labels=labels, boxes=boxes)
    smooth = Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).resize((640, 480))
    smooth.save(folder / 'picture.jpg')


@functools.cache
def costs(model: Any, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Multiply-adds, parameters, elements that convolutions read and write; of one image."""

    def count(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == 'conv_general_dilated':
                shapes = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
                total += sum(map(math.prod, shapes))
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, 'jaxpr')):
                total += count(inner.jaxpr) if hasattr(inner, 'jaxpr') else 0
        return total

    images = jax.ShapeDtypeStruct((1, *image_size, 3), np.float32)
    jaxpr = jax.make_jaxpr(model.apply)(variable_shapes(model), images).jaxpr
    return summary.multiply_adds(model, image_size), summary.parameters(model), count(jaxpr)


def floor(cell: Cell, rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """FLOPs and bytes of a step, and the images/s at which either would be the limit."""
    products, parameters, elements = costs(create_model(cell), tuple(cell['image_size']))
    times = {'train': TRAINING, 'chain': TASKS[cell['task']].asked}.get(cell['mode'], 1)
    width = 2 if cell['dtype'] == 'bfloat16' else 4
    flops = times * 2 * products * cell['batch']
    moved = times * width * (parameters + elements * cell['batch'])
    best = {key: max(rate[key] for rate in rates.values()) for key in ('flops', 'bytes')}
    return {
        'flops': flops,
        'bytes': moved,
        'images_per_second_by_flops': cell['batch'] * best['flops'] / flops,
        'images_per_second_by_bytes': cell['batch'] * best['bytes'] / moved,
    }


def floor_speed(cell: Cell) -> float:
    """Images/s: the lower of the two."""
    return min(cell['floor'][f'images_per_second_by_{key}'] for key in ('flops', 'bytes'))


def differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """max |a - b| / max |b| of each result; infinite where that is no number."""
    found = {}
    for name, a in ours.items():
        a, b = np.asarray(a, np.float64), np.asarray(theirs[name], np.float64)
        if a.shape != b.shape:
            raise UserError(f'{name} are {a.shape} here, {b.shape} there')
        value = float(np.abs(a - b).max() / np.abs(b).max())
        found[name] = value if math.isfinite(value) else math.inf
    return found


def refuse_different(cell: Cell, contender: str, found: dict[str, float]) -> None:
    """Raises UserError where a result differs by more than rounding."""
    limit = LIMITS[cell['dtype']]
    for name, value in found.items():
        if not value < limit:
            raise UserError(
                f'{network(cell)} {cell["mode"]} {cell["dtype"]}: {name} of {contender} differs '
                f'from ours by {value:.1e} of its largest value, more than {limit:.0e}; '
                'nothing is timed'
            )


def spread(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Of the ratio ours / theirs, round by round."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {'median': statistics.median(ratios), 'min': min(ratios), 'max': max(ratios)}


class Contest:
    """The contenders for one cell. `entries` has a dict for each, with 'failed' if it did.

    Attributes:
        variants: contenders that are ours with another specification, and what it adds.
    """

    def __init__(
        self,
        cell: Cell,
        rivals: Sequence[str],
        common: dict[str, Any],
        variants: dict[str, dict[str, Any]] | None = None,
    ):
        self.cell, self.common, self.variants = cell, common, variants or {}
        self.workers: dict[str, Worker] = {}
        names = dict.fromkeys((OURS, *rivals, *self.variants))
        self.entries: dict[str, dict[str, Any]] = {name: {'failed': None} for name in names}

    def ask(self, name: str, order: str, **more: Any) -> dict[str, Any] | None:
        """The answer; None from a contender that fails, or has failed before."""
        worker = self.workers.get(name)
        try:
            return worker.ask(order, **more) if worker else None
        except Failed as error:
            self.drop(name, str(error))
            return None

    def drop(self, name: str, reason: str) -> None:
        """It failed, and takes no further part."""
        self.entries[name]['failed'] = reason
        self.workers.pop(name).end()

    def start(self, name: str, folder: str) -> None:
        cell = self.cell
        spec = self.common | {k: cell[k] for k in CELL}
        spec |= {'contender': name, 'folder': folder, 'side': 'compare_jax'}
        task = TASKS[cell['task']]
        spec |= {'result': task.result, 'of_chain': task.chain} | self.variants.get(name, {})
        if name in RIVALS:
            recipe, rival = Official(), RIVALS[name]
            spec |= {
                'side': 'compare_torch',
                'package': rival.package,
                'name': rival.names[network(cell)],
                'compiled': rival.compiled,
                'sgd': {
                    'lr': recipe.learning_rate * cell['batch'] / recipe.base_batch,
                    'momentum': recipe.momentum,
                    'weight_decay': recipe.weight_decay,
                    'nesterov': recipe.nesterov,
                },
            }
        self.workers[name] = Worker(spec)

    def first(self, name: str, folder: str) -> None:
        """Starts a contender and lets it come to its first result."""
        entry = self.entries[name]
        self.start(name, folder)
        start = self.ask(name, 'start')
        built = start and self.ask(name, 'build', file=f'{folder}/{name}.out.npz')
        if start and built:
            entry['bytes_at_start'] = start['bytes']
            entry['seconds_to_first_result'] = built['seconds']

    def differ(self, name: str, folder: str) -> None:
        """Notes how far the first result is from ours; raises UserError where it is too far."""
        paths = [Path(folder) / f'{n}.out.npz' for n in (OURS, name)]
        if name == OURS or self.entries[name]['failed'] or not all(p.exists() for p in paths):
            return
        ours, theirs = (dict(np.load(path)) for path in paths)
        found = self.entries[name]['difference'] = differences(ours, theirs)
        refuse_different(self.cell, name, found)

    def build(self, folder: str) -> None:
        """First results, one contender after the other; raises UserError where they differ."""
        for name in self.entries:
            self.first(name, folder)
            self.differ(name, folder)

    def run(self, rounds: int, seconds: float) -> None:
        cell, iterations = self.cell, {}
        for name, entry in self.entries.items():
            # The first are slower: memory is got, kernels are chosen, graphs recorded.
            self.ask(name, 'time', iterations=2)
            probe = self.ask(name, 'time', iterations=2)
            if probe:
                iterations[name] = max(1, round(seconds * 2 / probe['seconds']))
                entry['rounds'] = []
        names = list(iterations)
        title = f'{network(cell)} {size(cell)} {cell["mode"]} {cell["dtype"]} {cell["batch"]}'
        for i in cli.progress(range(rounds), desc=title):
            turn = i % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                took = self.ask(name, 'time', iterations=iterations[name])
                if took:
                    speed = iterations[name] * cell['batch'] / took['seconds']
                    self.entries[name]['rounds'].append(speed)
        for name in names:
            memory = self.ask(name, 'memory')
            self.entries[name]['peak_bytes'] = memory and memory['bytes']

    def summarise(self) -> None:
        ours = self.entries[OURS]
        for name, entry in self.entries.items():
            if entry['failed']:
                continue
            entry['images_per_second'] = speed = statistics.median(entry['rounds'])
            entry['milliseconds'] = 1000 * self.cell['batch'] / speed
            entry['of_floor'] = speed / floor_speed(self.cell)
            if name != OURS and not ours['failed']:
                entry['ratio'] = spread(ours['rounds'], entry['rounds'])


def measure(
    cell: Cell, rivals: Sequence[str], common: dict[str, Any], rounds: int, seconds: float
) -> None:
    """Adds 'contenders' to the cell."""
    contest = Contest(cell, rivals, common)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), cell, rivals)
        try:
            contest.build(folder)
            contest.run(rounds, seconds)
        finally:
            for worker in contest.workers.values():
                worker.end()
    contest.summarise()
    cell['contenders'] = contest.entries
