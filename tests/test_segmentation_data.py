"""Segmentation sets in folders: each layout, and what is said of mistakes."""

from __future__ import annotations

import pickle

import layouts
import numpy as np
import pytest
import segments
from layouts import IMAGES, SIZE, ade20k, cityscapes, context, pairs, voc
from PIL import Image

from hrnet_jax.data.folder import open_folder
from hrnet_jax.data.opencv import image_hw, read_rgb
from hrnet_jax.data.segmentation import open_segmentation
from hrnet_jax.errors import UserError


@pytest.mark.parametrize(
    ('name', 'make', 'form', 'split', 'classes'),
    [
        ('cityscapes', cityscapes, 'labelIds', None, 19),
        ('cityscapes', cityscapes, 'labelTrainIds', 'val', 19),
        ('ade20k', ade20k, None, None, 150),
        ('voc2012', voc, 'val', None, 21),
        ('voc2012', voc, 'trainaug', 'trainaug', 21),
        ('pascal_context', context, 'pascal_context', None, 60),
        ('pascal_context_59', context, 'pascal_context_59', None, 59),
        ('loveda', pairs, None, None, 7),
    ],
)
def test_published_layouts(tmp_path, name, make, form, split, classes):
    expected = make(tmp_path, form)
    source = open_segmentation(name, split, str(tmp_path))
    assert (source.num_classes, len(source.class_names)) == (classes, classes)
    assert source.num_examples == 2
    assert source.split == (split or 'val')
    read = pickle.loads(pickle.dumps(source.read))  # other processes take it
    for i, label in enumerate(expected):
        example = read(i)
        np.testing.assert_array_equal(example['label'], label)
        assert example['image'].shape == (*SIZE, 3)
    assert source.image_hw([0, 1]).tolist() == [list(SIZE)] * 2


@pytest.mark.parametrize('around', [True, False])
@pytest.mark.parametrize('names', [True, False])
def test_own_folder(tmp_path, around, names):
    made = segments.make_folder(tmp_path, names=names)
    if around:  # val/images in the place of images/val
        for kind in ('images', 'labels'):
            (tmp_path / 'val').mkdir(exist_ok=True)
            (tmp_path / kind / 'val').rename(tmp_path / 'val' / kind)
            (tmp_path / kind).rmdir()
    source = open_segmentation(f'folder:{tmp_path}', 'val', None)
    assert source.class_names == (segments.CLASSES if names else None)
    assert source.num_classes == 5
    for i, (image, label) in enumerate(made):
        example = source.read(i)
        np.testing.assert_array_equal(example['image'], image)
        np.testing.assert_array_equal(example['label'], label)


def test_sizes_are_in_the_header(tmp_path):
    """No pixel is decoded for them."""
    segments.write(tmp_path / 'a.png', IMAGES[0])
    (tmp_path / 'a.png').write_bytes((tmp_path / 'a.png').read_bytes()[:60])
    assert image_hw(str(tmp_path / 'a.png')) == SIZE


@pytest.mark.parametrize('ending', ['jpg', 'png', 'tif'])
def test_a_photograph_that_is_turned(tmp_path, ending):
    """Label maps belong to what a person sees, as with OpenCV."""
    image = Image.fromarray(segments.picture(0, 40, 60))
    exif = Image.Exif()
    exif[274] = 6
    (tmp_path / 'images').mkdir()
    image.save(tmp_path / f'images/a.{ending}', exif=exif)
    segments.write(tmp_path / 'labels/a.png', segments.label_map(0, 60, 40, [0, 1]))
    source = open_segmentation(str(tmp_path), None, None)
    assert source.image_hw([0]).tolist() == [[60, 40]]
    assert source.read(0)['image'].shape == (60, 40, 3)
    assert read_rgb(str(tmp_path / f'images/a.{ending}')).shape == (60, 40, 3)


def spoiled(root, kind):
    segments.make_folder(root)
    labels = root / 'labels/val'
    if kind == 'missing':
        (labels / 'p1.png').unlink()
    elif kind == 'size':
        segments.write(labels / 'p2.png', segments.label_map(0, 96, 127, [0, 1]))
    elif kind == 'colours':
        segments.write(labels / 'p0.png', IMAGES[0])
    elif kind == 'value':
        segments.write(labels / 'p0.png', segments.label_map(0, 96, 128, [0, 5, 255]))
    elif kind == 'twice':
        (root / 'images/val/p0.jpg').write_bytes((root / 'images/val/p0.png').read_bytes())
    elif kind == 'damaged':
        (labels / 'p0.png').write_bytes(b'no picture')
    elif kind == 'binary':
        (root / 'classes.txt').unlink()
        for i in range(3):
            segments.write(labels / f'p{i}.png', segments.label_map(i, 96, 128, [0, 255]))


