"""Pose networks, their protocol, and predictions, beside mmpose 1.3.2 and by themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import poses
import pytest
import segments
from PIL import Image
from rules import close, image

import hrnet_jax
import predict as predict_command
from hrnet_jax import checkpoint
from hrnet_jax.data import crops
from hrnet_jax.data.topdown import TopDown
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.pictures import side_by_side
from hrnet_jax.tasks.similarity import person_score

ORACLE = Path(__file__).parent / 'data' / 'oracle' / 'pose'
BOXES = [[100, 60, 220, 300], [-20.5, 200.25, 150, 350], [400, 10, 320, 120]]


@pytest.fixture(scope='module')
def ckpt(once):
    return once('pose', poses.make_checkpoint)


@pytest.fixture(scope='module')
def loaded(ckpt):
    model, variables = hrnet_jax.load(ckpt)
    return hrnet_jax.fold(model, variables)


# Beside mmpose


def test_w32_as_mmpose():
    """Heatmaps, and the chain from pictures to keypoints in them."""
    model = hrnet_jax.create_model('w32', task='pose', num_keypoints=17)
    fast = hrnet_jax.fold(model, poses.by_rule(model))
    maps = np.asarray(fast(image(7, 1, 256, 192)))
    assert (maps.shape, maps.dtype) == ((1, 64, 48, 17), np.float32)
    with np.load(ORACLE / 'heatmaps.npz') as oracle:
        assert close(maps[:, ::2, ::2], oracle['heatmaps']) < 1e-5
    photo = poses.picture(31, 480, 640)
    [people] = hrnet_jax.predict(
        fast.model, fast.variables, [photo], boxes=[BOXES], transform=TopDown(), batch_size=3
    )
    with np.load(ORACLE / 'chain.npz') as oracle:
        for person, keypoints, scores, box in zip(
            people, oracle['keypoints'], oracle['scores'], BOXES, strict=True
        ):
            near = np.abs(person.keypoints - keypoints).max(-1) < 0.05
            assert near.mean() >= 0.98
            np.testing.assert_allclose(person.scores, scores, rtol=1e-4, atol=1e-4)
            assert person.box == tuple(box)
            assert person.score == pytest.approx(scores[scores > 0.2].mean(), rel=1e-5)


def test_crops_as_mmpose():
    photo = poses.picture(31, 480, 640)
    made = np.stack([TopDown().crop(photo, box) for box in BOXES])
    with np.load(ORACLE / 'chain.npz') as oracle:
        np.testing.assert_array_equal(made[:, ::8, ::8], oracle['crops'])


@pytest.mark.parametrize(
    ('udp', 'expected'),
    [
        (False, (1.483950158361457, -555.9808928434963, 1.4839501583614567, -208.28535064538082)),
        (True, (1.4762215614318848, -553.0852661132812, 1.4781538248062134, -207.4718017578125)),
    ],
)
def test_a_float32_box_as_mmpose(udp, expected):
    """The matrices of mmpose 1.3.2, which computes in the type of the box."""
    low, size = np.array([[412.83, 157.61], [53.05, 138.01]], np.float32)
    box = crops.between(low, low + size)
    region = crops.centre_and_scale(box, (256, 192), 1.25, np.float32)
    (across, _, right), (_, down, lower) = crops.affine(*region, (256, 192), udp)
    np.testing.assert_allclose((across, right, down, lower), expected, rtol=1e-9)


# The network


def test_hrnetv2_is_the_joined_head_of_segmentation():
    """For faces and hands: the same layers under other names, `bilinear` fusion."""
    model, variables = poses.network(head='joined', num_keypoints=5)
    assert model.upsample == 'bilinear'
    params = dict(variables['params'])
    head = params.pop('head')
    assert set(head) == {'conv_layers_0', 'conv_layers_1', 'final_layer'}
    names = {'conv_layers_0': '_0', 'conv_layers_1': '_1', 'final_layer': '_3'}
    same = {
        'params': {**params, 'head': {f'last_layer{names[k]}': v for k, v in head.items()}},
        'batch_stats': {
            **variables['batch_stats'],
            'head': {'last_layer_1': variables['batch_stats']['head']['conv_layers_1']},
        },
    }
    other = hrnet_jax.create_model('tiny', 5, task='segmentation', upsample='bilinear')
    x = image(3, 1, 64, 96)
    ours = jax.jit(model.apply)(variables, x)
    assert ours.shape == (1, 16, 24, 5)
    assert close(ours, jax.jit(other.apply)(same, x)) < 1e-6
    fast = hrnet_jax.fold(model, variables)
    assert close(fast(x), ours) < 1e-4


def test_one_output(loaded):
    """The last module makes the finest map alone."""
    model, variables = poses.network()
    stage = variables['params']['backbone']['stage4_0']
    fused = {name for name in stage if name.startswith('fuse_layers')}
    assert fused
    assert all(name.startswith('fuse_layers_0_') for name in fused)
    [info] = model.feature_info
    assert (info.channels, info.stride) == (6, 4)
    x = image(3, 2, 64, 32)
    [finest] = jax.eval_shape(lambda x: model.apply(variables, x, method='features'), x)
    assert finest.shape == (2, 16, 8, 6)
    assert close(loaded(x), jax.jit(model.apply)(variables, x)) < 1e-4


def test_the_json_says_the_model():
    model = hrnet_jax.create_model('w18', task='pose', num_keypoints=98, head='joined')
    found = checkpoint.describe(model)
    assert (found['task'], found['num_classes'], found['head']) == ('pose', 98, 'joined')
    assert hrnet_jax.tasks.get_task('pose').model_of(json.loads(json.dumps(found))) == model
    assert hrnet_jax.create_model('w32', task='pose').num_keypoints == 17
    assert hrnet_jax.create_model('w32', 16, task='pose').num_keypoints == 16
    assert hrnet_jax.create_model('w32').num_classes == 1000
    with pytest.raises(UserError, match='head must be one of finest, joined'):
        hrnet_jax.create_model('w32', task='pose', head='ocr')
    with pytest.raises(UserError, match='num_keypoints is a whole number'):
        hrnet_jax.create_model('w32', task='pose', num_keypoints=0)


# The protocol


@pytest.mark.parametrize(
    ('protocol', 'text'),
    [
        (TopDown(), 'coco quarter 256 192 sigma 2 flip'),
        (
            TopDown.of('mpii', codec='udp', input_size=(256, 256), sigma=3, flip=False),
            'mpii udp 256 256 sigma 3',
        ),
        (TopDown(codec='dark', sigma=3, blur=11), 'coco dark 256 192 sigma 3 blur 11 flip'),
        (
            TopDown.of('wflw', codec='dark', padding=1.5, shift=False),
            'wflw dark 256 192 sigma 2 padding 1.5 flip unshifted',
        ),
    ],
)
def test_text_and_json(protocol, text):
    assert protocol.text == text
    assert TopDown.from_text(text) == protocol
    assert TopDown.from_json(json.loads(json.dumps(protocol.to_json()))) == protocol


@pytest.mark.parametrize(
    ('fields', 'words'),
    [
        ({'codec': 'half'}, "codec must be one of quarter, official, dark, udp, not 'half'"),
        ({'sigma': 0}, 'sigma must be above 0'),
        ({'blur': 10}, 'blur must be an odd number from 3 on, not 10'),
        ({'input_size': (250, 192)}, 'input_size must be two multiples of 32'),
        ({'pairs': ((0, 17),)}, 'pairs of 17 keypoints are not'),
        ({'pairs': ((0, 1), (1, 2))}, 'pairs of 17 keypoints are not'),
    ],
)
def test_mistakes_of_the_protocol(fields, words):
    with pytest.raises(UserError, match=words):
        TopDown(**fields)


def test_geometry():
    """Worked out by hand: the box of the ratio of the input is its crop, padded."""
    protocol = TopDown(input_size=(64, 32), padding=1.0)
    photo = segments.picture(0, 100, 100)
    np.testing.assert_array_equal(protocol.crop(photo, [20, 10, 32, 64]), photo[10:74, 20:52])
    wide = TopDown(input_size=(64, 32)).region([0, 0, 40, 8])
    assert [x.tolist() for x in wide] == [[20, 4], [50, 100]]
    # UDP: the outermost pixels are those of the box.
    udp = TopDown(codec='udp', input_size=(64, 32), padding=1.0)
    crop = udp.crop(photo, [20, 10, 31, 63])
    inside = np.abs(crop.astype(int) - photo[10:74, 20:52])
    assert inside.mean() < 3
    np.testing.assert_allclose(protocol.placed(np.array([0.0, 32.0]), [20, 10, 32, 64]), [20, 42])


# Predictions


def test_people_of_many_images(loaded):
    """Each person alone gives the same; the order is that of the boxes."""
    images = [segments.picture(i, *size) for i, size in enumerate(poses.SIZES)]
    boxes = [poses.BOXES[0], [], poses.BOXES[2]]
    common = {'transform': poses.SMALL, 'batch_size': 2}
    found = hrnet_jax.predict(loaded.model, loaded.variables, images, boxes=boxes, **common)
    assert [len(people) for people in found] == [3, 0, 2]
    assert [list(p.box) for p in found[0]] == boxes[0]
    for photo, rows, people in zip(images, boxes, found, strict=True):
        for row, person in zip(rows, people, strict=True):
            [[alone]] = hrnet_jax.predict(
                loaded.model, loaded.variables, [photo, photo], boxes=[[row], []], **common
            )[:1]
            np.testing.assert_allclose(alone.keypoints, person.keypoints, atol=1e-3)
            np.testing.assert_allclose(alone.scores, person.scores, atol=1e-5)
            assert person.score == pytest.approx(float(person_score(1, person.scores)))


def test_people_of_an_image_are_one_batch(loaded):
    """Which is a power of two, so that few programs are compiled for images of other counts."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Seen(TopDown):
        def outputs(self, forward, batch):
            seen.append(len(batch['image']))
            return super().outputs(forward, batch)

    photo, row = segments.picture(0, 64, 64), [0, 0, 32, 64]
    protocol = Seen(input_size=(64, 32))
    for count, batch_size in ((3, 32), (4, 32), (3, 2)):
        [people] = hrnet_jax.predict(
            loaded.model, loaded.variables, [photo], boxes=[[row] * count], transform=protocol,
            batch_size=batch_size,
        )  # fmt: skip
        assert len(people) == count
    assert seen == [4, 2]


