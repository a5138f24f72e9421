"""Training of segmentation beside PyTorch: loss, gradients, hard pixels; models as recipes say."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rules import image, weight
from steps import nchw, precision, tensor

from convert.layouts import canonical_key
from convert.reference import Trunk, resized
from convert.verification import reference
from hrnet_jax.data.sources import Dataset, Facts
from hrnet_jax.data.views import Views
from hrnet_jax.errors import UserError
from hrnet_jax.models import variable_shapes
from hrnet_jax.tasks import pixel_losses
from hrnet_jax.tasks.segmentation import TASK
from hrnet_jax.tasks.segmentation_recipes import Cityscapes, Segment
from hrnet_jax.training.step import make_loss

pytestmark = pytest.mark.usefixtures('standard_promotion')
CLASSES = 5
WEIGHTS = (0.5, 1.0, 2.0, 1.5, 0.25)
HARD = {'ohem': True, 'ohem_threshold': 0.2, 'ohem_kept': 1000}


def expected_loss(logits, label, ohem=None, weights=None, align_corners=False):
    """mmsegmentation's mean over all pixels."""
    logits = resized(logits, label[:, None], align_corners)
    each = F.cross_entropy(logits, label, weights, ignore_index=255, reduction='none')
    counted, hard = label != 255, torch.ones_like(each)
    if ohem:
        threshold, kept = ohem
        own = label.where(counted, torch.tensor(0))[:, None]
        p = logits.detach().softmax(1).gather(1, own)[:, 0]
        ordered = p[counted].sort().values
        lowest = ordered[min(kept * len(label), len(ordered) - 1)] if len(ordered) else 0
        hard = counted & (p < max(lowest, threshold))
    total = label.numel()
    if weights is not None:
        total = weights[label[counted]].sum() + (~counted).sum()
    return (each * hard).sum() / total


