"""What the compiler makes of the steps may not grow unseen: instructions of compiled programs."""

from __future__ import annotations

import collections
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from steps import BINARY, binary_batch, prepared

from hrnet_jax.inference import folding
from hrnet_jax.inference.evaluation import make_eval_step
from hrnet_jax.models import create_model, variable_shapes
from hrnet_jax.tasks.classification import Accuracy
from hrnet_jax.tasks.classification_recipes import Official

VERSION = '0.10.2'  # of JAX, that the figures are from
# The tests' other flags are of what LLVM makes of these instructions, which is not counted.
HLO_AS_FOR_USERS = {'xla_cpu_use_fusion_emitters': True, 'xla_backend_optimization_level': 0}
NOTHING = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast')
# Convolutions, matrix products, collectives, all other instructions but `NOTHING`; at most. In
# the form that is folded for the platform, compiled for the CPU.
PROGRAMS = {
    ('eval', 'w18', 'cpu', '1'): (59, 105, 0, 539),
    ('eval', 'w18', 'tpu', '1'): (325, 1, 0, 610),
    ('eval', 'tiny', 'tpu', '2'): (65, 9, 2, 115),
    ('train', 'tiny', '-', '2'): (202, 19, 2, 3097),
}


def counted(text: str) -> tuple[int, int, int, int]:
    """Of a compiled program, inside loops once, without the insides of fusions."""
    called = set(re.findall(r'(?:calls|to_apply)=%?([\w.-]+)', text))
    found: collections.Counter[str] = collections.Counter()
    for computation in text.split('\n\n'):
        name = re.match(r'(?:ENTRY )?%?([\w.-]+)', computation)
        kinds = re.findall(r'^\s+(?:ROOT )?\S+ = .*? ([a-z][\w-]*)\(', computation, re.M)
        if name and name[1] in called:  # the inside of a fusion
            kinds = [kind for kind in kinds if kind in ('convolution', 'dot')]
        found.update(kinds)
    collectives = sum(n for k, n in found.items() if re.match('all-|reduce-scatter|coll', k))
    big = (found['convolution'], found['dot'], collectives)
    return (*big, found.total() - sum(big) - sum(found[kind] for kind in NOTHING))


def compiled(mode, arch, platform, devices):
    devices = int(devices)
    model = create_model(arch, 10)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variable_shapes(model))
    if mode == 'train':
        data = binary_batch(64, devices=devices)
        return prepared(model, Official(batch_size=64), zeros, data, **HLO_AS_FOR_USERS)[1]
    mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
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
    got = counted(compiled(*program).as_text())
    assert all(n <= most for n, most in zip(got, PROGRAMS[program], strict=True)), got
