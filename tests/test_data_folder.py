"""Folders of class folders as a data set."""

from __future__ import annotations

import re

import imagenet
import pytest
from imagenet import examples
from PIL import Image

from hrnet_jax import data
from hrnet_jax.data.preprocess import Transform, resize_crop
from hrnet_jax.errors import UserError

SMALL = Transform(36, 32)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'classes'
    for number, (name, form) in enumerate(
        [('b/1.PNG', 'PNG'), ('b/2.JPeG', 'JPEG'), ('a/x.bmp', 'BMP'), ('c/x.webp', 'WEBP')]
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        imagenet.picture(number, 50, 40 + number).save(root / name, form)
    (root / 'b' / 'notes.txt').write_text('not an image')
    (root / '.hidden').mkdir()
    return root


def test_folder(folder):
    wanted = []
    for path, label in (('a/x.bmp', 0), ('b/1.PNG', 1), ('b/2.JPeG', 1), ('c/x.webp', 2)):
        with Image.open(folder / path) as image:
            wanted.append((resize_crop(image, SMALL).tobytes(), label))
    for name in (f'folder:{folder}', str(folder)):
        source = data.open_dataset(name)
        assert (source.num_examples, source.class_names) == (4, ('a', 'b', 'c'))
        assert examples(data.batches(source, SMALL, 3)) == wanted
        assert data.competing_classes(source) is None
    shares = [x for i in range(3) for x in examples(data.batches(source, SMALL, 1, i, 3))]
    assert shares == wanted
    assert data.open_dataset(str(folder.parent), folder.name).num_examples == 4


@pytest.mark.parametrize('content', [b'', b'not an image', imagenet.jpeg(1)[:999]])
def test_folder_with_an_undecodable_image(folder, content):
    (folder / 'b' / '3.jpg').write_bytes(content)
    source = data.open_dataset(str(folder))
    with pytest.raises(UserError, match=re.escape(f'{folder}/b/3.jpg: ')) as stop:
        list(data.batches(source, SMALL, 2))
    assert '\n' not in str(stop.value)
    assert '{{' not in str(stop.value)


def test_a_file_that_goes_before_it_is_read(folder):
    source = data.open_dataset(str(folder))
    (folder / 'b' / '2.JPeG').unlink()
    with pytest.raises(UserError) as stop:
        list(data.batches(source, SMALL, 2))
    words = f'cannot read a file: {folder}/b/2.JPeG; No such file or directory'
    assert str(stop.value) == f'{folder}: {words}'


def test_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match='is not a folder'):
        data.open_dataset(str(tmp_path / 'nothing'))
    imagenet.picture(0, 9, 9).save(tmp_path / 'image.png')
    with pytest.raises(UserError, match='no folders of images'):
        data.open_dataset(str(tmp_path))


def test_a_split_named_as_a_folder(folder):
    said = f'name the folder above it, folder:{folder.parent}, in which {folder.name} is a split'
    with pytest.raises(UserError, match=re.escape(said)):
        data.open_dataset(f'folder:{folder}', 'train')
