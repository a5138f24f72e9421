"""Counting, and eval.py on a small ImageNet against PyTorch on PIL's pixels."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
import torch
from imagenet import jpeg, make_imagenet, name, prepare
from PIL import Image

import eval as eval_command
import hrnet_jax
import train as train_command
from convert.reference import reference_of
from hrnet_jax import checkpoint
from hrnet_jax.data import imagenet
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.inference.evaluation import AHEAD, data_mesh, evaluate
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.tasks.classification import Accuracy, count_correct

ROOT = Path(__file__).parents[1]
COUNT = 45
TRANSFORM = Transform(resize=72, crop=64)


def pil_pixels(encoded: bytes, resize: int = 72, crop: int = 64) -> np.ndarray:
    """Resize, CenterCrop, ToTensor and Normalize as torchvision does them on a PIL image: CHW."""
    with Image.open(io.BytesIO(encoded)) as file:
        image = file.convert('RGB')
    width, height = image.size
    size = (
        (resize, int(resize * height / width))
        if width <= height
        else (int(resize * width / height), resize)
    )
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (int(round((n - crop) / 2.0)) for n in size)
    x = np.asarray(image.crop((left, top, left + crop, top + crop)), np.float32) / np.float32(255)
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((x - mean) / std).transpose(2, 0, 1)


def official_labels() -> list[int]:
    folder = tfds.core.tfds_path('datasets/imagenet2012')
    classes = (folder / 'labels.txt').read_text().split()
    return [
        classes.index(c) for c in (folder / 'validation_labels.txt').read_text().split()[:COUNT]
    ]


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
    """data_dir, checkpoint folder, and for each image PyTorch's ranking of the classes."""
    where = tmp_path_factory.mktemp('setting')
    data_dir = make_imagenet(where, COUNT)
    model = create_model('tiny')
    variables = jax.tree.map(np.array, init(model, jax.random.key(0)))
    reference = reference_of(variables, model.arch, 1000)
    pixels = torch.from_numpy(np.stack([pil_pixels(jpeg(i)) for i in range(1, COUNT + 1)]))
    labels = np.array(official_labels())
    with torch.no_grad():
        pooled = reference.stages(pixels)['pooled'][0].numpy().astype(np.float64)
    # A classifier that knows two images in three, has half of the others second, misses the rest.
    every = np.arange(COUNT)
    targets = np.eye(1000)[np.where(every % 3 == 2, (labels + 7) % 1000, labels)]
    targets[every % 6 == 2, labels[every % 6 == 2]] = 0.6
    centred = pooled - pooled.mean(0)
    gram = centred @ centred.T + 1e-3 * np.trace(centred @ centred.T) / COUNT * np.eye(COUNT)
    kernel = centred.T @ np.linalg.solve(gram, targets)
    classifier = variables['params']['head']['classifier']
    classifier['kernel'] = kernel.astype(np.float32)
    classifier['bias'] = (-pooled.mean(0) @ kernel).astype(np.float32)
    with torch.no_grad():
        logits = reference_of(variables, model.arch, 1000)(pixels)
    meta = checkpoint.describe(model) | {
        'transform': TRANSFORM.to_json(),
        'published': None,
        'source': {'sha256': ''},
    }
    checkpoint.save(where / 'converted' / 'tiny', variables, meta)
    return data_dir, where / 'converted', logits.topk(1000).indices.numpy(), labels


def counts(setting) -> tuple[int, int]:
    _, _, ranking, labels = setting
    return int((ranking[:, 0] == labels).sum()), int((ranking[:, :5] == labels[:, None]).sum())


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


def test_where_the_seconds_go(setting):
    """benchmarks/startup.py: both runs, and what it watches in them."""
    script = ROOT / 'benchmarks' / 'startup.py'
    options = ('--arch', 'tiny', '--ckpt', setting[1], '--data-dir', setting[0])
    command = [sys.executable, *map(str, (script, *options))]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    lines = table.splitlines()[1:]
    rows = {line[:14].strip(): list(map(float, line[14:34].split())) for line in lines}
    for seconds in zip(*rows.values(), strict=True):
        *parts, total = seconds
        assert total == pytest.approx(sum(parts), abs=0.1 * len(parts))
    for row in ('imports', 'checkpoint', 'trace', 'compile', 'first batch'):
        assert rows[row][0] > 0, row


