"""What layers are is asked of the layers: a head of a user's own, with names of its own."""

from __future__ import annotations

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules import close, image, weight

import hrnet_jax
from hrnet_jax.backbone import Network
from hrnet_jax.inference.folding import PLANS, folded_as
from hrnet_jax.initialisers import Constant, Normal
from hrnet_jax.layers import conv, conv_norm
from hrnet_jax.models import create_model, last_layers, layers_of

X = image(1, 2, 32, 64)


class Objects(nn.Module):
    """Names as of OCRNet, biases before BatchNorm as of mmsegmentation, GroupNorm as of FCOS."""

    classes: int
    opts: hrnet_jax.layers.Options

    @nn.compact
    def __call__(self, x, train):
        o = self.opts
        x = nn.relu(conv_norm(x, 8, 1, ('f_pixel_0', 'f_pixel_1_0'), o, train, use_bias=True))
        x = nn.relu(conv_norm(x, 12, 3, ('tower', 'gn'), o, train, norm='group', groups=4))
        x = nn.BatchNorm(not train, name='plain')(x)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return conv(x, self.classes, 1, 'seg', o, kernel_init=Normal(0.01), last=True)


class Segmenter(Network):
    arch: str
    classes: int = 5

    @nn.compact
    def __call__(self, images, train=False):
        maps = self.hrnet(self.arch, name='backbone')(images, train)
        return Objects(self.classes, self.opts, name='decode_head')(maps[0], train)


@pytest.fixture(scope='module')
def mine():
    """The model, and variables of which none is as at first."""
    model = Segmenter('tiny')
    variables = hrnet_jax.init(model, jax.random.key(0), (32, 64))

    def made(path, leaf):
        names = [key.key for key in path]
        kinds = {'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var'}
        kind = kinds.get(names[-1], 'bias' if names[-1] == 'bias' else 'weight')
        return weight('/'.join(names) + '.' + kind, leaf.shape)

    return model, variables, jax.tree_util.tree_map_with_path(made, variables)


def test_layers_say_what_they_are(mine):
    layers = layers_of(mine[0])
    head = {path[1]: layer for path, layer in layers.items() if path[0] == 'decode_head'}
    assert head.keys() == {'f_pixel_0', 'f_pixel_1_0', 'tower', 'gn', 'seg'}
    assert [head[name].norm for name in ('f_pixel_0', 'tower', 'seg')] == [
        'f_pixel_1_0', 'gn', None,
    ]  # fmt: skip
    assert last_layers(mine[0]) == [('decode_head', 'seg')]
    assert last_layers(create_model('tiny')) == [('head', 'classifier')]


def test_initialised_as_they_say(mine):
    model, variables, _ = mine
    head = variables['params']['decode_head']
    assert 0.5 < np.std(head['seg']['kernel']) / 0.01 < 1.5
    assert 0.5 < np.std(head['tower']['kernel']) / (2 / (9 * 12)) ** 0.5 < 1.5
    assert (np.asarray(head['gn']['scale']) == 1).all()
    assert (np.asarray(head['f_pixel_0']['bias']) == 0).all()
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    assert Constant(-4.6)(jax.random.key(0), (2,)).tolist() == pytest.approx([-4.6, -4.6])


@pytest.mark.parametrize('plan', [('cpu', 'float32'), ('gpu', 'bfloat16'), ('tpu', 'float32')])
def test_folded(mine, plan):
    """A bias before BatchNorm goes through it; GroupNorm and what is not ours stay."""
    model, _, variables = mine
    fast = folded_as(model, variables, PLANS.get(plan, {}))
    assert fast.model.folded
    head = fast.variables['params']['decode_head']
    assert head.keys() == {'f_pixel_0', 'tower', 'gn', 'plain', 'seg'}
    assert 'bias' not in head['tower']
    wanted = jax.jit(model.apply)(variables, X)
    assert close(fast(X), wanted) < 1e-5


def test_gradients_flow(mine):
    model, _, variables = mine

    def loss(params):
        given = {**variables, 'params': params}
        rngs = {'dropout': jax.random.key(0)}
        maps, _ = model.apply(given, X, train=True, mutable=['batch_stats'], rngs=rngs)
        return jnp.mean(jnp.square(maps))

    options = {'xla_backend_optimization_level': 0}
    grads = jax.jit(jax.grad(loss), compiler_options=options)(variables['params'])
    head = grads['decode_head']
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(head['seg']))
    assert float(jnp.abs(grads['backbone']['conv1']['kernel']).max()) > 0


def test_one_order_of_arguments():
    assert hrnet_jax.HRNet('tiny', 1).outputs == 1
    assert hrnet_jax.Classifier('tiny', 7).num_classes == 7
    assert hrnet_jax.FeatureMaps('tiny', 'widened', (1,)).kind == 'widened'
    for kind in (hrnet_jax.HRNet, hrnet_jax.Classifier, hrnet_jax.FeatureMaps):
        shared = inspect.signature(kind).parameters
        assert all(shared[name].kind.name == 'KEYWORD_ONLY' for name in ('in_channels', 'dtype'))
        assert kind('tiny', in_channels=5, upsample='bilinear').in_channels == 5