def test_whole_image_without_boxes(loaded):
    photo = Image.fromarray(segments.picture(0, 70, 50))
    common = {'transform': poses.SMALL, 'batch_size': 2}
    [[one]] = hrnet_jax.predict(loaded.model, loaded.variables, [photo], **common)
    [[same]] = hrnet_jax.predict(
        loaded.model, loaded.variables, [photo], boxes=[[[0, 0, 50, 70, 0.5]]], **common
    )
    np.testing.assert_array_equal(one.keypoints, same.keypoints)
    assert one.box == (0, 0, 50, 70)
    assert same.score == pytest.approx(0.5 * one.score)


def test_a_box_outside_of_the_image(loaded):
    """It is black: the network finds there what it finds in a black image."""
    common = {'transform': poses.SMALL, 'batch_size': 2}
    photo = segments.picture(0, 70, 50)
    [[out]] = hrnet_jax.predict(
        loaded.model, loaded.variables, [photo], boxes=[[[500, 500, 32, 64]]], **common
    )
    [[black]] = hrnet_jax.predict(
        loaded.model, loaded.variables, [0 * photo], boxes=[[[0, 0, 32, 64]]], **common
    )
    np.testing.assert_array_equal(out.scores, black.scores)
    np.testing.assert_allclose(out.keypoints, black.keypoints + 500)


