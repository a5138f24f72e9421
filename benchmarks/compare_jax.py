"""The side of hrnet_jax in compare.py."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from compare_profile import Kernel, of_jax
from compare_tasks import create_model
from compare_worker import best_rate, picture, results
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import hrnet_jax
from hrnet_jax.inference.folding import folded_as
from hrnet_jax.runtime import cli
from hrnet_jax.tasks import task_of_model
from hrnet_jax.tasks.classification_recipes import Official
from hrnet_jax.training.step import (
    SIGNALS,
    create_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)

Outputs = dict[str, np.ndarray]


def inference(spec: dict[str, Any], model: Any, variables: Any, images: Any) -> Callable[[], Any]:
    """The call that is timed; making it counts as part of the first result."""
    if 'fields' in spec:
        fast = folded_as(model, variables, spec['fields'])
    else:
        fast = hrnet_jax.fold(model, variables)
    return lambda: fast(images)


def chain(spec: dict[str, Any], model: Any, variables: Any) -> Callable[[], Any]:
    """From the file of a picture to the keypoints of the people in its boxes; or, as many times as
    the batch says, to its objects."""
    fast = hrnet_jax.fold(model, variables)
    task, (path, boxes) = task_of_model(model), picture(spec['folder'])
    people = spec['task'] == 'pose'
    options = {'boxes': [boxes]} if people else {}

    def step() -> Outputs:
        images = [task.open_image(path) for _ in range(1 if people else spec['batch'])]
        found = hrnet_jax.predict(fast.model, fast.variables, images, **options)[0]
        return {name: np.array([getattr(x, name) for x in found]) for name in spec['of_chain']}

    return step


def products_for_1x1() -> None:
    """An experiment: convolutions of 1x1 without stride are matrix products."""
    convolve = jax.lax.conv_general_dilated

    def instead(x: Any, kernel: Any, window_strides: Any, **rest: Any) -> Any:
        if kernel.shape[:2] == (1, 1) and tuple(window_strides) == (1, 1):
            return jnp.einsum('nhwi,io->nhwo', x, kernel[0, 0])
        return convolve(x, kernel, window_strides=window_strides, **rest)

    jax.lax.conv_general_dilated = instead


EXPERIMENTS = {'products for 1x1': products_for_1x1}


class Training:
    """The step of `make_train_step` with the Official recipe, on a batch that stays the same."""

    def __init__(self, spec: dict[str, Any], model: Any, variables: Any, file: Any):
        recipe = Official(batch_size=spec['batch'], dtype=spec['dtype'], bn_group_size=None)
        schedule = make_schedule(recipe, 1000)
        tx = make_optimizer(recipe, schedule)
        mesh = Mesh(np.array(jax.devices()[:1]), ('data',), axis_types=(AxisType.Auto,))
        whole = NamedSharding(mesh, PartitionSpec())
        self.state = jax.device_put(create_state(variables, tx, ema=False), whole)
        batch = {
            'image': file['pixels'][None],
            'label': file['labels'][None],
            'weight': np.ones((1, spec['batch']), np.float32),
            'signals': np.zeros((1, len(SIGNALS)), np.float32),
        }
        self.batch = jax.device_put(batch, whole)
        self.program = make_train_step(
            model, recipe, recipe.transform, tx, schedule, mesh, **spec.get('step', {})
        )

    def bias(self) -> np.ndarray:
        return np.array(self.state.params['head']['classifier']['bias'])

    def step(self) -> Any:
        self.state, metrics = self.program(self.state, self.batch, {})
        return metrics

    def first(self) -> Outputs:
        before = self.bias()
        metrics = self.step()
        return {'loss': np.asarray(metrics['loss']), 'update': self.bias() - before}


def joined(levels: Any) -> Any:
    """Maps (N, h, w, C) -> (N, places of all levels, C)."""
    return jnp.concatenate([x.reshape((len(x), -1, x.shape[-1])) for x in levels], 1)


class Side:
    """See compare_worker.py for what it is asked."""

    def __init__(self, spec: dict[str, Any]):
        cli.quiet()
        self.spec, self.chip = spec, jax.devices()[0]
        self.platform, self.device = self.chip.platform, self.chip.device_kind
        self.step: Callable[[], Any]
        if spec['mode'] == 'rates':
            return
        if 'experiment' in spec:
            EXPERIMENTS[spec['experiment']]()
        dtype = jnp.dtype(spec['dtype'])
        options = {'dtype': dtype, 'bn_group_size': None} | spec.get('options', {})
        self.model = create_model(spec, **options)
        self.variables: dict[str, Any] = {}
        with np.load(f'{spec["folder"]}/variables.npz') as file:
            for name in file.files:
                *path, last = name.split('/')
                node = self.variables
                for key in path:
                    node = node.setdefault(key, {})
                node[last] = file[name]
        self.variables = jax.device_put(self.variables)
        with np.load(f'{spec["folder"]}/batch.npz') as file:
            if spec['mode'] == 'train':
                self.training = Training(spec, self.model, self.variables, file)
            else:
                self.images = jax.device_put(file['images'])
        jax.block_until_ready(jnp.zeros(()) + 1)  # the backend's own start-up

    def first(self) -> Outputs:
        """Compiles, and fetches the first result."""
        if self.spec['mode'] == 'train':
            self.step = self.training.step
            return self.training.first()
        if self.spec['mode'] == 'chain':
            self.step = chain(self.spec, self.model, self.variables)
            return self.step()
        self.step = inference(self.spec, self.model, self.variables, self.images)
        found = self.step()
        if isinstance(found, dict):  # the pyramid shows in what comes of it
            found = {name: x for name, x in found.items() if name != 'pyramid'}
        named = results(found, self.spec['result'], joined)
        return {name: np.asarray(x) for name, x in named.items()}

    def wait(self, result: Any) -> None:
        jax.block_until_ready(result)

    def session(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def profile(self, iterations: int) -> list[Kernel]:
        return of_jax(self.step, iterations)

    def peak(self) -> int | None:
        return (self.chip.memory_stats() or {}).get('peak_bytes_in_use')

    def rates(self) -> dict[str, float]:
        """FLOP/s of a large matrix product, bytes/s read and written by a large copy."""
        size, length = (2048, 2**26) if self.platform == 'cpu' else (8192, 2**28)
        precision = 'highest' if self.spec['dtype'] == 'float32' else 'default'
        product = jax.jit(lambda a: jnp.dot(a, a, precision=precision))
        matrix = jax.random.normal(jax.random.key(0), (size, size), self.spec['dtype'])
        flops = best_rate(2 * size**3, lambda: product(matrix), jax.block_until_ready)
        negate = jax.jit(lambda x: -x, donate_argnums=0)
        held = [jnp.ones(length, jnp.float32)]

        def copy():
            held.append(negate(held.pop()))
            return held

        return {'flops': flops, 'bytes': best_rate(8 * length, copy, jax.block_until_ready)}
