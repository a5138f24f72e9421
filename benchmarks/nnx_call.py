"""Milliseconds a call of a model in Flax NNX, by the ways there are to call it, beside Linen.

    taskset -c 0 python benchmarks/nnx_call.py --arch w18

Two functions: one that adds up two numbers, so that what is left is the cost of handing over the
model, and the logits of one image of 32 x 32. All ways take turns in one process; medians. JAX
hands work over asynchronously: on an accelerator the first figure is hidden behind the computation
where that takes longer.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import hrnet_jax
from hrnet_jax import cli
from hrnet_jax.nnx import from_linen


def ways(model: Any, variables: Any, images: Any, whole: bool) -> dict[str, Callable[[], Any]]:
    """Name -> a call. `whole` is the network, otherwise two numbers of it and the images."""
    module = from_linen(model, variables)
    graphdef, state = nnx.split(module)

    def linen(variables, images):
        if whole:
            return model.apply(variables, images)
        return variables['params']['backbone']['conv1']['kernel'][0, 0, 0, 0] + images[0, 0, 0, 0]

    def ours(module, images):
        if whole:
            return module(images)
        return module.params['backbone']['conv1']['kernel'][0, 0, 0, 0] + images[0, 0, 0, 0]

    def bridge(module, images):
        if whole:
            return module(images)
        return module.backbone['conv1']['kernel'][0, 0, 0, 0] + images[0, 0, 0, 0]

    def jit(function):
        return jax.jit(function, keep_unused=True)  # all arrays are looked at, as they would be

    def merged(state, images):
        return ours(nnx.merge(graphdef, state), images)

    to_nnx = nnx.bridge.ToNNX(model)
    for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
        setattr(to_nnx, name, nnx.data(value))

    apply, merge, direct = jit(linen), jit(merged), jit(ours)
    graph = nnx.jit(ours, keep_unused=True)
    table = {
        'jax.jit, the Linen model': lambda: apply(variables, images),
        'jax.jit, split once, merge inside': lambda: merge(state, images),
        'jax.jit, the module itself': lambda: direct(module, images),
        'nnx.jit': lambda: graph(module, images),
        'nnx.jit, nnx.bridge.ToNNX': functools.partial(
            nnx.jit(bridge, keep_unused=True), to_nnx, images
        ),
    }
    try:
        tree = nnx.jit(ours, keep_unused=True, graph=False)
    except TypeError:  # of later releases of Flax
        return table
    table['nnx.jit, graph=False'] = lambda: tree(module, images)
    return table


def measured(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Name -> milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(rounds + 2):  # the first compiles, the second warms up
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if round > 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * statistics.median(each) for name, each in seconds.items()}


def main() -> None:
    parser = cli.Parser(description='Compare the cost of a call through Flax NNX.')
    parser.add_argument('--arch', choices=hrnet_jax.list_models(), default='w18', help='model')
    parser.add_argument('--rounds', type=int, default=50, metavar='N', help='calls of each way')
    args = parser.parse_args()
    model = hrnet_jax.create_model(args.arch)
    variables = hrnet_jax.init(model, jax.random.key(0))
    images = jnp.zeros((1, 32, 32, 3))
    columns = [
        measured(ways(model, variables, images, whole), max(args.rounds, 1))
        for whole in (False, True)
    ]
    arrays = len(jax.tree.leaves(variables))
    print(f'{args.arch}, {arrays} arrays, on {jax.devices()[0].device_kind}; milliseconds a call')
    print(f'{"":36}{"handing over":>18}{"with the network":>22}')
    for name in columns[0]:
        cells = [(column[name], column[name] / next(iter(column.values()))) for column in columns]
        print(f'{name:36}' + ''.join(f'{ms:13.2f} {ratio:6.2f}x' for ms, ratio in cells))


if __name__ == '__main__':
    cli.run(main)