@pytest.mark.parametrize(
    'options', [('--batch-size', 64), ('--batch-size', 2), ('--split', 'validation[:7]')]
)
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
    _, converted, _, labels = setting
    model, variables = hrnet_jax.load(converted)
    pixels = np.stack([pil_pixels(jpeg(i)).transpose(1, 2, 0) for i in range(1, COUNT + 1)])
    apply = jax.jit(model.apply)
    logits = sum(np.asarray(apply(variables, x)) for x in (pixels, pixels[:, :, ::-1]))
    first = int((logits.argmax(-1) == labels).sum())
    result, out = run(command, setting, tmp_path, '--flip')
    assert result['top1_correct'] == first != counts(setting)[0]
    assert result['protocol'] == 'resize 72 crop 64 bilinear flip'
    assert 'resize 72 crop 64 bilinear flip' in out


def test_columns_that_are_known(command, setting, tmp_path):
    _, out = run(command, setting, tmp_path, '--limit', 5)
    assert 'published' not in out.splitlines()[-4]
    assert out.splitlines()[-4].split() == ['measured', 'correct']


def test_bfloat16_is_close(command, setting, tmp_path):
    result, _ = run(command, setting, tmp_path, '--dtype', 'bfloat16')
    assert abs(result['top1_correct'] - counts(setting)[0]) <= 4
    assert result['dtype'] == 'bfloat16'


