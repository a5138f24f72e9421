"""Feature maps: which, how wide, joined; beside PyTorch, with rule-made weights."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rules import close, image, weight

import hrnet_jax
from convert import from_torch, to_torch
from convert.reference import reference_of
from hrnet_jax.archs import ARCHS
from hrnet_jax.models import create_model, variable_shapes

X = image(2, 2, 64, 96)


@pytest.fixture(scope='module')
def variables():
    shapes = jax.tree.map(
        lambda s: np.zeros(s.shape, s.dtype), variable_shapes(create_model('tiny', 10))
    )
    state = to_torch(shapes, 'tiny', layout='official')
    return from_torch({k: weight(k, np.shape(v)) for k, v in state.items()})[1]


@pytest.fixture(scope='module')
def theirs(variables):
    """What PyTorch has at the stem, on the four branches and behind `incre_modules`; NHWC."""
    model = reference_of(variables, ARCHS['tiny'], 10).eval()
    found = {}

    def keep(name):
        def hook(module, inputs, output):
            found[name] = output if name == 'stem' else (inputs[0], output)

        return hook

    model.get_submodule('bn1').register_forward_hook(keep('stem'))
    for i in range(4):
        model.get_submodule(f'incre_modules.{i}.0').register_forward_hook(keep(i))
    with torch.no_grad():
        model(torch.from_numpy(X.transpose(0, 3, 1, 2).copy()))
    return {
        'stem': found['stem'].relu(),
        'branches': [found[i][0] for i in range(4)],
        'widened': [found[i][1] for i in range(4)],
    }


@pytest.mark.parametrize(
    ('kind', 'indices'),
    [
        ('branches', (1, 2, 3, 4)),
        ('branches', (3,)),
        ('widened', (1, 2, 3, 4)),
        ('widened', (0, 2, 4)),
        ('concatenated', (0, 2, 4)),
    ],
)
def test_maps_are_those_of_pytorch(variables, theirs, kind, indices):
    model = hrnet_jax.FeatureMaps('tiny', kind, indices)
    got = jax.jit(model.apply)(variables, X)  # a classifier's variables, as they are
    source = theirs['widened' if kind == 'widened' else 'branches']
    wanted = [source[i - 1] if i else theirs['stem'] for i in indices]
    if kind == 'concatenated':
        size = wanted[0].shape[2:]
        same = [torch.nn.functional.interpolate(x, size, mode='bilinear') for x in wanted]
        wanted = [torch.cat(same, 1)]
    for ours, x, info in zip(got, wanted, model.feature_info, strict=True):
        assert close(ours, x.permute(0, 2, 3, 1).numpy()) < 3e-6
        assert info.channels == ours.shape[-1]
        assert info.stride == 64 // ours.shape[1] == 96 // ours.shape[2]
    fast = hrnet_jax.fold(model, variables)
    assert max(map(close, fast(X), got)) < 1e-5


def test_only_what_is_returned_has_variables():
    head = variable_shapes(hrnet_jax.FeatureMaps('tiny', 'widened', (0, 3)))['params']['head']
    assert list(head) == ['incre_modules_2_0']
    assert variable_shapes(hrnet_jax.FeatureMaps('w18'))['params'].keys() == {'backbone'}


def test_lists_and_names_will_do():
    assert hrnet_jax.FeatureMaps('tiny', out_indices=[1, 2]).feature_info[1].stride == 8
    shapes = variable_shapes(hrnet_jax.HRNet('tiny', out_indices=[1, 2]))
    assert shapes == variable_shapes(hrnet_jax.HRNet(ARCHS['tiny']))
    assert variable_shapes(hrnet_jax.Classifier('tiny', 10)).keys() == {'params', 'batch_stats'}


def test_flax_sees_every_call():
    """Interceptors change every layer, and nothing of it stays; intermediates are all captured."""
    model = hrnet_jax.HRNet('tiny')
    shapes = variable_shapes(model)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)

    def sines():
        return str(jax.make_jaxpr(model.apply)(shapes, x)).count('sin ')

    def intercept(call, args, kwargs, context):
        out = call(*args, **kwargs)
        return jnp.sin(out) if type(context.module).__name__ == 'Conv' else out

    assert sines() == 0
    with nn.intercept_methods(intercept):
        assert sines() == 53
    assert sines() == 0

    def captured(which):
        run = functools.partial(model.apply, capture_intermediates=which, mutable='intermediates')
        return len(jax.tree.leaves(jax.eval_shape(run, shapes, x)[1]))

    captured(True)
    assert captured(lambda module, _: type(module).__name__ == 'Conv') == 53


def test_feature_info():
    w18 = hrnet_jax.create_model('w18')
    assert w18.feature_info == hrnet_jax.HRNet('w18').feature_info
    assert [tuple(part) for part in w18.feature_info] == [
        ('branch0', 18, 4),
        ('branch1', 36, 8),
        ('branch2', 72, 16),
        ('branch3', 144, 32),
    ]
    wide = hrnet_jax.FeatureMaps('w18', 'widened', (0, 1, 4)).feature_info
    assert [(part.channels, part.stride) for part in wide] == [(64, 2), (128, 4), (1024, 32)]
    assert hrnet_jax.FeatureMaps('w48', 'concatenated').feature_info[0].channels == 720
    assert len(hrnet_jax.HRNet('w18', outputs=1).feature_info) == 1


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'kind': 'wide'}, 'branches, widened, concatenated'),
        ({'out_indices': (1, 5)}, '0 to 4'),
        ({'out_indices': ()}, '0 to 4'),
        ({'out_indices': [1, 1]}, 'different'),
        ({'out_indices': 2}, 'out_indices are numbers'),
        ({'out_indices': ('1', 2.0)}, 'out_indices are numbers'),
        ({'kind': 'concatenated', 'out_indices': (2, 1)}, 'rise'),
        ({'arch': 'w19'}, 'unknown architecture'),
    ],
)
def test_mistakes_are_told(fields, message):
    with pytest.raises(hrnet_jax.UserError, match=message):
        _ = hrnet_jax.FeatureMaps(**({'arch': 'tiny'} | fields)).feature_info


def test_the_variables_of_a_backbone(variables):
    own = {name: tree['backbone'] for name, tree in variables.items()}
    images = jnp.ones((1, 32, 32, 3))
    with pytest.raises(hrnet_jax.UserError, match="pass {k: {'backbone': v} for k, v in"):
        hrnet_jax.FeatureMaps('tiny').apply(own, images)
    wrapped = {name: {'backbone': tree} for name, tree in own.items()}
    assert len(jax.eval_shape(hrnet_jax.FeatureMaps('tiny').apply, wrapped, images)) == 4


def test_frozen_batch_norm(variables):
    """Training with the running statistics, which stay; the parameters have gradients."""
    model = hrnet_jax.HRNet('tiny', frozen_norm=True)
    own = {name: tree['backbone'] for name, tree in variables.items()}

    def loss(params, train):
        state = {**own, 'params': params}
        maps, new = model.apply(state, X, train=train, mutable=['batch_stats'])
        return sum(jnp.mean(jnp.square(m)) for m in maps), new['batch_stats']

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (value, stats), grads = step(own['params'], True)
    (expected, _), _ = step(own['params'], False)
    assert float(value) == float(expected)
    jax.tree.map(np.testing.assert_array_equal, stats, own['batch_stats'])
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
