"""Small sets of made pictures, prepared by the real builders of tfds."""

from __future__ import annotations

import json
import pathlib
import zipfile

import detections
import numpy as np
import segments
from imagenet import prepare
from PIL import Image

from hrnet_jax.data import keep_ratio

SIZES = ((64, 96), (72, 80), (64, 96), (48, 128), (65, 97))
OF_COCO = {3: 17, 7: 18, 12: 16}  # cat, dog, bird of `detections`
IDS = [0, 3, 7, 8, 11, 33]  # of Cityscapes, four of them among its 19 classes
STEMS = [f'ulm_00000{i}_000019' for i in range(len(SIZES))]


def cityscapes(where: pathlib.Path) -> str:
    """The archives in `where`/archives, the set in the folder that is returned; its labels of
    training and validation are the same."""
    import tensorflow_datasets as tfds

    for kind, ending in (('leftImg8bit', 'leftImg8bit'), ('gtFine', 'gtFine_labelIds')):
        (where / 'archives').mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(where / f'archives/{kind}_trainvaltest.zip', 'w') as archive:
            for split in ('train', 'val', 'test'):
                for i, (image, label) in enumerate(pairs(IDS)):
                    segments.write(where / 'a.png', image if kind == 'leftImg8bit' else label)
                    archive.write(where / 'a.png', f'{kind}/{split}/ulm/{STEMS[i]}_{ending}.png')
    builder = tfds.builder(
        'cityscapes/semantic_segmentation', data_dir=where / 'data', file_format='tfrecord'
    )
    prepare(builder, where / 'archives', num_shards=2)
    return str(where / 'data')


def scene_parse150(where: pathlib.Path, colours: bool) -> str:
    """In colours the label maps are as those that tfds downloads: class, object, nothing."""
    import tensorflow_datasets as tfds

    for split in ('training', 'validation'):
        for i, (image, label) in enumerate(pairs([0, 1, 2, 100])):
            name = f'{split}/ADE_{i}'
            (where / f'images/{split}').mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(where / f'images/{name}.jpg')
            stored = np.stack([label, label // 2, 0 * label], -1) if colours else label
            segments.write(where / f'annotations_instance/{name}.png', stored)
    builder = tfds.builder('scene_parse150', data_dir=where / 'data', file_format='tfrecord')
    builder._make_download_manager = lambda **_: Downloaded(where)
    prepare(builder, num_shards=2)
    return str(where / 'data')


def coco(where: pathlib.Path) -> str:
    """The images and boxes of `detections`, the same in all splits."""
    import tensorflow_datasets as tfds

    for split in ('train2017', 'val2017', 'test2017'):
        held = detections.content()
        held['categories'] = [{'id': i, 'name': name} for i, name in keep_ratio.coco().items()]
        for row in held['annotations']:
            row['category_id'] = OF_COCO[row['category_id']]
        for image in held['images']:
            image['file_name'] = image['file_name'].replace('.png', '.jpg')
        kind = 'image_info' if split == 'test2017' else 'instances'
        file = where / f'annotations/{kind}_{split}.json'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(held))
        (where / split).mkdir()
        for i, (row, size) in enumerate(zip(held['images'], detections.SIZES, strict=True)):
            picture = Image.fromarray(segments.picture(i, *size))
            picture.save(where / split / row['file_name'])
    builder = tfds.builder('coco/2017', data_dir=where / 'data', file_format='tfrecord')
    builder._make_download_manager = lambda **_: Downloaded(where, 'cocodataset.org')
    prepare(builder, num_shards=2)
    return str(where / 'data')


class Downloaded:
    """In the place of what would ask the network."""

    downloaded_size, register_checksums = 0, False

    def __init__(self, where: pathlib.Path, place: str = '/ChallengeData2017/') -> None:
        self.where, self.place = str(where), place

    def download_and_extract(self, urls):
        assert all(self.place in url for url in urls.values())
        return dict.fromkeys(urls, self.where)


def pairs(values: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and label maps of these values."""
    return [
        (segments.picture(i, *size), segments.label_map(i, *size, values))
        for i, size in enumerate(SIZES)
    ]