def labels(seed=0, size=(64, 64)):
    """Blocks of classes, of which some count for nothing."""
    random = np.random.default_rng(seed)
    grid = [-(-edge // 8) for edge in size]
    blocks = random.choice([*range(CLASSES), 255], (4, *grid)).astype(np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]


def named(tree):
    """Official name -> array in PyTorch's order of axes."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key, order = canonical_key(tuple(k.key for k in path), leaf.ndim)
        key = key.removeprefix('backbone.').removeprefix('head.')
        found[key] = np.asarray(leaf).transpose(order)
    return found


@pytest.mark.parametrize(
    ('head', 'fields', 'size'),
    [
        ('fcn', {'upsample': 'bilinear', 'align_corners': True}, (51, 37)),
        ('ocr', {'class_weights': WEIGHTS} | HARD, (33, 49)),
    ],
    ids=['fcn', 'ocr'],
)
def test_loss_and_gradients_as_pytorchs(head, fields, size):
    """In float64, with ignored pixels; of OCR with its first guess, and of hard pixels alone."""
    label = labels(size=size)
    pixels = image(3, 4, 96, 96)[:, : size[0], : size[1]]
    pixels = np.where(pixels > 0, 255, 0).astype(np.uint8)
    fields = {'crop_size': size, 'batch_size': 4, 'bn_group_size': None, **fields}
    recipe = Segment(dataset='x', head=head, **fields)
    align = bool(recipe.align_corners)
    with precision(64) as dtype:
        model = TASK.create_model(
            'tiny', CLASSES, head=head, ocr_channels=32, key_channels=16, dtype=dtype,
            param_dtype=dtype, bn_group_size=None, **recipe.filled(),
        )  # fmt: skip

        def rule(path, leaf):
            key, order = canonical_key(tuple(k.key for k in path), len(leaf.shape))
            x = weight(key, tuple(leaf.shape[axis] for axis in order))
            return x.astype(dtype).transpose(np.argsort(order))

        own = jax.tree_util.tree_map_with_path(rule, variable_shapes(model))
        view = Views(mean=(0.5,) * 3, std=(0.5,) * 3)  # 0 and 255 become -1 and 1
        loss = jax.value_and_grad(make_loss(model, recipe, view), has_aux=True)
        batch = {'image': pixels, 'label': label, 'weight': np.full(4, 1 / 4, np.float32)}
        arguments = own['params'], own['batch_stats'], batch, jax.random.key(0), {}
        (value, (stats, figures)), grads = jax.jit(loss)(*arguments)
        grads, stats = named({'params': grads}), named({'batch_stats': stats})

    network = reference(model, named(own)).double().train()
    maps = Trunk.stages(network, nchw(pixels, torch.float64) / 127.5 - 1)['stage4']
    *rough, logits = network.heads(maps)
    target = torch.from_numpy(label).long()
    weights = tensor(recipe.class_weights) if recipe.class_weights else None
    ohem = (recipe.ohem_threshold, recipe.ohem_kept) if recipe.ohem else None
    expected = expected_loss(logits, target, ohem, weights, align)
    for guess in rough:
        expected = expected + 0.4 * expected_loss(guess, target, None, weights, align)
    expected.backward()
    assert len(rough) == (head == 'ocr')
    assert abs(float(value) / expected.item() - 1) < 1e-12
    apart = {}
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())
    for ours, theirs in ((grads, parameters), (stats, buffers)):
        for name, x in ours.items():
            y = theirs[name].detach() if theirs is buffers else theirs[name].grad
            apart[name] = np.linalg.norm(x - y.numpy()) / np.linalg.norm(y)
    print(max(apart, key=apart.get), max(apart.values()))
    assert len(apart) == len(jax.tree.leaves(own))
    assert max(apart.values()) < 1e-10
    up = resized(logits.detach(), target[:, None], align)
    right = [(p.argmax(0)[t != 255] == t[t != 255]).double().mean() for p, t in zip(up, target)]  # noqa: B905
    assert float(figures['pixel_accuracy']) == pytest.approx(np.mean(right), abs=1e-6)


@pytest.mark.parametrize('weights', [(), WEIGHTS], ids=['alike', 'weights'])
@pytest.mark.parametrize(
    'ohem', [None, (0.3, 10), (0.01, 2000), (0.5, 10**6)], ids=['all', 'below', 'kept', 'most']
)
def test_which_pixels_count(ohem, weights):
    random, label = np.random.default_rng(1), labels(1)
    logits = random.standard_normal((4, 64, 64, CLASSES)).astype(np.float32)
    nothing = np.full_like(label, 255)
    for one in (label, nothing):
        each = pixel_losses.pixel_loss(jnp.asarray(logits), jnp.asarray(one), weights, ohem)
        arguments = nchw(logits, torch.float32), torch.from_numpy(one).long(), ohem
        expected = expected_loss(*arguments, tensor(weights, torch.float32) if weights else None)
        assert float(jnp.mean(each)) == pytest.approx(expected.item(), rel=1e-5, abs=1e-9)
    assert expected == 0


FACTS = Facts(Dataset('made'), 'train', 8, CLASSES, None, False, (), {})


def test_the_model_of_a_run():
    recipe = Segment(
        dataset='x', head='ocr', dropout=0.1, align_corners=True, upsample='bilinear',
        frozen_norm=True, dtype='float32',
    )  # fmt: skip
    model = TASK.build('tiny', recipe, FACTS)
    assert (model.num_classes, model.head, model.dropout) == (CLASSES, 'ocr', 0.1)
    assert (model.align_corners, model.upsample, model.frozen_norm) == (True, 'bilinear', True)
    assert (model.dtype, model.bn_group_size) == (np.float32, 8)
    [group] = TASK.parameter_groups(model, recipe)
    assert (group.pattern, group.rate) == ('^head/', 10)
    assert TASK.parameter_groups(model, Cityscapes()) == ()


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'crop_size': (64, 80), 'upsample': 'nearest'}, '--crop-size 80 is no multiple of 32'),
        ({'crop_size': (16, 64)}, 'crop_size must be from 32'),
        ({'scale': (2.0, 0.5)}, 'scale must be two increasing numbers'),
        ({'eval_stride': (32, 32)}, '--window and --stride are for --mode slide'),
        ({'ohem_threshold': 0.0}, 'ohem_threshold must be from'),
    ],
)
def test_mistakes_in_a_recipe(given, said):
    with pytest.raises(UserError, match=said):
        Segment(dataset='x', **given)


def test_weights_are_one_for_each_class():
    recipe = dataclasses.replace(Segment(dataset='x'), class_weights=(1.0, 2.0))
    with pytest.raises(UserError, match='class_weights are 5 numbers or none, not 2'):
        TASK.check_recipe(recipe, CLASSES)


def test_the_evaluation_of_a_recipe():
    assert Segment(dataset='x', crop_size=(97, 131)).transform == Views()
    assert Cityscapes().transform == Views(fit=(2048, 1024))
    slide = Segment(dataset='x', eval_window=(48, 48)).transform
    assert (slide.mode, slide.window, slide.stride) == ('slide', (48, 48), (32, 32))
