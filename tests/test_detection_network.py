"""Detectors in every form of the network: folded, exported, in NNX, summarised; and their boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rules import close, image

import hrnet_jax
from hrnet_jax.heads import detections
from hrnet_jax.inference.export import difference, export
from hrnet_jax.inference.summary import parameters, table
from hrnet_jax.models import last_layers

HEADS = ('fcos', 'faster_rcnn')
X = image(5, 2, 64, 96)
SIZES = np.array([[64, 96], [50, 70]])
QUICK = {'xla_backend_optimization_level': 0}


def compiled(function):
    return jax.jit(function, compiler_options=QUICK)


@pytest.fixture(scope='module', params=HEADS)
def detector(request):
    """A small one that finds something everywhere."""
    options = {'head': request.param, 'channels': 32, 'threshold': 0.1, 'most': 20}
    model = hrnet_jax.create_model('tiny', 3, task='detection', **options)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: np.array(x) + 0.05 * random.standard_normal(x.shape).astype(np.float32),
        hrnet_jax.init(model, jax.random.key(0), 64),
    )
    variables['batch_stats'] = jax.tree.map(np.abs, variables['batch_stats'])
    if request.param == 'fcos':
        head = variables['params']['bbox_head']
        for name, more in (('conv_cls', 4), ('conv_reg', 3)):
            head[name]['bias'] = head[name]['bias'] + np.float32(more)
    return model, variables


@pytest.fixture(scope='module')
def found(detector):
    """Raw outputs, and boxes."""
    model, variables = detector

    @compiled
    def both(variables, images, sizes):
        maps = model.apply(variables, images, sizes=sizes)
        return maps, model.apply(variables, images, sizes, method='detect')

    return jax.device_get(both(variables, X, SIZES))


@pytest.fixture(scope='module')
def detect(detector):
    """Of one image of 32 x 32 pixels."""
    step = compiled(lambda v, x, s: detector[0].apply(v, x, s, method='detect'))
    return lambda variables: step(variables, image(6, 1, 32, 32), np.array([[32, 32]]))


def test_raw_outputs(detector, found):
    model, maps = detector[0], found[0]
    shapes = {
        'fcos': [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)],
        'faster_rcnn': [(16, 24), (8, 12), (4, 6), (2, 3), (1, 1)],
    }[model.head]
    widths = {
        'fcos': {'classes': 3, 'distances': 4, 'centerness': 1},
        'faster_rcnn': {'pyramid': 32, 'objectness': 3, 'deltas': 12},
    }[model.head]
    assert {name: x[0].shape[-1] for name, x in maps.items()} == widths
    for levels in maps.values():
        assert [x.shape[1:3] for x in levels] == shapes
        assert all(x.dtype == np.float32 for x in levels)
    last = {path[-1] for path in last_layers(model)}
    assert last == ({'conv_cls'} if model.head == 'fcos' else {'fc_cls', 'fc_reg'})


def test_boxes(detector, found):
    """In the images, best first, and only real ones count."""
    model, boxes = detector[0], found[1]
    assert boxes['boxes'].shape == (2, 20, 4)
    assert boxes['valid'].any(1).all()
    for i, (height, width) in enumerate(SIZES):
        valid = boxes['valid'][i]
        corners, scores = boxes['boxes'][i][valid], boxes['scores'][i][valid]
        assert (np.diff(scores) <= 0).all()
        assert (corners >= 0).all()
        assert (corners <= [width, height, width, height]).all()
        assert (corners[:, 2:] >= corners[:, :2]).all()
        assert set(boxes['labels'][i]) <= {0, 1, 2}
        assert not boxes['boxes'][i][~valid].any()
        assert not boxes['scores'][i][~valid].any()
        if model.head == 'faster_rcnn':
            assert (scores > model.threshold).all()


def test_what_is_beyond_an_image_does_not_count(detector, found):
    model, variables = detector
    other = X.copy()
    other[1, 50:], other[1, :, 70:] = 9, -9
    step = compiled(lambda v, x, s: model.apply(v, x, sizes=s))
    for ours, theirs in zip(
        *map(jax.tree.leaves, (step(variables, other, SIZES), found[0])), strict=True
    ):
        assert close(ours, theirs) < 1e-5


def test_folded(detector, found):
    model, variables = detector
    fast = hrnet_jax.fold(model, variables)
    step = compiled(lambda v, x, s: fast.model.apply(v, x, s, method='detect'))
    boxes = step(fast.variables, X, SIZES)
    np.testing.assert_array_equal(boxes['valid'], found[1]['valid'])
    np.testing.assert_allclose(boxes['scores'], found[1]['scores'], atol=1e-4)


def test_exported(detector):
    """What the heads say of each level, in the order of the names."""
    model, variables = detector
    program = export(model, variables, image_size=(64, 64), batch=1)
    assert len(program.out_avals) == 15
    assert difference(program, None, model, variables, model.transform) < 1e-4


def test_nnx(detector, found):
    from hrnet_jax.nnx import from_linen

    network = from_linen(*detector)
    maps = compiled(lambda x: network(x, method='pyramid'))(jnp.asarray(X))
    assert len(maps) == 5
    if detector[0].head == 'faster_rcnn':
        step = compiled(lambda x: network(x))
        assert close(step(X)['objectness'][0][0], found[0]['objectness'][0][0]) < 1e-4


def test_an_image_of_few_pixels(detector, detect):
    """The coarsest levels have none."""
    boxes = detect(detector[1])
    assert boxes['boxes'].shape == (1, 20, 4)
    assert np.isfinite(boxes['scores']).all()


def test_summary(detector):
    model = detector[0]
    rows = {row.name: row for row in table(model, (64, 96), depth=1)}
    assert sum(row.parameters for row in rows.values()) == parameters(model)
    # The second stage is not asked for by the call.
    assert (rows['bbox_head'].multiply_adds == 0) == (model.head == 'faster_rcnn')
    assert rows['bbox_head'].parameters > 0
    assert rows['neck'].multiply_adds > 0


def test_published_parameters():
    """26.2 times 2^20, as HRNet-Object-Detection has it."""
    model = hrnet_jax.create_model('w18', task='detection', head='faster_rcnn')
    assert round(parameters(model) / 2**20, 1) == 26.2


def test_second_stage(detector):
    model, variables = detector
    maps = [np.zeros((2, 64 // s, 96 // s, 32), np.float32) for s in (4, 8, 16, 32)]
    boxes = np.tile(np.float32([0, 0, 30, 20]), (2, 5, 1))
    if model.head == 'fcos':
        with pytest.raises(hrnet_jax.UserError, match='fcos has no second stage'):
            model.apply(variables, maps, boxes, method='classify')
    else:
        logits, deltas = model.apply(variables, maps, boxes, method='classify')
        assert (logits.shape, deltas.shape) == ((2, 5, 4), (2, 5, 3, 4))


def test_fewer_proposals_than_wanted():
    """The others are not real, and have no inside."""
    maps = {
        'objectness': [np.full((1, 1, 1, 3), 2.0, np.float32)],
        'deltas': [np.zeros((1, 1, 1, 12), np.float32)],
    }
    found = compiled(lambda m, s: detections.proposals(m, (64,), s, most=9))(
        maps, np.array([[64, 64]])
    )
    assert found['valid'].sum() == 1  # of three, two overlap the first by more than 0.7
    assert not found['boxes'][0, 3:].any()


def test_places_without_any_centreness():
    """A centre-ness of 0 takes no place from the others, even below the threshold."""
    classes = np.full((1, 4, 4, 1), -9, np.float32)
    central = np.full((1, 4, 4, 1), -200, np.float32)
    classes[0, 3, 3], central[0, 3, 3] = 3, 1
    maps = {'classes': [classes], 'centerness': [central]}
    maps['distances'] = [np.full((1, 4, 4, 4), 2, np.float32)]
    found = detections.best(detections.of_places(maps, (8,), np.array([[32, 32]]), 0.05), 0.5, 3)
    assert found['valid'].tolist() == [[True, False, False]]
    assert found['boxes'][0, 0].tolist() == [26, 26, 30, 30]


def test_a_head_that_gives_no_numbers(detector, detect):
    variables = jax.tree.map(np.copy, detector[1])
    head = variables['params']['bbox_head']
    head['conv_cls' if detector[0].head == 'fcos' else 'fc_cls']['bias'] += np.float32(np.nan)
    assert np.isnan(detect(variables)['scores']).all()


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'head': 'mask'}, "head must be one of fcos, faster_rcnn, not 'mask'"),
        ({'pooling': 'mean'}, "pooling must be average or max, not 'mean'"),
        ({'channels': 48}, 'channels of fcos are a multiple of 32, not 48'),
        ({'threshold': 2}, 'threshold must be from 0 to 1, not 2'),
        ({'most': 0}, 'most is a whole number, at least 1, not 0'),
    ],
)
def test_wrong_options(options, said):
    with pytest.raises(hrnet_jax.UserError, match=said):
        hrnet_jax.create_model('tiny', 3, task='detection', **options)


def test_distances_beyond_all_numbers():
    """Their edges are those of the image, as in mmdetection."""
    options = {'task': 'detection', 'head': 'fcos', 'channels': 32, 'threshold': 0.0}
    model = hrnet_jax.create_model('tiny', 3, **options)
    variables = hrnet_jax.init(model, jax.random.key(0), 64)
    head = variables['params']['bbox_head']
    head['conv_reg']['bias'] = head['conv_reg']['bias'] + np.float32(200)
    detect = compiled(lambda v, x, s: model.apply(v, x, s, method='detect'))
    found = detect(variables, image(6, 1, 32, 32), np.array([[30, 31]]))
    boxes, valid = found['boxes'][0], found['valid'][0]
    assert valid.sum() == 3  # one of each class: all boxes are alike
    assert (np.asarray(boxes)[np.asarray(valid)] == [0, 0, 31, 30]).all()
    assert np.isfinite(found['scores']).all()
