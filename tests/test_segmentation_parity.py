"""Names, shapes and numbers of mmsegmentation 1.2.2 and of the official code.

`data/oracle/segmentation` has what they computed, as of `test_parity`: of the logits at stride 4
every 2nd row and column.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from rules import close, image, weight
from segmenters import names

import hrnet_jax
from convert.conversion import convert
from hrnet_jax.data.views import Views
from hrnet_jax.heads.segmentation import SegmentationHead
from hrnet_jax.inference.forward import Forward

ORACLE = Path(__file__).parent / 'data' / 'oracle' / 'segmentation'
X = image(7, 1, 128, 192)
IMAGES = {'default': X, 'odd': X[:, :97, :131]}
# layout, head, architecture, classes -> as in `test_parity`
PUBLISHED = {
    ('mmseg', 'fcn', 'w18', 19): (1838, '8304b88ac47f0d14'),
    ('mmseg', 'fcn', 'w18_small_v2', 19): (872, '93599bd3e6450315'),
    ('mmseg', 'fcn', 'w48', 150): (1838, 'eb32e336d6949b15'),
    ('mmseg', 'ocr', 'w18', 19): (1888, '3edba75ddbcf8db5'),
    ('mmseg', 'ocr', 'w48', 19): (1888, 'af44aa5254aaefb2'),
    ('mmseg', 'ocr', 'w18_small_v2', 19): (922, '73e8826979e5c49a'),
    ('official', 'fcn', 'w48', 19): (1839, '4673ddc089f7a7b5'),
    ('official', 'fcn', 'w18_small_v1', 19): (435, '3f9031b2a4e377ad'),
    ('official', 'fcn', 'w18_small_v2', 19): (873, 'cf355056471def47'),
    ('official', 'ocr', 'w48', 59): (1890, '27292ba357afa199'),
}


@pytest.mark.parametrize(('layout', 'head', 'arch', 'classes'), PUBLISHED)
def test_names_and_shapes(layout, head, arch, classes):
    found = names(layout, head, arch, classes)
    lines = '\n'.join(sorted(f'{key} {shape}' for key, shape in found.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert (len(found), digest) == PUBLISHED[layout, head, arch, classes]


def converted(layout, head, arch):
    done = convert({k: weight(k, shape) for k, shape in names(layout, head, arch, 19).items()})
    assert (done.arch.name, done.num_classes, done.model.head) == (arch, 19, head)
    return done.model, done.variables


def check(file, kind, logits):
    with np.load(ORACLE / f'{file}.npz') as oracle:
        assert close(logits[:, ::2, ::2], oracle[f'{kind}.logits']) < 1e-5


def test_numbers_of_mmsegmentation():
    """The trunks of both have the same names, and so the same weights: it runs once."""
    model, variables = converted('mmseg', 'fcn', 'w18')
    other, theirs = converted('mmseg', 'ocr', 'w18')
    trunks = (tree['params']['backbone'] for tree in (variables, theirs))
    jax.tree.map(np.testing.assert_array_equal, *trunks)

    def head(model, variables, maps):
        sizes = model.ocr_channels, model.key_channels, model.dropout
        module = SegmentationHead(model.head, 19, *sizes, model.align_corners, model.opts)
        return module.apply({k: v['head'] for k, v in variables.items()}, maps, False)[-1]

    maps = jax.jit(functools.partial(model.apply, method='features'))(variables, IMAGES['odd'])
    for own, tree in ((model, variables), (other, theirs)):
        check(f'mmseg-{own.head}-w18', 'odd', jax.jit(functools.partial(head, own))(tree, maps))


VIEWS = {
    'slide': Views(mode='slide', window=(128, 160), stride=(85, 107)),
    'whole': Views(),
}


# Whole images: test_segmentation_eval.py, too, beside PyTorch.
@pytest.mark.parametrize('mode', ['slide', pytest.param('whole', marks=pytest.mark.long)])
def test_from_pixels_to_labels(mode):
    """Every pixel has mmsegmentation's label, but for ties; of the logits every 32nd row and
    column."""
    model, variables = converted('mmseg', 'fcn', 'w18')
    fast = hrnet_jax.fold(model, variables)
    picture = np.clip(128 + 45 * image(41, 1, 256, 320), 0, 255).astype(np.uint8)
    batch = {'image': picture, 'label': np.zeros((1, 256, 320), np.uint8)}

    @jax.jit
    def outputs(variables, batch):
        return VIEWS[mode].outputs(Forward(fast.model, variables, VIEWS[mode]), batch)

    [logits] = np.asarray(outputs(fast.variables, batch))
    with np.load(ORACLE / 'mmseg-chain-fcn-w18.npz') as oracle:
        assert close(logits[::32, ::32], oracle[f'{mode}.logits']) < 1e-5
        assert (logits.argmax(-1) != oracle[f'{mode}.labels']).mean() <= 1e-4


@pytest.mark.long
@pytest.mark.parametrize('kind', IMAGES)
@pytest.mark.parametrize(
    ('layout', 'head', 'arch'),
    [('mmseg', 'fcn', 'w18'), ('mmseg', 'ocr', 'w18'), ('official', 'fcn', 'w48')],
)
def test_numbers(layout, head, arch, kind):
    model, variables = converted(layout, head, arch)
    check(f'{layout}-{head}-{arch}', kind, jax.jit(model.apply)(variables, IMAGES[kind]))
