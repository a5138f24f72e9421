"""Several labels an image: train, evaluate, predict, convert, export; on two processes."""

from __future__ import annotations

import json
import signal

import jax
import numpy as np
import pytest
import runs
from labelled import LABELS, digits, labels_of, make_photos
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

import eval as eval_command
import hrnet_jax
import predict as predict_command
from convert import __main__ as convert_command
from hrnet_jax.checkpoints import format as checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.errors import UserError
from hrnet_jax.initialisation import init
from hrnet_jax.tasks.multilabel import Multilabel
from hrnet_jax.training.experiment import Experiment, Options

OPTIONS = (
    '--dataset folder:{} --split train --eval-split val --image-size 32 --eval-resize 32 '
    '--eval-crop 32 --flip 0 --batch-size 32 --dtype float32 '
    '--epochs 4 --eval-every 2 --checkpoint-steps 2 --keep 9'
)
STEPS = 12  # 4 epochs of 96 images


@pytest.fixture(scope='session')
def photos(once):
    """`labelled.make_photos`."""
    return once('photos', make_photos)


def train(folder, photos, *more, command=runs.train, **where):
    options = (*OPTIONS.format(photos).split(), *more)
    return command(folder, photos, *options, recipe='multilabel', **where)


def read(run, step):
    return checkpoint.read_json(run / 'checkpoints' / str(step))


@pytest.fixture(scope='session')
def run(once, photos):
    """A whole run of train.py."""

    def make(folder):
        assert 'mAP' in train(folder, photos)

    return once('multilabel', make)


def test_evaluation_of_a_run(command, run, photos, tmp_path):
    """The figures are scikit-learn's of the network's own outputs."""
    file = tmp_path / 'eval.json'
    where = ('--ckpt', run, '--json', file)
    data = ('--dataset', f'folder:{photos}', '--split', 'val')
    code, printed, err = command(eval_command.main, *where, *data)
    assert code == 0, err
    found = json.loads(file.read_text())
    assert found['task'] == 'multilabel'
    assert found['num_examples'] == 61
    assert f'{found["map"]:.3f}' in printed
    model, variables = hrnet_jax.load(run)
    meta = checkpoint.read_json(hrnet_jax.checkpoint.find(run))
    transform = hrnet_jax.Transform.from_json(meta['transform'])
    images = [Image.open(photos / 'images' / f'{i}.png') for i in range(96, 157)]
    every = hrnet_jax.predict(
        model,
        variables,
        images,
        transform=transform,
        threshold=0.0,  # the model says its task
    )
    scores = np.array(
        [[p.probability for p in sorted(one, key=lambda p: p.index)] for one in every]
    )
    labels = np.array(
        [[n in labels_of(int(d)) for n in LABELS] for d in digits.scans()['test'][1][96:157]]
    )
    assert found['map'] == pytest.approx(100 * average_precision_score(labels, scores), abs=1e-3)
    expected = 100 * f1_score(labels, scores >= 0.5, average='micro')
    assert found['f1'] == pytest.approx(expected, abs=1e-6)


def test_prediction_of_a_run(command, refused, run, photos, tmp_path):
    image, file, picture = photos / 'images' / '3.png', tmp_path / 'p.json', tmp_path / 'p.png'
    where, written = (image, '--ckpt', run), ('--json', file, '--out', picture)
    code, printed, err = command(predict_command.main, *where, '--threshold', 0, *written)
    assert code == 0, err
    [row] = json.loads(file.read_text())
    names = [p['name'] for p in row['predictions']]
    assert sorted(names) == sorted(LABELS)
    assert all(name in printed for name in names)
    assert Image.open(picture).size[0] > 100
    code, printed, err = command(predict_command.main, *where, '--threshold', 1)
    assert code == 0, err
    assert 'no label reaches' in printed
    wrong = refused(predict_command.main, *where, '--topk', 3)
    assert '--topk is for classification; the checkpoint is for multilabel' in wrong


def test_views_are_of_classifiers(run):
    model, variables = hrnet_jax.load(run)
    with pytest.raises(UserError, match='the model is for multilabel'):
        hrnet_jax.visualize.view(model, variables, np.zeros((32, 32, 3), np.uint8))


