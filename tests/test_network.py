"""The network: sizes, costs, shapes, options, training statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from rules import close, image, weight

import hrnet_jax
from hrnet_jax.archs import Arch
from hrnet_jax.inference.summary import multiply_adds, parameters
from hrnet_jax.initialisation import init
from hrnet_jax.layers import BatchNorm, Options, matmul_precision
from hrnet_jax.models import create_model, variable_shapes
from hrnet_jax.moments import moments
from hrnet_jax.upsampling import resize_bilinear, upsample

# Published: parameters with 1000 classes, no head biases; multiply-adds of the convolutions at 224.
COSTS = {
    'w18': (21_295_164, 4_281_489_072),
    'w30': (37_708_380, 8_103_733_680),
    'w32': (41_228_840, 8_919_085_056),
    'w40': (57_553_320, 12_689_949_440),
    'w44': (67_061_144, 14_881_056_960),
    'w48': (77_466_024, 17_275_948_032),
    'w64': (128_056_104, 28_893_347_840),
    'w18_small_v1': (13_187_464 - 3_840, 1_599_460_352),
    'w18_small_v2': (15_597_464 - 3_840, 2_593_664_864),
}
LINEAR = 2048 * 1000
# Compiles in two thirds of the time; for comparisons that do not ask for speed.
QUICK = {'xla_backend_optimization_level': 0}


@pytest.fixture(scope='module')
def tiny():
    model = create_model('tiny', 10)
    return model, init(model, jax.random.key(0))


@pytest.mark.parametrize('arch', COSTS)
def test_costs_as_published(arch):
    model = create_model(arch)
    assert (parameters(model), multiply_adds(model) - LINEAR) == COSTS[arch]


def test_the_table():
    assert set(hrnet_jax.list_models()) == {*COSTS, 'tiny'}
    assert parameters(create_model('tiny')) < 300_000
    with pytest.raises(hrnet_jax.UserError, match='w17.*w18_small_v1'):
        create_model('w17')


def test_shapes_and_methods_agree(tiny):
    model, variables = tiny
    x = jnp.asarray(image(1, 3, 64, 96))
    backbone = hrnet_jax.HRNet(model.arch)

    @jax.jit
    def run(variables):
        own = {k: v['backbone'] for k, v in variables.items()}
        given = (model.apply(variables, x, method=m) for m in ('features', 'embed', '__call__'))
        return *given, backbone.apply(own, x)

    maps, pooled, ours, alone = run(variables)
    assert [m.shape for m in maps] == [(3, 16, 24, 6), (3, 8, 12, 12), (3, 4, 6, 24), (3, 2, 3, 48)]
    assert pooled.shape == (3, 64)
    dense = variables['params']['head']['classifier']
    logits = np.asarray(pooled) @ np.asarray(dense['kernel']) + np.asarray(dense['bias'])
    np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(alone[3], maps[3])


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((1, 225, 224, 3), 'height 225.*: 224 and 256'),
        ((1, 224, 100, 3), 'width 100.*: 96 and 128'),
        ((1, 8, 32, 3), 'height 8.*at least 32'),
        ((1, 32, 32, 4), r'\(N, H, W, 3\)'),
        ((32, 32, 3), r'\(N, H, W, 3\)'),
    ],
)
def test_images_that_do_not_fit(tiny, shape, message):
    with pytest.raises(hrnet_jax.UserError, match=message):
        jax.eval_shape(tiny[0].apply, tiny[1], jax.ShapeDtypeStruct(shape, jnp.float32))


def test_custom_sizes():
    sizes = {'channels': (4, 6, 10, 12), 'head': (8, 16, 20, 24), 'features': 40}
    model = create_model('tiny', 7, in_channels=5, **sizes)
    variables = init(model, jax.random.key(1))

    def made(method):
        x = jnp.ones((2, 32, 64, 5))
        return jax.eval_shape(lambda: model.apply(variables, x, method=method))

    assert [m.shape[-1] for m in made('features')] == [4, 6, 10, 12]
    assert made('embed').shape == (2, 40)
    assert made('__call__').shape == (2, 7)
    with pytest.raises(hrnet_jax.UserError, match='multiples of 4'):
        create_model('tiny', head=(8, 16, 20, 25))
    with pytest.raises(hrnet_jax.UserError, match='channels is 4 whole numbers above 0, not 5'):
        create_model('tiny', channels=5)
    for classes in (0, '10', None, 10.0, True):
        with pytest.raises(hrnet_jax.UserError, match='num_classes is a whole number, at least 1'):
            create_model('tiny', classes)


def test_bfloat16(tiny):
    model, variables = tiny
    half = create_model('tiny', 10, dtype=jnp.bfloat16)
    x = jnp.asarray(image(2, 2, 64, 64))
    maps = jax.eval_shape(lambda: half.apply(variables, x, method='features'))
    assert {m.dtype for m in maps} == {jnp.dtype('bfloat16')}
    logits = jax.jit(half.apply)(variables, x)
    assert logits.dtype == jnp.float32
    assert 1e-5 < close(logits, jax.jit(model.apply)(variables, x)) < 0.05
    stored = variable_shapes(create_model('tiny', 10, param_dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(stored['params'])} == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(stored['batch_stats'])} == {jnp.dtype('float32')}


def test_rematerialisation_changes_memory_not_gradients():
    model, remat = (hrnet_jax.HRNet('tiny', outputs=1, remat=remat) for remat in (False, True))
    variables = init(model, jax.random.key(0))
    params, x = variables['params'], jnp.asarray(image(3, 2, 32, 32))

    def loss(params, model):
        (out,), _ = model.apply({**variables, 'params': params}, x, True, mutable=['batch_stats'])
        return jnp.mean(jnp.square(out))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    traced = [gradient.trace(params, m) for m in (model, remat)]
    grads = [t.lower().compile(QUICK)(params) for t in traced]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *grads)
    text = str(traced[1].jaxpr)
    assert text.count('remat') >= 3


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(6, 10), (7, 13), (12, 20), (3, 5), (1, 1)])
def test_bilinear_as_pytorch(size, align_corners):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4), np.float32)
    ours = resize_bilinear(jnp.asarray(x), size, align_corners)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        size,
        mode='bilinear',
        align_corners=align_corners,
    )
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=2e-6)


def test_three_ways_of_upsampling():
    x = np.random.default_rng(1).standard_normal((1, 3, 4, 2), np.float32)
    nchw = torch.from_numpy(x.transpose(0, 3, 1, 2))
    resize = torch.nn.functional.interpolate
    theirs = {
        'nearest': resize(nchw, scale_factor=4, mode='nearest'),
        'bilinear': resize(nchw, (11, 15), mode='bilinear'),
        'bilinear_two_step': resize(
            resize(nchw, scale_factor=4, mode='bilinear'), (11, 15), mode='bilinear'
        ),
    }
    for way, expected in theirs.items():
        ours = upsample(jnp.asarray(x), 4, (11, 15), way)
        np.testing.assert_allclose(ours, expected.numpy().transpose(0, 2, 3, 1), atol=2e-6)


@pytest.mark.parametrize('way', ['bilinear', 'bilinear_two_step'])
def test_dense_backbones_take_any_size_and_one_output(tiny, way):
    model, variables = tiny
    own = {k: v['backbone'] for k, v in variables.items()}
    x = jnp.asarray(image(4, 1, 96, 160))[:, :75, :131]

    @jax.jit
    def run(own):
        kinds = ({}, {'outputs': 1}, {'outputs': 1, 'align_corners': True})
        return [hrnet_jax.HRNet(model.arch, upsample=way, **kind).apply(own, x) for kind in kinds]

    maps, (one,), (aligned,) = run(own)
    assert [m.shape[1:3] for m in maps] == [(19, 33), (10, 17), (5, 9), (3, 5)]
    np.testing.assert_allclose(one, maps[0], atol=1e-5)
    # mmsegmentation's two steps never align corners.
    assert (np.abs(aligned - one).max() == 0) == (way == 'bilinear_two_step')
    fewer = jax.eval_shape(
        hrnet_jax.HRNet(model.arch, outputs=1).init, jax.random.key(0), x[:, :64, :64]
    )
    fused = fewer['params']['stage4_0']
    assert not [name for name in fused if name.startswith(('fuse_layers_1', 'fuse_layers_3'))]


@pytest.mark.parametrize(('batch', 'group_size'), [(8, None), (8, 32), (8, 4), (6, 3)])
def test_training_statistics_as_pytorch(batch, group_size):
    """Each group is normalised as PyTorch does; running statistics follow the mean over groups."""
    x = 3 + 2 * np.random.default_rng(2).standard_normal((batch, 4, 5, 6), np.float32)
    layer = BatchNorm(Options(bn_group_size=group_size))
    variables = {
        'params': {'scale': weight('a.weight', (6,)), 'bias': weight('a.bias', (6,))},
        'batch_stats': {
            'mean': weight('a.running_mean', (6,)),
            'var': weight('a.running_var', (6,)),
        },
    }
    ours, new = layer.apply(variables, jnp.asarray(x), True, mutable=['batch_stats'])
    size = min(group_size or batch, batch)
    outputs, means, variances = [], [], []
    for start in range(0, batch, size):
        norm = torch.nn.BatchNorm2d(6)
        names = ('weight', 'bias', 'running_mean', 'running_var')
        norm.load_state_dict(
            {n: torch.from_numpy(weight(f'a.{n}', (6,))) for n in names}, strict=False
        )
        y = norm(torch.from_numpy(x[start : start + size].transpose(0, 3, 1, 2)))
        outputs.append(y.detach().numpy().transpose(0, 2, 3, 1))
        means.append(norm.running_mean.numpy())
        variances.append(norm.running_var.numpy())
    np.testing.assert_allclose(ours, np.concatenate(outputs), atol=2e-5)
    np.testing.assert_allclose(new['batch_stats']['mean'], np.mean(means, 0), rtol=1e-5)
    np.testing.assert_allclose(new['batch_stats']['var'], np.mean(variances, 0), rtol=1e-5)


@pytest.mark.parametrize('mean', [0, 100, 1000])
def test_training_statistics_keep_their_digits(mean):
    """The digits that mean(x^2) - mean(x)^2 loses where the mean is large."""
    x = np.float32(mean) + np.random.default_rng(3).standard_normal((8, 4, 4, 3), np.float32)
    layer = BatchNorm(Options())
    ours = layer.init_with_output(jax.random.key(0), jnp.asarray(x), True)[0]
    exact = x.astype(np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    assert close(ours, exact) < 1e-6 * max(mean, 1)


@pytest.mark.parametrize(('mean', 'running'), [(0, 0), (3, 0), (100, 0), (100, 100), (100, -20)])
def test_training_statistics_in_one_pass(mean, running):
    """In bfloat16, what one pass loses is below the rounding of the map itself."""
    x = mean + np.random.default_rng(3).standard_normal((32, 28, 28, 3), np.float32)
    x = jnp.asarray(x, jnp.bfloat16)
    layer = BatchNorm(Options(dtype=jnp.bfloat16))
    variables = {
        'params': {'scale': np.ones(3, np.float32), 'bias': np.zeros(3, np.float32)},
        'batch_stats': {'mean': np.full(3, running, np.float32), 'var': np.ones(3, np.float32)},
    }
    ours, new = layer.apply(variables, x, True, mutable=['batch_stats'])
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=2**-7, atol=1e-4)
    var = 0.9 + 0.1 * np.asarray(x, np.float64).var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(new['batch_stats']['var'], var, rtol=1e-3)


@pytest.mark.parametrize('shift', [None, 0.0, 2.5])
def test_gradient_of_statistics(shift):
    """Values and both derivatives are those of mean and variance, whatever the shift."""
    x = 3 + np.random.default_rng(4).standard_normal((6, 2, 3, 2))
    with jax.enable_x64(True):
        near = None if shift is None else jnp.full(2, shift)

        def ours(x):
            m, v = moments(x, 2, near)
            return jnp.sum(jnp.sin(m) * v)

        def plain(x):
            grouped = x.reshape((2, -1, 2))
            return jnp.sum(jnp.sin(grouped.mean(1)) * grouped.var(1))

        for of in (lambda f: f, jax.grad, jax.hessian):
            got, wanted = (jax.jit(of(f))(jnp.asarray(x)) for f in (ours, plain))
            assert close(got, wanted) < 1e-13


def test_options_that_make_no_network(tiny):
    for make, words in (
        (lambda: create_model('tiny', upsample='bicubic'), 'bicubic'),
        (lambda: Options(bn_group_size=0), 'bn_group_size'),
        (lambda: create_model('tiny', bn_group_size=0), 'bn_group_size'),
        (lambda: hrnet_jax.HRNet('tiny', bn_group_size='a'), 'bn_group_size .*, not .a.'),
        (lambda: create_model('tiny', dtype='flot32'), 'dtype is a floating-point type'),
        (lambda: hrnet_jax.HRNet('tiny', param_dtype=jnp.int32), 'param_dtype is a floating'),
        (lambda: hrnet_jax.HRNet('tiny', in_channels=0), 'in_channels is a whole number'),
        (lambda: hrnet_jax.Classifier('tiny', -1), 'num_classes is a whole number'),
        (lambda: hrnet_jax.Classifier('tiny', 'ten'), 'num_classes is a whole number'),
        (lambda: create_model('tiny', features=True), 'features is a whole number above 0'),
        (lambda: create_model('tiny', features=0), 'features .*, not 0'),
        (lambda: create_model('tiny', channels=()), 'channels .*, not '),
        (lambda: create_model('tiny', head=(8, 16, 24.0, 32)), 'head is 4 whole numbers'),
        (lambda: hrnet_jax.HRNet('tiny', outputs=5), 'outputs .* 1 to 4, not 5'),
        (lambda: hrnet_jax.HRNet('tiny', outputs=-1), 'outputs'),
        (lambda: hrnet_jax.HRNet('tiny', outputs=True), 'outputs'),
        (lambda: create_model('tiny', channels=(1, 2, 3)), 'channels'),
        (lambda: create_model('tiny', channels=(1, 2, 3, 0)), 'channels'),
        (lambda: Arch('mine', '1234'), 'channels'),
    ):
        with pytest.raises(hrnet_jax.UserError, match=words):
            make()
    fast = hrnet_jax.fold(*tiny)
    with pytest.raises(hrnet_jax.UserError, match='no BatchNorm to train'):
        fast.model.apply(fast.variables, jnp.ones((1, 32, 32, 3)), train=True)


def test_numbers_of_numpy_and_lists():
    sizes = np.array([4, 6, 10, 12])
    model = create_model('tiny', np.int64(7), channels=sizes, features=np.int32(40))
    assert model.arch.channels == (4, 6, 10, 12)
    assert {type(n) for n in (*model.arch.channels, model.arch.features, model.num_classes)} == {
        int
    }
    assert Arch('mine', [4, 6, 10, 12]) == Arch('mine', (4, 6, 10, 12))
    assert hrnet_jax.HRNet('tiny', outputs=np.int64(1)) == hrnet_jax.HRNet('tiny', outputs=1)


def test_what_a_backbone_is_called_with(tiny):
    backbone, images = hrnet_jax.HRNet('tiny'), jnp.ones((1, 32, 32, 3))
    with pytest.raises(
        hrnet_jax.UserError, match=r"\['backbone'\] .*or take hrnet_jax.FeatureMaps"
    ):
        backbone.apply(tiny[1], images)
    with pytest.raises(hrnet_jax.UserError, match='FeatureMaps'):
        hrnet_jax.fold(backbone, tiny[1])
    own = {name: tree['backbone'] for name, tree in tiny[1].items()}
    assert len(jax.eval_shape(backbone.apply, own, images)) == 4
    with pytest.raises(hrnet_jax.UserError, match='normalised, in floating point, not uint8'):
        tiny[0].apply(tiny[1], jnp.ones((1, 32, 32, 3), jnp.uint8))


@pytest.mark.parametrize(('dtype', 'expected'), [('float32', 'HIGHEST'), ('bfloat16', 'HIGH')])
def test_precision_is_the_callers_below_float32(dtype, expected):
    """Of a product inside, where the caller asked for 'high'."""

    def inside(x):
        with matmul_precision(create_model('tiny', 10, dtype=dtype)):
            return x @ x

    with jax.default_matmul_precision('high'):
        program = str(jax.make_jaxpr(inside)(jnp.ones((2, 2))))
    assert f'Precision.{expected},' in program


def test_groups_must_divide_the_batch():
    layer = BatchNorm(Options(bn_group_size=4))
    with pytest.raises(hrnet_jax.UserError, match='6 images.*groups of 4'):
        layer.init(jax.random.key(0), jnp.ones((6, 2, 2, 3)), True)
