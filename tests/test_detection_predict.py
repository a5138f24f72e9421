"""Objects in images: in Python and by the command, drawn, written, and given to a pose network."""

from __future__ import annotations

import json

import cv2
import detections
import jax
import numpy as np
import poses
import pytest
import segments

import hrnet_jax
import predict as predict_command
from hrnet_jax import checkpoint
from hrnet_jax.data.keep_ratio import KeepRatio
from hrnet_jax.data.preprocess import normalize

SIZES = ((90, 120), (60, 75))
SHARED = 0.2  # score of the objects that are looked at


@pytest.fixture(scope='module', autouse=True)
def quick():
    """Compiles in a part of the time."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A detector of persons and others, and images."""
    folder = tmp_path_factory.mktemp('detector')
    detections.make_checkpoint(folder)
    model, variables = hrnet_jax.load(folder)
    for name in ('conv_cls', 'conv_centerness'):
        layer = variables['params']['bbox_head'][name]
        layer['bias'] = layer['bias'] + np.float32(3.5)
    meta = checkpoint.read_json(folder / 'tiny') | {'class_names': ['person', 'dog', '$bird']}
    checkpoint.save(folder / 'people', variables, meta)
    for i, size in enumerate(SIZES):
        segments.write(folder / f'{i}.png', segments.picture(i, *size))
    return folder


@pytest.fixture(scope='module')
def wanted(folder):
    """What the network finds in each image alone, step by step."""
    model, variables = hrnet_jax.load(folder / 'people')
    step = jax.jit(lambda v, x, sizes: model.apply(v, x, sizes, method='detect'))
    found = []
    for i, (height, width) in enumerate(SIZES):
        image = segments.picture(i, height, width)
        factor = min(128 / max(height, width), 96 / min(height, width))
        new = int(width * factor + 0.5), int(height * factor + 0.5)
        x = normalize(cv2.resize(image, new), KeepRatio())
        x = np.pad(x, ((0, -new[1] % 32), (0, -new[0] % 32), (0, 0)))
        boxes = jax.device_get(step(variables, x[None], np.array([new[::-1]])))
        boxes['boxes'] = boxes['boxes'] / np.array([new[0] / width, new[1] / height] * 2)
        found.append({name: value[0] for name, value in boxes.items()})
    return found


def test_in_python(folder, wanted):
    model, variables = hrnet_jax.load(folder / 'people')
    images = [segments.picture(i, *size) for i, size in enumerate(SIZES)]
    found = hrnet_jax.predict(model, variables, images, score=SHARED)
    assert sum(map(len, found)) > 20
    for objects, boxes in zip(found, wanted, strict=True):
        count = (boxes['scores'] > SHARED).sum()
        assert len(objects) == count
        scores = [one.score for one in objects]
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, boxes['scores'][:count], atol=1e-4)
        corners = [(x, y, x + w, y + h) for x, y, w, h in (one.box for one in objects)]
        np.testing.assert_allclose(corners, boxes['boxes'][:count], atol=0.1)
        assert [one.index for one in objects] == boxes['labels'][:count].tolist()
    one = found[0][0]
    assert (one.name, one.category) == (model.class_names[one.index], (3, 7, 12)[one.index])
    with pytest.raises(hrnet_jax.UserError, match=r'score must be from 0 to 1, not 2'):
        hrnet_jax.predict(model, variables, images, score=2)
    with pytest.raises(hrnet_jax.UserError, match='2 class names for 3 classes'):
        hrnet_jax.predict(model, variables, images, class_names=['a', 'b'])


def test_the_command(folder, wanted, command, tmp_path):
    flags = ('--ckpt', folder / 'people', '--score', SHARED)
    files = [folder / f'{i}.png' for i in range(2)]
    out = ('--json', tmp_path / 'x.json', '--out', tmp_path / 'x.png')
    code, text, err = command(predict_command.main, *files, *flags, *out)
    assert code == 0, err
    rows = json.loads((tmp_path / 'x.json').read_text())
    counts = [int((boxes['scores'] > SHARED).sum()) for boxes in wanted]
    assert [row['file'] for row in rows] == [f'{i}.png' for i in range(2) for _ in range(counts[i])]
    assert set(rows[0]) == {'file', 'category_id', 'label', 'bbox', 'score'}
    x1, y1, x2, y2 = wanted[0]['boxes'][0]
    np.testing.assert_allclose(rows[0]['bbox'], [x1, y1, x2 - x1, y2 - y1], atol=0.1)
    assert f'  {rows[0]["score"]:.3f}  {rows[0]["label"]}: ' in text
    assert (tmp_path / 'x.png').stat().st_size > 20_000

    code, text, err = command(predict_command.main, *files, *flags[:2], '--score', 0.99)
    assert (code, text.splitlines()[1]) == (0, '  nothing with a score above 0.99'), err
    assert KeepRatio().override(scale=[96, 64]).size((90, 120)) == (64, 85)


def test_from_pixels_to_skeletons(folder, command, refused, tmp_path):
    """The people are those that the detector finds with a score above 0.3."""
    poses.make_checkpoint(tmp_path)
    images = [segments.picture(i, *size) for i, size in enumerate(SIZES)]
    found = hrnet_jax.predict(*hrnet_jax.load(folder / 'people'), images)
    people = [[one for one in objects if one.name == 'person'] for objects in found]
    assert 0 < sum(map(len, people)) < sum(map(len, found))

    files = [folder / f'{i}.png' for i in range(2)]
    flags = (*files, '--ckpt', tmp_path / 'tiny', '--json', tmp_path / 'x.json')
    detector = ('--detector', folder / 'people')
    code, out, err = command(predict_command.main, *flags, *detector, '--out', tmp_path / 'x.png')
    assert code == 0, err
    rows = json.loads((tmp_path / 'x.json').read_text())
    every = [one for each in people for one in each]
    assert [row['bbox'] for row in rows] == [list(one.box) for one in every]
    boxes = [[(*one.box, one.score) for one in each] for each in people]
    posed = hrnet_jax.predict(*hrnet_jax.load(tmp_path / 'tiny'), images, boxes=boxes)
    assert [row['score'] for row in rows] == [one.score for each in posed for one in each]

    (tmp_path / 'boxes.json').write_text('{}')
    both = (*flags, *detector, '--boxes', tmp_path / 'boxes.json')
    assert '--boxes and --detector are two ways' in refused(predict_command.main, *both)
    for other in (folder / 'tiny', tmp_path / 'tiny'):
        said = refused(predict_command.main, *flags, '--detector', other)
        assert '--detector: this checkpoint does not find persons' in said