def test_to_timm_and_back(run, command, tmp_path):
    """The file alone does not show the task, --task does; a flag that contradicts is refused."""
    file, back = tmp_path / 'photos.safetensors', tmp_path / 'back'
    code, out, err = command(convert_command.main, run, '--to', 'timm', '--out', file)
    assert code == 0, err
    step = hrnet_jax.checkpoint.find(run).name
    names = ', '.join(LABELS)
    assert out.startswith(f'step {step} of the run\n3 classes, in this order: {names}\n')
    told = json.loads((tmp_path / 'photos.safetensors.json').read_text())
    assert (told['step'], told['task'], told['class_names']) == (
        int(step),
        'multilabel',
        list(LABELS),
    )
    (tmp_path / 'photos.safetensors.json').unlink()
    arguments = (file, '--out', back, '--task', 'multilabel', '--resize', 32, '--crop', 32)
    assert command(convert_command.main, *arguments)[0] == 0
    assert checkpoint.read_json(back / 'tiny')['task'] == 'multilabel'
    model, again = hrnet_jax.load(back)
    before, variables = hrnet_jax.load(run)
    assert model == before
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    wrong = ('x.png', '--ckpt', run, '--task', 'classification')
    code, _, err = command(predict_command.main, *wrong)
    assert (code, err) == (2, 'error: --task classification: the checkpoint is for multilabel\n')


def test_export_and_nnx(run):
    from hrnet_jax.inference.export import export
    from hrnet_jax.nnx import from_linen

    model, variables = hrnet_jax.load(run)
    images = np.random.default_rng(3).standard_normal((2, 32, 32, 3)).astype(np.float32)
    logits = model.apply(variables, images)
    program = export(model, variables, image_size=32)
    np.testing.assert_allclose(program.call(images), logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(from_linen(model, variables)(images), logits)


@pytest.mark.long  # as test_training_runs.py and test_own_task.py do by the same code
def test_resumed(run, photos):
    """At the end of an epoch; the last checkpoint has the same bits."""
    again = runs.resumed(run, lambda run: train(run, photos), STEPS // 2, 'map')
    assert read(run, STEPS)['training'] == read(again, STEPS)['training']


@pytest.mark.long  # as test_pose_eval.py does by the same code
def test_two_processes_evaluate(run, photos, tmp_path):
    """To the figures of one process."""
    file, data = tmp_path / 'eval.json', ('--dataset', f'folder:{photos}', '--split', 'val')
    options = ('--ckpt', run, '--json', file, '--batch-size', 32, *data)
    for code, _, err in runs.finish(runs.start('eval', options, processes=2)):
        assert code == 0, err
    recorded = read(run, STEPS)['training']['scores'].values()
    assert json.loads(file.read_text())['map'] == pytest.approx(max(recorded), abs=1e-3)


@pytest.mark.long  # as test_training_runs.py does by the same code
def test_two_processes_train(run, photos, tmp_path):
    """As one does. SIGTERM to one of the two stops both after the same step, and one process with
    other devices goes on from there."""
    folder = tmp_path / 'run'
    started = train(folder, photos, command=runs.launch, processes=2, devices=2)
    runs.wait_for_step(folder, 2, started)
    started[1].terminate()
    ended = runs.finish(started)
    assert [code for code, _, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert '4 x cpu in 2 processes, 8 images each' in ended[0][1]
    assert 'devices' not in ended[1][1]
    [stopped] = [row['step'] for row in runs.rows(folder, 'stopped')]
    assert workdir.steps(folder)[-1] == stopped < STEPS
    one, two = (hrnet_jax.load(place / 'checkpoints' / '2')[1] for place in (run, folder))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), one, two)
    out = train(folder, photos, '--stop-at', str(stopped + 1))
    assert f'going on after {stopped}' in out
    assert f'stopped after step {stopped + 1}: at --stop-at' in out


def test_from_a_classifier(photos, tmp_path, standard_promotion):
    """The last layer is new, although both networks have as many outputs."""
    model = hrnet_jax.create_model('tiny', 3)
    before = init(model, jax.random.key(5))
    content = {
        **checkpoint.describe(model), 'transform': hrnet_jax.Transform(32, 32).to_json(),
        'published': None, 'class_names': None,
        'source': {'file': None, 'origin': 'test', 'sha256': None},
    }  # fmt: skip
    checkpoint.save(tmp_path / 'classifier', before, content)
    said = []
    recipe = Multilabel(
        dataset=f'folder:{photos}', split='train', eval_split='val', image_size=32,
        batch_size=32, init=str(tmp_path / 'classifier'),
    )  # fmt: skip
    experiment = Experiment('tiny', recipe, Options(tmp_path / 'run'), said.append)
    started = experiment.start().params
    assert any('last layer new for 3 classes' in line for line in said)
    expected = init(experiment.model, jax.random.key(recipe.seed), 32)['params']
    expected['backbone'] = before['params']['backbone']
    for name in started['head'].keys() - {'classifier'}:
        expected['head'][name] = before['params']['head'][name]
    jax.tree.map(np.testing.assert_array_equal, started, expected)
