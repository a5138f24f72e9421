"""All that reads files of strangers: whole files, how they are changed, and what reads them."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import mutants
import numpy as np
from PIL import Image

JSON = 'checkpoint.json'
IMAGES = ('a.png', 'a.jpg', 'grey.jpg', 'cmyk.jpg', 'a.gif', 'a.webp', 'a.bmp', 'a.tif', 'p.png')


@dataclasses.dataclass(frozen=True)
class Stranger:
    """A kind of file.

    Attributes:
        make: writes whole files into a folder and returns their names.
        mutate: (bytes, random numbers) -> bytes.
        read: of the path of a changed file; what it returns does not matter.
        count: inputs of `make test-faults`.
        refusals: the errors beside UserError that all who call it turn into one.
    """

    make: Callable[[Path], list[str]]
    mutate: Callable[..., bytes]
    read: Callable[[Path], Any]
    count: int
    refusals: Callable[[], tuple[type[Exception], ...]] = tuple


def _torch(kind: str, folder: Path) -> list[str]:
    import collections

    import torch
    from checkpoints import save

    state = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2).half())
    trees = {
        'plain': state,
        'held': {'state_dict': state, 'meta': {'CLASSES': ('x', 'y')}, 'epoch': 3},
    }
    if kind == 'safetensors':
        trees = {'plain': state}
    for name, tree in trees.items():
        save(tree, folder / f'{name}.pth', kind)
    return [f'{name}.pth' for name in trees]


def _tensors(path: Path) -> None:
    from convert.readers import read

    for tensor in read(path).tensors.values():
        tensor.numpy()


@functools.cache
def _state() -> dict[str, np.ndarray]:
    """A PyTorch state dict of `tiny`."""
    import hrnet_jax
    from convert import to_torch

    return to_torch(
        hrnet_jax.init(hrnet_jax.create_model('tiny', 4), jax.random.key(0), 32), 'tiny'
    )


def _network(folder: Path) -> list[str]:
    """Names and shapes of a whole network, without its numbers."""
    state = _state()
    (folder / 'tiny.json').write_text(json.dumps({k: list(v.shape) for k, v in state.items()}))
    return ['tiny.json']


def _convert(path: Path) -> None:
    from convert import from_torch
    from hrnet_jax.errors import UserError

    shapes = mutants.loads(path.read_bytes())
    if not isinstance(shapes, dict):
        raise UserError('of another form')
    try:
        state = {k: np.zeros(v, np.float32) for k, v in shapes.items()}
    except (TypeError, ValueError, MemoryError):
        raise UserError('no shapes') from None
    from_torch(state)


def _checkpoint(folder: Path, tasks=('classification', 'segmentation', 'pose')) -> list[str]:
    import hrnet_jax
    from hrnet_jax.checkpoints import format as checkpoint
    from hrnet_jax.models import variable_shapes
    from hrnet_jax.tasks import get_task

    for task in tasks:
        model = hrnet_jax.create_model('tiny', None if task == 'pose' else 4, task=task)
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), variable_shapes(model))
        meta = checkpoint.describe(model) | {
            'transform': get_task(task).protocol().to_json(),
            'class_names': None if task == 'pose' else ['ant', 'bee', 'cow', 'dog'],
            'published': None,
            'source': {'file': 'a.pth', 'origin': 'a.pth', 'sha256': '0', 'layout': 'timm'},
            'arrays': checkpoint.entries(zeros),
        }
        (folder / task).mkdir()
        (folder / task / JSON).write_text(json.dumps(checkpoint.with_digest(meta)))
    return [f'{task}/{JSON}' for task in tasks]


def _arrays(folder: Path) -> list[str]:
    """The files of a checkpoint's arrays, which Orbax and TensorStore read."""
    import hrnet_jax
    from hrnet_jax import checkpoint

    model = hrnet_jax.create_model('tiny', 4)
    variables = hrnet_jax.init(model, jax.random.key(0), 32)
    checkpoint.save(folder / 'tiny', variables, checkpoint.describe(model))
    found = [x for x in (folder / 'tiny/arrays').rglob('*') if x.is_file() and x.stat().st_size]
    return sorted(str(file.relative_to(folder)) for file in found)


def _loaded(path: Path) -> None:
    import hrnet_jax

    hrnet_jax.load(next(x for x in path.parents if x.name == 'tiny'))


def signed(content: bytes) -> bytes:
    """With the digest that is right for it, which a stranger can compute as well."""
    from hrnet_jax.checkpoints.description import _digest

    try:
        meta = json.loads(content)
        del meta['digest']
        return json.dumps({**meta, 'digest': _digest(meta)}).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return content


