"""Seconds from a key to variables: `hrnet_jax.init` beside Flax's own `init` under jit.

python benchmarks/init_time.py --arch w18
"""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

import hrnet_jax
from hrnet_jax.runtime import cli


def main() -> None:
    parser = cli.Parser(description='Compare the time of initialisation.')
    parser.add_argument(
        '--arch', choices=hrnet_jax.list_models(), default='w18', help='which model'
    )
    model = hrnet_jax.create_model(parser.parse_args().arch)
    key = jax.random.key(0)

    def timed(name: str, make) -> float:
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(make()))
        seconds = time.perf_counter() - start
        print(f'{name:28}{seconds:6.2f} s')
        return seconds

    jax.block_until_ready(jax.random.normal(key, (8,)))  # the backend's own start-up
    ours = timed('hrnet_jax.init', lambda: hrnet_jax.init(model, key))
    theirs = timed(
        'jax.jit(model.init)', lambda: jax.jit(model.init)(key, jnp.zeros((1, 32, 32, 3)))
    )
    print(f'ratio {theirs / ours:.0f}')


if __name__ == '__main__':
    cli.run(main)
