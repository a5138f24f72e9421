"""eval.py on a small ImageNet against PyTorch on PIL's pixels."""

from __future__ import annotations

import argparse
import io
import json

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from evaluated import COUNT, Here, counts
from imagenet import jpeg, make_imagenet, name, prepare

import eval as eval_command
import hrnet_jax
import train as train_command
from hrnet_jax import checkpoint
from hrnet_jax.commands.eval import report
from hrnet_jax.data import imagenet
from hrnet_jax.data.sources import Dataset, Facts
from hrnet_jax.models import create_model
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.base import Result


@pytest.fixture(autouse=True)
def read_here(request, monkeypatch):
    """In all tests but one."""
    if request.function is not test_the_counts_of_pytorch:
        monkeypatch.setattr('hrnet_jax.commands.eval.Reader', Here)


def run(command, setting, tmp_path, *arguments):
    result = tmp_path / 'result.json'
    options = ('--arch', 'tiny', '--ckpt', setting[1], '--data-dir', setting[0], '--json', result)
    code, out, err = command(eval_command.main, *options, '--batch-size', 16, *arguments)
    assert code == 0, err
    return json.loads(result.read_text()), out


def test_the_counts_of_pytorch(folded_as_for_users, command, setting, tmp_path):
    top1, top5 = counts(setting)
    assert 0 < top1 < top5 < COUNT
    result, out = run(command, setting, tmp_path)
    assert (result['top1_correct'], result['top5_correct']) == (top1, top5)
    assert result | {'arch': 'tiny', 'dataset': 'imagenet2012', 'num_examples': COUNT} == result
    assert result['top1'] == pytest.approx(100 * top1 / COUNT)
    assert result['partial']
    assert 'PARTIAL' in out


@pytest.mark.parametrize('options', [('--batch-size', 64), ('--split', 'validation[:7]')])
def test_batches_and_splits_do_not_change_counts(command, setting, tmp_path, options):
    result, _ = run(command, setting, tmp_path, *options)
    if '--split' in options:
        assert result['num_examples'] == 7
    else:
        assert (result['top1_correct'], result['top5_correct']) == counts(setting)


def test_limit_and_transform_flags(command, setting, tmp_path):
    result, out = run(
        command, setting, tmp_path, '--limit', 5, '--crop', 32, '--interpolation', 'bicubic'
    )
    assert result['num_examples'] == 5
    assert (
        result['transform'] | {'crop': 32, 'resize': 72, 'interpolation': 'bicubic'}
        == result['transform']
    )
    assert 'PARTIAL: 5 of 50,000 images' in out


def test_flip(command, setting, tmp_path):
    """The ranking is that of the mean of two rows of logits."""
    with np.load(setting[1].parent / 'answers.npz') as answers:
        first = int((answers['flipped'] == answers['labels']).sum())
    result, out = run(command, setting, tmp_path, '--flip')
    assert result['top1_correct'] == first != counts(setting)[0]
    assert result['protocol'] == 'resize 72 crop 64 bilinear flip'
    assert 'resize 72 crop 64 bilinear flip' in out


def test_columns_that_are_known(command, setting, tmp_path):
    _, out = run(command, setting, tmp_path, '--limit', 5)
    head = out.splitlines()[-5]
    assert 'published' not in head
    assert head.split() == ['measured', 'correct']


def test_figures_that_are_published(capsys, tmp_path):
    """Those that there are, beside those of the evaluation."""
    transform, split = hrnet_jax.Transform(), {'validation': {'top1': 50.0}}
    results = [{'transform': transform.to_json(), 'accuracy': {'own': split}}]
    meta = {'published': {'name': 'x', 'results': results}, 'source': {'sha256': None}}
    result = Result(4, 4, metrics={'top1': 75.0, 'top5': 100.0}, counts={'top1_correct': 3})
    facts = Facts(Dataset('own'), 'validation', 4, 10, None, False, (), {})
    args = argparse.Namespace(json=str(tmp_path / 'a.json'), dtype='float32')
    task = get_task('classification')
    report(args, meta, task, facts, transform, result, 4, task.figures)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['top-1', '75.000', '3', '50.000', '+25.000'] in lines
    assert ['top-5', '100.000'] in lines
    assert json.loads((tmp_path / 'a.json').read_text())['published'] == {'top1': 50.0}