def _signed_json(data: bytes, rng: Any) -> bytes:
    """The arrays are many, so that changes of the rest are made more often."""
    meta = json.loads(data)
    rest = {k: v for k, v in meta.items() if k not in ('arrays', 'ema', 'rest')}
    whole = mutants.of_json(data, rng) if rng.random() < 0.2 else None
    if whole is None:
        changed = mutants.loads(mutants.of_json(json.dumps(rest).encode(), rng))
        whole = json.dumps(meta | changed if isinstance(changed, dict) else changed).encode()
    return signed(whole) if rng.random() < 0.95 else whole


def _described(path: Path) -> None:
    from hrnet_jax.checkpoints import beside
    from hrnet_jax.checkpoints import format as checkpoint
    from hrnet_jax.models import variable_shapes
    from hrnet_jax.tasks import task_of
    from hrnet_jax.weights import loading

    folder = path.parents[1] if path.name == 'metadata' else path.parent
    meta = loading.described(folder)[1]
    model = loading._told(checkpoint.model_of(meta), meta)
    checkpoint._check_shapes(path.parent, meta['arrays'], variable_shapes(model))
    task_of(meta).protocol.from_json(meta.get('transform'))
    beside.lines(meta, None)


def _run(folder: Path) -> list[str]:
    from hrnet_jax.checkpoints import workdir
    from hrnet_jax.tasks.classification_recipes import Digits
    from hrnet_jax.training import saving

    [name] = _checkpoint(folder, ('classification',))
    meta = json.loads((folder / name).read_text())
    meta |= {'training': {'step': 6, 'scores': {'6': 50.0}}, 'ema': None, 'rest': meta['arrays']}
    file = folder / workdir.CHECKPOINTS / '6' / workdir.META
    file.parent.mkdir(parents=True)
    file.write_bytes(signed(json.dumps(meta).encode()))
    saving.write_config(folder, {'arch': 'tiny', 'recipe': Digits().to_json()})
    return [str(file.relative_to(folder)), workdir.CONFIG]


def _run_json(data: bytes, rng: Any) -> bytes:
    return (_signed_json if b'"arrays"' in data else mutants.of_json)(data, rng)


def _read_run(path: Path) -> None:
    from hrnet_jax.checkpoints import workdir
    from hrnet_jax.training import saving
    from hrnet_jax.weights import loading

    run = path.parent if path.name == workdir.CONFIG else path.parents[3]
    workdir.recipe(run)
    workdir.evaluations(run)
    saving.read_config(run)
    saving.prepare(run, {'arch': 'tiny', 'recipe': {'seed': 0}}, force=True)
    saving.require_classes(run, ['ant', 'bee', 'cow', 'dog'])
    if path.name != workdir.CONFIG:
        _described(loading.find(run) / workdir.META)


@functools.cache
def _small() -> Any:
    """A file of `tiny` that was converted."""
    from convert.conversion import convert

    return convert(_state())


def _beside(folder: Path) -> list[str]:
    [name] = _checkpoint(folder, ('classification',))
    meta = json.loads((folder / name).read_text())
    del meta['arrays'], meta['digest'], meta['version']
    (folder / 'a.pth.json').write_text(json.dumps(meta | {'sha256': '0', 'layout': 'timm'}))
    config = {
        'architecture': 'hrnet_w18_small', 'num_classes': 4, 'num_features': 2048,
        'label_names': ['a', 'b', 'c', 'd'],
        'pretrained_cfg': {
            'input_size': [3, 224, 224], 'interpolation': 'bicubic', 'crop_pct': 0.875,
            'crop_mode': 'center', 'mean': [0.5, 0.5, 0.5], 'std': [0.2] * 3, 'num_classes': 4,
        },
    }  # fmt: skip
    (folder / 'config.json').write_text(json.dumps(config))
    return ['a.pth.json', 'config.json']


def _told(path: Path) -> None:
    from unittest import mock

    from convert import folders, readers, timm

    file = path.with_name('other.pth' if path.name == timm.CONFIG else 'a.pth')
    source = readers.Source(file, 'a.pth', '0', {}, '', ())
    with mock.patch.dict(timm.MODELS, hrnet_w18_small=('tiny', False)):
        told, notes = folders._told(source, _small(), True)
    folders.describe(folders.File(source, _small(), None, told, tuple(notes)))


def _images(folder: Path) -> list[str]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize((30, 41))
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in IMAGES:
        mode = {'grey.jpg': 'L', 'cmyk.jpg': 'CMYK', 'a.gif': 'P', 'p.png': 'P'}.get(name, 'RGB')
        image.convert(mode).save(folder / name, exif=exif)
    return list(IMAGES)


