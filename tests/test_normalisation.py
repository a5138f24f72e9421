"""Mean and std that are not ImageNet's: from a file to evaluation, prediction, an exported program
and fine-tuning."""

from __future__ import annotations

import json
import shutil
import sys

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from test_conversion import made

import hrnet_jax
import predict as predict_command
from convert.__main__ import main
from hrnet_jax import checkpoint
from hrnet_jax.commands import export as export_command
from hrnet_jax.data import evaluation
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError
from hrnet_jax.inference.evaluation import evaluate
from hrnet_jax.tasks.classification import TASK
from hrnet_jax.tasks.classification_recipes import Digits
from hrnet_jax.training.experiment import Experiment, Options

MEAN, STD = (0.5, 0.4, 0.3), (0.3, 0.5, 0.25)


@pytest.fixture(scope='module')
def converted(once):
    """Of rule-made weights; images of 32 pixels."""

    def make(folder):
        folder.mkdir()
        source = folder / 'a.pth'
        torch.save({k: torch.from_numpy(v.copy()) for k, v in made().items()}, source)
        flags = ['--resize', '32', '--crop', '32', '--mean', *MEAN, '--std', *STD]
        with pytest.MonkeyPatch.context() as patch:
            given = ['command', source, '--out', folder, *flags]
            patch.setattr(sys, 'argv', list(map(str, given)))
            main()

    return once('normalisation', make) / 'tiny'


def logits(folder, pixels, mean=MEAN, std=STD):
    """Computed here, of uint8 images."""
    model, variables = hrnet_jax.load(folder)
    images = (pixels / np.float32(255) - np.array(mean, np.float32)) / np.array(std, np.float32)
    return np.asarray(jax.jit(model.apply)(variables, images))


def test_predict_and_export(converted, command, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    files = [tmp_path / f'{i}.png' for i in range(2)]
    for file, one in zip(files, pixels, strict=True):
        Image.fromarray(one).save(file)
    expected = logits(converted, pixels)
    assert not np.allclose(expected, logits(converted, pixels, std=(1, 1, 1)), rtol=1e-2)

    code, _, err = command(
        predict_command.main, *files, '--ckpt', converted, '--json', tmp_path / 'p.json'
    )
    assert code == 0, err
    for row, one in zip(json.loads((tmp_path / 'p.json').read_text()), expected, strict=True):
        best = row['predictions'][0]
        assert best['index'] == one.argmax()
        assert best['probability'] == pytest.approx(float(jax.nn.softmax(one).max()), rel=1e-3)

    program = tmp_path / 'a.stablehlo'
    flags = ('--out', program, '--preprocess', '--batch', '2')
    code, _, err = command(export_command.main, '--ckpt', converted, *flags)
    assert code == 0, err
    found = jax.export.deserialize(program.read_bytes()).call(pixels)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_evaluation(converted, digits_data):
    transform = Transform.from_json(checkpoint.read_json(converted)['transform'])
    assert transform == Transform(32, 32, mean=MEAN, std=STD)
    source = evaluation.open_dataset('digits', 'test[:64]', digits_data)
    [batch] = evaluation.batches(source, transform, 64)
    model, variables = hrnet_jax.load(converted)
    result = evaluate(model, variables, [batch], transform, TASK.metric(model))
    right = logits(converted, batch['image']).argmax(-1) == batch['label'].reshape(64, -1)[:, 0]
    assert result.top1_correct == right.sum() > 0
    assert result.num_examples == 64


@pytest.mark.parametrize(
    ('flags', 'mean', 'std'),
    [({}, MEAN, STD), ({'std': (1.0, 1.0, 1.0)}, MEAN, (1.0, 1.0, 1.0))],
)
def test_fine_tuning(converted, digits_data, flags, mean, std, tmp_path):
    """Those of the checkpoint, also when the run goes on and the checkpoint is gone."""
    init = tmp_path / 'init'
    shutil.copytree(converted, init)
    recipe, run = Digits(init=str(init), **flags), tmp_path / 'run'
    numbers = f'mean 0.5 0.4 0.3, std {" ".join(f"{x:g}" for x in std)}, as of {init}'

    def start():
        said = []
        experiment = Experiment('tiny', recipe, Options(run, digits_data), said.append)
        experiment.store.save(experiment.start())
        experiment.store.close()
        experiment.introduce(0)
        assert f'pixels  {numbers}' in said
        transform = experiment.recipe.transform
        assert (transform.mean, transform.std) == (mean, std)
        return experiment

    held = start().config['recipe']
    assert (held['mean'], held['std']) == (list(mean), list(std))
    assert json.loads((run / 'config.json').read_text())['recipe'] == held
    written = checkpoint.read_json(run / 'checkpoints' / '0')['transform']
    assert (written['mean'], written['std']) == (list(mean), list(std))

    shutil.rmtree(init)
    assert start().config['recipe'] == held
    other = Digits(init=str(init), mean=(0.0, 0.0, 0.0), std=std)
    with pytest.raises(UserError, match=r'is of a run with recipe.mean \[0.5, 0.4, 0.3\], not \[0'):
        Experiment('tiny', other, Options(run, digits_data), print)


def test_without_init_and_in_an_old_run(converted, digits_data, tmp_path):
    """ImageNet's, as a release without these fields had."""
    for name, recipe in (('a', Digits()), ('b', Digits(init=str(converted)))):
        run = tmp_path / name
        if name == 'b':
            run.mkdir()
            (run / 'checkpoints').mkdir()
            old = json.loads((tmp_path / 'a' / 'config.json').read_text())
            old['recipe'] |= {'init': str(converted)}
            del old['recipe']['mean'], old['recipe']['std']
            (run / 'config.json').write_text(json.dumps(old))
        experiment = Experiment('tiny', recipe, Options(run, digits_data), lambda line: None)
        assert experiment.recipe.transform == Transform(32, 32)
        experiment.start()


@pytest.mark.parametrize(
    ('given', 'said'),
    [({'mean': (0.5,)}, 'mean must be 3 numbers'), ({'std': (1.0, 0.0, 1.0)}, 'std must be above')],
)
def test_recipes_refuse_what_is_none(given, said):
    with pytest.raises(UserError, match=said):
        Digits(**given)
