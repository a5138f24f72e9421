"""Files that are damaged, cut short, or no checkpoints."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import tarfile
import zipfile

import pytest
import torch
from checkpoints import FORMATS, as_bytes, check, message, rewrite, save

from convert.readers import read
from hrnet_jax.checkpoints.published import all_published
from hrnet_jax.errors import UserError


@pytest.mark.parametrize('big', ['a', 'b'])
def test_a_flipped_bit_in_a_zip(tmp_path, big):
    state = {'a': torch.arange(50.0), 'b': torch.arange(50.0) + 100}
    path = save(state, tmp_path / 'a.pth')
    data = bytearray(path.read_bytes())
    data[data.index(as_bytes(state[big])) + 77] ^= 4
    path.write_bytes(data)
    tensors = read(path).tensors
    other = 'b' if big == 'a' else 'a'
    assert tensors[other].numpy().tobytes() == as_bytes(state[other])
    with pytest.raises(
        UserError, match=f"^tensor '{big}' cannot be read: Bad CRC-32.*get it again"
    ):
        tensors[big].numpy()


def test_files_without_checksums(tmp_path):
    state = {'a': torch.arange(50.0)}
    torch.serialization.set_crc32_options(False)
    try:
        path = save(state, tmp_path / 'a.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    source = read(path)
    check(source.tensors, state)
    assert source.notes == ('the file was written without checksums, so damage cannot be seen',)


def test_one_checksum_of_zero_is_still_a_checksum(tmp_path):
    path = save({'a': torch.arange(50.0)}, tmp_path / 'a.pth')
    with zipfile.ZipFile(path) as archive:
        (crc,) = (r.CRC for r in archive.infolist() if r.filename.endswith('data/0'))
    data = path.read_bytes()
    assert data.count(crc.to_bytes(4, 'little')) >= 1
    path.write_bytes(data.replace(crc.to_bytes(4, 'little'), bytes(4)))
    with pytest.raises(UserError, match=r"^tensor 'a' cannot be read: Bad CRC-32"):
        read(path).tensors['a'].numpy()


@pytest.mark.parametrize('kind', FORMATS)
def test_cut_short(tmp_path, kind):
    path = save({'a': torch.arange(50.0), 'b': torch.ones(3)}, tmp_path / 'a.pth', kind)
    data = path.read_bytes()
    for size in (*range(1, 20), *range(20, len(data), 17), len(data) - 1):
        path.write_bytes(data[:size])
        assert 'damaged or cut short' in message(path) or size < 10


def test_flipped_bits_give_values_or_user_errors(tmp_path):
    """Any bit of the pickle of a legacy file: it has no checksum."""
    state = {'state_dict': {f'a{i}': torch.full((2,), float(i)) for i in range(4)}, 'x': {1, 2}}
    data = save(state, tmp_path / 'a.pth', 'legacy').read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / 'a.pth').write_bytes(changed)
        try:
            for tensor in read(tmp_path / 'a.pth').tensors.values():
                tensor.numpy()
        except UserError:
            refused += 1
    assert 100 < refused < 390


@pytest.mark.parametrize(
    ('name', 'content', 'expected'),
    [
        ('a.pth', b'', 'is empty: '),
        ('a.pth', b'  <!DOCTYPE html><html>', 'is a web page: '),
        ('a.pth', b'<html lang=en>', 'is a web page: '),
        ('a.pth', b'version https://git-lfs.github.com/spec/v1\noid', 'is a git LFS pointer, '),
        ('a.pth', b'{"error": "not found"}', 'is JSON, '),
        ('a.pth', b'[1, 2]', 'is JSON, '),
        ('a.pth', b'\x1f\x8b\x08\x00', 'is compressed: '),
        ('a.pth', b'\x89HDF\r\n\x1a\n', 'is an HDF5 file, '),
        ('a.pth', b'hello world', 'is no checkpoint: '),
        ('a.pth', pickle.dumps({'a': 1}), 'is a plain pickle: '),
        ('a.pth', b'PK\3\4' + bytes(100), 'is damaged or cut short (BadZipFile): '),
        ('x-0c10b180.pth', b'<html>', 'is a web page: '),
    ],
)
def test_what_is_no_checkpoint(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert message(tmp_path / name).startswith(expected)


def test_paths_that_cannot_be_read(tmp_path):
    assert message(tmp_path).startswith('is a directory: ')
    assert message(tmp_path / 'none') == 'does not exist'
    hint = 'does not exist; if it is a repository of the Hugging Face hub, write hf:timm/none'
    assert message('timm/none') == hint
    os.mkfifo(tmp_path / 'pipe')
    assert message(tmp_path / 'pipe') == 'is no regular file'
    path = save({'a': torch.ones(1)}, tmp_path / 'a')
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # who may read everything
        os.seteuid(65534)
    try:
        assert message(path) == 'cannot be read: Permission denied'
    finally:
        if root:
            os.seteuid(0)


def test_other_archives(tmp_path):
    def tar(path, *names):
        with tarfile.open(path, 'w') as archive:
            for name in names:
                archive.add(__file__, name)
        return path

    assert message(tar(tmp_path / 'a.pth.tar', 'model.pth')).startswith('is a tar archive: ')
    old = tar(tmp_path / 'b.pth.tar', 'sys_info', 'pickle', 'tensors', 'storages')
    assert message(old).startswith('is of PyTorch before 0.1.10: ')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('weights/model.pth', b'1')
    assert message(tmp_path / 'a.zip').startswith('is a zip archive, but not of torch.save: ')
    path = save({'a': torch.ones(1)}, tmp_path / 'two.pt')
    rewrite(path, lambda records: records.update({'one/data.pkl': b'1'}))
    assert message(path).startswith('is a zip archive, but not of torch.save: ')
    path = save({'a': torch.ones(1)}, tmp_path / 'script.pt')
    rewrite(path, lambda records: records.update({'script/constants.pkl': b'1'}))
    assert message(path).startswith('is a TorchScript archive: ')
    path = save({'a': torch.ones(1)}, tmp_path / 'big.pt')
    rewrite(path, lambda records: records.update({'big/byteorder': b'big'}))
    assert message(path).startswith('is from a big-endian machine: ')
    path = save({'a': torch.ones(1)}, tmp_path / 'lost.pt')
    rewrite(path, lambda records: records.pop('lost/data/0'))
    with pytest.raises(UserError, match=r"^tensor 'a' cannot be read: .*lost/data/0"):
        read(path).tensors['a'].numpy()


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
def test_whole_modules(tmp_path, kind):
    torch.save(torch.nn.Linear(2, 3), tmp_path / 'a', _use_new_zipfile_serialization=kind == 'zip')
    text = message(tmp_path / 'a')
    assert text.startswith(
        'holds no tensors with names, only a pickled torch.nn.modules.linear.Linear; '
        'save the state_dict() of the model'
    )
    path = save({'epoch': 3, 'model': torch.nn.Linear(2, 3)}, tmp_path / 'b', kind)
    assert "'epoch' (int), 'model' (pickled torch.nn.modules.linear.Linear)" in message(path)


@pytest.mark.parametrize(
    ('tree', 'expected'),
    [
        ([torch.ones(1)], 'a list'),
        ({}, 'a dict'),
        ({3: torch.ones(1)}, 'int (tensor without a name)'),
        (5, 'a int'),
    ],
)
def test_no_named_tensors(tmp_path, tree, expected):
    path = save(tree, tmp_path / 'a')
    assert message(path).startswith(f'holds no tensors with names, only {expected};')


def test_the_hash_in_the_name(tmp_path):
    save({'a': torch.ones(1)}, tmp_path / 'a', 'legacy')
    data = (tmp_path / 'a').read_bytes()
    right = hashlib.sha256(data).hexdigest()
    wrong = '0c10b180' if right[:8] != '0c10b180' else '0c10b181'

    def notes(name):
        (tmp_path / name).write_bytes(data)
        source = read(tmp_path / name)
        assert source.sha256 == right
        return list(source.notes)

    for name in (
        f'hrnet-w18_8xb32_in1k_20220120-{right[:8]}.pth', f'x-{right}.pth.tar', f'x-{right[:20]}',
        'hrnet_w18-20220120.pth', 'x-19991231.pth', 'x-00050000.pth', 'x-20240131123456.pth',
        'hrnet-w18.pth', 'x-abcdef.pth', f'x_{wrong}.pth', f'x-{wrong}0123456g.pth', 'x-FFFFFFFF',
    ):  # fmt: skip
        assert notes(name) == [], name
    # No publisher is known for these names: they are read, and the remark says why to look again.
    for digits in (wrong, '19126642', '20221301', '20220132', '18991231', '21000101', wrong * 8):
        for name in (f'hrnet-w18-{digits}.ckpt', f'hrnet_w18-best-{digits}.pth.tar'):
            assert notes(name) == [
                f'perhaps another file than its name says: its name promises a sha256 of {digits}'
                f'..., its content has {right[: len(digits)]}...'
            ]
    notes('hrnet_w18-550e8400-e29b-41d4-a716-4466554400ff.pth')
    for published in all_published().values():
        for name in filter(lambda file: '-' in file, published.files):
            (tmp_path / name).write_bytes(data)
            text = message(tmp_path / name)
            assert text.startswith('is damaged or renamed: its name promises a sha256 of ')
            assert text.endswith('; get it again, or say --ignore-digest')
            assert read(tmp_path / name, check_digest=False).sha256 == right