@functools.cache
def _decoders() -> Any:
    import tensorflow as tf

    from hrnet_jax.data.augment import random_resized_crop
    from hrnet_jax.data.pixels import evaluation_image
    from hrnet_jax.data.preprocess import Transform

    spec = [tf.TensorSpec((), tf.string)]
    size = {'size': 32, 'scale': (0.08, 1.0), 'ratio': (0.75, 1.333)}
    evaluated = tf.function(lambda x: evaluation_image(x, Transform(40, 32)), spec, autograph=False)
    trained = tf.function(
        lambda x: random_resized_crop(x, tf.constant([1, 2], tf.int32), **size),
        spec,
        autograph=False,
    )
    return tf, evaluated, trained


def _tf_errors() -> tuple[type[Exception], ...]:
    return (_decoders()[0].errors.OpError,)


def _classified(path: Path) -> None:
    tf, *decoders = _decoders()
    data = path.read_bytes()
    decoders[len(data) % 2](tf.constant(data))


def _seen(path: Path) -> None:
    """By predict.py, and by OpenCV as an image of segmentation and pose."""
    from hrnet_jax.data import opencv
    from hrnet_jax.data.preprocess import Transform, open_image, resize_crop
    from hrnet_jax.errors import UserError

    refused = []
    for read in (
        lambda: resize_crop(open_image(str(path)), Transform(40, 32)),
        lambda: opencv.read_rgb(str(path)),
        lambda: opencv.image_hw(str(path)),
    ):
        try:
            read()
        except UserError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _labels(folder: Path) -> list[str]:
    import segments

    ids = segments.label_map(0, 20, 30, [0, 1, 2, 255])
    for name, palette in (('grey.png', False), ('palette.png', True)):
        segments.write(folder / name, ids, palette)
    Image.fromarray(ids.astype(np.int32)).save(folder / 'wide.png')
    Image.fromarray(ids > 1).save(folder / 'bits.png')
    Image.fromarray(ids).save(folder / 'grey.tif')
    return ['grey.png', 'palette.png', 'wide.png', 'bits.png', 'grey.tif']


def _label_map(path: Path) -> None:
    from hrnet_jax.data import opencv

    opencv.image_hw(str(path), turn=False)
    opencv.has_colours(str(path))
    opencv.read_ids(str(path))


def _people(folder: Path) -> list[str]:
    import poses

    poses.make_images(folder / 'images')
    points = [[np.full((17, 3), 9.0)] * len(rows) for rows in poses.BOXES]
    content = poses.annotations(points)
    (folder / 'coco.json').write_text(json.dumps(content))
    return ['coco.json']


def _annotated(path: Path) -> None:
    """And evaluated, with people where the annotations have them."""
    from hrnet_jax.data.people import open_people
    from hrnet_jax.data.topdown import TopDown
    from hrnet_jax.tasks import get_task

    source = open_people(f'folder:{path}', None, None)
    protocol = TopDown(input_size=(64, 32))
    for number in range(min(source.num_examples, 3)):
        example = source.read(number)
        protocol.crop(example['image'], example['box'][:4])
    get_task('pose').context(source, None)
    from hrnet_jax.tasks.keypoint_metrics import precision

    if len(source.truth.sigmas) == 17:
        people = [
            {
                'image_id': i,
                'category_id': source.truth.content['categories'][0]['id'],
                'keypoints': [9.0] * 51,
                'score': 0.5,
            }
            for i in dict.fromkeys(source.truth.image_ids)
        ]
        precision(source.truth.content, people, source.truth.sigmas)


def _detector(folder: Path) -> list[str]:
    rows = [
        {'image_id': i, 'category_id': 1, 'bbox': [1, 2.5, 30, 40], 'score': 0.9} for i in (1, 1, 2)
    ]
    (folder / 'rows.json').write_text(json.dumps(rows))
    (folder / 'names.json').write_text(
        json.dumps({'1.jpg': [[1, 2, 3, 4]], '2.jpg': [[1, 2, 3, 4, 0.5]]})
    )
    return ['rows.json', 'names.json']


def _boxes(path: Path) -> None:
    from hrnet_jax.data import boxes, coco_form

    images = {1: {'id': 1}, 2: {'id': 2}}
    boxes.boxes_of_files(str(path), ['1.jpg', 'x/2.jpg'])
    if path.name == 'rows.json':
        coco_form.detected(str(path), images)


