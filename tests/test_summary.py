"""The table of modules: its sums, its names, its sizes, and that no network runs for it."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from hrnet_jax import UserError, create_model, fold, init
from hrnet_jax.commands import summary as summary_command
from hrnet_jax.inference import summary
from hrnet_jax.inference.summary import multiply_adds, parameters, render, table


def sums(rows):
    return sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)


@pytest.mark.parametrize('arch', ['tiny', 'w18_small_v1', 'w64'])
def test_rows_add_up(arch):
    model = create_model(arch)
    assert sums(table(model)) == (parameters(model), multiply_adds(model))


def test_recomputed_modules_count_once():
    assert multiply_adds(create_model('tiny', remat=True)) == multiply_adds(create_model('tiny'))


def test_looped_blocks_count_as_often_as_they_run():
    loop = jax.make_jaxpr(lambda a: jax.lax.scan(lambda c, _: (c @ c, None), a, None, length=5))
    assert summary._count(loop(jax.numpy.ones((4, 4))).jaxpr.eqns) == 5 * 4**3


@pytest.mark.parametrize('depth', range(1, 8))
def test_rows_add_up_at_every_depth(depth):
    model = create_model('tiny', 10, remat=True)
    rows = table(model, (64, 96), depth)
    assert sums(rows) == (parameters(model), multiply_adds(model, (64, 96)))
    assert max(row.name.count('.') for row in rows) == depth - 1
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.parameters and row.multiply_adds and row.outputs for row in rows)


def test_interpolation_is_counted_where_it_is():
    """Bilinear upsampling is a matrix product without parameters, in the module and no deeper."""
    model = create_model('tiny', 10, upsample='bilinear')
    rows = table(model, 64, 3)
    assert sums(rows) == (parameters(model), multiply_adds(model, 64))
    fusion = {row.name: row for row in rows if not row.parameters}
    assert set(fusion) == {'stage2.0', 'stage3.0', 'stage4.0'}
    assert fusion['stage2.0'].outputs == ((16, 16, 6), (8, 8, 12))


def test_w18():
    """Figure 2 and table 1 of the paper: four resolutions, each half of the one before."""
    rows = {row.name: row for row in table(create_model('w18'))}
    maps = ((56, 56, 18), (28, 28, 36), (14, 14, 72), (7, 7, 144))
    assert list(rows) == [
        *('stem.conv1', 'stem.conv2'),
        *(f'layer1.{i}' for i in range(4)),
        *('transition1.0', 'transition1.1', 'stage2.0', 'transition2.2'),
        *(f'stage3.{i}' for i in range(4)),
        'transition3.3',
        *(f'stage4.{i}' for i in range(3)),
        *(f'head.{part}' for part in ('incre_modules', 'downsamp_modules', 'final_layer')),
        'head.classifier',
    ]
    assert rows['stem.conv2'].outputs == ((56, 56, 64),)
    assert rows['layer1.3'].outputs == ((56, 56, 256),)
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        for i in range(modules):
            equal = dataclasses.replace(rows[f'stage{stage}.0'], name=f'stage{stage}.{i}')
            assert rows[f'stage{stage}.{i}'] == equal
            assert equal.outputs == maps[:stage]
    # 3 x 3 x 3 x 64 kernel, scale and bias of 64; 112 x 112 places.
    assert rows['stem.conv1'].parameters == 27 * 64 + 2 * 64
    assert rows['stem.conv1'].multiply_adds == 112 * 112 * 27 * 64
    assert rows['head.classifier'].outputs == ((1000,),)
    assert sums(rows.values()) == (21_295_164, 4_281_489_072 + 2_048_000)


def test_names_of_pytorch():
    """In full, a row is a convolution of the official state dict."""
    names = [row.name for row in table(create_model('tiny', 10), 64, 7)]
    for name in (
        'stage4.0.branches.3.0.conv2',
        'stage4.0.fuse_layers.3.0.2.0',
        'stage3.0.fuse_layers.0.2.0',
        'transition3.3.0.0',
        'layer1.0.downsample.0',
        'head.incre_modules.2.0.conv1',
        'head.downsamp_modules.1.0',
        'head.final_layer.0',
    ):
        assert name in names


def test_nothing_runs(monkeypatch):
    """Neither compiled nor computed: XLA is never asked."""
    model = create_model('tiny', 10, features=72)  # nothing of it was traced before

    def refuse(*args, **kwargs):
        raise AssertionError('a program was compiled')

    monkeypatch.setattr(jax._src.compiler, 'compile_or_get_cached', refuse)
    jax.random.key(0)  # compiled when jax was first used; the shapes need it
    with pytest.raises(AssertionError, match='compiled'):
        jax.jit(lambda x: x + 3)(1.0)
    assert table(model, 64)


def test_command(command, refused):
    code, text, err = command(
        summary_command.main,
        '--arch',
        'tiny',
        '--num-classes',
        10,
        '--image-size',
        64,
        96,
        '--depth',
        1,
    )
    assert code == 0, err
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1  # aligned
    assert text.strip() == render(table(create_model('tiny', 10), (64, 96), 1))
    assert lines[4].split()[0] == 'transition1'
    assert '16 x 24 x 6, 8 x 12 x 12' in lines[4]
    total = lines[-1].split()
    assert total[0] == 'total'
    assert total[1].replace(',', '') == str(parameters(create_model('tiny', 10)))
    code, text, _ = command(summary_command.main, '--arch', 'tiny', '--depth', 3)
    assert '16 maps' in text
    for options, part in (
        ((), '--arch'),
        (('--arch', 'w17'), 'w17'),
        (('--arch', 'tiny', '--image-size', 100), 'multiple of 32'),
        (('--arch', 'tiny', '--image-size', 32, 32, 32), 'height and width'),
        (('--arch', 'tiny', '--depth', 0), 'depth'),
        (('--arch', 'tiny', '--num-classes', 0), 'classes'),
    ):
        assert part in refused(summary_command.main, *options)


def test_folded_models_are_refused():
    model = create_model('tiny', 10)
    with pytest.raises(UserError, match='before it was folded'):
        table(fold(model, init(model, jax.random.key(0))).model)
