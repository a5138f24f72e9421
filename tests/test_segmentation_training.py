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
from torch import nn

from convert.layouts import canonical_key
from convert.reference import HRNet, conv_norm
from hrnet_jax.archs import ARCHS
from hrnet_jax.data.sources import Dataset, Facts
from hrnet_jax.data.views import Views
from hrnet_jax.errors import UserError
from hrnet_jax.models import variable_shapes
from hrnet_jax.tasks import pixel_losses
from hrnet_jax.tasks.segmentation import TASK
from hrnet_jax.tasks.segmentation_recipes import Cityscapes, Segment
from hrnet_jax.training.step import make_loss

pytestmark = pytest.mark.usefixtures('standard_promotion')
CLASSES, OCR, KEY = 5, 32, 16
WIDTH = sum(ARCHS['tiny'].channels)


class Reference(nn.Module):
    """The heads in PyTorch, with the official names: the logits of `Segmenter.heads`."""

    def __init__(self, head):
        super().__init__()
        self.backbone, self.head = HRNet(ARCHS['tiny'], 1), nn.Module()
        if head == 'fcn':
            self.head.last_layer = self.fcn()
            return
        self.head.aux_head = self.fcn()
        self.head.conv3x3_ocr = nn.Sequential(*conv_norm(WIDTH, OCR, 3), nn.ReLU())
        self.head.ocr_distri_head = nn.Module()
        block = self.head.ocr_distri_head.object_context_block = nn.Module()
        for name, widths in {
            'f_pixel': (OCR, KEY, KEY), 'f_object': (OCR, KEY, KEY), 'f_down': (OCR, KEY),
            'f_up': (KEY, OCR),
        }.items():  # fmt: skip
            layers = [self.conv(a, b) for a, b in zip(widths, widths[1:], strict=False)]
            setattr(block, name, nn.Sequential(*sum(layers, [])))
        self.head.ocr_distri_head.conv_bn_dropout = nn.Sequential(*self.conv(2 * OCR, OCR))
        self.head.cls_head = nn.Conv2d(OCR, CLASSES, 1)

    def fcn(self):
        layers = conv_norm(WIDTH, WIDTH, 1)
        return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(WIDTH, CLASSES, 1))

    def conv(self, inputs, outputs):
        conv, norm = conv_norm(inputs, outputs, 1)
        return [conv, nn.Sequential(norm, nn.ReLU())]

    def forward(self, images):
        maps = self.backbone.stages(images)['stage4']
        size = maps[0].shape[2:]
        x = torch.cat([F.interpolate(m, size, mode='bilinear') for m in maps], 1)
        if hasattr(self.head, 'last_layer'):
            return [self.head.last_layer(x)]
        rough, x = self.head.aux_head(x), self.head.conv3x3_ocr(x)
        ocr = self.head.ocr_distri_head
        block, pixels = ocr.object_context_block, x.flatten(2)
        regions = torch.einsum('nkp,ncp->nck', rough.flatten(2).softmax(-1), pixels)[..., None]
        query = block.f_pixel(x).flatten(2)
        key, value = (f(regions).flatten(2) for f in (block.f_object, block.f_down))
        likeness = torch.einsum('ncp,nck->npk', query, key) * KEY**-0.5
        told = torch.einsum('npk,nck->ncp', likeness.softmax(-1), value)
        told = block.f_up(told.unflatten(2, x.shape[2:]))
        return [rough, self.head.cls_head(ocr.conv_bn_dropout(torch.cat([told, x], 1)))]


def expected_loss(logits, label, ohem=None, weights=None):
    """mmsegmentation's mean over all pixels."""
    logits = F.interpolate(logits, label.shape[1:], mode='bilinear')
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


def labels(seed=0, size=64):
    """Blocks of classes, of which some count for nothing."""
    random = np.random.default_rng(seed)
    blocks = random.choice([*range(CLASSES), 255], (4, size // 8, size // 8)).astype(np.uint8)
    return blocks.repeat(8, 1).repeat(8, 2)


def named(tree):
    """Official name -> array in PyTorch's order of axes."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key, order = canonical_key(tuple(k.key for k in path), leaf.ndim)
        found[key] = np.asarray(leaf).transpose(order)
    return found


@pytest.mark.parametrize(
    ('head', 'ohem'), [('fcn', None), ('ocr', (0.2, 3000))], ids=['fcn', 'ocr']
)
def test_loss_and_gradients_as_pytorchs(head, ohem):
    """In float64, with ignored pixels; of OCR with its first guess, and of hard pixels alone."""
    label = labels()
    pixels = np.where(image(3, 4, 64, 64) > 0, 255, 0).astype(np.uint8)
    hard = {'ohem': True, 'ohem_threshold': ohem[0], 'ohem_kept': ohem[1]} if ohem else {}
    recipe = Segment(dataset='x', head=head, batch_size=4, bn_group_size=None, **hard)
    with precision(64) as dtype:
        model = TASK.create_model(
            'tiny', CLASSES, head=head, ocr_channels=OCR, key_channels=KEY, upsample='nearest',
            dtype=dtype, param_dtype=dtype, bn_group_size=None,
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

    reference = Reference(head).double().train()
    state = {k: tensor(v) for k, v in named(own).items()}
    left = reference.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert not [k for k in left.missing_keys if k.startswith('head.') and 'tracked' not in k]
    outputs = reference(nchw(pixels, torch.float64) / 127.5 - 1)
    target = torch.from_numpy(label).long()
    expected = expected_loss(outputs[-1], target, ohem)
    for rough in outputs[:-1]:
        expected = expected + 0.4 * expected_loss(rough, target)
    expected.backward()
    assert abs(float(value) / expected.item() - 1) < 1e-12
    apart = {}
    parameters, buffers = dict(reference.named_parameters()), dict(reference.named_buffers())
    for ours, theirs in ((grads, parameters), (stats, buffers)):
        for name, x in ours.items():
            y = theirs[name].detach() if theirs is buffers else theirs[name].grad
            apart[name] = np.linalg.norm(x - y.numpy()) / np.linalg.norm(y)
    print(max(apart, key=apart.get), max(apart.values()))
    assert len(apart) == len(state)
    assert max(apart.values()) < 1e-10
    up = F.interpolate(outputs[-1].detach(), target.shape[1:], mode='bilinear')
    right = [(p.argmax(0)[t != 255] == t[t != 255]).double().mean() for p, t in zip(up, target)]  # noqa: B905
    assert float(figures['pixel_accuracy']) == pytest.approx(np.mean(right), abs=1e-6)


@pytest.mark.parametrize('weights', [(), (0.5, 1.0, 2.0, 1.5, 0.25)], ids=['alike', 'weights'])
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
