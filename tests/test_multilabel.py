"""Several labels an image: data, metric, loss; then train, evaluate, predict, convert, export."""

from __future__ import annotations

import json
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import torch
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
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.multilabel import Multilabel, Precision, average_precision
from hrnet_jax.tasks.multilabel_data import open_multilabel
from hrnet_jax.training.experiment import Experiment, Options

sys.path.append(str(runs.ROOT / 'examples'))
import digits  # noqa: E402

LABELS = ('even', 'large', 'prime')
OPTIONS = (
    '--dataset folder:{} --split train --eval-split val --image-size 32 --eval-resize 32 '
    '--eval-crop 32 --flip 0 --batch-size 32 --dtype float32 '
    '--epochs 4 --eval-every 2 --checkpoint-steps 2 --keep 9'
)
STEPS = 12  # 4 epochs of 96 images
TASK = get_task('multilabel')


def labels_of(digit):
    held = (digit % 2 == 0, digit > 4, digit in (2, 3, 5, 7))
    return [name for name, there in zip(LABELS, held, strict=True) if there]


@pytest.fixture(scope='session')
def photos(once):
    """A folder of digit scans with train.csv (labels) and val.csv (columns)."""
    return once('photos', make_photos)


def make_photos(folder):
    (folder / 'images').mkdir(parents=True)
    images, numbers = digits.scans()['test']
    rows = []
    for i, (image, digit) in enumerate(zip(images[:157], numbers[:157], strict=True)):
        Image.fromarray(image[..., 0]).save(folder / 'images' / f'{i}.png')
        rows.append((f'images/{i}.png', labels_of(int(digit))))
    lines = ['file,labels', *(f'{file},{" ".join(names)}' for file, names in rows[:96])]
    (folder / 'train.csv').write_text('\n'.join(lines) + '\n')
    lines = [f'file,{",".join(LABELS)}']
    lines += [
        f'{file},{",".join(str(int(n in names)) for n in LABELS)}' for file, names in rows[96:]
    ]
    (folder / 'val.csv').write_text('\n'.join(lines) + '\n')
    (folder / 'classes.txt').write_text('\n'.join(LABELS) + '\n')


def train(folder, photos, *more, **where):
    options = OPTIONS.format(photos).split()
    return runs.launch(folder, photos, *options, *more, recipe='multilabel', quick=True, **where)


def read(run, step):
    return checkpoint.read_json(run / 'checkpoints' / str(step))


@pytest.mark.parametrize(
    ('name', 'split', 'table'),
    [
        ('{}/train.csv', None, 'train'),
        ('folder:{}/val.csv', None, 'val'),
        ('{}/none.csv', None, 'none'),
        ('folder:{}', 'val', 'val'),
        ('{}', 'train', 'train'),
    ],
)
def test_a_csv_file_for_a_classifier(photos, name, split, table):
    with pytest.raises(UserError) as stop:
        get_task('classification').open_dataset(name.format(photos), split, None)
    assert str(stop.value) == (
        f'{photos}/{table}.csv: a CSV file is for several labels an image (train.py --recipe '
        'multilabel); for one class an image, name a folder that holds a folder of images for each '
        'class'
    )


@pytest.fixture(scope='session')
def run(once, photos):
    """A whole run of train.py."""

    def make(folder):
        [(code, out, err)] = runs.finish(train(folder, photos))
        assert code == 0, err
        assert 'mAP' in out

    return once('multilabel', make)


@pytest.mark.parametrize('digits_of_scores', [1, 8])
def test_average_precision_as_scikit_learn(digits_of_scores):
    """With one digit, many scores are equal."""
    random = np.random.default_rng(0)
    for n in (1, 2, 50, 3000):
        labels = random.random(n) < 0.2
        labels[0] = True
        scores = np.round(random.standard_normal(n) + labels, digits_of_scores).astype(np.float32)
        expected = average_precision_score(labels, scores)
        assert abs(average_precision(labels, scores) - expected) < 1e-12


