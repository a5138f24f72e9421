"""Made segmentation sets in the folders of the published ones: two images each."""

from __future__ import annotations

import numpy as np
import segments
from PIL import Image

SIZE = (40, 60)
IMAGES = [segments.picture(i, *SIZE) for i in range(3)]
IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)  # of Cityscapes' 19 classes


def ids(seed, values):
    return segments.label_map(seed, *SIZE, values)


def cityscapes(root, form):
    labels = [ids(i, [0, 7, 8, 33, 3]) for i in range(2)]
    table = np.full(256, 255)
    table[list(IDS)] = range(19)
    mapped = [table[label].astype(np.uint8) for label in labels]
    for i, stem in enumerate(('aachen_000000_000019', 'ulm_000001_000019')):
        city = stem.split('_')[0]
        segments.write(root / f'leftImg8bit/val/{city}/{stem}_leftImg8bit.png', IMAGES[i])
        stored = labels[i] if form == 'labelIds' else mapped[i]
        segments.write(root / f'gtFine/val/{city}/{stem}_gtFine_{form}.png', stored)
    return mapped


def from_one(label):
    return np.where((label == 0) | (label == 255), 255, label - 1).astype(np.uint8)


def ade20k(root, _):
    labels = [ids(i, [0, 1, 2, 150]) for i in range(2)]
    base = root / 'ADEChallengeData2016'
    for i, label in enumerate(labels):
        (base / 'images/validation').mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(base / f'images/validation/ADE_val_0000000{i}.jpg')
        segments.write(base / f'annotations/validation/ADE_val_0000000{i}.png', label)
    return [from_one(label) for label in labels]


def voc(root, split):
    """Images in one folder, names in a list, label maps with a palette; some augmented."""
    base = root / 'VOCdevkit/VOC2012'
    labels = [ids(i, [0, 1, 20, 255]) for i in range(2)]
    for i, label in enumerate(labels):
        (base / 'JPEGImages').mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(base / f'JPEGImages/2007_00000{i}.jpg')
        kind = 'SegmentationClassAug' if i == 1 and split == 'trainaug' else 'SegmentationClass'
        segments.write(base / kind / f'2007_00000{i}.png', label, palette=True)
    lists = {'val': {'val': '01'}, 'trainaug': {'train': '0', 'aug': '1'}}[split]
    for name, numbers in lists.items():
        path = base / f'ImageSets/Segmentation/{name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(''.join(f'2007_00000{number}\n' for number in numbers))
    return labels


def context(root, name):
    labels = [ids(i, [0, 1, 59]) for i in range(2)]
    base = root / 'VOC2010'
    for i, label in enumerate(labels):
        (base / 'JPEGImages').mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(base / f'JPEGImages/{i}.jpg')
        segments.write(base / f'SegmentationClassContext/{i}.png', label)
    (base / 'ImageSets/SegmentationContext').mkdir(parents=True)
    (base / 'ImageSets/SegmentationContext/val.txt').write_text('0\n1\n')
    return labels if name == 'pascal_context' else [from_one(label) for label in labels]


def pairs(root, _):
    labels = [ids(i, [0, 1, 7]) for i in range(2)]
    for i, label in enumerate(labels):
        segments.write(root / f'img_dir/val/{i}.png', IMAGES[i])
        segments.write(root / f'ann_dir/val/{i}.png', label)
    return [from_one(label) for label in labels]


def images(root):
    """The files of the images, in the order of the set."""
    every = [*root.glob('**/*_leftImg8bit.png'), *root.glob('**/*.jpg')]
    return sorted(every)
