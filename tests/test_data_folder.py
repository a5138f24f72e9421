"""Folders of class folders as a data set."""

from __future__ import annotations

import os
import re
import shutil

import imagenet
import pytest
from imagenet import examples
from PIL import Image

from hrnet_jax import data
from hrnet_jax.data import evaluation
from hrnet_jax.data.preprocess import Transform, resize_crop
from hrnet_jax.data.training import TrainData
from hrnet_jax.errors import UserError
from hrnet_jax.tasks.recipe import LabelRecipe

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
    words = f'1 of 4 images cannot be read: {folder}/b/2.JPeG: No such file or directory; remove'
    assert str(stop.value).startswith(f'{folder}: {words}')


def test_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match='is not a folder'):
        data.open_dataset(str(tmp_path / 'nothing'))
    (tmp_path / 'val' / 'cat').mkdir(parents=True)
    imagenet.picture(0, 9, 9).save(tmp_path / 'val' / 'cat' / 'image.png')
    with pytest.raises(UserError, match='test is not a folder; there are val'):
        data.open_dataset(f'folder:{tmp_path}', 'test')
    shutil.rmtree(tmp_path / 'val')
    imagenet.picture(0, 9, 9).save(tmp_path / 'image.png')
    with pytest.raises(UserError, match='no folders of images'):
        data.open_dataset(str(tmp_path))


def test_a_split_named_as_a_folder(folder):
    said = f'name the folder above it, folder:{folder.parent}, in which {folder.name} is a split'
    with pytest.raises(UserError, match=re.escape(said)):
        data.open_dataset(f'folder:{folder}', 'train')


def put(root, *files):
    """Images, or what else a name says, in folders."""
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        form = {'.png': 'PNG', '.JPEG': 'JPEG', '.jpg': 'JPEG', '.jfif': 'JPEG'}.get(path.suffix)
        if form:
            imagenet.picture(number, 9, 9).save(path, form)
        else:
            path.write_bytes(b'Mac OS X')
    return str(root)


def held(source):
    """File, below the folder -> the name of its class."""
    found = source.records(0, source.num_examples).as_numpy_iterator()
    root = source.dataset.name
    return {
        os.path.relpath(x['name'].decode(), root): source.class_names[x['label']] for x in found
    }


@pytest.mark.parametrize(
    ('junk', 'count'),
    [
        (['a/._1.jpg', '__MACOSX/a/1.jpg', '.DS_Store', 'b/.DS_Store'], 4),
        (['.ipynb_checkpoints/1.png', 'a/.ipynb_checkpoints/1.png'], 2),
        (['@eaDir/1.jpg/SYNOPHOTO_THUMB.jpg', 'a/@eaDir/x.jpg', '#recycle/1.jpg'], 3),
        (['Thumbs.db', 'a/Thumbs.db', 'b/desktop.ini', '$RECYCLE.BIN/1.jpg'], 4),
    ],
)
def test_what_systems_leave_is_no_class(tmp_path, junk, count):
    source = data.open_dataset(put(tmp_path, 'a/1.jpg', 'b/1.png', *junk))
    assert held(source) == {'a/1.jpg': 'a', 'b/1.png': 'b'}
    [note] = source.notes
    assert f'{count} hidden or system files and folders skipped: ' in note


def test_what_is_left_out_is_counted(tmp_path):
    junk = ['a/2.heic', 'b/3.HEIC', 'b/x.txt', 'README', 'loose.png', 'a/4.dng']
    source = data.open_dataset(put(tmp_path, 'a/1.jfif', 'b/1.png', *junk))
    assert held(source) == {'a/1.jfif': 'a', 'b/1.png': 'b'}
    assert source.notes == (
        f'{tmp_path}: 5 other files left out: 2 .heic, 1 .dng, 1 .txt, 1 without an ending',
        f'{tmp_path}: 1 images left out, which are in no folder of a class',
    )


@pytest.mark.parametrize(
    ('files', 'said'),
    [
        (['cat/2021/a.jpg', 'dog/2022/b/c.jpg'], 'cat/2021, dog/2022/b'),
        (['cat/a.jpg', 'dog/more/a.jpg', 'dog/b.jpg'], None),
        (['n01440764/images/a.JPEG', 'n01443537/images/b.JPEG'], 'n01440764/images'),
    ],
)
def test_folders_in_the_folder_of_a_class(tmp_path, files, said):
    source = data.open_dataset(put(tmp_path, *files))
    assert held(source) == {file: file.split('/')[0] for file in files}
    assert [said in note for note in source.notes] == ([True] if said else [])


@pytest.mark.parametrize(
    ('files', 'said'),
    [
        (['train/cat/a.jpg', 'val/cat/b.jpg'], 'name a split: train, val'),
        (['train/a.jpg', 'test/b.jpg'], 'name a split: test, train'),
        (['images/a.jpg'], 'one folder, images, which would be the only class'),
        (['Images/x/a.jpg'], 'one folder, Images, which would be the only class'),
        (['a.jpg', 'b.jpg'], 'holds no folders of images'),
    ],
)
def test_folders_that_are_no_classes(tmp_path, files, said):
    with pytest.raises(UserError, match=said):
        data.open_dataset(put(tmp_path, *files))


