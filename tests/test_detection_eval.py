"""eval.py of a detector on a made set, beside pycocotools, and in two processes."""

from __future__ import annotations

import json
import shutil

import detections
import numpy as np
import pytest
from runs import call, finish, start

import eval as eval_command
import hrnet_jax
import predict as predict_command

FILE = 'annotations/instances_val2017.json'
SIZES = ((90, 120), (120, 80), (72, 96), (70, 120))  # two programs: of wide images, and of high


@pytest.fixture(scope='module')
def coco(once):
    return once('coco_of_two_shapes', lambda folder: detections.make_coco(folder, SIZES))


@pytest.fixture(scope='module')
def ckpt(once):
    return once('detector', detections.make_checkpoint)


def options(ckpt, root, folder):
    written = ('--json', folder / 'r.json', '--predictions', folder / 'p.json')
    return ('--ckpt', ckpt, '--dataset', 'coco', '--data-dir', root, '--batch-size', 4, *written)


def run(ckpt, root, folder):
    """What is printed."""
    code, out, err = call(eval_command.main, *options(ckpt, root, folder))
    assert code == 0, err
    return out


def read(folder):
    """Result and boxes."""
    return (json.loads((folder / f'{name}.json').read_text()) for name in 'rp')


@pytest.fixture(scope='module')
def evaluated(ckpt, coco, once):
    """On a set whose truth is what the network finds, moved by noise: a folder with the set, the
    result, the boxes, and what was printed."""

    def make(folder):
        shutil.copytree(coco, folder)
        run(ckpt, coco, folder)
        random, held = np.random.default_rng(0), detections.content([[]] * 4, SIZES)
        _, rows = read(folder)
        for i, row in enumerate(rows[:: max(len(rows) // 12, 1)], 1):
            box = np.maximum(row['bbox'] + random.normal(0, 2, 4), 1).round(2).tolist()
            own = {'id': i, 'bbox': box, 'area': box[2] * box[3], 'iscrowd': int(i == 3)}
            held['annotations'].append({**row, **own})
        (folder / FILE).write_text(json.dumps(held))
        (folder / 'out').write_text(run(ckpt, folder, folder))

    return once('detector_evaluated', make)


def test_as_pycocotools(evaluated):
    result, rows = read(evaluated)
    assert len(rows) > 40
    assert {row['image_id'] for row in rows} == set(detections.IDS)
    assert {row['category_id'] for row in rows} <= set(detections.CATEGORIES)
    expected = detections.by_pycocotools(json.loads((evaluated / FILE).read_text()), rows)
    assert 0.01 < expected['ap'] < 0.99
    assert result['metrics'] == expected
    assert (result['num_examples'], result['task']) == (4, 'detection')
    out = (evaluated / 'out').read_text()
    assert 'tiny on coco, split val2017, 3-categories scale 128 96 rgb' in out
    assert f'AP{result["ap"]:>24.3f}' in out


@pytest.mark.long  # as test_pose_eval.py does by the same code
def test_two_processes_give_the_same(ckpt, evaluated, tmp_path):
    given = options(ckpt, evaluated, tmp_path)
    ended = finish(start('eval', given, processes=2, devices=2))
    assert [code for code, *_ in ended] == [0, 0], ended
    (ours, _), (theirs, _) = map(read, (tmp_path, evaluated))
    assert ours['metrics'] == pytest.approx(theirs['metrics'], abs=1e-6)
    assert 'AP' in ended[0][1]
    assert 'AP' not in ended[1][1]


def test_other_categories(ckpt, coco, refused, tmp_path):
    """By their names; a set with one that the checkpoint has not is refused."""
    held = detections.content(sizes=SIZES)
    held['categories'][0]['name'] = 'fish'
    (tmp_path / 'val.json').write_text(json.dumps(held))
    (tmp_path / 'images').symlink_to(coco / 'val2017')
    said = refused(eval_command.main, '--ckpt', ckpt, '--dataset', f'folder:{tmp_path}')
    assert 'classes that the checkpoint does not have: fish; it lacks dog' in said


def test_a_file_that_cannot_be_written(ckpt, coco, refused, tmp_path):
    said = refused(
        eval_command.main, '--ckpt', ckpt, '--dataset', 'coco', '--data-dir', coco,
        '--predictions', tmp_path / 'nowhere' / 'p.json',
    )  # fmt: skip
    assert 'nowhere' in said


def test_weights_that_give_no_numbers(refused, ckpt, coco, tmp_path):
    """They are refused, and nothing is written."""
    model, variables = hrnet_jax.load(ckpt)
    variables['params']['bbox_head']['conv_cls']['bias'] += np.float32(np.nan)
    detections.save(tmp_path / 'tiny', model, variables)
    written = tmp_path / 'p.json'
    line = refused(
        eval_command.main, '--ckpt', tmp_path, '--dataset', 'coco', '--data-dir', coco,
        '--predictions', written, '--batch-size', 4,
    )  # fmt: skip
    assert 'the outputs for 4 of 4 images are not finite' in line
    photo = coco / f'val2017/{detections.IDS[0]:012d}.png'
    line = refused(predict_command.main, photo, '--ckpt', tmp_path, '--json', written)
    assert 'the outputs are not finite' in line
    assert not written.exists()
