"""Training of pose beside PyTorch: targets, loss, every gradient; models as recipes say."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import torch
from rules import image, weight
from steps import nchw, precision, tensor
from test_pose_augment import expected_map
from torch import nn

from convert.layouts import canonical_key
from convert.reference import HRNet
from hrnet_jax.archs import ARCHS
from hrnet_jax.data.coco_form import keypoints
from hrnet_jax.data.heatmap_targets import targets
from hrnet_jax.data.sources import Dataset, Facts
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.errors import UserError
from hrnet_jax.models import variable_shapes
from hrnet_jax.tasks.pose import TASK
from hrnet_jax.tasks.pose_recipes import CocoPose, OfficialPose, OwnPose
from hrnet_jax.training.step import make_loss, make_schedule

pytestmark = pytest.mark.usefixtures('standard_promotion')
COUNT, SIZE = 5, (96, 64)


class Reference(nn.Module):
    """`PoseNet` in PyTorch, with its names."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = HRNet(ARCHS['tiny'], 1), nn.Module()
        self.head.final_layer = nn.Conv2d(ARCHS['tiny'].channels[0], COUNT, 1)

    def forward(self, images):
        return self.head.final_layer(self.backbone.stages(images)['stage4'][0])


def named(tree):
    """Official name -> array in PyTorch's order of axes."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key, order = canonical_key(tuple(k.key for k in path), leaf.ndim)
        found[key] = np.asarray(leaf).transpose(order)
    return found


def official_loss(found, wanted, weights):
    """A mean for each joint, with the weight inside of the square, and half of it."""
    each = [
        0.5 * nn.functional.mse_loss(found[:, k] * w, wanted[:, k] * w)
        for k, w in enumerate(weights.T[..., None, None])
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize(
    ('recipe', 'codec'), [(CocoPose, 'udp'), (OfficialPose, 'official')], ids=['mmpose', 'official']
)
def test_a_step_as_pytorchs(recipe, codec):
    """In float64, with keypoints that are not marked and some outside of the crop."""
    random, n = np.random.default_rng(0), 4
    points = random.uniform([-40, -40], [104, 136], (n, COUNT, 2))
    seen = random.random((n, COUNT)) > 0.3
    own = [targets(p, s, codec, SIZE, 2) for p, s in zip(points, seen, strict=True)]
    maps = [[expected_map(*p, codec, SIZE, 2) for p in person] for person in points]
    there = np.array([[m is not None for m in person] for person in maps])
    nothing = np.zeros((SIZE[0] // 4, SIZE[1] // 4))
    wanted = tensor([[nothing if m is None else m for m in person] for person in maps])
    weights = tensor((seen & there).astype(np.float64))
    assert 2 < (~there).sum() < n * COUNT / 2
    pixels = np.where(image(3, n, *SIZE) > 0, 255, 0).astype(np.uint8)
    r = recipe(codec=codec, batch_size=n, bn_group_size=None, input_size=SIZE)
    with precision(64) as dtype:
        model = TASK.create_model('tiny', COUNT, dtype=dtype, param_dtype=dtype, bn_group_size=None)

        def rule(path, leaf):
            key, order = canonical_key(tuple(k.key for k in path), len(leaf.shape))
            x = weight(key, tuple(leaf.shape[axis] for axis in order))
            return x.astype(dtype).transpose(np.argsort(order))

        variables = jax.tree_util.tree_map_with_path(rule, variable_shapes(model))
        view = TopDown(mean=(0.5,) * 3, std=(0.5,) * 3)  # 0 and 255 become -1 and 1
        loss = jax.value_and_grad(make_loss(model, r, view), has_aux=True)
        batch = {'image': pixels, 'weight': np.full(n, 1 / n, np.float32)}
        batch |= {name: np.stack([one[name] for one in own]) for name in own[0]}
        arguments = variables['params'], variables['batch_stats'], batch, jax.random.key(0), {}
        (value, (stats, _)), grads = jax.jit(loss)(*arguments)
        grads, stats = named({'params': grads}), named({'batch_stats': stats})

    reference = Reference().double().train()
    state = {k: tensor(v) for k, v in named(variables).items()}
    assert not reference.load_state_dict(state, strict=False).unexpected_keys
    found = reference(nchw(pixels, torch.float64) / 127.5 - 1)
    if recipe is OfficialPose:
        expected = official_loss(found, wanted, weights)
    else:
        expected = ((found - wanted) ** 2 * weights[..., None, None]).mean()
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


FACTS = Facts(Dataset('made'), 'train', 8, COUNT, None, False, (), {})


def test_the_model_of_a_run():
    recipe = OwnPose(dataset='x', head='joined', frozen_norm=True, dtype='float32', head_lr=10)
    model = TASK.build('tiny', recipe, FACTS)
    assert (model.num_keypoints, model.head, model.upsample) == (COUNT, 'joined', 'bilinear')
    assert (model.dtype, model.frozen_norm) == (np.float32, True)
    [group] = TASK.parameter_groups(model, recipe)
    assert (group.pattern, group.rate) == ('^head/', 10)


def test_the_evaluation_of_a_recipe():
    assert CocoPose().transform == TopDown()
    recipe = OfficialPose(input_size=(384, 288), sigma=3.0, eval_flip=False)
    assert recipe.transform.text == 'coco official 384 288 sigma 3'


def test_published_schedule():
    """500 steps from a thousandth, a tenth from the epochs 170 and 200 on."""
    epoch = 293  # 149,813 people by 512
    rate = make_schedule(CocoPose(), epoch)
    early, late = {0: 5e-7, 250: 2.5025e-4, 500: 5e-4}, {169.9: 5e-4, 170.1: 5e-5, 200.1: 5e-6}
    late = {int(at * epoch): expected for at, expected in late.items()}
    for step, expected in (early | late).items():
        assert float(rate(step)) == pytest.approx(expected, rel=1e-4)
    assert CocoPose().total_steps(epoch) == 210 * epoch


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'input_size': (256, 190)}, 'input_size must be two multiples of 32'),
        ({'scale': 1.0}, 'scale must be from 0 to below 1, not 1.0'),
        ({'rotation': 200.0}, 'rotation must be from 0 to 180'),
        ({'half_body': 1.5}, 'half_body must be from 0 to 1'),
        ({'sigma': 0.0}, 'sigma must be from 0.1'),
        ({'class_names': 'names.txt'}, 'class_names names.txt has no effect'),
    ],
)
def test_mistakes_in_a_recipe(given, said):
    with pytest.raises(UserError, match=said):
        dataclasses.replace(OwnPose(dataset='x'), **given)


@pytest.mark.parametrize('skeleton', [[[0, 1]], [[1, 3]], [[1]], [1, 2], ['ab']])
def test_lines_that_join_nothing(skeleton):
    with pytest.raises(UserError, match='a.json: "skeleton" is not pairs of numbers from 1 to 2'):
        keypoints('own', ('a', 'b'), {'skeleton': skeleton}, 'a.json')


@pytest.mark.parametrize('upper', ['a', ['c'], [0], {'a': 1}])
def test_an_upper_body_of_nothing(upper):
    with pytest.raises(UserError, match='a.json: "upper_body" is not a list of keypoints, but'):
        keypoints('own', ('a', 'b'), {'upper_body': upper}, 'a.json')
