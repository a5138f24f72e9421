"""Files with data, and what reads them, for `strangers`."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGES = ('a.png', 'a.jpg', 'grey.jpg', 'cmyk.jpg', 'a.gif', 'a.webp', 'a.bmp', 'a.tif', 'p.png')


def images(folder: Path) -> list[str]:
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


def tf_errors() -> tuple[type[Exception], ...]:
    return (_decoders()[0].errors.OpError,)


def classified(path: Path) -> None:
    tf, *decoders = _decoders()
    data = path.read_bytes()
    decoders[len(data) % 2](tf.constant(data))


def seen(path: Path) -> None:
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


def labels(folder: Path) -> list[str]:
    import segments

    ids = segments.label_map(0, 20, 30, [0, 1, 2, 255])
    for name, palette in (('grey.png', False), ('palette.png', True)):
        segments.write(folder / name, ids, palette)
    Image.fromarray(ids.astype(np.int32)).save(folder / 'wide.png')
    Image.fromarray(ids > 1).save(folder / 'bits.png')
    Image.fromarray(ids).save(folder / 'grey.tif')
    return ['grey.png', 'palette.png', 'wide.png', 'bits.png', 'grey.tif']


def label_map(path: Path) -> None:
    from hrnet_jax.data import opencv

    opencv.image_hw(str(path), turn=False)
    opencv.has_colours(str(path))
    opencv.read_ids(str(path))


def people(folder: Path) -> list[str]:
    import poses

    poses.make_images(folder / 'images')
    points = [[np.full((17, 3), 9.0)] * len(rows) for rows in poses.BOXES]
    content = poses.annotations(points)
    (folder / 'coco.json').write_text(json.dumps(content))
    return ['coco.json']


def annotated(path: Path) -> None:
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


def objects(folder: Path) -> list[str]:
    import detections
    import segments

    for i, (identity, size) in enumerate(zip(detections.IDS, detections.SIZES, strict=True)):
        segments.write(folder / f'images/{identity:012d}.png', segments.picture(i, *size))
    (folder / 'coco.json').write_text(json.dumps(detections.content()))
    return ['coco.json']


def marked(path: Path) -> None:
    """And evaluated, with a box of each class in each image."""
    from hrnet_jax.data.coco_boxes import open_boxes
    from hrnet_jax.data.keep_ratio import KeepRatio
    from hrnet_jax.tasks import get_task
    from hrnet_jax.tasks.box_metrics import precision

    source, protocol = open_boxes(f'folder:{path}', None, None), KeepRatio(scale=(128, 96))
    source.image_hw(range(source.num_examples))
    for number in range(min(source.num_examples, 3)):
        protocol.arrays(source.read(number)['image'])
    truth = get_task('detection').context(source, None)['truth']
    found = [
        {'image_id': i, 'category_id': category, 'bbox': [1.0, 2.0, 30.0, 40.0], 'score': 0.5}
        for i in truth.image_ids[:4]
        for category in truth.category_ids[:4]
    ]
    precision(truth.content, found)


def detector(folder: Path) -> list[str]:
    rows = [
        {'image_id': i, 'category_id': 1, 'bbox': [1, 2.5, 30, 40], 'score': 0.9} for i in (1, 1, 2)
    ]
    (folder / 'rows.json').write_text(json.dumps(rows))
    (folder / 'names.json').write_text(
        json.dumps({'1.jpg': [[1, 2, 3, 4]], '2.jpg': [[1, 2, 3, 4, 0.5]]})
    )
    return ['rows.json', 'names.json']


def boxes(path: Path) -> None:
    from hrnet_jax.data import boxes, coco_form

    images = {1: {'id': 1}, 2: {'id': 2}}
    boxes.boxes_of_files(str(path), ['1.jpg', 'x/2.jpg'])
    if path.name == 'rows.json':
        coco_form.detected(str(path), images)


def mpii(folder: Path) -> list[str]:
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


def measured(path: Path) -> None:
    from hrnet_jax.data.measured import read_mpii

    read_mpii(str(path.parents[1]), 'val')


def lists(folder: Path) -> list[str]:
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


def listed(path: Path) -> None:
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


def records(folder: Path) -> list[str]:
    import tensorflow as tf

    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b'abc']))
    example = tf.train.Example(features=tf.train.Features(feature={'image': feature, 'x': feature}))
    with tf.io.TFRecordWriter(str(folder / 'a.tfrecord')) as writer:
        for _ in range(2):
            writer.write(example.SerializeToString())
    return ['a.tfrecord']


def recorded(path: Path) -> None:
    from hrnet_jax.data.records import examples

    examples(str(path))
