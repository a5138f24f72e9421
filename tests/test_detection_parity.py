"""Numbers of mmdetection 3.3.0: the levels of FCOS, and the boxes of both detectors from pixels on.

`data/oracle/detection.npz` has what it computed for the weights and images of `rules.py`: of the
pyramid the first channels, of FCOS's classes every 8th. For the boxes some weights are scaled, so
that some boxes win clearly. Thousands of scores reach 1 then: see `heads/ordering.py`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from poses import picture
from rules import close, image, weight
from segmenters import names

import hrnet_jax
from convert.conversion import convert
from hrnet_jax.data.keep_ratio import BGR, KeepRatio
from hrnet_jax.data.preprocess import normalize
from hrnet_jax.heads import detections
from hrnet_jax.runtime import compilation

ORACLE = Path(__file__).parent / 'data/oracle/detection.npz'
SCALED = {'cls.weight': 4, 'reg.weight': 0.3}


def clear(key, shape):
    """The weights of the chains."""
    value = np.asarray(weight(key, shape))
    for ending, factor in SCALED.items():
        for name in ('conv_', 'rpn_', 'fc_'):
            if key.endswith(name + ending):
                value = value * np.float32(factor)
    more = 3 if key.endswith('conv_reg.bias') else 1 if key.endswith('.scale') else 0
    return np.asarray(value + np.float32(more)) if more else value


def converted(head, rule):
    state = {k: rule(k, shape) for k, shape in names('mmdet', head, 'w18', 80, 'detection').items()}
    done = convert(state)
    return done.model, done.variables


@pytest.mark.long
def test_levels_of_fcos():
    """With the library for convolutions that predict and eval.py use. The logits of centre-ness are
    small differences of large values: PyTorch is 8e-6 away from float64 here, ours 3e-6, and by
    XLA's default library 8e-6."""
    model, variables = converted('fcos', weight)
    images = image(7, 1, 128, 192)
    options = compilation.known_options({'xla_cpu_experimental_ynn_fusion_type': ''})
    maps = jax.jit(model.apply, compiler_options=options)(variables, images)
    maps = {
        **maps,
        'fpn': jax.jit(lambda v, x: model.apply(v, x, method='pyramid'))(variables, images),
    }
    with np.load(ORACLE) as oracle:
        for name in ('fpn', 'classes', 'distances', 'centerness'):
            for i, x in enumerate(maps[name]):
                cut = {'fpn': slice(8), 'classes': slice(None, None, 8)}.get(name, slice(None))
                assert close(x[..., cut], oracle[f'{name}{i}']) < 1e-5


def found_again(boxes, scores, labels, wanted):
    """How many of the wanted boxes are there."""
    left = list(range(len(boxes)))
    for box, score, label in zip(*wanted, strict=True):

        def same(i, box=box, score=score, label=label):
            near = np.abs(boxes[i] - box).max() < 0.1 and abs(scores[i] - score) < 1e-3
            return near and labels[i] == label

        match = next(filter(same, left), None)
        if match is not None:
            left.remove(match)
    return len(boxes) - len(left)


@pytest.mark.long
@pytest.mark.parametrize('head', ['fcos', 'faster_rcnn'])
def test_from_pixels_to_boxes(head):
    model, variables = converted(head, clear)
    protocol = KeepRatio(scale=(320, 240), **BGR if head == 'fcos' else {})
    pixels = picture(51, 192, 256)
    found = hrnet_jax.predict(model, variables, [pixels], transform=protocol, score=0.0)[0]
    boxes = np.array([one.box for one in found])
    boxes[:, 2:] += boxes[:, :2]
    scores, labels = [one.score for one in found], [one.index for one in found]
    with np.load(ORACLE) as oracle:
        wanted = [oracle[f'{head}.{name}'] for name in ('boxes', 'scores', 'labels')]
        assert found_again(boxes, scores, labels, wanted) >= 95
    if head == 'faster_rcnn':
        check_proposals(model, variables, protocol.arrays(pixels), protocol)


def check_proposals(model, variables, arrays, protocol):
    images, sizes = normalize(arrays['image'][None], protocol), arrays['image_hw'][None]
    maps = jax.jit(lambda v, x, s: model.apply(v, x, sizes=s))(variables, images, sizes)
    found = jax.jit(lambda maps, s: detections.proposals(maps, model.strides, s))(maps, sizes)
    with np.load(ORACLE) as oracle:
        for i in range(5):
            level = maps['pyramid'][i][0, ::2, ::2, :4]
            assert close(level, oracle[f'faster_rcnn.fpn{i}'][0]) < 1e-5
        wanted = oracle['faster_rcnn.proposals'], oracle['faster_rcnn.proposal_scores']
        none = np.zeros(1000, int)
        ours = found['boxes'][0], found['scores'][0], none
        assert found_again(*ours, (*wanted, none[:200])) >= 190
