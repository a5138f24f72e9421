"""What the tests of training share: precision, batches, prepared steps."""

from __future__ import annotations

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import Mesh
from rules import image

from hrnet_jax.data.preprocess import Transform
from hrnet_jax.layers import Configured, conv_norm
from hrnet_jax.training import step as training
from hrnet_jax.training.step import SIGNALS, create_state, make_optimizer, make_schedule

# What the tests' own flags change, as XLA has it without them.
AS_FOR_USERS = {
    'xla_backend_optimization_level': 3,
    'xla_llvm_disable_expensive_passes': False,
    'xla_cpu_use_fusion_emitters': True,
    'xla_cpu_parallel_codegen_split_count': 32,
}
BINARY = Transform(mean=(0.5,) * 3, std=(0.5,) * 3)  # 0 and 255 become -1 and 1 without rounding


class Small(Configured):
    """A convolution, its BatchNorm and a classifier."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(conv_norm(x, 8, 3, ('conv', 'norm'), self.opts, train, stride=2))
        return nn.Dense(self.num_classes, name='classifier')(jnp.mean(x, (1, 2)))


@contextlib.contextmanager
def precision(bits):
    """The NumPy type of so many bits, and JAX in it."""
    with jax.enable_x64(bits == 64):
        yield np.dtype(f'float{bits}').type


def tensor(x, dtype=torch.float64):
    return torch.from_numpy(np.array(x)).to(dtype)


def nchw(images, dtype):
    return tensor(images.transpose(0, 3, 1, 2), dtype)


def binary_batch(batch, devices=1, parts=1):
    """A batch of `make_train_step` with images of 0 and 255."""
    x = np.where(image(3, batch, 32, 32) > 0, 255, 0).astype(np.uint8)
    shape = (parts, batch // parts)
    return {
        'image': x.reshape(*shape, 32, 32, 3),
        'label': (np.arange(batch, dtype=np.int32) * 7 % 10).reshape(shape),
        'weight': np.ones(shape, np.float32),
        'signals': np.zeros((devices, len(SIGNALS)), np.float32),
    }


def begun(model, recipe, variables, batch):
    """A function that makes a new state, and the step for batches on so many devices."""
    schedule = make_schedule(recipe, 1)
    tx = make_optimizer(recipe, schedule)
    mesh = Mesh(np.array(jax.devices()[: len(batch['signals'])]), ('data',))

    def create():
        # Its own copy: a step takes the memory of its argument.
        return create_state(jax.tree.map(jnp.array, variables), tx, recipe.ema is not None)

    return create, training.make_train_step(model, recipe, BINARY, tx, schedule, mesh)


def prepared(model, recipe, variables, batch, **options):
    """As `begun`; the step is compiled for batches like this one."""
    create, step = begun(model, recipe, variables, batch)
    options = {'xla_backend_optimization_level': 0, **options}
    return create, step.lower(create(), batch, {}).compile(options)


def host(tree):
    """A copy in NumPy, which outlives the state."""
    return jax.tree.map(np.array, tree)
