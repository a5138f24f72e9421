"""Training of detectors beside plain PyTorch: targets, draws, losses, every gradient."""

from __future__ import annotations

import functools

import detector_losses as plain
import jax
import numpy as np
import pytest
import torch
from rules import image
from steps import nchw, precision, tensor

from convert import detection as layouts
from convert.layouts import canonical_key
from convert.reference_detection import FCOS, FasterRCNN
from hrnet_jax.archs import ARCHS
from hrnet_jax.data.keep_ratio import KeepRatio
from hrnet_jax.heads.detection import STRIDES
from hrnet_jax.initialisation import init
from hrnet_jax.tasks import region_losses
from hrnet_jax.tasks.detection import TASK
from hrnet_jax.tasks.detection_recipes import OwnBoxes
from hrnet_jax.training.step import _FORWARD, make_loss

pytestmark = pytest.mark.usefixtures('standard_promotion')
CLASSES, ROOM = 3, 5
CHANNELS = 64  # with 32 each is a group of its own, and of a single pixel nothing is left
SIZES = ((64, 96), (50, 70), (64, 64), (40, 96))  # of the images, in arrays of 64 x 96
BOXES = (
    # x1, y1, x2, y2, class, crowd
    [(10, 8, 44, 40, 0, 0), (40, 20, 90, 60, 2, 1), (14, 12, 30, 60, 1, 0)],
    [],
    [(2, 2, 30, 30, 2, 0), (20, 10, 60, 62, 0, 0), (5, 35, 21, 51, 1, 0)],
    [(30, 4, 90, 36, 1, 0)],
)
NETWORKS = {'fcos': (FCOS, layouts.FCOS, 2), 'faster_rcnn': (FasterRCNN, layouts.FASTER_RCNN, 1)}


def marked():
    """What a batch has of `BOXES`; an empty row comes first."""
    n = len(BOXES)
    batch = {
        'boxes': np.zeros((n, ROOM, 4), np.float32),
        'labels': np.zeros((n, ROOM), np.int32),
        'valid': np.zeros((n, ROOM), bool),
        'crowd': np.zeros((n, ROOM), bool),
        'image_hw': np.array(SIZES, np.int32),
        'weight': np.full(n, 1 / n, np.float32),
    }
    for i, rows in enumerate(BOXES):
        for j, (*box, label, crowd) in enumerate(rows, 1):
            batch['boxes'][i, j], batch['labels'][i, j] = box, label
            batch['crowd'][i, j], batch['valid'][i, j] = crowd, True
    return batch


def truth():
    found = []
    for rows in BOXES:
        own = [(j, row) for j, row in enumerate(rows, 1) if not row[5]]
        found.append((
            tensor(np.array([row[:4] for _, row in own], float).reshape(-1, 4)),
            [row[4] for _, row in own],
            tensor(np.array([row[:4] for row in rows if row[5]], float).reshape(-1, 4)),
            [j for j, _ in own],
        ))  # fmt: skip
    return found


def made(head, dtype):
    """A detector, and variables with which it finds something everywhere."""
    model = TASK.create_model(
        'tiny',
        CLASSES,
        head=head,
        channels=CHANNELS,
        dtype=dtype,
        param_dtype=dtype,
        frozen_norm=True,
    )
    random = np.random.default_rng(0)

    def value(path, leaf):
        noise = random.standard_normal(leaf.shape)
        if path[-1].key in ('mean', 'var', 'scale') and leaf.ndim == 1:
            return np.asarray(leaf) + 0.1 * np.abs(noise)
        return np.asarray(leaf) + 0.03 * noise

    return model, jax.tree_util.tree_map_with_path(value, init(model, jax.random.key(0), 64))


def named(tree, kind):
    """mmdetection's name -> array in PyTorch's order of axes."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key, order = canonical_key(tuple(k.key for k in path), leaf.ndim)
        found[kind.layouts[0].from_canonical(key)] = np.asarray(leaf).transpose(order)
    return found


@pytest.mark.parametrize('head', NETWORKS)
def test_a_step_as_pytorchs(head):
    """In float64, with a crowd, an image without boxes, and images that do not fill the arrays."""
    network, kind, stride = NETWORKS[head]
    pixels = np.where(image(3, len(BOXES), 64, 96) > 0, 255, 0).astype(np.uint8)
    key = jax.random.key(5)
    with precision(64) as dtype:
        model, variables = made(head, dtype)
        r = OwnBoxes(dataset='x', head=head, batch_size=len(BOXES), base_batch=len(BOXES))
        view = KeepRatio(mean=(0.5,) * 3, std=(0.5,) * 3)  # 0 and 255 become -1 and 1
        loss = jax.value_and_grad(make_loss(model, r, view), has_aux=True)
        batch = {'image': pixels, **marked()}
        arguments = variables['params'], variables['batch_stats'], batch, key, {}
        (value, _), grads = jax.jit(loss)(*arguments)
        grads = named({'params': grads}, kind)
        first, second = jax.random.split(jax.random.fold_in(key, _FORWARD))
        noise = [
            tensor(jax.random.uniform(k, (len(BOXES), count)))
            for k, count in ((first, 511 * 3), (second, ROOM + 1000))
        ]

    reference = network(ARCHS['tiny'], CLASSES, CHANNELS, 'average', stride).double().eval()
    state = {k: tensor(v) for k, v in named(variables, kind).items()}
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith('num_batches_tracked') for name in missing)
    x = nchw(pixels, torch.float64) / 127.5 - 1
    for i, (height, width) in enumerate(SIZES):
        x[i, :, height:], x[i, :, :, width:] = 0, 0
    seen = reference.stages(x)
    if head == 'fcos':
        maps = (seen[name] for name in ('classes', 'distances', 'centerness'))
        expected, number = plain.fcos(*maps, STRIDES[head], truth())
        assert number > 10
    else:
        maps = seen['objectness'], seen['deltas'], STRIDES[head]
        expected = plain.first_stage(*maps, truth(), SIZES, noise[0])
        with torch.no_grad():
            proposed = [plain.proposals(*maps, size, i) for i, size in enumerate(SIZES)]
        second_stage = functools.partial(plain.second_stage, reference.classify, seen['pyramid'])
        expected = expected + second_stage(proposed, truth(), noise[1], ROOM)
    expected.backward()
    assert abs(float(value) / expected.item() - 1) < 1e-9
    apart = {}
    for name, parameter in reference.named_parameters():
        # A scale of a level without an object has no gradient.
        theirs = np.zeros(()) if parameter.grad is None else parameter.grad.numpy()
        apart[name] = np.linalg.norm(grads[name] - theirs) / (np.linalg.norm(theirs) or 1)
    print(max(apart, key=apart.get), max(apart.values()))
    assert apart.keys() == grads.keys()
    assert max(apart.values()) < 1e-9


def test_two_objects_with_one_box():
    """Each box that is marked is a region of its own label."""
    boxes = jax.numpy.array([[[10.0, 10, 50, 50]] * 2])
    marked = {
        'boxes': boxes, 'labels': np.array([[1, 2]]), 'valid': np.ones((1, 2), bool),
        'crowd': np.zeros((1, 2), bool),
    }  # fmt: skip
    proposed = {'boxes': boxes[:, :1] + 90, 'valid': np.ones((1, 1), bool)}
    drawn = region_losses.regions(proposed, marked, np.zeros((1, 3)))
    assert sorted(drawn['label'][0].tolist()) == [-1, 1, 2]
