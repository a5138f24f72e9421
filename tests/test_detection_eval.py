"""eval.py of a detector on a made set, beside pycocotools, and in two processes."""

from __future__ import annotations

import json

import detections
import pytest
from runs import finish, start

import eval as eval_command

FIGURES = ('ap', 'ap50', 'ap75', 'aps', 'apm', 'apl')


@pytest.fixture(scope='module')
def coco(once):
    return once('coco_boxes', detections.make_coco)


@pytest.fixture(scope='module')
def ckpt(once):
    return once('detector', detections.make_checkpoint)


@pytest.fixture(scope='module')
def evaluated(ckpt, coco, once):
    """From the shell: the folder of the result, the boxes, and what was printed."""

    def make(folder):
        folder.mkdir()
        options = ('--ckpt', ckpt, '--dataset', 'coco', '--data-dir', coco, '--batch-size', 4)
        options += ('--json', folder / 'r.json', '--predictions', folder / 'p.json')
        [(code, out, err)] = finish(start('eval', options))
        assert code == 0, err
        (folder / 'out').write_text(out)

    return once('detector_evaluated', make)


def test_as_pycocotools(evaluated):
    result, rows = (json.loads((evaluated / f'{name}.json').read_text()) for name in 'rp')
    assert len(rows) > 40
    assert {row['image_id'] for row in rows} == set(detections.IDS)
    assert {row['category_id'] for row in rows} <= set(detections.CATEGORIES)
    assert result['metrics'] == detections.by_pycocotools(detections.content(), rows)
    assert (result['num_examples'], result['task']) == (4, 'detection')
    out = (evaluated / 'out').read_text()
    assert 'tiny on coco, split val2017, 3-categories scale 128 96 rgb' in out
    assert f'AP{result["ap"]:>22.3f}' in out


def test_two_processes_give_the_same(ckpt, coco, evaluated, tmp_path):
    options = ('--ckpt', ckpt, '--dataset', 'coco', '--data-dir', coco, '--batch-size', 4)
    options += ('--json', tmp_path / 'r.json', '--predictions', tmp_path / 'p.json')
    ended = finish(start('eval', options, processes=2, devices=2))
    assert [code for code, *_ in ended] == [0, 0], ended
    ours, theirs = (json.loads((x / 'r.json').read_text()) for x in (tmp_path, evaluated))
    assert ours['metrics'] == pytest.approx(theirs['metrics'], abs=1e-6)
    assert 'AP' in ended[0][1]
    assert 'AP' not in ended[1][1]


def test_other_categories(ckpt, coco, refused, tmp_path):
    """By their names; a set with one that the checkpoint has not is refused."""
    held = detections.content()
    held['categories'][0]['name'] = 'fish'
    (tmp_path / 'val.json').write_text(json.dumps(held))
    (tmp_path / 'images').symlink_to(coco / 'val2017')
    said = refused(eval_command.main, '--ckpt', ckpt, '--dataset', f'folder:{tmp_path}')
    assert 'has the classes fish, which the checkpoint has not and lacks dog' in said


def test_a_file_that_cannot_be_written(ckpt, coco, refused, tmp_path):
    said = refused(
        eval_command.main, '--ckpt', ckpt, '--dataset', 'coco', '--data-dir', coco,
        '--predictions', tmp_path / 'nowhere' / 'p.json',
    )  # fmt: skip
    assert 'nowhere' in said
