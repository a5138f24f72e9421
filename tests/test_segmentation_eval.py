"""eval.py and predict.py of a segmenter on a made folder."""

from __future__ import annotations

import functools
import json

import jax
import layouts
import numpy as np
import pytest
import runs
import segments
from flax import nnx
from PIL import Image

import eval as eval_command
import hrnet_jax
import predict as predict_command
from hrnet_jax.commands import export as export_command
from hrnet_jax.data import segmentation_sets
from hrnet_jax.data.opencv import read_rgb
from hrnet_jax.data.views import Views
from hrnet_jax.nnx import from_linen
from hrnet_jax.tasks.confusion import Confusion
from hrnet_jax.tasks.label_maps import files_of, write
from hrnet_jax.tasks.overlay import blended, colours
from hrnet_jax.tasks.segmentation import TASK

SETS = {
    'cityscapes': functools.partial(layouts.cityscapes, form='labelIds'),
    'ade20k': functools.partial(layouts.ade20k, _=None),
    'voc2012': functools.partial(layouts.voc, split='val'),
    'pascal_context': functools.partial(layouts.context, name='pascal_context'),
}


@pytest.fixture(scope='module')
def ckpt(once):
    return once('segmenter', segments.make_checkpoint)


@pytest.fixture(scope='module')
def many(tmp_path_factory):
    """Images of three sizes: the folder, and what is in it."""
    folder = tmp_path_factory.mktemp('many')
    return folder, segments.make_folder(folder, segments.MANY[1:])


def figures(matrix):
    right = np.diag(matrix)
    iou = 100 * right / (matrix.sum(0) + matrix.sum(1) - right)
    return {
        'miou': np.nanmean(iou),
        'mean_accuracy': np.nanmean(100 * right / matrix.sum(1)),
        'pixel_accuracy': 100 * right.sum() / matrix.sum(),
    }


def test_eval_predict_and_pytorch_agree(command, ckpt, many, tmp_path):
    folder, made = many
    model, variables = hrnet_jax.load(ckpt)
    found = hrnet_jax.predict(model, variables, [image for image, _ in made])
    code, out, err = command(
        eval_command.main, '--ckpt', ckpt, '--dataset', f'folder:{folder}', '--split', 'val',
        '--json', tmp_path / 'r.json', '--labels', tmp_path / 'ids', '--batch-size', 2,
    )  # fmt: skip
    assert code == 0, err
    assert 'note: images of 3 sizes are padded to 1 shape: 1 program is compiled' in out
    result = json.loads((tmp_path / 'r.json').read_text())
    labels = [label for _, label in made]
    check(result['confusion'], labels, *segments.maps_of_torch(ckpt / 'tiny', [x for x, _ in made]))
    matrix = segments.counted(labels, found)
    assert result['confusion'] == matrix.tolist()
    assert result['metrics'] == pytest.approx(figures(matrix))
    assert result['num_examples'] == 3
    assert (result['task'], result['protocol']) == ('segmentation', 'whole')
    assert list(result['iou']) == list(segments.CLASSES)
    assert f'{result["metrics"]["miou"]:.3f}' in out
    assert f'label maps of 3 images: {tmp_path / "ids"}' in out
    for i, ids in enumerate(found):
        with Image.open(tmp_path / 'ids' / f'p{i}.png') as file:
            assert file.mode == 'L'
            np.testing.assert_array_equal(np.asarray(file), ids)


@pytest.mark.long  # as in test_eval_processes.py and test_pose_eval.py, by the same code
def test_two_processes_count_as_pytorch(ckpt, many, tmp_path):
    folder, made = many
    options = ('--ckpt', ckpt, '--dataset', f'folder:{folder}', '--split', 'val')
    options += ('--json', tmp_path / 'r.json', '--labels', tmp_path / 'ids')
    ended = runs.finish(runs.start('eval', options, processes=2, devices=2))
    assert [code for code, *_ in ended] == [0, 0], ended
    result = json.loads((tmp_path / 'r.json').read_text())
    maps = segments.maps_of_torch(ckpt / 'tiny', [image for image, _ in made])
    check(result['confusion'], [label for _, label in made], *maps)
    predictions = [np.asarray(Image.open(tmp_path / f'ids/p{i}.png')) for i in range(3)]
    written = segments.counted([label for _, label in made], predictions)
    assert result['confusion'] == written.tolist()


@pytest.fixture(scope='module')
def all_names(once):
    """The checkpoint of a network that knows the classes of every set."""
    names = {name: 0 for data in SETS for name in segmentation_sets.classes(data)}
    return once('all_names', lambda path: segments.make_checkpoint(path, tuple(names), (90, 48)))