@pytest.mark.parametrize(
    ('boxes', 'words'),
    [
        ([], 'there are boxes for 0 images, but 1 images'),
        ([[[0, 0, 0, 5]]], r'a box is \[x, y, width, height\] with a size above 0'),
        ([[[0, 0, 5]]], r'a box is \[x, y, width, height\]'),
        ([[[0, 0, 5, float('nan')]]], r'a box is \[x, y, width, height\]'),
        ([[[0, 0, 5, 5, 1, 1]]], r'a box is \[x, y, width, height\], or these and a score'),
        ([[[0, 0, 5, 5, 'high']]], r'a box is \[x, y, width, height\], or these and a score'),
        ([[[0, 0, 5, 5, None]]], r'a box is \[x, y, width, height\], or these and a score'),
        ([[3]], r'a box is \[x, y, width, height\]'),
    ],
)
def test_wrong_boxes(loaded, boxes, words):
    photo = segments.picture(0, 64, 64)
    with pytest.raises(UserError, match=words):
        hrnet_jax.predict(
            loaded.model, loaded.variables, [photo], boxes=boxes, transform=poses.SMALL
        )


@pytest.mark.parametrize('form', ['by name', 'detections'])
def test_predict(command, ckpt, loaded, tmp_path, form):
    images = poses.make_images(tmp_path)
    files = [tmp_path / f'{i + 1:012d}.png' for i in range(3)]
    content = {f.name: rows for f, rows in zip(files, poses.BOXES, strict=True)}
    if form == 'detections':
        content = [
            {'image_id': i + 1, 'category_id': category, 'bbox': box, 'score': 0.5}
            for i, rows in enumerate(poses.BOXES)
            for box in rows
            for category in (1, 2)  # no person
        ]
        content.append({'image_id': 1, 'category_id': 1, 'bbox': [5, 5, 0, 9], 'score': 0.9})
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    code, out, err = command(
        predict_command.main, *files, '--ckpt', ckpt, '--boxes', tmp_path / 'boxes.json',
        '--json', tmp_path / 'p.json', '--out', tmp_path / 'p.png', '--codec', 'dark',
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads((tmp_path / 'p.json').read_text())
    assert [row['file'] for row in rows] == [
        *[files[0].name] * 3, files[1].name, *[files[2].name] * 2,
    ]  # fmt: skip
    found = hrnet_jax.predict(
        loaded.model, loaded.variables, images, boxes=poses.BOXES,
        transform=poses.SMALL.override(codec='dark'),
    )  # fmt: skip
    people = [person for one in found for person in one]
    for row, person in zip(rows, people, strict=True):
        assert row['category_id'] == 1
        assert row['bbox'] == list(person.box)
        points = np.reshape(row['keypoints'], (17, 3))
        np.testing.assert_allclose(points[:, :2], person.keypoints, atol=1e-3)
        np.testing.assert_allclose(points[:, 2], person.scores, atol=1e-5)
        factor = 0.5 if form == 'detections' else 1
        assert row['score'] == pytest.approx(factor * person.score, abs=1e-5)
    assert out.count('of 17 keypoints') == 6
    assert f'written: {tmp_path}/p.json\ndrawn: {tmp_path}/p.png\n' in out
    assert np.asarray(Image.open(tmp_path / 'p.png').convert('RGB')).std() > 10


def test_picture():
    """Joints below the threshold, and lines to them, are left out."""
    from hrnet_jax.tasks.pose import Person
    from hrnet_jax.tasks.skeletons import colours, draw

    points, links = colours(TopDown())
    assert (255 * points[5]).round().tolist() == [0, 255, 0]
    assert (255 * links[2]).round().tolist() == [255, 128, 0]
    own = TopDown(keypoints=('a', 'b', 'c'), pairs=(), skeleton=((0, 1), (1, 2)))
    assert len(np.unique(colours(own)[0], axis=0)) == 3

    def drawn(scores):
        import io

        file = io.BytesIO()
        at = np.array([[10.0, 10], [50, 50], [90, 10]])
        person = Person(at, np.array(scores), 1.0, (0, 0, 100, 60))
        draw([np.zeros((60, 100, 3), np.uint8)], ['x'], [[person]], own, 0.3, file, 'png')
        return (np.asarray(Image.open(file).convert('RGB')).max(-1) > 90)[60:].sum()

    everything, two, one, none = map(drawn, ([1, 1, 1], [1, 1, 0.2], [1, 0, 1], [0, 0.2, 0]))
    assert everything > two > one > none


def test_rows_of_a_picture_are_as_high_as_they_must_be():
    images = [np.zeros((height, 100, 3), np.uint8) for height in (30, 30, 130)]
    figure, axes = side_by_side(images, ['a', 'b', 'c'])
    width, height = figure.get_size_inches()
    assert (width, len(axes)) == (15, 3)
    assert height == pytest.approx(7.5 * (0.3 + 1.3), rel=0.1)
    first, _, last = (held.get_subplotspec().get_position(figure).height for held in axes)
    assert last > 3 * first


def test_mistakes_of_predict(refused, ckpt, tmp_path):
    poses.make_images(tmp_path)
    photo, file = tmp_path / f'{1:012d}.png', tmp_path / 'b.json'

    def line(content):
        file.write_text(content)
        return refused(predict_command.main, photo, '--ckpt', ckpt, '--boxes', file)

    assert 'is no JSON' in line('[')
    assert 'has no boxes of 000000000001.png' in line('{"x.png": [[0, 0, 5, 5]]}')
    assert 'a box is [x, y, width, height]' in line('{"000000000001.png": [[0, 0, 5]]}')
    assert 'as COCO detections are' in line('[{"bbox": [0, 0, 5, 5]}]')
    assert 'as COCO detections are' in line('3')
    assert 'as COCO detections are' in line('[{"image_id": [1], "bbox": [0, 0, 5, 5]}]')
    negative = '{"000000000001.png": [[0, 0, -5, 5]]}'
    assert 'with a size above 0, not [0, 0, -5, 5]' in line(negative)


def test_exported_and_in_nnx(loaded):
    """The same heatmaps from a program for uint8 crops, and from a module of NNX."""
    from flax import nnx

    images = np.stack([segments.picture(i, 64, 32) for i in range(2)])
    program = hrnet_jax.export.export(
        loaded.model, loaded.variables, image_size=(64, 32), batch=2, transform=poses.SMALL
    )
    x = (images / np.float32(255) - np.float32(poses.SMALL.mean)) / np.float32(poses.SMALL.std)
    expected = loaded(x)
    assert close(program.call(images), expected) < 1e-5
    module = hrnet_jax.nnx.from_linen(loaded.model, loaded.variables)
    assert close(nnx.jit(lambda module, x: module(x))(module, x), expected) < 1e-5
