"""What dense tasks ask of the shared code: maps as outputs, parts of images, dropout, own flags."""

from __future__ import annotations

import argparse
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hrnet_jax
from hrnet_jax.commands.arguments import add_protocols
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError
from hrnet_jax.inference.evaluation import data_mesh, evaluate, make_eval_step
from hrnet_jax.layers import conv
from hrnet_jax.models import fitting
from hrnet_jax.runtime import cli
from hrnet_jax.tasks.base import Figure, Metric, Result, Task
from hrnet_jax.tasks.recipe import SquareRecipe
from hrnet_jax.training.step import make_loss


class Keypoints(hrnet_jax.backbone.Network):
    """Heatmaps of two points at stride 4, with dropout before the last layer."""

    arch: str = 'tiny'
    dropout: float = 0.5

    @nn.compact
    def __call__(self, images, train=False):
        (x,) = self.hrnet(self.arch, outputs=1, name='backbone')(images, train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return conv(x, 2, 1, 'final_layer', self.opts, use_bias=True, last=True)

    def detect(self, images):
        return jnp.max(self(images), (1, 2))


@dataclasses.dataclass(frozen=True)
class Crops(Protocol):
    """Flipped as pose networks are: the channels of a pair change places."""

    pairs: tuple[tuple[int, int], ...] = ((0, 1),)
    flip: bool = True
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def text(self):
        return 'crops'

    @classmethod
    def from_text(cls, text):
        return cls()

    def prepare(self, image):
        return image

    def outputs(self, forward, batch):
        images = batch['image']
        maps = forward(images)
        if not self.flip:
            return maps
        order = [b for pair in self.pairs for b in pair[::-1]]
        return (maps + forward(images[:, :, ::-1])[:, :, ::-1][..., order]) / 2

    @classmethod
    def add_flags(cls, group):
        group.add_argument('--flip', action=argparse.BooleanOptionalAction, help='mirror, too')
        group.add_argument('--pairs', type=int, nargs='+', help='that change places')


class Peak:
    def __call__(self, maps):
        return jnp.argmax(maps.reshape((maps.shape[0], -1, 2)), 1)


class Sum(Metric):
    def update(self, outputs, batch):
        return {'sum': jnp.sum(jnp.where(batch['mask'][:, None, None, None], outputs, 0))}

    def result(self, totals, examples):
        seen = int(totals['seen'])
        metrics = {'sum': float(totals['sum'])}
        return Result(seen, seen, 0, metrics, details={'each': [1.0, 2.0]})


class Pose(Task):
    name = 'keypoints'
    figures = (Figure('sum', 'sum', unit=''),)
    protocol = Crops

    def metric(self, model, **context):
        return Sum()

    def forward(self, apply, images, batch, key):
        return apply(images, rngs={'dropout': key})

    def loss(self, outputs, batch, recipe):
        return jnp.mean(jnp.square(outputs), (1, 2, 3)), {}

    def prediction_options(self, model, class_names, **options):
        return options

    def parts(self, transform, image, index, options):
        return [
            ({'image': image[top : top + size, left : left + size]}, (top, left))
            for top, left, size in options['boxes'][index]
        ]

    def joined(self, parts, options):
        return [(self.found(decoded, options), place) for decoded, place in parts]

    def decoder(self, options):
        return Peak()

    def found(self, decoded, options):
        return decoded.tolist()


@pytest.fixture(scope='module')
def network():
    model = Keypoints()
    return model, hrnet_jax.init(model, jax.random.key(0), 32)


def test_parts_of_images_of_many_sizes(network):
    """Each crop by itself gives what all together give, in the order of the images."""
    model, variables = network
    images = [np.random.default_rng(i).integers(0, 256, (96, 128, 3), np.uint8) for i in range(3)]
    boxes = [[(0, 0, 32), (8, 16, 64)], [], [(32, 64, 32)]]
    found = hrnet_jax.predict(
        model,
        variables,
        images,
        task=Pose(),
        transform=Crops(flip=False),
        boxes=boxes,
        batch_size=2,
    )
    assert [[place for _, place in one] for one in found] == [[(0, 0), (8, 16)], [], [(32, 64)]]
    apply = jax.jit(model.apply)
    for image, each, results in zip(images, boxes, found, strict=True):
        for (top, left, size), (peaks, _) in zip(each, results, strict=True):
            crop = image[None, top : top + size, left : left + size]
            x = (crop / np.float32(255) - 0.5) / 0.5
            maps = np.asarray(apply(variables, x)).reshape(-1, 2)
            assert peaks == maps.argmax(0).tolist()


def test_evaluated_with_the_pair_changed(network):
    model, variables = network
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    mask = np.array([True, True, True, False])
    batch = {'image': images, 'mask': mask}
    result = evaluate(model, variables, [batch], Crops(), Sum())
    x = (images[:3] / np.float32(255) - 0.5) / 0.5
    apply = jax.jit(model.apply)
    both = [np.asarray(apply(variables, y)).sum() for y in (x, x[:, :, ::-1])]
    assert result.sum == pytest.approx(sum(both) / 2, rel=1e-4)
    assert result.details == {'each': [1.0, 2.0]}


def test_another_method_of_the_network(network):
    @dataclasses.dataclass(frozen=True)
    class Detecting(Crops):
        def outputs(self, forward, batch):
            return forward(batch['image'], method='detect')

    class Largest(Sum):
        def update(self, outputs, batch):
            assert outputs.shape == (2, 2)
            return {'sum': jnp.sum(outputs)}

    model, variables = network
    step = make_eval_step(model, Detecting(), data_mesh(), Largest())
    batch = {'image': np.zeros((2, 32, 32, 3), np.uint8), 'mask': np.ones(2, bool)}
    assert np.isfinite(step(variables, batch)['sum'])


def test_dropout_has_a_key_of_its_own(network):
    @dataclasses.dataclass(frozen=True)
    class Own(SquareRecipe):
        task = 'keypoints'

        dataset: str = 'x'
        dtype: str = 'float32'

    hrnet_jax.tasks.register(Pose())
    try:
        loss = make_loss(network[0], Own(), Crops())
    finally:
        hrnet_jax.tasks._REGISTERED.pop('keypoints')
    batch = {'image': np.ones((2, 32, 32, 3), np.uint8), 'weight': np.ones(2, np.float32)}
    variables = network[1]
    value = jax.jit(
        lambda key: loss(variables['params'], variables['batch_stats'], batch, key, {})[0]
    )
    values = [float(value(jax.random.key(i))) for i in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_nested_fields_come_back_equal():
    protocol = Crops(pairs=((1, 2), (3, 4)))
    assert Crops.from_json(protocol.to_json()) == protocol
    assert hash(Crops.from_json(protocol.to_json())) == hash(protocol)
    assert protocol.to_json()['pairs'] == [[1, 2], [3, 4]]


def test_flags_that_tasks_share():
    classification = hrnet_jax.tasks.get_task('classification')
    parser = cli.Parser()
    names = add_protocols(parser, [classification, Pose()])
    args = parser.parse_args(['--no-flip', '--pairs', '1', '0'])
    assert (args.flip, args.pairs) == (False, [1, 0])
    assert set(names) == {'resize', 'crop', 'interpolation', 'flip', 'exif', 'pairs'}

    class Other(Crops):
        @classmethod
        def add_flags(cls, group):
            group.add_argument('--crop', nargs=2, type=int)

    class Mine(Pose):
        protocol = Other

    with pytest.raises(UserError, match='images: keypoints: --crop is another flag already'):
        add_protocols(cli.Parser(), [classification, Mine()])


def test_arrays_of_no_layer_are_refused(network):
    model, variables = network
    extra = {**variables, 'params': {**variables['params'], 'head': {'kernel': np.ones(3)}}}
    with pytest.raises(UserError, match='they differ at params/head/kernel'):
        fitting(model, extra)