def test_metric_sums_as_scikit_learn():
    random = np.random.default_rng(1)
    scores = random.standard_normal((20, 4)).astype(np.float32)
    labels = (random.random((20, 4)) < 0.4).astype(np.uint8)
    labels[:, 2] = 0  # a class that does not occur
    metric, mask = Precision(), np.arange(20) < 17
    batch = {'label': labels, 'mask': jnp.asarray(mask)}
    sums = jax.device_get(jax.jit(metric.update)(scores, batch))
    examples = {k: v[mask] for k, v in sums.pop('examples').items()}
    totals = {**sums, 'num_examples': 17, 'seen': 17, 'not_finite': 0}
    result = metric.result(totals, examples)
    occur = [0, 1, 3]
    expected = average_precision_score(
        labels[mask][:, occur], scores[mask][:, occur], average='macro'
    )
    assert result.map == pytest.approx(100 * expected, abs=1e-10)
    expected = f1_score(labels[mask], scores[mask] >= 0, average='micro')
    assert result.f1 == pytest.approx(100 * expected, abs=1e-10)
    assert (result.num_examples, result.classes_that_occur) == (17, 3)
    with pytest.raises(UserError, match='none of the 17 images has a label'):
        metric.result(totals, {**examples, 'label': np.zeros_like(examples['label'])})


def test_loss_as_pytorch():
    random = np.random.default_rng(2)
    logits = random.standard_normal((6, 3)).astype(np.float32)
    labels = (random.random((6, 3)) < 0.5).astype(np.uint8)
    model = hrnet_jax.create_model('tiny', 3, task='multilabel')
    recipe = Multilabel(dataset='x', positive_weights=(1.0, 2.0, 0.5))
    batch = {'image': np.zeros((6, 32, 32, 3), np.uint8), 'label': jnp.asarray(labels)}
    batch = TASK.prepare(batch, jax.random.key(0), recipe, model)
    each, _ = TASK.loss(jnp.asarray(logits), batch, recipe)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(logits), torch.from_numpy(labels).float(),
        pos_weight=torch.tensor(recipe.positive_weights), reduction='none',
    )  # fmt: skip
    np.testing.assert_allclose(each, expected.mean(-1), rtol=1e-6)
    wrong = Multilabel(dataset='x', positive_weights=(1.0, 2.0))
    with pytest.raises(UserError, match='one number or 3, not 2'):
        TASK.prepare(batch, jax.random.key(0), wrong, model)


def test_both_forms_of_a_csv(photos):
    train, val = (open_multilabel(f'folder:{photos}', split, None) for split in ('train', 'val'))
    assert train.class_names == val.class_names == LABELS
    assert (train.num_examples, val.num_examples) == (96, 61)
    for source, start in ((train, 0), (val, 96)):
        found = next(source.records(0, 5).batch(5).as_numpy_iterator())
        for i, row in enumerate(found['label']):
            digit = int(digits.scans()['test'][1][start + i])
            assert [LABELS[j] for j in np.flatnonzero(row)] == labels_of(digit)
    assert open_multilabel(f'{photos}/val.csv', None, None).num_examples == 61


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'names no images'),
        ('file,labels\n', 'names no images'),
        ('file,a,b\n0.png,1,2\n', 'values are 0 or 1, unlike 2'),
        ('file,a,b\n0.png,1\n', '0.png has 2 columns, the first line 3'),
        ('file,a,a\n0.png,1,0\n', 'names a class in two columns'),
        ('0.png,a\n0.png,b\n', 'names 0.png more than once'),
        ('0.png,a\n9.png,b\n', 'these images are not there: .*/9.png'),
        ('9.png,a\n0.png,b\n', 'these images are not there: .*/9.png'),
        ('0.png,"a, b"\n', 'separated by spaces, unlike a,'),
        ('file,a,\n0.png,1,\n', 'a column has no name'),
        ('file,labels\n0.png,\n', 'no image has a label'),
        ('file,a,b\n0.png,0,0\n', 'no image has a label'),
    ],
)
def test_a_wrong_csv_is_one_line(tmp_path, text, words):
    Image.new('L', (8, 8)).save(tmp_path / '0.png')
    (tmp_path / 'part.csv').write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        open_multilabel(f'folder:{tmp_path}', 'part', None)
    assert '\n' not in str(caught.value)


