"""A small ImageNet of synthetic pictures, prepared by the real tfds builder."""

from __future__ import annotations

import io
import os
import pathlib
import tarfile

import numpy as np
from PIL import Image, ImageDraw

# How each picture is stored, in turn: mode, options of PIL's JPEG writer.
STORED = (
    ('RGB', {'quality': 92, 'subsampling': '4:4:4'}),
    ('RGB', {'quality': 75, 'subsampling': '4:2:0'}),
    ('L', {'quality': 85}),
    ('RGB', {'quality': 96, 'subsampling': '4:2:2'}),
    ('RGB', {'quality': 80, 'subsampling': '4:2:0', 'progressive': True}),
    ('RGB', {'quality': 60, 'subsampling': '4:2:0', 'optimize': True}),
    ('CMYK', {'quality': 90}),
    ('RGB', {'quality': 90, 'subsampling': '4:2:0', 'orientation': 6}),
)


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Smooth colours, edges and noise, as photographs have them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = sorted(rng.integers(0, width, 2)), sorted(rng.integers(0, height, 2))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x[0], y[0], x[1], y[1]), fill=tuple(rng.integers(0, 256, 3).tolist()))
    noise = rng.normal(0, 6, (height, width, 3)) + rng.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def jpeg(seed: int) -> bytes:
    """A JPEG file of an odd size; every eighth has the same of `STORED`."""
    height, width = np.random.default_rng(seed).integers(90, 400, 2)
    mode, options = STORED[seed % len(STORED)]
    options = dict(options)
    exif = Image.Exif()
    exif[0x0112] = options.pop('orientation', 1)
    file = io.BytesIO()
    picture(seed, int(height), int(width)).convert(mode).save(file, 'JPEG', exif=exif, **options)
    return file.getvalue()


def name(number: int) -> str:
    return f'ILSVRC2012_val_{number:08}.JPEG'


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def make_archives(
    where: str | os.PathLike,
    count: int = 40,
    *,
    mislabel: bool = False,
    omit: tuple[int, ...] = (),
    train: int = 0,
) -> pathlib.Path:
    """Writes ILSVRC2012_img_val.tar, and the one for training if asked, and returns their folder.

    Args:
        count: number of validation images; the first is ILSVRC2012_val_00000001.JPEG.
        mislabel: as if packed again in a folder 'val', which shifts every label by one.
        omit: numbers of images to leave out, which shifts the labels after each.
        train: number of training images, spread over the first 5 classes.
    """
    folder = pathlib.Path(where)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / 'ILSVRC2012_img_val.tar', 'w') as archive:
        if mislabel:
            entry = tarfile.TarInfo('val')
            entry.type = tarfile.DIRTYPE
            archive.addfile(entry)
        for number in sorted(set(range(1, count + 1)) - set(omit)):
            _add(archive, ('val/' if mislabel else '') + name(number), jpeg(number))
    synsets = ('n01440764', 'n01443537', 'n01484850', 'n01491361', 'n01494475')
    if train:
        with tarfile.open(folder / 'ILSVRC2012_img_train.tar', 'w') as archive:
            for k, synset in enumerate(synsets):
                content = io.BytesIO()
                with tarfile.open(fileobj=content, mode='w') as images:
                    for i in range(k, train, len(synsets)):
                        _add(images, f'{synset}_{i}.JPEG', jpeg(100_000 + i))
                _add(archive, f'{synset}.tar', content.getvalue())
    return folder


def prepare(builder, manual_dir: str | os.PathLike = '', num_shards: int = 4) -> None:
    """`download_and_prepare` into several files, without a look at the network."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(
        manual_dir=os.fspath(manual_dir), num_shards=num_shards, try_download_gcs=False
    )
    builder.download_and_prepare(download_config=config)


def make_imagenet(where: str | os.PathLike, count: int = 40, **options) -> str:
    """Prepares imagenet2012 and returns its data_dir; `options` as of `make_archives`."""
    import tensorflow_datasets as tfds

    where = pathlib.Path(where)
    archives = make_archives(where / 'archives', count, **options)
    data_dir = os.fspath(where / 'data')
    prepare(tfds.builder('imagenet2012', data_dir=data_dir, file_format='tfrecord'), archives)
    return data_dir


def examples(batches) -> list[tuple[bytes, int]]:
    """Pixels and label of what the masks let through; all padding must be zero."""
    found = []
    for batch in batches:
        assert batch['image'].dtype == np.uint8
        assert batch['label'].dtype == np.int32
        assert batch['mask'].dtype == bool
        assert not batch['image'][~batch['mask']].any()
        assert not batch['label'][~batch['mask']].any()
        pairs = zip(batch['image'], batch['label'], batch['mask'], strict=True)
        found += [(image.tobytes(), int(label)) for image, label, real in pairs if real]
    return found