@pytest.mark.parametrize('name', SETS)
def test_published_layouts_are_counted_as_pytorch_does(command, tmp_path, all_names, name):
    """Images are resized by OpenCV on the way to the network; classes are found by name."""
    labels = SETS[name](tmp_path)
    code, _, err = command(
        eval_command.main, '--ckpt', all_names, '--dataset', name, '--data-dir', tmp_path,
        '--json', tmp_path / 'r.json',
    )  # fmt: skip
    assert code == 0, err
    images = [read_rgb(str(path)) for path in layouts.images(tmp_path)]
    result = json.loads((tmp_path / 'r.json').read_text())
    places = np.full(256, 255)
    for i, one in enumerate(segmentation_sets.classes(name)):
        places[i] = list(result['iou']).index(one)
    found = segments.maps_of_torch(all_names / 'tiny', images, (48, 72))
    check(result['confusion'], [places[label] for label in labels], *found)


def check(confusion, labels, predictions, ties):
    """Equal, but for the pixels that rounding may change."""
    expected = segments.counted(labels, predictions, len(confusion))
    assert np.abs(confusion - expected).sum() <= 2 * ties
    assert ties < 0.002 * expected.sum()
    assert (expected.sum(0) > 0).sum() > 2, 'the network finds one class alone'


def test_predict(command, ckpt, tmp_path):
    image = segments.picture(7, 64, 96)
    segments.write(tmp_path / 'photo.png', image)
    code, out, err = command(
        predict_command.main, tmp_path / 'photo.png', '--ckpt', ckpt, '--out', tmp_path / 'out.png',
        '--json', tmp_path / 'p.json', '--labels', tmp_path / 'ids', '--window', 48, 64, '--flip',
    )  # fmt: skip
    assert code == 0, err
    model, variables = hrnet_jax.load(ckpt)
    views = Views().override(window=[48, 64], flip=True)
    [(ids, probabilities)] = hrnet_jax.predict(
        model, variables, [image], transform=views, probabilities=True
    )
    assert (ids.shape, ids.dtype, probabilities.shape) == ((64, 96), np.uint8, (64, 96, 5))
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(probabilities.argmax(-1), ids)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'ids/photo.png')), ids)
    assert f'label maps of 1 image: {tmp_path / "ids"}' in out
    [row] = json.loads((tmp_path / 'p.json').read_text())
    found = {one['name']: one['part'] for one in row['predictions']}
    expected = {n: (ids == i).mean() for i, n in enumerate(segments.CLASSES) if (ids == i).any()}
    assert found == pytest.approx(expected)
    first = max(expected, key=expected.get)
    assert f'{100 * expected[first]:6.2f} %  {first}' in out
    assert np.asarray(Image.open(tmp_path / 'out.png').convert('RGB')).std() > 10


def test_another_number_of_classes_is_refused(refused, ckpt, tmp_path):
    segments.make_folder(tmp_path)
    (tmp_path / 'classes.txt').write_text('a\nb\nc\nd\ne\nf\n')
    data = ('--dataset', f'folder:{tmp_path}', '--split', 'val')
    line = refused(eval_command.main, '--ckpt', ckpt, *data)
    assert 'the checkpoint does not have: a, b, c, d, e' in line


def test_classes_are_found_by_name(command, ckpt, tmp_path):
    """The folder numbers them otherwise."""
    made = segments.make_folder(tmp_path)
    (tmp_path / 'classes.txt').write_text('\n'.join(segments.CLASSES[::-1]) + '\n')
    code, out, err = command(
        eval_command.main, '--ckpt', ckpt, '--dataset', f'folder:{tmp_path}', '--split', 'val',
        '--json', tmp_path / 'r.json',
    )  # fmt: skip
    assert code == 0, err
    assert 'the checkpoint has the classes in another order; they are found by name' in out
    matrix = np.array(json.loads((tmp_path / 'r.json').read_text())['confusion'])
    for i in range(5):
        assert matrix[i].sum() == sum((label == 4 - i).sum() for _, label in made)


def test_unreadable_images(command, refused, ckpt, tmp_path):
    """All are named at once, or left out and counted."""
    segments.make_folder(tmp_path)
    for i in (1, 2):
        data = (tmp_path / f'images/val/p{i}.png').read_bytes()
        (tmp_path / f'images/val/p{i}.png').write_bytes(data[:60])
    data = ('--dataset', f'folder:{tmp_path}', '--split', 'val')
    line = refused(eval_command.main, '--ckpt', ckpt, *data)
    assert '2 of 3 images cannot be read' in line
    assert 'p1.png' in line
    assert 'p2.png' in line
    code, out, err = command(
        eval_command.main, '--ckpt', ckpt, *data, '--max-corrupt', 0.7, '--json', tmp_path / 'r'
    )
    assert code == 0, err
    assert '* 2 of 3 images cannot be read and are left out' in out
    result = json.loads((tmp_path / 'r').read_text())
    assert (result['num_examples'], result['unreadable'], result['partial']) == (1, 2, True)


