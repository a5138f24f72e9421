"""Strictness and exactness of the conversion, on `tiny`."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from rules import weight

import hrnet_jax
from convert import from_torch, to_torch
from convert.conversion import convert
from convert.reference import HRNet
from convert.verification import verify
from hrnet_jax.archs import ARCHS, Arch
from hrnet_jax.heads.classification import ClassifierArch
from hrnet_jax.models import create_model

LAYOUTS = ('official', 'timm', 'mmpretrain')


def made(layout: str = 'official', classes: int = 10, arch: Arch | str = 'tiny', **options):
    """A rule-made state dict."""
    arch = ARCHS[arch] if isinstance(arch, str) else arch
    names = HRNet(arch, classes, **options).state_dict()
    zeros = from_torch({k: np.zeros(v.shape, np.float32) for k, v in names.items()})[1]
    return {k: weight(k, v.shape) for k, v in to_torch(zeros, arch, layout).items()}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_round_trip_is_bit_exact(layout):
    state = made(layout)
    arch, variables = from_torch(state)
    assert arch == 'tiny'
    back = to_torch(variables, arch, layout)
    assert back.keys() == state.keys()
    folded = [k for k in state if not np.array_equal(back[k], state[k])]
    if layout == 'mmpretrain':
        assert not folded
    else:
        biases = [f'downsamp_modules.{i}.0.bias' for i in range(3)] + ['final_layer.0.bias']
        means = [b.replace('0.bias', '1.running_mean') for b in biases]
        assert sorted(folded) == sorted(biases + means)
        for bias, mean in zip(biases, means, strict=True):
            assert not back[bias].any()
            exact = state[mean].astype(np.float64) - state[bias]
            np.testing.assert_array_equal(back[mean], exact.astype(np.float32))
    again = to_torch(from_torch(back)[1], arch, layout)
    assert all(np.array_equal(again[k], back[k]) for k in back)


def test_every_layout_gives_the_same_variables():
    variables = from_torch(made('mmpretrain'))[1]
    for layout in LAYOUTS:
        other = from_torch(to_torch(variables, 'tiny', layout))[1]
        jax.tree.map(np.testing.assert_array_equal, other, variables)


def test_biases_are_folded_not_dropped():
    state = {k: v * 20 if k.endswith('.0.bias') else v for k, v in made().items()}
    done = convert(state)
    assert done.head_bias
    model = create_model('tiny', 10)
    assert max(verify(model, done.variables, _floats(state), (64, 96)).values()) < 1e-5
    dropped = {k: np.zeros_like(v) if k.endswith('.0.bias') else v for k, v in state.items()}
    assert verify(model, convert(dropped).variables, _floats(state), (64, 96))['logits'] > 1e-2


@pytest.mark.parametrize(
    'prefix', ['module.', 'model.', 'backbone.', 'module.model.', 'student.net.']
)
@pytest.mark.parametrize('layout', ['official', 'mmpretrain'])
def test_prefixes(prefix, layout):
    state = made(layout)
    arch, variables = from_torch({prefix + k: v for k, v in state.items()})
    assert arch == 'tiny'
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(state)[1])


def test_torch_tensors_wrappers_and_missing_counters():
    state = made()
    tensors = {k: torch.from_numpy(v) for k, v in state.items() if 'num_batches' not in k}
    arch, variables = from_torch({'epoch': 3, 'model': 'tiny', 'state_dict': tensors})
    jax.tree.map(np.testing.assert_array_equal, variables, from_torch(state)[1])
    halves = {k: v.bfloat16() for k, v in tensors.items()}
    half = from_torch(halves)[1]
    kernel = half['params']['backbone']['conv2']['kernel']
    assert kernel.dtype == np.float32
    expected = halves['conv2.weight'].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


def test_custom_sizes_are_recognised():
    sizes = (4, 8, 12, 20), (1, 12), (1, 1, 1), (1, 1, 1), 24, (8, 16, 24, 32), 40
    arch = ClassifierArch('mine', *sizes)
    state = made('mmpretrain', 7, arch, in_channels=5)
    found, variables = from_torch(state)
    assert isinstance(found, ClassifierArch)
    assert (found.channels, found.head, found.features) == (arch.channels, arch.head, 40)
    done = convert(state)
    assert (done.num_classes, done.in_channels) == (7, 5)
    model = create_model(found, 7, in_channels=5)
    assert model.apply(variables, np.ones((1, 32, 32, 5), np.float32)).shape == (1, 7)
    back = to_torch(variables, found, 'mmpretrain')
    assert all(np.array_equal(back[k], state[k]) for k in state)


def test_all_problems_in_one_message():
    state = made()
    del state['layer1.0.conv2.weight'], state['stage4.0.branches.3.0.bn1.running_var']
    state['extra.weight'] = np.zeros((3, 3), np.float32)
    state['stage3.0.branches.0.0.bn1.weight'] = np.zeros(9, np.float32)
    with pytest.raises(hrnet_jax.UserError) as error:
        from_torch(state)
    message = str(error.value)
    for part in (
        'tiny',
        '2 missing (',
        'layer1.0.conv2.weight',
        'stage4.0.branches.3.0.bn1.running_var',
        '1 unexpected (extra.weight)',
        '1 misshapen (stage3.0.branches.0.0.bn1.weight: 9 instead of 6)',
    ):
        assert part in message, message


BIASES = [f'downsamp_modules.{i}.0.bias' for i in range(3)] + ['final_layer.0.bias']
COUNTERS = sorted(key for key in made() if key.endswith('num_batches_tracked'))


@pytest.mark.parametrize(
    ('lacking', 'layout'),
    [
        *([[bias], 'official'] for bias in BIASES),
        (BIASES[:3], 'official'),
        (['final_layer.1.num_batches_tracked'], 'official'),
        (COUNTERS[1:], 'official'),
        (['neck.0.final_layer.bn.num_batches_tracked'], 'mmpretrain'),
    ],
)
def test_all_of_a_kind_or_none(lacking, layout):
    """Biases that are missing would change the logits; no strict PyTorch model has such a file."""
    state = {k: v for k, v in made(layout).items() if k not in lacking}
    few = len(lacking) < 20
    with pytest.raises(hrnet_jax.UserError) as error:
        from_torch(state)
    message = f'{len(lacking)} missing, though others of their kind are there ('
    assert message + f'{", ".join(sorted(lacking))})' * few in str(error.value)


@pytest.mark.parametrize('kind', [BIASES, COUNTERS])
def test_none_of_a_kind(kind):
    state = {k: v for k, v in made().items() if k not in kind}
    assert from_torch(state)[0] == 'tiny'


def test_a_counter_without_its_layer_is_unexpected():
    state = made() | {'stage9.0.bn.num_batches_tracked': np.zeros((), np.int64)}
    with pytest.raises(
        hrnet_jax.UserError, match=r'1 unexpected \(stage9.0.bn.num_batches_tracked'
    ):
        from_torch(state)


def test_tensors_outside_the_prefix_are_unexpected():
    state = {f'module.{k}': v for k, v in made().items()}
    state['backbone.conv1.weight'] = state['module.conv1.weight']
    with pytest.raises(hrnet_jax.UserError, match=r'1 unexpected \(backbone.conv1.weight\)'):
        from_torch(state)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_by_name(value):
    state = made()
    state['stage2.0.branches.0.0.conv1.weight'][0, 0, 0, 0] = value
    with pytest.raises(hrnet_jax.UserError, match=r'infinity: stage2.0.branches.0.0.conv1.weight$'):
        from_torch(state)


def test_values_beyond_float32_are_refused():
    state = made() | {'classifier.bias': np.full(10, 1e300)}
    with pytest.raises(hrnet_jax.UserError, match=r'infinity: classifier.bias'):
        from_torch(state)


@pytest.mark.parametrize('name', ['layer1_0.conv1.weight', 'stage2_0.branches_0_0.conv1.weight'])
def test_flax_names_are_not_pytorch_names(name):
    """They would reach the same variable, and one of the two would be lost."""
    state = made()
    original = name.replace('_0', '.0')
    with pytest.raises(hrnet_jax.UserError, match=rf'1 unexpected \({name}\)'):
        from_torch(state | {name: np.zeros_like(state[original])})
    state[name] = state.pop(original)
    with pytest.raises(hrnet_jax.UserError, match=rf'1 missing \({original}\).*unexpected'):
        from_torch(state)


@pytest.mark.parametrize('dtype', [np.int8, np.bool_, np.complex64])
def test_weights_are_floating_point_numbers(dtype):
    state = made()
    state['conv1.weight'] = np.ones(state['conv1.weight'].shape, dtype)
    with pytest.raises(hrnet_jax.UserError, match=r'floating-point numbers, unlike conv1.weight'):
        from_torch(state)


def test_a_variance_is_not_negative():
    state = made()
    state['bn1.running_var'][3] = -1
    with pytest.raises(hrnet_jax.UserError, match='negative: bn1.running_var'):
        from_torch(state)


def test_other_files():
    with pytest.raises(
        hrnet_jax.UserError, match='no HRNet weights found; the tensors are fc.weight'
    ):
        from_torch({'fc.weight': np.zeros((2, 2))})
    trunk = {
        k: v for k, v in made().items() if k.startswith(('conv', 'bn', 'layer1', 'stage', 'trans'))
    }
    with pytest.raises(hrnet_jax.UserError, match='this is HRNet tiny, but no whole classifier'):
        from_torch(trunk)
    with pytest.raises(hrnet_jax.UserError, match='holds tiny, not w18'):
        from_torch(made(), 'w18')
    with pytest.raises(hrnet_jax.UserError, match='unknown layout'):
        to_torch(from_torch(made())[1], 'tiny', 'keras')
    with pytest.raises(hrnet_jax.UserError, match='w18_small_v1'):
        to_torch(from_torch(made())[1], 'w18_small_v1')


def test_torch_is_not_needed(tmp_path):
    """Reading a .pth imports no PyTorch."""
    import subprocess
    import sys

    torch.save({k: torch.from_numpy(v) for k, v in made().items()}, tmp_path / 'tiny.pth')
    code = (
        'import sys; sys.modules["torch"] = None; from convert import from_torch; '
        f'print(from_torch({str(tmp_path / "tiny.pth")!r})[0])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'tiny\n'


def _floats(state):
    return {k: v for k, v in state.items() if 'num_batches' not in k}
