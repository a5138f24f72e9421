"""Wrappers of training scripts, and state dicts in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import check, save

from convert.readers import read, resolve
from hrnet_jax.errors import UserError


def state(value, prefix=''):
    return {
        f'{prefix}conv.weight': torch.full((2, 1), value),
        f'{prefix}bn.bias': torch.full((2,), value),
    }


W, M = state(1.0), state(1.0, 'module.')
R, B = state(2.0), state(3.0, 'module.')
LEFT = "took the weights under '{}', not those under {}".format


def averaged(taken, other):
    return (
        f'took the averaged weights, under {taken}; --weights raw takes the weights of the last '
        f'step, under {other}'
    )


OTHER = {**W, 'ema_other': R['bn.bias']}
STATISTICS = {f'data_preprocessor.{name}': torch.ones(3) for name in ('mean', 'std')}
STEPS = {'steps': torch.tensor(5)}
# what is saved; the keys that lead to the weights; the weights; remarks
CONTAINERS = {
    'plain': (W, '', W, []),
    'prefix is kept': (M, '', M, []),
    'classification': (
        {'epoch': 3, 'model': 'cls_hrnet', 'state_dict': W, 'perf': 70.5, 'optimizer': {'a': R}},
        'state_dict', W, [],
    ),
    'pose': (
        {'epoch': 3, 'model': 'pose_hrnet', 'state_dict': M, 'best_state_dict': R, 'optimizer': {}},
        'state_dict', M, [LEFT('state_dict', 'best_state_dict')],
    ),
    'timm': (
        {'epoch': 3, 'arch': 'hrnet_w18', 'state_dict': R, 'state_dict_ema': W, 'optimizer': {}},
        'state_dict_ema', W, [averaged("'state_dict_ema'", "'state_dict'")],
    ),
    'model_ema': (
        {'model': R, 'model_ema': {'module': W}},
        'model_ema.module', W, [averaged("'model_ema'", "'model'")],
    ),
    'torchvision': (
        {'model': R, 'model_ema': {'n_averaged': torch.tensor(5), **M}, 'args': None},
        'model_ema', M, [averaged("'model_ema'", "'model'")],
    ),
    'mmcls 0.x': ({'meta': {'CLASSES': ('a',)}, 'state_dict': W}, 'state_dict', W, []),
    'mmengine': (
        {'meta': {}, 'state_dict': W, 'message_hub': {}, 'ema_state_dict': {**STEPS, **B}},
        'state_dict', W, [averaged("'state_dict'", "'ema_state_dict'")],
    ),
    'mmengine, raw only': ({'ema_state_dict': {**STEPS, **B}}, 'ema_state_dict', B, []),
    'mmcv 1.x': (
        {'state_dict': {**W, 'ema_conv_weight': R['conv.weight'], 'ema_bn_bias': R['bn.bias']}},
        'state_dict', W, [averaged('plain names', 'names ema_*')],
    ),
    'a name like an average': (OTHER, '', OTHER, []),
    'mmpose': ({'state_dict': {**STATISTICS, **W}}, 'state_dict', W, []),
    'three deep': ({'model': {'state_dict': {'module': W}}}, 'model.state_dict.module', W, []),
    'an unknown one': ({'network': W, 'optimizer': {'a': R}}, '', state(1.0, 'network.'), []),
    'in parts': (
        {'state_dict': {'a': W, 'b': R}},
        'state_dict', {**state(1.0, 'a.'), **state(2.0, 'b.')}, [],
    ),
    'empty ones': ({'state_dict_ema': {}, 'model': None, 'state_dict': W}, 'state_dict', W, []),
    'beside a tensor': ({'best_acc1': torch.ones(1), 'state_dict': W}, 'state_dict', W, []),
    'other entries': (
        {**W, 'epoch': 3, 'extra': 'x', 'list': [R['bn.bias']], 5: 6},
        '', W, ["ignored what is no tensor: 'extra', 'list', int"],
    ),
    'many entries': (
        {**W, **{f'e{i}': i for i in range(9)}},
        '', W, ["ignored what is no tensor: 'e0', 'e1', 'e2', 'e3', 'e4', 'e5' and 3 more"],
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', CONTAINERS)
def test_containers(tmp_path, case):
    tree, container, expected, notes = CONTAINERS[case]
    source = read(save(tree, tmp_path / 'a'))
    check(source.tensors, expected)
    assert (source.container, list(source.notes)) == (container, notes)
    # The same object in memory.
    tensors, where, remarks, _ = resolve(tree)
    assert list(tensors) == list(expected)
    assert all(
        tensors[name] is tensor or torch.equal(tensors[name], tensor)
        for name, tensor in expected.items()
    )
    assert (where, list(remarks)) == (container, notes)


BOTH = {
    'timm': ({'state_dict': R, 'state_dict_ema': W}, 'state_dict', R),
    'module in it': ({'model': R, 'model_ema': {'module': W}}, 'model', R),
    'mmengine': ({'state_dict': W, 'ema_state_dict': {**STEPS, **B}}, 'ema_state_dict', B),
    'mmcv 1.x': (
        {'state_dict': {**W, 'ema_conv_weight': R['conv.weight'], 'ema_bn_bias': R['bn.bias']}},
        'state_dict', R,
    ),
    'another name': ({'net': R, 'swa_model': W}, 'net', R),
}  # fmt: skip


@pytest.mark.parametrize('case', BOTH)
def test_weights_of_the_last_step(tmp_path, case):
    """`--weights raw`, and the flag that takes the others is in the note."""
    tree, container, expected = BOTH[case]
    source = read(save(tree, tmp_path / 'a'), weights='raw')
    check(source.tensors, expected)
    assert (source.container, source.weights) == (container, 'raw')
    assert source.notes[0].startswith('took the weights of the last step, under ')
    assert '; --weights ema takes the averaged weights, under ' in source.notes[0]
    assert resolve(tree).weights == resolve(tree, weights='ema').weights == 'ema'


def test_arrays_in_memory():
    arrays = {'a': np.ones(2), 'b': np.float32(3)}
    tensors, where, notes, _ = resolve({'state_dict': arrays, 'meta': {'x': np.ones(3)}})
    assert tensors['a'] is arrays['a']
    assert (list(tensors), where, notes) == (
        ['a'],
        'state_dict',
        ("ignored what is no tensor: 'b'",),
    )
    with pytest.raises(
        UserError, match=r"^the state dict holds no tensors with names, only 'b' \(int\);"
    ):
        resolve({'b': 1})