@pytest.mark.parametrize('where', ['', 'images/'])
def test_imagenet_as_it_is_downloaded(tmp_path, where):
    names = [f'{where}{imagenet.name(number)}' for number in (1, 2, 3)]
    source = data.open_dataset(put(tmp_path, *names))
    assert held(source) == dict(zip(names, ('n01751748', 'n09193705', 'n02105855'), strict=True))
    assert 'labels by file name' in source.notes[0]
    put(tmp_path, f'{where}{imagenet.name(50_001)}')
    with pytest.raises(UserError, match=r'no class is known for .*ILSVRC2012_val_00050001'):
        data.open_dataset(str(tmp_path))


def test_tiny_imagenet(tmp_path):
    rows = 'val_0.JPEG\tn03444034\t0\t32\t44\t62\nval_1.JPEG\tn04067472\t52\t55\t57\t59\n'
    root = tmp_path / 'val'
    put(root, 'images/val_0.JPEG', 'images/val_1.JPEG')
    (root / 'val_annotations.txt').write_text(rows)
    source = data.open_dataset(str(root))
    assert held(source) == {'images/val_0.JPEG': 'n03444034', 'images/val_1.JPEG': 'n04067472'}
    assert f'{root}: labels of val_annotations.txt' in source.notes
    put(root, 'images/val_2.JPEG')
    with pytest.raises(UserError, match=r'names no class for images/val_2\.JPEG'):
        data.open_dataset(str(root))


def test_links(tmp_path):
    """A class may be a link; one that leads back to where it is ends nowhere."""
    put(tmp_path, 'set/a/1.jpg', 'elsewhere/1.jpg')
    (tmp_path / 'set' / 'b').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'set' / 'a' / 'loop').symlink_to(tmp_path / 'set')
    source = data.open_dataset(str(tmp_path / 'set'))
    assert held(source) == {'a/1.jpg': 'a', 'b/1.jpg': 'b'}


@pytest.mark.parametrize('cut', [('a/1.jpg',), ('a/0.jpg', 'b/2.jpg')])
def test_a_jpeg_that_was_cut_off_below_the_crop(tmp_path, cut):
    """In evaluation, before a training run, and in it."""
    for i, file in enumerate(('a/0.jpg', 'a/1.jpg', 'b/2.jpg', 'b/3.jpg')):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        imagenet.picture(i, 400, 60).save(tmp_path / file, quality=90)
        if file in cut:
            encoded = (tmp_path / file).read_bytes()
            (tmp_path / file).write_bytes(encoded[: len(encoded) * 9 // 10])
    source = data.open_dataset(str(tmp_path))
    said = '; '.join(f'{tmp_path}/{file}: it is no image, or a damaged one' for file in cut)
    for read in (
        lambda: list(data.batches(source, SMALL, 2)),
        lambda: evaluation.check_files(source, SMALL, 0.0),
    ):
        with pytest.raises(UserError) as stop:
            read()
        assert f'{len(cut)} of 4 images cannot be read: {said}; remove them' in str(stop.value)
    recipe = LabelRecipe(batch_size=4, bn_group_size=None, image_size=32, max_corrupt=0.5)
    batch = next(TrainData(source, recipe).batches())
    assert batch['weight'].sum() == 4 - len(cut)


@pytest.mark.parametrize('broken', [('a/1.jpg', 'b/3.png'), ('b/4.jpg',), ('a/0.jpg', 'a/1.jpg')])
def test_all_unreadable_files_are_named_at_once(tmp_path, broken):
    files = ['a/0.jpg', 'a/1.jpg', 'a/2.jpg', 'b/3.png', 'b/4.jpg']
    put(tmp_path, *files)
    (tmp_path / 'a' / '2.jpg').rename(tmp_path / 'a' / 'x')
    put(tmp_path, 'x.png')
    (tmp_path / 'x.png').rename(tmp_path / 'a' / '2.jpg')  # a PNG file of that name is fine
    (tmp_path / 'a' / 'x').unlink()
    for i, file in enumerate(broken):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(b'' if i else whole[: len(whole) // 2])
    source = data.open_dataset(str(tmp_path))
    with pytest.raises(UserError) as stop:
        list(data.batches(source, SMALL, 2))
    assert f'{len(broken)} of 5 images cannot be read: ' in str(stop.value)
    assert '--max-corrupt' in str(stop.value)
    for file in files:
        assert (f'{tmp_path}/{file}: ' in str(stop.value)) == (file in broken)
    batches = list(data.batches(source, SMALL, 2, max_corrupt=len(broken) / 5))
    assert len(examples(batches)) == 5 - len(broken)
    left_out = [b['index'].tolist() for b in batches], [b['unreadable'].sum() for b in batches]
    assert sum(left_out[1]) == len(broken)
    kept = sorted(i for row in left_out[0] for i in row if i >= 0)
    assert kept == [i for i, file in enumerate(files) if file not in broken]
    checked = evaluation.check_files
    with pytest.raises(UserError, match=f'{len(broken)} of 5 images cannot be read: '):
        checked(source, SMALL, 0.0)
    checked(source, SMALL, len(broken) / 5)