@pytest.mark.parametrize(
    ('kind', 'split', 'words'),
    [
        (
            'missing',
            'val',
            r'1 of 3 images have no label map of .* in .*labels/val: p1.png',
        ),
        ('size', 'val', r'p2.png has 96 x 127 pixels \(height x width\), its image 96 x 128'),
        ('twice', 'val', 'two images have the same name but for their endings'),
        (
            'binary',
            'val',
            'hold no class but 0; they are PNG files of class ids 0, 1, ...',
        ),
        ('fine', None, 'name a split: val'),
        ('fine', 'test', 'test has no folders images and labels'),
    ],
)
def test_mistakes_at_the_beginning(tmp_path, kind, split, words):
    spoiled(tmp_path, kind)
    with pytest.raises(UserError, match=words):
        open_segmentation(f'folder:{tmp_path}', split, None)


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        ('colours', r'p0.png holds colours \(RGB\); a label map holds a class id a pixel'),
        ('damaged', 'cannot read .*p0.png as a label map'),
        ('value', 'p0.png holds the value 5; its values are 0 to 4, and 255'),
    ],
)
def test_mistakes_in_a_label_map(tmp_path, kind, words):
    spoiled(tmp_path, kind)
    if kind == 'colours':  # of the right size
        segments.write(tmp_path / 'labels/val/p0.png', segments.picture(0, 96, 128))
    source = open_segmentation(f'folder:{tmp_path}', 'val', None)
    with pytest.raises(UserError, match=words):
        source.read(0)
    if kind != 'damaged':  # those are counted when it is their turn
        with pytest.raises(UserError, match=words):
            source.read.check_values()


@pytest.mark.parametrize(
    ('name', 'data_dir', 'words'),
    [
        ('cityscape', '.', "unknown segmentation data set 'cityscape'; known: cityscapes, ade20k"),
        ('cityscapes', None, '--data-dir says where its files are'),
        ('ade20k', '.', 'holds no images, nor does ADEChallengeData2016'),
    ],
)
def test_mistakes_in_a_name(tmp_path, name, data_dir, words):
    with pytest.raises(UserError, match=words):
        open_segmentation(name, None, data_dir and str(tmp_path))


def test_a_folder_that_is_not_there(tmp_path):
    for name, folder in (('ade20k', 'gone'), ('folder:gone', None)):
        with pytest.raises(UserError, match='^gone does not exist$'):
            open_segmentation(name, 'val', folder)
    (tmp_path / 'images').mkdir()
    with pytest.raises(UserError, match='images/validation does not exist'):
        open_segmentation('ade20k', None, str(tmp_path))


def test_a_classifier_is_told_what_the_folder_is_for(tmp_path):
    segments.make_folder(tmp_path)
    with pytest.raises(UserError, match='holds images and label maps, for segmentation'):
        open_folder(str(tmp_path), None)


def test_files_of_a_list_that_are_not_there(tmp_path):
    voc(tmp_path, 'val')
    (tmp_path / 'VOCdevkit/VOC2012/JPEGImages/2007_000001.jpg').unlink()
    with pytest.raises(UserError, match=r'1 files are missing for 2 images: .*2007_000001.jpg'):
        open_segmentation('voc2012', 'val', str(tmp_path))
    with pytest.raises(UserError, match='has no split test; it has val, train, trainval'):
        open_segmentation('voc2012', 'test', str(tmp_path))


def test_ids_for_a_test_server(tmp_path):
    """Those of the published label maps, whichever are read, and in whichever order classes are."""
    layouts.cityscapes(tmp_path / 'c', 'labelTrainIds')
    layouts.ade20k(tmp_path, None)
    city = open_segmentation('cityscapes', None, str(tmp_path / 'c'))
    ade = open_segmentation('ade20k', None, str(tmp_path))
    assert tuple(city.read.ids) == (*layouts.IDS, *[-1] * 237)
    assert ade.read.ids[:151].tolist() == [*range(1, 151), -1]
    assert city.read.renumbered(np.arange(19)[::-1]).ids[:19].tolist() == list(layouts.IDS[::-1])
    assert city.read.renumbered(np.arange(19) + 2).ids[:4].tolist() == [-1, -1, 7, 8]


def test_a_split_without_labels(tmp_path):
    for i in range(2):
        path = tmp_path / f'leftImg8bit/test/bonn/bonn_{i}_leftImg8bit.png'
        segments.write(path, IMAGES[i])
    source = open_segmentation('cityscapes', 'test', str(tmp_path))
    assert any('its split has no label maps; nothing is measured' in x for x in source.notes)
    example = source.read(1)
    np.testing.assert_array_equal(example['image'], IMAGES[1])
    assert (example['label'] == 255).all()
