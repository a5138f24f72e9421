"""Names, shapes and numbers of the published implementations (timm 1.0.31, mmpretrain 1.2.0).

`data/oracle` has what they computed, float32 on a CPU, for the rule-made weights and images of
`rules.py`: logits, pooled features, and of the four maps every 4th row and column of 8 channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest
from rules import close, image, weight

from convert import to_torch
from convert.conversion import convert
from convert.verification import stages_of
from hrnet_jax.inference.folding import fold
from hrnet_jax.models import create_model, variable_shapes

ORACLE = Path(__file__).parent / 'data' / 'oracle'
IMAGES = {'default': (224, 224), 'wide': (160, 256)}
# layout, architecture -> entries of the state dict, digest of its sorted "name shape" lines.
PUBLISHED = {
    ('timm', 'w18'): (1956, '2727a8f29aa660a9'),
    ('timm', 'w30'): (1956, '49ae089a68b64598'),
    ('timm', 'w32'): (1956, '28985285d885828c'),
    ('timm', 'w40'): (1956, 'db59f205349ba314'),
    ('timm', 'w44'): (1956, '3e6231a95b746671'),
    ('timm', 'w48'): (1956, '7f8db3fcde914109'),
    ('timm', 'w64'): (1956, 'ba82225d22b06c89'),
    ('timm', 'w18_small_v1'): (552, 'cdbf0a1b7aa8a2ec'),
    ('timm', 'w18_small_v2'): (990, '89b1ed909da4e6f8'),
    ('timm_ssld', 'w18'): (1952, 'bafe1fdd444af66b'),
    ('timm_ssld', 'w48'): (1952, '37de20cb1364cf8d'),
    ('mmpretrain', 'w18'): (1952, 'fe685e4412065cde'),
    ('mmpretrain', 'w30'): (1952, 'a558346261a44bba'),
    ('mmpretrain', 'w32'): (1952, '37a3b0a8ffe939a7'),
    ('mmpretrain', 'w40'): (1952, '06f747ab41638e1b'),
    ('mmpretrain', 'w44'): (1952, '3354701ba40435c8'),
    ('mmpretrain', 'w48'): (1952, '11ef1c438b538e9f'),
    ('mmpretrain', 'w64'): (1952, '4a2a716a5578ed0d'),
}


def entries(layout: str, arch: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a state dict of that layout."""
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variable_shapes(create_model(arch)))
    bare = False if layout == 'timm_ssld' else None
    state = to_torch(zeros, arch, layout.removesuffix('_ssld'), head_bias=bare)
    return {key: value.shape for key, value in state.items()}


@pytest.mark.parametrize(('layout', 'arch'), PUBLISHED)
def test_names_and_shapes(layout, arch):
    found = entries(layout, arch)
    lines = '\n'.join(sorted(f'{key} {shape}' for key, shape in found.items()))
    digest = hashlib.sha256(lines.encode()).hexdigest()[:16]
    assert (len(found), digest) == PUBLISHED[layout, arch]


def check(arch, kinds=('default',)):
    """Of the network for each file, and once of the folded one as it runs on a CPU."""
    stages = jax.jit(stages_of(create_model(arch)))
    files = sorted(ORACLE.glob(f'*-{arch}.npz'))
    assert files
    for file in files:
        named = entries(file.stem.partition('-')[0], arch)
        done = convert({key: weight(key, shape) for key, shape in named.items()})
        assert (done.arch.name, done.num_classes) == (arch, 1000)
        fast = fold(create_model(arch), done.variables)
        assert fast.model.blocks.winograd
        with np.load(file) as oracle:
            for kind in kinds:
                x = image(7, 2, *IMAGES[kind])
                seen = stages(done.variables, x)
                if file is files[0] and kind == 'default':
                    assert close(fast(x), seen['logits'][0]) < 1e-5
                for i, ours in enumerate(seen['stage4']):
                    assert close(ours[:, ::4, ::4, :8], oracle[f'{kind}.map{i}']) < 1e-5
                assert close(seen['pooled'][0], oracle[f'{kind}.pooled']) < 1e-5
                assert close(seen['logits'][0], oracle[f'{kind}.logits']) < 1e-5


@pytest.mark.parametrize('arch', ['w18', 'w18_small_v2'])
def test_numbers(arch):
    check(arch)


@pytest.mark.parametrize('arch', ['w18_small_v1', pytest.param('w18', marks=pytest.mark.long)])
def test_numbers_of_two_sizes(folded_as_for_users, arch):
    check(arch, IMAGES)


@pytest.mark.long
@pytest.mark.parametrize('arch', ['w18_small_v2', 'w32', 'w48', 'w64'])
def test_numbers_as_for_users(folded_as_for_users, arch):
    check(arch)
