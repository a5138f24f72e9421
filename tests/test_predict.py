"""predict.py and hrnet_jax.predict: any picture in, names and probabilities out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluated import Here
from imagenet import picture
from PIL import Image, ImageOps

import eval as eval_command
import hrnet_jax
import predict as predict_command
from convert import from_torch
from convert.reference import reference_of
from hrnet_jax import checkpoint
from hrnet_jax.archs import ARCHS
from hrnet_jax.data.imagenet import default_class_names
from hrnet_jax.models import create_model
from hrnet_jax.tasks import get_task

DIGITS = Path(__file__).parents[1] / 'examples' / 'tiny_digits.pth'
TRANSFORM = hrnet_jax.Transform(resize=32, crop=32)


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """The folder of the converted digits checkpoint, and a picture of a nine."""
    folder = tmp_path_factory.mktemp('digits')
    variables = from_torch(DIGITS)[1]
    meta = checkpoint.describe(create_model('tiny', 10)) | {
        'transform': TRANSFORM.to_json(),
        'class_names': [f'digit {i}' for i in range(10)],
    }
    checkpoint.save(folder / 'tiny', variables, meta)
    from sklearn.datasets import load_digits

    return folder, (load_digits().images[9] * (255 / 16)).round().astype(np.uint8)


def torch_logits(pixels: np.ndarray) -> torch.Tensor:
    model = reference_of(from_torch(DIGITS)[1], ARCHS['tiny'], 10)
    mean, std = (np.array(v, np.float32) for v in (TRANSFORM.mean, TRANSFORM.std))
    x = ((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
    with torch.no_grad():
        return model(torch.from_numpy(x.astype(np.float32)))[0]


def torch_probabilities(pixels: np.ndarray) -> np.ndarray:
    return torch.softmax(torch_logits(pixels), 0).numpy()


def test_probabilities_of_pytorch(digits):
    model, variables = hrnet_jax.load(digits[0])
    scan = digits[1]
    pixels = np.asarray(
        Image.fromarray(scan).resize((32, 32), Image.Resampling.BILINEAR).convert('RGB')
    )
    expected = torch_probabilities(pixels)
    images = [scan, scan[..., None], np.stack([scan] * 3, -1), Image.fromarray(scan)]
    found = hrnet_jax.predict(model, variables, images, topk=10, transform=TRANSFORM, batch_size=3)
    assert len(found) == 4
    for best in found:
        assert best[0].name == 'digit 9'
        assert [p.index for p in best] == np.argsort(-expected).tolist()
        np.testing.assert_allclose(
            [p.probability for p in best], np.sort(expected)[::-1], atol=1e-5
        )
    assert hrnet_jax.predict(model, variables, [], transform=TRANSFORM) == []


def test_a_loaded_model_knows_how(digits):
    """Its images and its classes, without a word more; equal models share compiled programs."""
    model, variables = hrnet_jax.load(digits[0])
    names = [f'digit {i}' for i in range(10)]
    [best] = hrnet_jax.predict(model, variables, [digits[1]])
    assert (
        best
        == hrnet_jax.predict(
            create_model('tiny', 10), variables, [digits[1]], transform=TRANSFORM, class_names=names
        )[0]
    )
    assert best[0].name == 'digit 9'
    fast = hrnet_jax.fold(model, variables)
    assert hrnet_jax.predict(fast.model, fast.variables, [digits[1]])[0] == best
    assert model == create_model('tiny', 10)
    assert hash(model) == hash(create_model('tiny', 10))


def test_every_common_format(command, digits, tmp_path):
    """The same digit, however it is stored, is the same digit."""
    folder, scan = digits
    big = Image.fromarray(scan).resize((64, 64), Image.Resampling.NEAREST)
    files = []
    for mode, ending in (
        ('L', 'png'), ('RGB', 'jpg'), ('L', 'jpeg'), ('RGBA', 'png'), ('P', 'gif'), ('RGB', 'bmp'),
        ('RGB', 'webp'), ('CMYK', 'jpg'), ('RGB', 'tiff'), ('LA', 'png'), ('I;16', 'png'),
    ):  # fmt: skip
        files.append(tmp_path / f'{mode.replace(";", "_")}.{ending}')
        if mode == 'I;16':
            Image.fromarray(np.asarray(big).astype(np.uint16) * 257).save(files[-1])
        else:
            big.convert(mode).save(
                files[-1], **({'quality': 98} if ending in ('jpg', 'jpeg') else {})
            )
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    files.append(tmp_path / 'turned.jpg')
    big.rotate(90).save(files[-1], exif=exif, quality=98)
    assert ImageOps.exif_transpose(Image.open(files[-1])).size == (64, 64)

    files.append(tmp_path / '$\\frac$ _of_ {5.png')  # no formula
    big.save(files[-1])

    out = tmp_path / 'picture.png'
    options = ('--ckpt', folder, '--topk', 3, '--json', tmp_path / 'r.json', '--out', out)
    code, text, err = command(predict_command.main, *files, '--arch', 'tiny', *options)
    assert code == 0, err
    rows = json.loads((tmp_path / 'r.json').read_text())
    assert [row['image'] for row in rows] == list(map(str, files))
    for row in rows:
        assert len(row['predictions']) == 3
        first = row['predictions'][0]
        assert first['name'] == 'digit 9', row
        assert first['probability'] > 0.9
    assert text.count('digit 9') == len(files)
    with Image.open(out) as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert('RGB')).std() > 20


def test_fewer_classes_than_five():
    """All of them are told; names may be an array."""
    model, task = create_model('tiny', 3), get_task('classification')
    options = task.prediction_options(model, np.array(['a', 'b', 'c']))
    assert options == {'topk': 3, 'names': ('a', 'b', 'c')}
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    assert task.decoder(options)(logits)[1].tolist() == [[1, 2, 0]]


def test_class_names():
    names = default_class_names(1000)
    assert len(set(names)) == len(names) == 1000
    assert (names[0], names[65], names[970], names[999]) == (
        'tench',
        'sea snake',
        'alp',
        'toilet tissue',
    )
    assert default_class_names(3) == ['0', '1', '2']


def test_how_images_are_prepared(command, digits, tmp_path):
    """The flags of eval.py, here too."""
    folder, scan = digits
    Image.fromarray(scan).resize((80, 60)).save(tmp_path / 'scan.png')
    pixels = np.asarray(Image.open(tmp_path / 'scan.png'))
    flags = ('--resize', 40, '--interpolation', 'bicubic', '--flip')
    where = ('--ckpt', folder, '--json', tmp_path / 'r.json')
    code, _, err = command(predict_command.main, tmp_path / 'scan.png', *where, *flags)
    assert code == 0, err
    [row] = json.loads((tmp_path / 'r.json').read_text())
    got = {one['index']: one['probability'] for one in row['predictions']}
    transform = hrnet_jax.Transform(40, 32, 'bicubic')
    seen = transform.prepare(pixels)
    sides = [torch_logits(x) for x in (seen, seen[:, ::-1])]
    assert (sides[0] - sides[1]).abs().max() > 0.1
    expected = torch.softmax((sides[0] + sides[1]) / 2, 0).numpy()
    assert got == pytest.approx({i: expected[i] for i in got}, abs=1e-5)


def test_rotated_photographs(refused, digits, monkeypatch, tmp_path):
    """eval.py --exif sees what predict.py does, which sees with --no-exif what eval.py does."""
    files, seen = [], []
    for orientation in (1, 3, 6, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append(tmp_path / 'set' / f'digit {orientation}' / 'a.jpg')
        files[-1].parent.mkdir(parents=True)
        picture(orientation, 50, 90).save(files[-1], exif=exif)

    def predicted(model, variables, images, transform, **_):
        seen.append(np.stack([transform.prepare(image) for image in images]))
        raise hrnet_jax.UserError('enough')

    def evaluated(model, variables, batches, *_):
        rows = [batch['image'][batch['mask']] for batch in batches]
        seen.append(np.concatenate(rows))
        raise hrnet_jax.UserError('enough')

    monkeypatch.setattr('hrnet_jax.commands.eval.Reader', Here)
    monkeypatch.setattr('hrnet_jax.inference.evaluation.evaluate', evaluated)
    monkeypatch.setattr('hrnet_jax.commands.predict.predict', predicted)
    for flags in (('--exif',), ('--no-exif',), ()):
        where = ('--ckpt', digits[0], *flags)
        assert 'enough' in refused(eval_command.main, '--dataset', tmp_path / 'set', *where)
        assert 'enough' in refused(predict_command.main, *files, *where)
    with_tag, without = seen[:2], seen[2:4]
    np.testing.assert_array_equal(*with_tag)
    np.testing.assert_array_equal(*without)
    np.testing.assert_array_equal(seen[4], without[0])
    np.testing.assert_array_equal(seen[5], with_tag[0])
    differ = [not np.array_equal(*pair) for pair in zip(with_tag[0], without[0], strict=True)]
    assert differ == [False, True, True, True]


def test_wrong_arguments(refused, digits, tmp_path):
    folder, scan = digits
    good, bad = tmp_path / 'good.png', tmp_path / 'bad.png'
    Image.fromarray(scan).save(good)
    bad.write_bytes(good.read_bytes()[:60])
    right = ('--ckpt', folder)
    for arguments, part in (
        (right, 'IMAGE'),
        ((good,), '--ckpt'),
        ((good, bad, *right), 'bad.png'),
        ((tmp_path / 'none.jpg', *right), 'none.jpg: No such file or directory'),
        ((tmp_path, *right), 'cannot read'),
        ((good, *right, '--topk', 11), '--topk 11'),
        ((good, *right, '--topk', 0), '--topk 0'),
        (
            (good, *right, '--threshold', 0.3),
            '--threshold is for multilabel; the checkpoint is for classification; see',
        ),
        (('--threshold', 0.3, good, *right), '--threshold is for multilabel; the checkpoint is'),
        (
            (good, *right, '--treshold', 0.3),
            'unrecognized arguments: --treshold 0.3; perhaps --threshold; see',
        ),
        ((good, *right, '--resize', 16), 'black border'),
        ((good, *right, '--out', tmp_path / 'x.xyz'), '.png'),
        ((good, *right, '--out', tmp_path / 'no' / 'x.png'), 'does not exist'),
        ((good, *right, '--arch', 'w18'), 'no checkpoint of w18'),
        ((good, '--ckpt', tmp_path / 'none'), 'does not exist'),
    ):
        assert part in refused(predict_command.main, *arguments)
    assert not (tmp_path / 'no').exists()


def test_wrong_arrays(digits):
    model, variables = hrnet_jax.load(digits[0])
    for images, options, message in (
        ([np.zeros((8, 8, 3), np.float32)], {}, 'uint8'),
        ([np.zeros((8, 8, 5), np.uint8)], {}, 'channels'),
        ([np.zeros((8, 8), np.uint8)], {'topk': 11}, 'topk 11'),
        ([np.zeros((8, 8), np.uint8)], {'topk': 2.5}, 'topk 2.5'),
        (np.zeros((8, 8, 3), np.uint8), {}, 'a list, or an array'),
        ([np.zeros((8, 8), np.uint8)], {'batch_size': 0}, 'batch_size'),
        ([np.zeros((8, 8), np.uint8)], {'class_names': ['a']}, '1 class names'),
    ):
        with pytest.raises(hrnet_jax.UserError, match=message):
            hrnet_jax.predict(model, variables, images, transform=TRANSFORM, **options)
    with pytest.raises(hrnet_jax.UserError, match='FeatureMaps does not say what it is for'):
        hrnet_jax.predict(hrnet_jax.FeatureMaps('tiny'), variables, [])
    with pytest.raises(hrnet_jax.UserError, match='a backbone alone gives maps'):
        hrnet_jax.predict(hrnet_jax.HRNet('tiny'), variables, [])
    fast = hrnet_jax.fold(model, variables)
    with pytest.raises(hrnet_jax.UserError, match='fast.model, fast.variables'):
        hrnet_jax.predict(fast, variables, [])


def test_flax_and_torch_see_the_same_pixels(digits):
    """The array function on a photograph-sized image, through both networks."""
    model, variables = hrnet_jax.load(digits[0])
    photo = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    found = hrnet_jax.predict(model, variables, photo[None], topk=10, transform=TRANSFORM)[0]
    image = Image.fromarray(photo).resize((42, 32), Image.Resampling.BILINEAR).crop((5, 0, 37, 32))
    expected = torch_probabilities(np.asarray(image))
    got = {p.index: p.probability for p in found}
    np.testing.assert_allclose([got[i] for i in range(10)], expected, atol=1e-4)
