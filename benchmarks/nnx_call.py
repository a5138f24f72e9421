"""What a call of a model through Flax NNX costs, by the ways there are to call it, beside Linen.

    taskset -c 0 python benchmarks/nnx_call.py --arch w18

The function adds up two numbers, so that what is left is the cost of handing over the model; the
network itself, once, gives the measure. All ways take turns in one process; the best of all rounds
counts, since other programs on the machine only ever add. JAX hands work over asynchronously: an
accelerator that computes for longer than that hides it.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import hrnet_jax
from hrnet_jax.nnx import from_linen
from hrnet_jax.runtime import cli


def ways(model: Any, variables: Any, images: Any) -> dict[str, Callable[[], Any]]:
    """Name -> a call of a function of all arrays of the model that computes next to nothing."""
    module = from_linen(model, variables)
    graphdef, state = nnx.split(module)
    to_nnx = nnx.bridge.ToNNX(model)
    for name, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
        setattr(to_nnx, name, nnx.data(value))

    def add(backbone: Any, images: Any) -> Any:
        return backbone['conv1']['kernel'][0, 0, 0, 0] + images[0, 0, 0, 0]

    def linen(variables: Any, images: Any) -> Any:
        return add(variables['params']['backbone'], images)

    def ours(module: Any, images: Any) -> Any:
        return add(module.params['backbone'], images)

    def merged(state: Any, images: Any) -> Any:
        return ours(nnx.merge(graphdef, state), images)

    def bridge(module: Any, images: Any) -> Any:
        return add(module.backbone, images)

    # A network uses all of its arrays.
    jax_jit, nnx_jit = (functools.partial(jit, keep_unused=True) for jit in (jax.jit, nnx.jit))
    table = {
        'jax.jit, Linen': (jax_jit(linen), variables),
        'jax.jit, split once, merged inside': (jax_jit(merged), state),
        'jax.jit, the module as an argument': (jax_jit(ours), module),
        'nnx.jit': (nnx_jit(ours), module),
        'nnx.jit of nnx.bridge.ToNNX': (nnx_jit(bridge), to_nnx),
    }
    if 'graph' in inspect.signature(nnx.jit).parameters:  # later releases of Flax
        table['nnx.jit, graph=False'] = (nnx_jit(ours, graph=False), module)
    return {name: functools.partial(f, first, images) for name, (f, first) in table.items()}


def measured(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Name -> milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round in range(rounds + 2):  # the first compiles, the second warms up
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if round > 1:
                seconds[name].append(time.perf_counter() - start)
    return {name: 1000 * min(each) for name, each in seconds.items()}


def main() -> None:
    parser = cli.Parser(description='Compare the cost of a call through Flax NNX.')
    parser.add_argument('--arch', choices=hrnet_jax.list_models(), default='w18', help='model')
    parser.add_argument('--rounds', type=int, default=50, metavar='N', help='calls of each way')
    args = parser.parse_args()
    model = hrnet_jax.create_model(args.arch)
    variables = hrnet_jax.init(model, jax.random.key(0))
    images = jnp.zeros((1, 32, 32, 3))
    rounds = max(args.rounds, 1)
    call = functools.partial(jax.jit(model.apply), variables, images)
    network = measured({'network': call}, rounds)['network']
    calls = measured(ways(model, variables, images), rounds)
    arrays, plain = len(jax.tree.leaves(variables)), next(iter(calls.values()))
    print(f'{args.arch}, {arrays} arrays, on {jax.devices()[0].device_kind}; milliseconds a call')
    print(f'the network, one image of 32 x 32, Linen: {network:.2f}')
    for name, ms in calls.items():
        print(f'{name:36}{ms:8.2f}{ms / plain:8.1f} x Linen')


if __name__ == '__main__':
    cli.run(main)