def test_exported_folded_and_as_nnx(command, ckpt, tmp_path):
    """All give the logits of the module."""
    model, variables = hrnet_jax.load(ckpt)
    x = np.random.default_rng(0).standard_normal((2, 64, 96, 3), np.float32)
    expected = np.asarray(jax.jit(model.apply)(variables, x))
    fast = hrnet_jax.fold(model, variables)
    file = tmp_path / 'program'
    code, out, err = command(
        export_command.main, '--ckpt', ckpt, '--image-size', 64, 96, '--out', file
    )
    assert code == 0, err
    assert 'float32[batch,64,96,3] -> float32[batch,16,24,5]' in out
    by_nnx = nnx.jit(lambda module, x: module(x))(from_linen(model, variables), x)
    found = (fast(x), jax.export.deserialize(bytearray(file.read_bytes())).call(x), by_nnx)
    for logits in found:
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def test_counts_are_whole_numbers():
    """Of more pixels than 32 bits can count; a class that does not occur is left out."""
    metric = Confusion(('a', 'b', 'c'))
    matrix = np.array([[3 * 2**32 + 1, 2**32, 0], [1, 2, 0], [0, 0, 0]])
    totals = {'confusion': matrix, 'num_examples': 9, 'seen': 9, 'not_finite': 0}
    result = metric.result(totals, {})
    assert result.details['confusion'][0][0] == 3 * 2**32 + 1
    assert result.details['iou']['c'] is None
    exact = [(3 * 2**32 + 1) / (4 * 2**32 + 2), 2 / (2**32 + 3)]
    assert result.metrics['miou'] == pytest.approx(50 * sum(exact), rel=1e-12)
    assert any(line.split() == ['c', '-', '-'] for line in result.lines)


def test_names_of_files_of():
    assert files_of(['a/x.jpg', 'b/y.png']) == ('x', 'y')
    assert files_of(['a/x.jpg', 'b/x.jpg']) == ('a/x', 'b/x')
    assert files_of(['/c/a/x.jpg', '/c/../c/b/x.jpg']) == ('a/x', 'b/x')


def test_ids_of_the_data_set_are_written(tmp_path):
    model, _ = segments.network()
    held = {'ids': (7, 8, 11), 'files': ('a',), 'class_names': ('x', 'y', 'z')}
    maps = np.array([[[0, 1], [2, 2]]], np.uint8)
    for wanted, stored in ((None, [[0, 1], [2, 2]]), (True, [[7, 8], [11, 11]])):
        folder = tmp_path / str(wanted)
        flags = {'labels': str(folder)} | ({'label_ids': True} if wanted else {})
        metric = TASK.metric(model, **held, **flags)
        metric.collect({'mask': np.array([True]), 'index': np.array([0]), 'labels': maps})
        assert np.asarray(Image.open(folder / 'a.png')).tolist() == stored
    with pytest.raises(hrnet_jax.UserError, match='--label-ids is for --labels DIR'):
        TASK.metric(model, **held, label_ids=True)
    with pytest.raises(hrnet_jax.UserError, match='the data set has no id for some'):
        TASK.metric(model, labels=str(tmp_path / 'b'), ids=(7, -1), label_ids=True)


@pytest.mark.parametrize('classes', [256, 300])
def test_many_classes(tmp_path, classes):
    decode = TASK.decoder({'transform': Views(), 'probabilities': False})
    labels = np.asarray(decode(np.eye(classes)[None])['labels'])[0]
    assert labels.tolist() == list(range(classes))
    write(str(tmp_path / 'a.png'), labels[None])
    assert np.asarray(Image.open(tmp_path / 'a.png')).tolist() == [labels.tolist()]


def test_label_maps_of_others_are_kept(refused, ckpt, tmp_path):
    segments.make_folder(tmp_path)
    data = ('--dataset', f'folder:{tmp_path}', '--split', 'val')
    line = refused(eval_command.main, '--ckpt', ckpt, *data, '--labels', tmp_path / 'labels/val')
    assert 'labels/val holds 3 PNG files; name a new folder' in line
    photo = tmp_path / 'images/val/p0.png'
    line = refused(predict_command.main, photo, '--ckpt', ckpt, '--labels', photo)
    assert f'--labels {photo}: File exists' in line


def test_colours():
    ours = colours(['a', 'b', 'c'])
    assert ours.tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0]]
    image, ids = np.full((4, 4, 3), 100, np.uint8), np.array([[0, 0, 1, 1]] * 4, np.uint8)
    mixed = blended(image, ids, ours)
    assert mixed[0, 0].tolist() == [115, 45, 45]  # 0.45 x 100 + 0.55 x the colour
    assert mixed[0, 2].tolist() == [255, 255, 255]  # the border
    assert colours(hrnet_jax.data.segmentation_sets.classes('cityscapes'))[0].tolist() == [
        *(128, 64, 128)
    ]