def test_a_missing_split_and_an_unknown_label(tmp_path):
    Image.new('L', (8, 8)).save(tmp_path / '0.png')
    (tmp_path / 'part.csv').write_text('0.png,a b\n')
    with pytest.raises(UserError, match='no other.csv; it holds part'):
        open_multilabel(f'folder:{tmp_path}', 'other', None)
    with pytest.raises(UserError, match='part.csv is one split'):
        open_multilabel(f'{tmp_path}/part.csv', 'other', None)
    (tmp_path / 'classes.txt').write_text('a\na\n')
    with pytest.raises(UserError, match='names a more than once'):
        open_multilabel(f'{tmp_path}/part.csv', None, None)
    (tmp_path / 'classes.txt').write_bytes(b'\xff\xfe')
    with pytest.raises(UserError, match='cannot read .*classes.txt'):
        open_multilabel(f'{tmp_path}/part.csv', None, None)
    (tmp_path / 'classes.txt').write_text('\ufeffa\r\nc\r\n')
    with pytest.raises(UserError, match='0.png has b, which are no classes'):
        open_multilabel(f'{tmp_path}/part.csv', None, None)


def test_tfds_with_a_list_of_labels(tmp_path):
    import tensorflow_datasets as tfds

    class Several(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(shape=(8, 8, 1)),
                'labels': tfds.features.Sequence(tfds.features.ClassLabel(names=LABELS)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples()}

        def _generate_examples(self):
            for i, labels in enumerate(([0, 2], [], [1], [0, 1, 2])):
                yield i, {'image': np.full((8, 8, 1), i, np.uint8), 'labels': labels}

    Several(data_dir=tmp_path, file_format='tfrecord').download_and_prepare()
    source = open_multilabel('several', 'train', str(tmp_path))
    assert source.class_names == LABELS
    rows = next(source.records(0, 4).batch(4).as_numpy_iterator())['label']
    assert sorted(rows.tolist()) == [[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]]


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


def test_resumed(run, photos):
    """At the end of an epoch; the last checkpoint has the same bits."""
    again = runs.lose_checkpoints(run, after=STEPS // 2)
    [(code, out, err)] = runs.finish(train(again, photos))
    assert code == 0, err
    assert f'going on after {STEPS // 2}' in out
    whole, resumed = (read(folder, STEPS) for folder in (run, again))
    assert whole['arrays'] == resumed['arrays']
    assert whole['training'] == resumed['training']


def test_two_processes_evaluate(run, photos, tmp_path):
    """To the figures of one process."""
    file, data = tmp_path / 'eval.json', ('--dataset', f'folder:{photos}', '--split', 'val')
    options = ('--ckpt', run, '--json', file, '--batch-size', 32, *data)
    for code, _, err in runs.finish(runs.start('eval', options, processes=2)):
        assert code == 0, err
    recorded = read(run, STEPS)['training']['scores'].values()
    assert json.loads(file.read_text())['map'] == pytest.approx(max(recorded), abs=1e-3)


def test_two_processes_train(run, photos, tmp_path):
    """As one does. SIGTERM to one of the two stops both after the same step, and one process with
    other devices goes on from there."""
    folder = tmp_path / 'run'
    started = train(folder, photos, processes=2, devices=2)
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
    [(code, out, err)] = runs.finish(train(folder, photos, '--stop-at', str(stopped + 1)))
    assert code == 0, err
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


def test_labels_in_another_order(tmp_path):
    """By the names of a checkpoint, or of --class-names."""
    for i in range(3):
        Image.new('RGB', (20, 20)).save(tmp_path / f'{i}.png')
    (tmp_path / 'a.csv').write_text('file,cat,dog,owl\n0.png,1,0,0\n1.png,0,1,1\n2.png,0,0,1\n')
    task = get_task('multilabel')
    source = task.open_dataset(f'folder:{tmp_path}', 'a', None)
    for names, wanted in (
        (['owl', 'cat', 'dog'], [[0, 1, 0], [1, 0, 1], [1, 0, 0]]),
        (['dog', 'owl', 'cat'], [[0, 0, 1], [1, 1, 0], [0, 1, 0]]),
    ):
        changed = task.renumbered(source, names)
        found = [x['label'].tolist() for x in changed.records(0, 3).as_numpy_iterator()]
        assert found == wanted
    with pytest.raises(UserError, match='has 3 labels, not 4'):
        task.renumbered(source, ['owl', 'cat', 'dog', 'cow'])