def two_processes(ckpt, data_dir, result, *more, cwd=None):
    """eval.py in two processes of two devices each: exit codes and outputs."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{free.getsockname()[1]}'
    code = (
        'import sys, jax; jax.config.update("jax_num_cpu_devices", 2); sys.argv[0] = "eval.py"; '
        'import eval; from hrnet_jax.runtime import cli; cli.run(eval.main)'
    )
    options = ['--arch', 'tiny', '--ckpt', ckpt, '--data-dir', data_dir, '--batch-size', '16']
    options += ['--json', result, '--coordinator', address, '--num-processes', '2', *more]
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', code, *map(str, options), '--process-id', str(i)],
            cwd=cwd / str(i) if cwd else ROOT,
            # Such programs are bound to their run.
            env=os.environ | {'PYTHONPATH': str(ROOT), 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def test_two_processes_give_the_same_integers(setting, tmp_path):
    codes, outputs = two_processes(setting[1], setting[0], tmp_path / 'r.json')
    assert codes == [0, 0], outputs
    result = json.loads((tmp_path / 'r.json').read_text())
    assert result['num_examples'] == COUNT
    assert (result['top1_correct'], result['top5_correct']) == counts(setting)
    assert 'top-1' in outputs[0][0]
    assert 'top-1' not in outputs[1][0]


def test_both_processes_stop_when_one_fails(setting, tmp_path):
    """A broken image in the second half of the set, which the second process reads."""
    root = tmp_path / 'broken'
    for i in range(12):
        place = root / list(imagenet.classes())[i]
        place.mkdir(parents=True)
        (place / 'a.jpg').write_bytes(jpeg(i + 1) if i != 10 else b'no image')
    codes, outputs = two_processes(setting[1], '.', tmp_path / 'r.json', '--dataset', root)
    assert codes == [2, 2]
    assert 'a.jpg' in outputs[1][1]
    assert 'process 1 failed' in outputs[0][1]
    assert not (tmp_path / 'r.json').exists()


def test_both_processes_stop_when_one_cannot_load(setting, tmp_path):
    """The second process finds a damaged checkpoint."""
    for i in range(2):
        shutil.copytree(setting[1], tmp_path / str(i) / 'converted')
    file = tmp_path / '1' / 'converted' / 'tiny' / 'checkpoint.json'
    file.write_text(file.read_text()[:200])
    codes, outputs = two_processes('converted', setting[0], tmp_path / 'r.json', cwd=tmp_path)
    assert codes == [2, 2], outputs
    assert 'damaged' in outputs[1][1]
    assert 'process 1 failed' in outputs[0][1]


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
    assert f'classes other, which the checkpoint has not and lacks class {kept[0]}' in line


@pytest.mark.parametrize('broken', [(3,), (0, 10)])
def test_unreadable_images_are_counted(command, refused, setting, tmp_path, broken):
    _, ckpt, ranking, labels = setting
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


def test_counting():
    logits = np.random.default_rng(0).permuted(np.tile(np.arange(8.0), (6, 1)), axis=1)
    order = np.argsort(-logits, 1)
    labels = np.array(
        [order[0, 0], order[1, 4], order[2, 5], order[3, 0], order[4, 0], order[5, 7]]
    )
    mask = np.array([True, True, True, True, False, True])
    got = jax.jit(count_correct)(jnp.float32(logits), jnp.int32(labels), mask)
    assert {k: int(v) for k, v in got.items()} == {
        'num_examples': 5,
        'top1_correct': 2,
        'top5_correct': 3,
    }
    few = jax.jit(count_correct)(jnp.float32(logits[:, :3]), jnp.zeros(6, jnp.int32), mask)
    assert int(few['top5_correct']) == 5  # of three classes, one is always among the first five


def test_logits_that_are_not_finite_stop():
    """`top_k` puts NaN first, where it would count as a right answer."""
    model = create_model('tiny', 10)
    variables = init(model, jax.random.key(0))
    variables['params']['head']['classifier']['bias'] = jnp.full(10, jnp.nan)
    batch = {
        'image': np.zeros((4, 32, 32, 3), np.uint8),
        'label': np.zeros(4, np.int32),
        'mask': np.arange(4) < 3,
    }
    with pytest.raises(hrnet_jax.UserError, match='3 of 3 images are not finite'):
        evaluate(model, variables, [batch], TRANSFORM, Accuracy(10))


def test_few_steps_are_under_way():
    model = create_model('tiny', 10)
    finished, under_way = [], []

    class Count:
        def __array__(self, *_, **__):
            finished.append(self)
            return np.array(4, np.int32)

    names = ('num_examples', 'top1_correct', 'top5_correct', 'seen')

    def step(variables, batch):
        return {name: Count() for name in names} | {'not_finite': np.int32(0)}

    def batches():
        for i in range(12):
            under_way.append(i - len(finished) // len(names))
            yield {
                'image': np.zeros((4, 32, 32, 3), np.uint8),
                'label': np.zeros(4, np.int32),
                'mask': np.ones(4, bool),
            }

    variables = init(model, jax.random.key(0))
    result = evaluate(model, variables, batches(), TRANSFORM, Accuracy(10), step=step)
    assert result.seen == 48
    assert max(under_way) == AHEAD


def test_output_that_is_not_taken(setting):
    """By `| head`, or by a full disk."""
    code = 'from hrnet_jax.commands.eval import entry; entry()'
    options = ('--ckpt', setting[1], '--data-dir', setting[0], '--limit', 4)
    command = [sys.executable, '-c', code, *map(str, options)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ''
    assert process.returncode == 1
    code = 'def main():\n  raise BrokenPipeError(32, "socket")\ncli.run(main)'
    code = f'from hrnet_jax.runtime import cli\n{code}'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, **pipes)
    assert 'BrokenPipeError: [Errno 32] socket' in done.stderr  # of something else
    if os.path.exists('/dev/full'):
        with open('/dev/full', 'w') as full:
            done = subprocess.run(command, cwd=ROOT, **pipes | {'stdout': full})
        assert (done.returncode, done.stderr) == (2, 'error: No space left on device\n')


def test_every_device_has_its_share():
    model = create_model('tiny', 10)
    variables = init(model, jax.random.key(0))
    random = np.random.default_rng(0)
    batch = {
        'image': random.integers(0, 256, (8, 32, 32, 3), np.uint8),
        'label': np.arange(8, dtype=np.int32),
        'mask': np.arange(8) < 7,
    }
    assert data_mesh().size == 2
    two = evaluate(model, variables, [batch, batch], TRANSFORM, Accuracy(10))
    one = evaluate(
        model,
        variables,
        [batch, batch],
        TRANSFORM,
        Accuracy(10),
        mesh=jax.make_mesh((1,), ('data',), devices=jax.devices()[:1]),
    )
    assert two == one
    assert two.seen == 14