def test_bfloat16_is_close(command, setting, tmp_path):
    result, _ = run(command, setting, tmp_path, '--dtype', 'bfloat16')
    assert abs(result['top1_correct'] - counts(setting)[0]) <= 4
    assert result['dtype'] == 'bfloat16'


def test_a_mislabelled_copy_stops(refused, setting, tmp_path):
    data_dir = make_imagenet(tmp_path, 12, mislabel=True)
    line = refused(
        eval_command.main,
        '--ckpt',
        setting[1],
        '--data-dir',
        data_dir,
        '--json',
        tmp_path / 'r.json',
    )
    assert 'ILSVRC2012_val_000000' in line
    assert 'prepare again' in line
    assert not (tmp_path / 'r.json').exists()


def other_set(data_dir, builder_name, labels, **features):
    """A prepared data set under a well-known name, with pictures 1, 2, ... of `imagenet.jpeg`."""

    with tfds.core.registered.skip_registration():

        class Other(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version('1.0.0')
            name = builder_name
            if builder_name == 'imagenet_v2':
                BUILDER_CONFIGS = [
                    tfds.core.BuilderConfig(name='matched-frequency', version='1.0.0')
                ]  # noqa: RUF012

            def _info(self):
                label = tfds.features.ClassLabel(num_classes=1000)
                many = {'real_label': tfds.features.Sequence(label), 'original_label': label}
                own = many if builder_name == 'imagenet2012_real' else {'label': label}
                features = {
                    'image': tfds.features.Image(),
                    'file_name': tfds.features.Text(),
                    **own,
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, manager):
                split = 'validation' if builder_name == 'imagenet2012_real' else 'test'
                return {split: self._generate_examples()}

            def _generate_examples(self):
                for i, own in enumerate(labels, 1):
                    fields = own if isinstance(own, dict) else {'label': own}
                    yield i, {'image': io.BytesIO(jpeg(i)), 'file_name': name(i), **fields}

    prepare(Other(data_dir=str(data_dir), file_format='tfrecord'))


@pytest.mark.parametrize('dataset', ['imagenet_v2', 'imagenet_sketch', 'imagenet_a', 'imagenet_r'])
def test_other_sets(command, setting, tmp_path, dataset):
    _, ckpt, ranking, _ = setting
    # Each image's own label, or what the model thinks of the next image: right for some.
    labels = [int(ranking[i if i % 2 else (i + 1) % 12, 0]) for i in range(12)]
    other_set(tmp_path, dataset, labels)
    result, _ = run(command, (tmp_path, ckpt), tmp_path, '--dataset', dataset)
    allowed = sorted(set(labels)) if dataset in ('imagenet_a', 'imagenet_r') else range(1000)
    order = [[c for c in ranking[i] if c in allowed] for i in range(12)]
    assert result['top1_correct'] == sum(order[i][0] == labels[i] for i in range(12))
    assert result['top5_correct'] == sum(labels[i] in order[i][:5] for i in range(12))
    assert 0 < result['top1_correct'] < 12
    assert result['num_examples'] == 12


def test_real_labels(command, setting, tmp_path):
    """Right if the first class is among the image's labels; images without labels do not count."""
    _, ckpt, ranking, original = setting
    many = [[], [int(ranking[1, 0]), 3], [999, int(ranking[2, 0])], [int(ranking[3, 4])], [], [7]]
    rows = [
        {'original_label': int(o), 'real_label': m} for o, m in zip(original, many, strict=False)
    ]
    other_set(tmp_path, 'imagenet2012_real', rows)
    result, _ = run(command, (tmp_path, ckpt), tmp_path, '--dataset', 'imagenet2012_real')
    assert (result['num_examples'], result['top1_correct'], result['top5_correct']) == (4, 2, 3)


def test_a_folder_of_class_folders(command, refused, setting, tmp_path):
    _, ckpt, ranking, labels = setting
    root = tmp_path / 'folder'
    for i in range(12):
        place = root / f'{labels[i]:04d}'
        place.mkdir(parents=True, exist_ok=True)
        (place / name(i + 1)).write_bytes(jpeg(i + 1))
    assert 'classes' in refused(eval_command.main, '--ckpt', ckpt, '--dataset', f'folder:{root}')
    ids = tmp_path / 'ids'
    for i in range(12):
        place = ids / list(imagenet.classes())[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        (place / name(i + 1)).write_bytes(jpeg(i + 1))
    by_id, out = run(command, setting, tmp_path, '--dataset', ids)
    there = len(set(labels[:12]))
    assert f'note: {there} of the 1000 classes occur; all 1000 compete (--restrict: only' in out
    assert by_id['top1_correct'] == int((ranking[:12, 0] == labels[:12]).sum())
    assert not by_id['restricted']
    few, out = run(command, setting, tmp_path, '--dataset', ids, '--restrict')
    assert f'note: {there} of the 1000 classes occur; only those {there} compete' in out
    first = [next(c for c in row if c in labels[:12]) for row in ranking[:12]]
    assert few['restricted']
    assert few['top1_correct'] == int((first == labels[:12]).sum()) != by_id['top1_correct']
    for c in range(1000):
        (root / f'{c:04d}').mkdir(exist_ok=True)
    result, _ = run(command, setting, tmp_path, '--dataset', f'folder:{root}')
    assert result['num_examples'] == 12
    assert result['top1_correct'] == int((ranking[:12, 0] == labels[:12]).sum())


def test_classes_are_found_by_name(command, refused, setting, tmp_path):
    """A checkpoint of the twelve classes in another order than the folders have."""
    data_dir, ckpt, ranking, labels = setting
    meta = checkpoint.read_json(checkpoint.find(ckpt))
    _, variables = hrnet_jax.load(ckpt)
    kept = list(dict.fromkeys(map(int, labels[:12])))
    kept = [*kept[::2], *kept[1::2]]
    head = variables['params']['head']['classifier']
    head |= {key: np.asarray(value)[..., kept] for key, value in head.items()}
    names = [f'class {c}' for c in kept]
    for kind, given in (('named', names), ('nameless', None)):
        model = create_model('tiny', len(kept))
        described = checkpoint.describe(model) | {
            'transform': meta['transform'], 'published': None, 'source': {'sha256': ''},
            'class_names': given,
        }  # fmt: skip
        checkpoint.save(tmp_path / kind / 'tiny', variables, described)
    root = tmp_path / 'set'
    for i in range(12):
        place = root / f'class {labels[i]}'
        place.mkdir(parents=True, exist_ok=True)
        (place / f'{i}.jpg').write_bytes(jpeg(i + 1))
    right = sum(next(c for c in ranking[i] if c in kept) == labels[i] for i in range(12))
    file = tmp_path / 'names.txt'
    file.write_text('\n'.join(names))
    for kind, flags, said in (
        ('named', (), 'in another order; they are found by name'),
        ('nameless', ('--class-names', file), ''),
    ):
        flags = ('--dataset', root, *flags)
        result, out = run(command, (data_dir, tmp_path / kind), tmp_path, *flags)
        assert result['top1_correct'] == right > 0
        assert said in out
    (root / f'class {kept[0]}').rename(root / 'other')
    line = refused(eval_command.main, '--ckpt', tmp_path / 'named', '--dataset', root)
    assert f'does not have: other; it lacks class {kept[0]}' in line


@pytest.mark.parametrize('names', [('b', 'a'), ('a', 'c', 'b')])
def test_hosts_with_other_class_names(refused, monkeypatch, tmp_path, names):
    for i in range(4):
        place = tmp_path / 'set' / 'ab'[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f'{i}.jpg').write_bytes(jpeg(i + 1))
    (tmp_path / 'names.txt').write_text('\n'.join(names))
    model = create_model('tiny', len(names))
    described = checkpoint.describe(model) | {'transform': {'resize': 32, 'crop': 32}}
    variables = hrnet_jax.init(model, jax.random.key(0), image_size=32)
    checkpoint.save(tmp_path / 'tiny', variables, described)

    def gather(row):
        """The second host sends the same, but of other names where it sends three values."""
        return np.stack([row, row + [0, 0, 1] if len(row) == 3 else row])

    monkeypatch.setattr('hrnet_jax.runtime.distributed.alone', lambda: False)
    monkeypatch.setattr('jax.experimental.multihost_utils.process_allgather', gather)
    line = refused(
        eval_command.main, '--ckpt', tmp_path, '--dataset', tmp_path / 'set', '--class-names',
        tmp_path / 'names.txt',
    )  # fmt: skip
    assert line == f'error: the processes differ in class names: here {names!r}\n'


def test_unreadable_images_are_counted(command, refused, setting, tmp_path):
    _, ckpt, ranking, labels = setting
    broken = (0, 10)
    root = tmp_path / 'set'
    for i in range(12):
        place = root / list(imagenet.classes())[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        (place / f'{i}.jpg').write_bytes(jpeg(i + 1)[: 300 if i in broken else None])
    line = refused(eval_command.main, '--ckpt', ckpt, '--dataset', root)
    assert f'{len(broken)} of 12 images cannot be read: ' in line
    assert all(f'/{i}.jpg: ' in line for i in broken)
    result, out = run(command, setting, tmp_path, '--dataset', root, '--max-corrupt', 0.2)
    kept = [i for i in range(12) if i not in broken]
    assert result['top1_correct'] == int((ranking[kept, 0] == labels[kept]).sum())
    assert (result['num_examples'], result['unreadable']) == (len(kept), len(broken))
    assert result['partial']
    assert 'top-1*' in out
    assert f'* {len(broken)} of 12 images cannot be read and are left out' in out


def test_training_looks_for_cut_off_files_first(refused, tmp_path):
    """Of the evaluation split, before a model is made."""
    for i in range(12):
        place = tmp_path / 'set' / ('train', 'val')[i % 2] / ('cat', 'dog')[i % 4 // 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f'{i}.jpg').write_bytes(jpeg(i + 1)[: 300 if i in (3, 5) else None])
    line = refused(
        train_command.main, '--arch', 'tiny', '--recipe', 'official', '--workdir', tmp_path / 'w',
        '--dataset', tmp_path / 'set', '--eval-split', 'val', '--batch-size', 2,
    )  # fmt: skip
    assert '2 of 6 images cannot be read: ' in line
    assert all(f'/{i}.jpg: ' in line for i in (3, 5))


def test_wrong_arguments(refused, setting, tmp_path):
    data_dir, ckpt = setting[:2]
    right = ('--ckpt', ckpt, '--data-dir', data_dir)
    for arguments, part in (
        ((), '--ckpt'),
        (('--ckpt', tmp_path / 'none'), 'does not exist'),
        (('--ckpt', ckpt, '--data-dir', tmp_path), 'download_and_prepare'),
        ((*right, '--arch', 'w18'), 'no checkpoint of w18'),
        ((*right, '--arch', 'w99'), 'w18_small_v1'),
        ((*right, '--dataset', 'imagenet_b'), 'imagenet_b'),
        ((*right, '--dataset', 'nosuchset'), 'tfds has no data set of that name'),
        ((*right, '--split', 'test'), 'validation'),
        ((*right, '--limit', 0), '--limit'),
        ((*right, '--max-corrupt', 2), '--max-corrupt must be from 0 to 1'),
        ((*right, '--batch-size', 0), '--batch-size'),
        ((*right, '--crop', 100), 'multiple of 32'),
        ((*right, '--json', tmp_path / 'none' / 'r.json'), 'its folder does not exist'),
        ((*right, '--json', tmp_path), 'it is a folder or a device'),
        ((*right, '--dtype', 'float16'), 'bfloat16'),
        ((*right, '--process-id', 0), 'belong together'),
        ((*right, '--json', tmp_path), 'cannot write'),
        (
            (*right, '--process-id', 0, '--num-processes', 2, '--coordinator', 'nonsense'),
            'HOST:PORT',
        ),
    ):
        assert part in refused(eval_command.main, *arguments)
