"""What the compiler makes of evaluation may not grow unseen: instructions of compiled programs.

Of training: test_training_parity.py.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from programs import VERSION, no_larger
from steps import BINARY

from hrnet_jax.inference import folding
from hrnet_jax.inference.evaluation import make_eval_step
from hrnet_jax.models import create_model, variable_shapes
from hrnet_jax.tasks.classification import Accuracy

# The tests' other flags are of what LLVM makes of these instructions, which is not counted.
HLO_AS_FOR_USERS = {'xla_cpu_use_fusion_emitters': True, 'xla_backend_optimization_level': 0}
# As of `counted`, at most. In the form that is folded for the platform, compiled for the CPU.
PROGRAMS = {
    ('w18', 'cpu', '1'): (59, 105, 0, 539),
    ('w18', 'tpu', '1'): (325, 1, 0, 610),
    ('tiny', 'tpu', '2'): (65, 9, 2, 115),
}


def compiled(arch, platform, devices):
    model = create_model(arch, 10)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variable_shapes(model))
    mesh = Mesh(np.array(jax.devices()[: int(devices)]), ('data',))
    fast = folding.fold(model, zeros, platform)
    batch = {
        'image': jax.ShapeDtypeStruct((4, 64, 64, 3), np.uint8),
        'label': jax.ShapeDtypeStruct((4,), np.int32),
        'mask': jax.ShapeDtypeStruct((4,), bool),
    }
    step = make_eval_step(fast.model, BINARY, mesh, Accuracy(10))
    options = (folding.compiler_options(fast.model) or {}) | HLO_AS_FOR_USERS
    return step.lower(fast.variables, batch).compile(options)


@pytest.mark.skipif(jax.__version__ != VERSION, reason=f'the figures are of JAX {VERSION}')
@pytest.mark.parametrize('program', PROGRAMS, ids='-'.join)
def test_programs_do_not_grow(program, standard_promotion):
    no_larger(compiled(*program).as_text(), PROGRAMS[program])
