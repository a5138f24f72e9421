"""Whole runs of train.py on keypoints in the form of COCO: resumed, of any K, from a classifier."""

from __future__ import annotations

import json
import re
import sys

import jax
import numpy as np
import pytest
import runs

from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.tasks.pose_recipes import OwnPose
from hrnet_jax.training.experiment import Experiment, Options

sys.path.append(str(runs.ROOT / 'examples'))
import figures  # noqa: E402

EPOCH = 3  # steps of 8 of the 24 figures
SETTING = (
    '--split train --eval-split val --input-size 64 32 --batch-size 8 --bn-group-size 4 '
    '--dtype float32 --epochs 2 --checkpoint-steps 2 --eval-every 2 --keep 9'
)


@pytest.fixture(scope='module')
def folder(once):
    return once('figures', lambda path: figures.make(path, {'train': 12, 'val': 2}))


def train(run, folder):
    return runs.train(run, folder, '--dataset', f'folder:{folder}', *SETTING.split(), recipe='pose')


@pytest.fixture(scope='module')
def straight(once, folder):
    """A run without interruption."""

    def make(run):
        out = train(run, folder)
        assert '24 images of 17 keypoints, 64 x 32; evaluated on 4 of val: coco quarter' in out
        assert f'steps   {2 * EPOCH}, {EPOCH} an epoch for 2 epochs' in out
        assert re.search(r'loss \S+  AP \d\.\d{3}  AP at 0\.5 \d\.\d{3}  ', out)

    return once('pose_run', make)


def test_resumed_it_is_the_same_to_the_bit(straight, folder):
    runs.resumed(straight, lambda run: train(run, folder), 4, 'ap')


def test_what_a_run_leaves_behind(straight):
    assert {'ap', 'ap50', 'ar'} <= set(runs.rows(straight, 'eval')[-1])
    step = straight / workdir.CHECKPOINTS / str(2 * EPOCH)
    meta = checkpoint.read_json(step)
    assert (meta['task'], meta['head'], meta['num_classes']) == ('pose', 'finest', 17)
    assert meta['transform']['keypoints'] == list(figures.COCO.names)
    assert meta['transform']['input_size'] == [64, 32]
    model, _ = checkpoint.load(step)
    assert model.transform.pairs == figures.COCO.pairs


def test_own_keypoints_from_a_classifier(tiny, folder, tmp_path):
    """Names, partners and lines are those of the file; the backbone is taken without what the
    finest map does not need, and the head is new; all of it is told."""
    for split in ('train', 'val'):
        content = json.loads((folder / f'{split}.json').read_text())
        for person in content['annotations']:
            person['keypoints'] = person['keypoints'][3 * 5 : 3 * 9]
        own = {'keypoints': ['l_arm', 'r_arm', 'L_elbow', 'R_elbow'], 'skeleton': [[1, 3], [2, 4]]}
        content['categories'][0] |= own
        (tmp_path / f'{split}.json').write_text(json.dumps(content))
    (tmp_path / 'images').symlink_to(folder / 'images')
    runs.save_classifier(tmp_path / 'tiny', tiny)
    recipe = OwnPose(
        init=str(tmp_path / 'tiny'), dataset=f'folder:{tmp_path}', split='train',
        eval_split='val', input_size=(64, 32), batch_size=8, bn_group_size=4,
    )  # fmt: skip
    said = []
    options = Options(tmp_path / 'run', None, tensorboard=False)
    experiment = Experiment('tiny', recipe, options, said.append)
    params = experiment.start().params
    experiment.introduce(0)
    out = '\n'.join(said)
    assert '24 images of 4 keypoints' in out
    assert f'init    {tmp_path / "tiny"}, last layer new for 4 keypoints' in out
    assert 'pixels  mean 0.4 0.4 0.4, std 0.3 0.3 0.3, as of' in out
    assert re.search(r'loaded +\d+ +backbone', out)
    assert re.search(r'initialised +2 +head/final_layer', out)
    assert re.search(r'left +\d+ +backbone.*, head', out)
    transform = experiment.transform
    assert (transform.pairs, transform.skeleton) == (((0, 1), (2, 3)), ((0, 2), (1, 3)))
    assert transform.keypoints[0] == 'l_arm'
    before = tiny[1]['params']['backbone']
    for path, x in jax.tree_util.tree_flatten_with_path(params['backbone'])[0]:
        y = before
        for key in path:
            y = y[key.key]
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