def _mpii(folder: Path) -> list[str]:
    from scipy.io import savemat

    (folder / 'annotations').mkdir()
    person = {'image': 'a.jpg', 'joints': [[1, 2]] * 16, 'joints_vis': [1] * 16}
    people = [person | {'center': [30, 40], 'scale': 1.5}] * 2
    (folder / 'annotations/mpii_val.json').write_text(json.dumps(people))
    for name, packed in (('mpii_gt_val.mat', True), ('packed.mat', False)):
        savemat(
            folder / 'annotations' / name,
            {'headboxes_src': np.ones((2, 2, 2))},
            do_compression=packed,
        )
    return ['annotations/mpii_val.json', 'annotations/mpii_gt_val.mat']


def _json_or_bytes(data: bytes, rng: Any) -> bytes:
    return (mutants.of_json if data[:1] in (b'[', b'{') else mutants.of_bytes)(data, rng)


def _measured(path: Path) -> None:
    from hrnet_jax.data.measured import read_mpii

    read_mpii(str(path.parents[1]), 'val')


def _lists(folder: Path) -> list[str]:
    (folder / 'val').mkdir()
    for place in ('a.jpg', 'b.jpg', 'c.jpg'):
        (folder / place).write_bytes(b'')
    (folder / 'val' / 'images').mkdir()
    for i in range(3):
        (folder / 'val' / 'images' / f'{i}.jpg').write_bytes(b'')
    (folder / 'labels.csv').write_text('file,labels\na.jpg,x y\nb.jpg,\nc.jpg,z\n')
    (folder / 'columns.csv').write_text('file,x,y,z\na.jpg,1,0,1\nb.jpg,0,0,0\nc.jpg,0,1,0\n')
    (folder / 'classes.txt').write_text('x\ny\nz\n')
    (folder / 'val' / 'val_annotations.txt').write_text(
        ''.join(f'{i}.jpg\tn0{i}\t0\t0\t9\t9\n' for i in range(3))
    )
    (folder / 'val.txt').write_text('a\nb\nc\n')
    return ['labels.csv', 'columns.csv', 'classes.txt', 'val/val_annotations.txt', 'val.txt']


def _listed(path: Path) -> None:
    from convert.__main__ import _class_names
    from hrnet_jax.data import classes, folder, segmentation_folders
    from hrnet_jax.tasks.multilabel_data import open_multilabel

    if path.suffix == '.csv':
        open_multilabel(str(path), None, None)
    elif path.name == 'classes.txt':
        _class_names(str(path))
        segmentation_folders.class_names(str(path.parent))
        open_multilabel(str(path.with_name('columns.csv')), None, None)
        classes.read_names(str(path))
    elif path.name == 'val.txt':
        segmentation_folders._listed(str(path.parent), '{split}.txt', 'val')
    else:
        folder.open_folder(str(path.parent), None)


def _records(folder: Path) -> list[str]:
    import tensorflow as tf

    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b'abc']))
    example = tf.train.Example(features=tf.train.Features(feature={'image': feature, 'x': feature}))
    with tf.io.TFRecordWriter(str(folder / 'a.tfrecord')) as writer:
        for _ in range(2):
            writer.write(example.SerializeToString())
    return ['a.tfrecord']


def _recorded(path: Path) -> None:
    from hrnet_jax.data.records import examples

    examples(str(path))


STRANGERS = {
    'pth': Stranger(functools.partial(_torch, 'zip'), mutants.of_zip, _tensors, 15_000),
    'legacy': Stranger(functools.partial(_torch, 'legacy'), mutants.of_legacy, _tensors, 15_000),
    'safetensors': Stranger(
        functools.partial(_torch, 'safetensors'), mutants.of_safetensors, _tensors, 15_000
    ),
    'network': Stranger(_network, mutants.of_json, _convert, 1_000),
    'checkpoint': Stranger(_checkpoint, _signed_json, _described, 5_000),
    'arrays': Stranger(_arrays, _json_or_bytes, _loaded, 500),
    'run': Stranger(_run, _run_json, _read_run, 5_000),
    'beside': Stranger(_beside, mutants.of_json, _told, 8_000),
    'images of a classifier': Stranger(_images, mutants.of_png, _classified, 15_000, _tf_errors),
    'images': Stranger(_images, mutants.of_png, _seen, 15_000),
    'label maps': Stranger(_labels, mutants.of_png, _label_map, 10_000),
    'people': Stranger(_people, mutants.of_json, _annotated, 5_000),
    'boxes': Stranger(_detector, mutants.of_json, _boxes, 10_000),
    'mpii': Stranger(_mpii, _json_or_bytes, _measured, 5_000),
    'lists': Stranger(_lists, mutants.of_text, _listed, 10_000),
    'records': Stranger(
        _records, mutants.of_bytes, _recorded, 5_000, lambda: (OSError, ValueError)
    ),
}
