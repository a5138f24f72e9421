"""Files with more than one network in them, or with more than a network."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
from test_conversion import made

import hrnet_jax
from convert import from_torch
from convert.__main__ import main
from convert.conversion import convert


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def doubled(state):
    return {k: v * 2 if v.dtype == np.float32 else v for k, v in state.items()}


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


STATE, OTHER = made(), doubled(made())
QUEUE = {'queue': np.zeros((4, 8), np.float32), 'queue_ptr': np.zeros(1, np.int64)}


@pytest.mark.parametrize(
    ('prefixes', 'beside'),
    [
        (('architecture.', 'teacher.'), {}),
        (('encoder_q.0.', 'encoder_k.0.'), QUEUE),
        (('', 'teacher.module.'), {}),
    ],
)
def test_one_of_two(prefixes, beside):
    # Names of mmpretrain do not begin as those of the other network do.
    first = STATE if prefixes[0] else made('mmpretrain')
    state = under(prefixes[0], first) | under(prefixes[1], OTHER) | beside
    names = [prefix.replace('module.', '') or 'no prefix' for prefix in prefixes]
    with pytest.raises(hrnet_jax.UserError) as error:
        from_torch(state)
    assert str(error.value) == (
        f'2 networks are in it, whose names begin with {names[0]} (tiny, 10 classes) and {names[1]}'
        ' (tiny, 10 classes); choose one by --prefix, such as --prefix '
        f'{prefixes[0] or names[1]}'
    )
    for prefix, name, expected in zip(prefixes, names, (first, OTHER), strict=True):
        done = convert(state, prefix=prefix.rstrip('.'))
        assert same(done.variables, from_torch(expected)[1])
        assert done.notes[0] == f'took the network under {name}'
    with pytest.raises(
        hrnet_jax.UserError, match=f'--prefix x: .* begin with {names[0]}, {names[1]}'
    ):
        from_torch(state, prefix='x')


@pytest.mark.parametrize(
    ('prefixes', 'names'),
    [
        (('uncompiled_model.', 'model._orig_mod.'), ('uncompiled_model.', 'model.')),
        (('net.', 'module.best.'), ('net.', 'best.')),
    ],
)
def test_equal_copies_are_taken_once(prefixes, names):
    done = convert(under(prefixes[0], STATE) | under(prefixes[1], STATE))
    assert same(done.variables, from_torch(STATE)[1])
    assert done.notes == (
        f'the network under {names[1]} is an equal copy of that under {names[0]}',
    )


@pytest.mark.parametrize('layout', ['official', 'mmpretrain'])
def test_tensors_of_the_training_beside_it(layout):
    beside = {
        'criterion.pos_weight': np.ones(10, np.float32),
        'val_acc.tp': np.zeros(10, np.int64),
        'val_cm.confmat': np.zeros((10, 10), np.int64),
    }
    done = convert(under('net.', made(layout)) | beside)
    assert same(done.variables, from_torch(made(layout))[1])
    assert done.notes == (
        'ignored 3 tensors beside the network, whose names begin with net.: criterion.pos_weight, '
        'val_acc.tp, val_cm.confmat',
    )
    inside = under('net.', made(layout)) | {'net.extra.weight': np.ones((2, 2), np.float32)}
    with pytest.raises(hrnet_jax.UserError, match=r'1 unexpected \(net.extra.weight\)'):
        from_torch(inside)


@pytest.mark.parametrize(
    'wrapped',
    [
        lambda name: f'_orig_mod.{name}',
        lambda name: f'module._orig_mod.module.{name}',
        lambda name: name.replace('stage2.0.', 'stage2.0._checkpoint_wrapped_module.'),
        lambda name: name.replace('stage3.0.', '_fsdp_wrapped_module.stage3.0._orig_mod.'),
        lambda name: f'model.{name}'.replace('branches.1.', 'branches.1.module.'),
    ],
)
def test_wrappers_inside_of_names(wrapped):
    done = convert({wrapped(name): value for name, value in STATE.items()})
    assert same(done.variables, from_torch(STATE)[1])
    assert not done.notes


@pytest.mark.parametrize('prefixes', [('model.', 'model_ema.module.'), ('student.', 'ema.')])
def test_averaged_weights_by_prefix(prefixes):
    state = under(prefixes[0], STATE) | under(prefixes[1], OTHER)
    names = [prefix.replace('module.', '') for prefix in prefixes]
    done = convert(state)
    assert same(done.variables, from_torch(OTHER)[1])
    assert done.weights == 'ema'
    assert done.notes[0] == (
        f'took the averaged weights, under {names[1]}; --weights raw takes the weights of the last '
        f'step, under {names[0]}'
    )
    assert same(from_torch(state, weights='raw')[1], from_torch(STATE)[1])


def test_the_choice_is_recorded(command, tmp_path):
    def tensors(state):
        return {k: torch.from_numpy(np.array(v)) for k, v in state.items()}

    file = tmp_path / 'run.pth'
    torch.save({'state_dict': tensors(STATE), 'state_dict_ema': tensors(OTHER)}, file)
    for flags, expected, kind, said in (
        ((), OTHER, 'ema', '--weights raw takes the weights of the last step'),
        (('--weights', 'raw'), STATE, 'raw', '--weights ema takes the averaged weights'),
    ):
        out = tmp_path / kind
        code, text, err = command(main, file, '--out', out, *flags)
        assert code == 0, err
        assert said in text
        meta = json.loads((out / 'tiny' / 'checkpoint.json').read_text())
        assert meta['source']['weights'] == kind
        assert same(hrnet_jax.load(out, weights=kind)[1], from_torch(expected)[1])
    with pytest.raises(hrnet_jax.UserError, match='convert with --weights raw'):
        hrnet_jax.load(tmp_path / 'ema', weights='raw')
    with pytest.raises(hrnet_jax.UserError, match='no averaged weights'):
        hrnet_jax.load(tmp_path / 'raw', weights='ema')
