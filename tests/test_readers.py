"""Reading checkpoint files: values bit for bit, bad files, hostile pickles, wrappers, the hub."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copyreg
import datetime
import enum
import hashlib
import http.server
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import types
import zipfile
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from convert import pickles
from convert.readers import read, resolve
from hrnet_jax.errors import UserError

ROOT = Path(__file__).parents[1]
FORMATS = ('zip', 'legacy', 'safetensors')
MAGIC = b''.join(
    pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
)


def save(tree, path, kind='zip', **kwargs):
    if kind == 'safetensors':
        safetensors.torch.save_file({k: v.clone().contiguous() for k, v in tree.items()}, path)
    else:
        torch.save(tree, path, _use_new_zipfile_serialization=kind == 'zip', **kwargs)
    return path


def as_bytes(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def check(tensors, expected):
    """Asserts the same names, shapes, types and bits."""
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        array = tensors[name].numpy()
        dtype = str(tensor.dtype).removeprefix('torch.')
        assert tensors[name].name == name
        assert tensors[name].shape == array.shape == tuple(tensor.shape)
        assert tensors[name].dtype == array.dtype
        assert array.dtype.name == dtype
        assert array.tobytes() == (as_bytes(tensor) if tensor.numel() else b'')


def message(path):
    """The UserError of reading a file; one line that starts with the file's name."""
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f'{path} ')
    assert '\n' not in text
    return text.removeprefix(f'{path} ')


def rewrite(path, change):
    """Writes the zip file again with `change`d {record: bytes}, as torch.save names them."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in records.items():
            archive.writestr(name, data)


# ---------------------------------------------------------------------------------- values


@pytest.mark.parametrize('kind', FORMATS)
def test_types(tmp_path, kind):
    names = ('bfloat16', 'bool', 'float16', 'float32', 'float64', 'int16', 'int32', 'int64', 'int8')
    state = {name: (100 * torch.randn(3, 5)).to(getattr(torch, name)) for name in names}
    state['float32'][0, :3] = torch.tensor([float('nan'), float('-inf'), -0.0])
    state['int64'][0, 0] = 2**62 + 1
    state['scalar'] = torch.tensor(7)
    state['uint8'] = torch.tensor([0, 255], dtype=torch.uint8)
    state['void'] = torch.zeros(0, 4)
    source = read(save(state, tmp_path / 'a.pth', kind))
    check(source.tensors, state)
    assert source.tensors['bfloat16'].dtype == ml_dtypes.bfloat16
    assert source.sha256 == hashlib.sha256((tmp_path / 'a.pth').read_bytes()).hexdigest()
    assert (source.path, source.origin) == (tmp_path / 'a.pth', str(tmp_path / 'a.pth'))
    assert (source.container, source.notes) == ('', ())


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_views_and_parameters(tmp_path, kind, protocol):
    base = torch.arange(24.0).reshape(4, 6)
    marked, plain = torch.nn.Parameter(torch.ones(2)), torch.full((2,), 3.0)
    marked.mark = plain.mark = 'an attribute'
    state = collections.OrderedDict(
        transposed=base.t(),
        row=base[1],
        columns=base[:, 1::2],
        one=base[2, 3],
        none=base[:0],
        end=base[4:],
        nothing=torch.zeros(0, 3),
        wide=base[:1].expand(3, 6),
        base=base,
        parameter=torch.nn.Parameter(torch.full((3,), 2.0)),
        marked=marked,
        plain=plain,
        buffer=torch.nn.Buffer(torch.full((1,), 4.0)),
        unsigned=torch.tensor([1, 65535], dtype=torch.uint16),
    )
    state._metadata = {'': {'version': 1}}
    check(read(save(state, tmp_path / 'a', kind, pickle_protocol=protocol)).tensors, state)


def test_a_conjugate_is_not_taken_as_is(tmp_path):
    state = {'a': torch.ones(1), 'b': torch.tensor([1 + 2j]).conj(), 'c': torch.tensor([1 + 2j])}
    source = read(save(state, tmp_path / 'a.pth'))
    check(source.tensors, {'a': state['a'], 'c': state['c']})
    assert source.notes == ("ignored what is no tensor: 'b'",)


@pytest.mark.parametrize('kind', FORMATS)
@pytest.mark.parametrize('name', ['a.pth', 'a.bin', 'a.ckpt', 'a.pth.tar', 'a.safetensors', 'a'])
def test_names_do_not_matter(tmp_path, kind, name):
    state = {'a': torch.tensor([1.5, 2.5])}
    check(read(save(state, tmp_path / name, kind)).tensors, state)


@pytest.mark.parametrize('kind', FORMATS)
def test_nothing_is_read_before_it_is_asked_for(tmp_path, kind):
    state = {'big': torch.full((4 << 20,), 3.0), 'small': torch.ones(5)}
    path = save(state, tmp_path / 'a', kind)
    read(path)  # imports
    tracemalloc.start()
    source = read(path)
    assert source.tensors['small'].numpy().sum() == 5
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    assert source.tensors['big'].numpy().sum() == 3 * (4 << 20)


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
def test_neighbours_share_one_read(tmp_path, kind):
    base = torch.arange(1 << 18, dtype=torch.float32)
    state = {f'part{i}': part for i, part in enumerate(base.reshape(256, -1))}
    tensors = read(save(state, tmp_path / 'a', kind)).tensors
    fetch = tensors['part0'].read.func.__self__.load.func
    arrays = [tensor.numpy() for tensor in tensors.values()]
    assert fetch.cache_info().misses == 1
    assert np.concatenate(arrays).tobytes() == as_bytes(base)
    assert arrays[0].base is None  # does not keep the whole storage


class Fake:
    """Pickled as a tensor of any shape over a storage of 4 numbers."""

    def __init__(self, offset, size, stride):
        self.numbers = offset, size, stride

    def __reduce__(self):
        storage = torch.arange(4.0)._typed_storage()
        args = (storage, *self.numbers, False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, args


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
@pytest.mark.parametrize(
    'numbers',
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (4, (), ()),
        (0, (2, 2), (3, 1)),
        (0, (2,), (2**62,)),
        (2**70, (1,), (1,)),
    ],
)
def test_tensors_beyond_their_storage(tmp_path, kind, numbers):
    path = save({'good': Fake(1, (3,), (1,)), 'bad': Fake(*numbers)}, tmp_path / 'a', kind)
    tensors = read(path).tensors
    assert tensors['good'].numpy().tolist() == [1, 2, 3]
    with pytest.raises(UserError, match=r"^tensor 'bad' cannot be read: it reaches outside"):
        tensors['bad'].numpy()


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
@pytest.mark.parametrize('shape', [(2**40, 2**40), (2**20,)])
def test_a_few_numbers_that_claim_to_be_many(tmp_path, kind, shape):
    path = save({'bad': Fake(0, shape, (0,) * len(shape))}, tmp_path / 'a', kind)
    assert 'its tensors claim' in message(path)


def test_compressed_archives(tmp_path):
    path = save({'zeros': torch.zeros(10_000)}, tmp_path / 'a')
    packed = tmp_path / 'b'
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as new:
        for record in old.namelist():
            new.writestr(record, old.read(record))
    assert 'compressed archive' in message(packed)


def test_no_source_at_all():
    for source, words in (('', 'is empty'), (None, 'not NoneType'), ([1], 'not list')):
        with pytest.raises(UserError, match=words):
            read(source)


@pytest.mark.parametrize(
    'numbers', [(-1, (1,), (1,)), (3, (2,), (-1,)), (0, (1,), ()), (0, 'x', 1)]
)
def test_impossible_shapes(tmp_path, numbers):
    path = save({'bad': Fake(*numbers)}, tmp_path / 'a')
    assert message(path).startswith('is damaged or cut short')


def test_storage_views_of_old_files(tmp_path):
    """PyTorch before 0.4 stored views of storages; Python 2 stored bytes as text."""
    stream = io.BytesIO(MAGIC)
    stream.seek(0, io.SEEK_END)
    stream.write(b'\x80\x02}(X\x01\x00\x00\x00aU\x02\xff\xfeX\x01\x00\x00\x00b')
    stream.write(
        b'ctorch._utils\n_rebuild_tensor\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n'
    )
    stream.write(b'X\x01\x00\x00\x009X\x03\x00\x00\x00cpuK\x05(X\x01\x00\x00\x008K\x02K\x03tt')
    stream.write(b'QK\x01K\x02\x85K\x01\x85tRu.')
    stream.write(pickle.dumps(['9'], 2) + (5).to_bytes(8, 'little'))
    stream.write(np.arange(5, dtype='<f4').tobytes())
    (tmp_path / 'a').write_bytes(stream.getvalue())
    source = read(tmp_path / 'a')
    assert source.tensors['b'].numpy().tolist() == [3, 4]
    assert source.notes == ("ignored what is no tensor: 'a'",)


def test_unsupported_types_are_left_out(tmp_path):
    state = {'a': torch.ones(2), 'f8': torch.ones(2).to(torch.float8_e4m3fn)}
    for kind in FORMATS:
        source = read(save(state, tmp_path / kind, kind))
        check(source.tensors, {'a': state['a']})
        assert "ignored what is no tensor: 'f8'" in source.notes


# ------------------------------------------------------------------------------- integrity


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
    assert message(tmp_path / 'none').startswith('does not exist (')
    assert 'hf:OWNER/REPO' in message(tmp_path / 'none')
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

    def result(name):
        (tmp_path / name).write_bytes(data)
        try:
            return read(tmp_path / name).sha256
        except UserError as error:
            return str(error).removeprefix(f'{tmp_path / name} ')

    for name in (
        *(
            f'hrnet-w18_8xb32_in1k_20220120-{right[:8]}.pth',
            f'x-{right}.pth.tar',
            f'x-{right[:20]}',
        ),
        *('hrnet_w18-20220120.pth', 'x-19991231.pth', 'x-00050000.pth', 'x-20240131123456.pth'),
        *(
            'hrnet-w18.pth',
            'x-abcdef.pth',
            f'x_{wrong}.pth',
            f'x-{wrong}0123456g.pth',
            'x-FFFFFFFF',
        ),
    ):
        assert result(name) == right, name
    for digits in (wrong, '19126642', '20221301', '20220132', '18991231', '21000101', wrong * 8):
        for extension in ('', '.pth', '.pth.tar'):
            text = result(f'hrnet-w64_20220120-{digits}{extension}')
            assert text.startswith(
                f'is damaged or renamed: its name promises a sha256 of {digits}...'
            )
            assert f'{right[: len(digits)]}...' in text


# --------------------------------------------------------------------------- hostile pickles


def text(string):
    return b'X' + len(string.encode()).to_bytes(4, 'little') + string.encode()


def get(module, name):
    return f'c{module}\n{name}\n'.encode()


def call(function, *args):
    return function + b'(' + b''.join(args) + b'tR'


GETATTR = get('builtins', 'getattr')


def payloads(canary):
    """A global that must stay inert -> opcodes that make the file `canary` where it does not."""
    shell = f'touch {canary}'
    code = f'open({str(canary)!r}, "w").close()'
    compiled = call(get('builtins', 'compile'), text(code), text('x'), text('exec'))
    libc = call(get('ctypes', 'CDLL'), b'N')
    return {
        'posix.system': call(get('posix', 'system'), text(shell)),
        '__builtin__.eval': call(get('__builtin__', 'eval'), text(code)),
        'builtins.exec': call(text('builtins') + text('exec') + b'\x93', text(code)),
        'os.path.os.system': call(text('os') + text('path.os.system') + b'\x93', text(shell)),
        'os.system': b'(' + text(shell) + b'ios\nsystem\n',
        'subprocess.getoutput': b'(' + get('subprocess', 'getoutput') + text(shell) + b'o',
        'io.open': call(get('io', 'open'), text(str(canary)), text('w')),
        'subprocess.call': call(
            get('subprocess', 'call'), b'](' + text('touch') + text(str(canary)) + b'e'
        ),
        'runpy._run_code': call(get('runpy', '_run_code'), compiled, b'}'),
        'numpy.testing._private.utils.runstring': call(
            get('numpy.testing._private.utils', 'runstring'), text(code), b'}'
        ),
        'builtins.getattr': call(
            call(GETATTR, call(GETATTR, get('os', 'path'), text('os')), text('system')), text(shell)
        ),
        'ctypes.CDLL': call(
            call(GETATTR, libc, text('system')), b'C' + bytes([len(shell)]) + shell.encode()
        ),
    }


PAYLOADS = list(payloads('/'))


def plant(opcodes, path, kind, tree):
    """Saves the tree with the opcodes in place of the string 'PLANT'."""
    save(tree, path, kind)
    if kind == 'zip':
        rewrite(path, lambda records: _replace(records, f'{path.stem}/data.pkl', opcodes))
    else:
        data = {'': path.read_bytes()}
        _replace(data, '', opcodes)
        path.write_bytes(data[''])
    return path


def _replace(records, name, opcodes):
    assert records[name].count(text('PLANT')) == 1
    records[name] = records[name].replace(text('PLANT'), opcodes)


@pytest.mark.parametrize('name', PAYLOADS)
def test_hostile_pickles(tmp_path, name):
    canary = tmp_path / 'canary'
    opcodes = payloads(canary)[name]
    pickle.loads((b'\x80\x02' if '__' in name else b'\x80\x04') + opcodes + b'.')
    assert canary.exists()  # the opcodes do what they should
    canary.unlink()
    weights = {'conv.weight': torch.arange(4.0), 'conv.bias': torch.ones(2)}
    for kind in ('zip', 'legacy'):
        path = plant(
            opcodes,
            tmp_path / f'{kind}.pth',
            kind,
            {'state_dict': weights, 'meta': {'x': ['PLANT']}},
        )
        source = read(path)
        check(source.tensors, weights)
        assert name in source.notes[0].removeprefix('left inert: ').split(', ')
        path = plant(opcodes, tmp_path / f'{kind}.pth', kind, 'PLANT')
        assert message(path).startswith('holds no tensors with names, only a pickled ')
        path = plant(opcodes, tmp_path / f'{kind}.pth', kind, {**weights, 'PLANT': 1})  # as a key
        check(read(path).tensors, weights)
        path = plant(
            opcodes, tmp_path / f'{kind}.pth', kind, {**weights, 'conv.running_mean': 'PLANT'}
        )
        check(read(path).tensors, weights)
    assert not canary.exists()


def test_hostile_pickles_around_the_object_of_a_legacy_file(tmp_path):
    """The header and the list of storages are pickles too."""
    canary = tmp_path / 'canary'
    hostile = b'\x80\x02' + payloads(canary)['posix.system'] + b'.'
    data = save({'a': torch.ones(2)}, tmp_path / 'a', 'legacy').read_bytes()
    keys = data.rindex(b'\x80\x02')
    parts = [MAGIC[:15], MAGIC[15:21]]
    assert data.startswith(b''.join(parts))
    for changed in (hostile, parts[0] + hostile, b''.join(parts) + hostile, data[:keys] + hostile):
        (tmp_path / 'a').write_bytes(changed)
        assert message(tmp_path / 'a').startswith(('is damaged or cut short', 'is a plain pickle'))
    assert not canary.exists()


def test_attributes_cannot_be_set(tmp_path):
    state = b'N}' + text('__defaults__') + b'NsX\x04\x00\x00\x00name' + text('changed') + b's\x86b'
    values = b'}' + text('name') + text('changed') + b'sb'
    targets = [
        get('torch._utils', '_rebuild_tensor_v2'),
        get('builtins', 'set'),
        get('torch', 'Size'),
    ]
    targets += [
        get('torch', 'FloatStorage'),
        get('collections', 'OrderedDict'),
        get('os', 'system'),
    ]
    targets += [call(get('os', 'system'))]
    before = pickles._tensor.__defaults__, dict(vars(pickles._tensor)), pickles.Inert.name
    for target in targets:
        for build in (state, values):
            path = plant(
                target + build, tmp_path / 'a', 'zip', {'a': torch.ones(1), 'meta': 'PLANT'}
            )
            check(read(path).tensors, {'a': torch.ones(1)})
    assert before == (pickles._tensor.__defaults__, vars(pickles._tensor), pickles.Inert.name)


@pytest.mark.parametrize(
    'name',
    ['_rebuild_tensor_v2.__globals__', '_rebuild_tensor_v2.__call__', '_rebuild_tensor_v2.', ''],
)
def test_dotted_names_lead_nowhere(tmp_path, name):
    opcodes = b'\x80\x04' + text('torch._utils') + text(name) + b'\x93'
    path = plant(opcodes, tmp_path / 'a', 'zip', {'a': torch.ones(1), 'x': 'PLANT'})
    assert f'left inert: torch._utils.{name}' in read(path).notes


def test_extension_codes(tmp_path):
    canary = tmp_path / 'canary'
    copyreg.add_extension('os', 'system', 0x7E1234)
    try:
        extension = b'\x84' + (0x7E1234).to_bytes(4, 'little')
        assert pickle.loads(b'\x80\x02' + extension + b'.') is os.system  # and now it is cached
        opcodes = call(extension, text(f'touch {canary}'))
        path = plant(opcodes, tmp_path / 'a', 'zip', {'a': torch.ones(1), 'x': 'PLANT'})
        assert message(path).startswith('is damaged or cut short (UnpicklingError)')
    finally:
        copyreg.remove_extension('os', 'system', 0x7E1234)
        copyreg.clear_extension_cache()
    assert not canary.exists()


@pytest.mark.parametrize(
    ('opcodes', 'error'),
    [
        (text('x') + b'Q', 'UnpicklingError'),  # persistent objects
        (b'Px\n', 'UnpicklingError'),
        (text('storage') + b'\x85Q', 'UnpicklingError'),
        (b'\x96' + (2**60).to_bytes(8, 'little'), 'MemoryError'),
        (b'\x95' + (2**60).to_bytes(8, 'little'), 'IndexError'),
        (b'\x8b' + (2**31 - 1).to_bytes(4, 'little'), 'EOFError'),
        (b'I' + b'9' * 5000 + b'\n', 'ValueError'),
        (b'0' * 50, 'IndexError'),
        (b'\xff', 'KeyError'),
        (b'K\x01)R', 'TypeError'),
        (b'h\xfe', 'UnpicklingError'),
        (get('torch._utils', '_rebuild_tensor_v2') + b')R', 'TypeError'),
        (get('torch._utils', '_rebuild_tensor_v2') + b')\x81', 'TypeError'),
        (get('builtins', 'set') + b'K\x01\x85R', 'TypeError'),
    ],
)
def test_malformed_pickles(tmp_path, opcodes, error):
    path = plant(opcodes, tmp_path / 'a', 'zip', {'a': torch.ones(1), 'x': 'PLANT'})
    assert message(path).startswith(f'is damaged or cut short ({error})')


@pytest.mark.parametrize(
    'opcodes',
    [
        b']' + b'\x85' * 200_000,
        b'](' + b'](' * 100_000 + b'e' * 100_001,
        b'}' + b')' + b'\x85' * 200_000 + b'K\x01s',  # hashes it
        b'Nr\xff\xff\xff\xff',  # the largest index of the memo
        b'}q\xffX\x01\x00\x00\x00ah\xffs',  # holds itself
        call(
            get('torch._tensor', '_rebuild_from_type_v2'),
            get('posix', 'system'),
            b'N',
            text('x') + b'\x85',
            b'N',
        ),
        get('os', 'system')
        + b')}\x92K\x01aK\x02K\x03s(K\x01e(K\x01\x90(K\x01K\x02u',  # items of an inert one
        call(GETATTR, get('a', 'b'), text('c')) + b')\x81',
    ],
)
def test_odd_pickles_that_load(tmp_path, opcodes):
    path = plant(
        opcodes, tmp_path / 'a', 'zip', {'a': torch.ones(1), 'net': {'x': 'PLANT'}, 'x': [1]}
    )
    check(read(path).tensors, {'a': torch.ones(1)})


class HistoryBuffer:
    def __init__(self):
        self._log_history, self._statistics_methods = np.arange(3.0), {'mean': max}


HistoryBuffer.__module__ = 'mmengine.logging.history_buffer'


class Colour(enum.Enum):
    RED = 1


class Outer:
    class Inner(dict):
        __slots__ = ('slot',)

        def __init__(self):
            super().__init__(a=1)
            self.slot = 2


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.filterwarnings('ignore:.*quantize')
def test_what_else_training_scripts_store(tmp_path, kind, protocol, monkeypatch):
    for name in ('mmengine', 'mmengine.logging', 'mmengine.logging.history_buffer'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules['mmengine.logging.history_buffer'].HistoryBuffer = HistoryBuffer
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tree = {
        'meta': {
            'dataset_meta': {
                'sigmas': np.ones(3),
                'colors': [np.array([1, 2])],
                'CLASSES': ('a', 'é'),
            },
            'time': datetime.datetime(2022, 1, 20, tzinfo=datetime.timezone.utc),  # noqa: UP017
            'path': Path('/a'),
        },
        'message_hub': {'log_scalars': collections.OrderedDict(loss=HistoryBuffer())},
        'state_dict': model.state_dict(),
        'optimizer': optimizer.state_dict(),
        'perf': np.float64(76.5),
        'best_mIoU': np.float32(0.8),
        'args': argparse.Namespace(lr=0.1, device=torch.device('cpu'), dtype=torch.float16),
        'odd': [
            Colour.RED,
            Outer.Inner(),
            {1, 2},
            frozenset('a'),
            1j,
            b'bytes',
            bytearray(b'a'),
            2**80,
        ],
        'counts': collections.Counter('abca'),
        'more': collections.defaultdict(list, a=[1]),
        'deque': collections.deque([1], 3),
        'quantised': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        'storage': torch.ones(2).untyped_storage(),
        'rng': torch.get_rng_state(),
    }
    source = read(save(tree, tmp_path / 'a', kind, pickle_protocol=protocol))
    check(source.tensors, dict(model.state_dict()))
    assert source.container == 'state_dict'
    assert len(source.notes) == 1
    assert source.notes[0].startswith('left inert: ')
    assert ' more' in source.notes[0]


# -------------------------------------------------------------------------------- containers


def state(value, prefix=''):
    return {
        f'{prefix}conv.weight': torch.full((2, 1), value),
        f'{prefix}bn.bias': torch.full((2,), value),
    }


W, M = state(1.0), state(1.0, 'module.')
R, B = state(2.0), state(3.0, 'module.')
LEFT = "took the weights under '{}', not those under {}".format
OTHER = {**W, 'ema_other': R['bn.bias']}
STATISTICS = {f'data_preprocessor.{name}': torch.ones(3) for name in ('mean', 'std')}
STEPS = {'steps': torch.tensor(5)}
# what is saved; the keys that lead to the weights; the weights; remarks
CONTAINERS = {
    'plain': (W, '', W, []),
    'prefix is kept': (M, '', M, []),
    'classification': (
        {'epoch': 3, 'model': 'cls_hrnet', 'state_dict': W, 'perf': 70.5, 'optimizer': {'a': R}},
        'state_dict', W, [],
    ),
    'pose': (
        {'epoch': 3, 'model': 'pose_hrnet', 'state_dict': M, 'best_state_dict': R, 'optimizer': {}},
        'state_dict', M, [LEFT('state_dict', 'best_state_dict')],
    ),
    'timm': (
        {'epoch': 3, 'arch': 'hrnet_w18', 'state_dict': R, 'state_dict_ema': W, 'optimizer': {}},
        'state_dict_ema', W, [LEFT('state_dict_ema', 'state_dict')],
    ),
    'model_ema': (
        {'model': R, 'model_ema': {'module': W}},
        'model_ema.module', W, [LEFT('model_ema', 'model')],
    ),
    'torchvision': (
        {'model': R, 'model_ema': {'n_averaged': torch.tensor(5), **M}, 'args': None},
        'model_ema', M, [LEFT('model_ema', 'model')],
    ),
    'mmcls 0.x': ({'meta': {'CLASSES': ('a',)}, 'state_dict': W}, 'state_dict', W, []),
    'mmengine': (
        {'meta': {}, 'state_dict': W, 'message_hub': {}, 'ema_state_dict': {**STEPS, **B}},
        'state_dict', W, [LEFT('state_dict', 'ema_state_dict')],
    ),
    'mmengine, raw only': ({'ema_state_dict': {**STEPS, **B}}, 'ema_state_dict', B, []),
    'mmcv 1.x': (
        {'state_dict': {**W, 'ema_conv_weight': R['conv.weight'], 'ema_bn_bias': R['bn.bias']}},
        'state_dict', W, ['ignored 2 copies named ema_*'],
    ),
    'a name like an average': (OTHER, '', OTHER, []),
    'mmpose': ({'state_dict': {**STATISTICS, **W}}, 'state_dict', W, []),
    'three deep': ({'model': {'state_dict': {'module': W}}}, 'model.state_dict.module', W, []),
    'an unknown one': ({'network': W, 'optimizer': {'a': R}}, '', state(1.0, 'network.'), []),
    'in parts': (
        {'state_dict': {'a': W, 'b': R}},
        'state_dict', {**state(1.0, 'a.'), **state(2.0, 'b.')}, [],
    ),
    'empty ones': ({'state_dict_ema': {}, 'model': None, 'state_dict': W}, 'state_dict', W, []),
    'beside a tensor': ({'best_acc1': torch.ones(1), 'state_dict': W}, 'state_dict', W, []),
    'other entries': (
        {**W, 'epoch': 3, 'extra': 'x', 'list': [R['bn.bias']], 5: 6},
        '', W, ["ignored what is no tensor: 'extra', 'list', int"],
    ),
    'many entries': (
        {**W, **{f'e{i}': i for i in range(9)}},
        '', W, ["ignored what is no tensor: 'e0', 'e1', 'e2', 'e3', 'e4', 'e5' and 3 more"],
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', CONTAINERS)
def test_containers(tmp_path, case):
    tree, container, expected, notes = CONTAINERS[case]
    source = read(save(tree, tmp_path / 'a'))
    check(source.tensors, expected)
    assert (source.container, list(source.notes)) == (container, notes)
    # The same object in memory.
    tensors, where, remarks = resolve(tree)
    assert list(tensors) == list(expected)
    assert all(
        tensors[name] is tensor or torch.equal(tensors[name], tensor)
        for name, tensor in expected.items()
    )
    assert (where, list(remarks)) == (container, notes)


def test_arrays_in_memory():
    arrays = {'a': np.ones(2), 'b': np.float32(3)}
    tensors, where, notes = resolve({'state_dict': arrays, 'meta': {'x': np.ones(3)}})
    assert tensors['a'] is arrays['a']
    assert (list(tensors), where, notes) == (
        ['a'],
        'state_dict',
        ("ignored what is no tensor: 'b'",),
    )
    with pytest.raises(
        UserError, match=r"^the state dict holds no tensors with names, only 'b' \(int\);"
    ):
        resolve({'b': 1})


# ---------------------------------------------------------------------------------- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """What a download needs of the hub; `files` has bytes by repository, revision, name."""

    files: dict = {}  # noqa: RUF012
    asked: list = []  # noqa: RUF012

    def do_HEAD(self):
        repository, _, rest = self.path[1:].partition('/resolve/')
        revision, _, name = rest.partition('/')
        self.asked.append((repository, revision, name))
        known = {key[:2] for key in self.files}
        error = (
            ('GatedRepo', 403) if repository == 'timm/gated'
            else ('RepoNotFound', 401) if repository not in {key[0] for key in known}
            else ('RevisionNotFound', 404) if (repository, revision) not in known
            else ('EntryNotFound', 404) if (repository, revision, name) not in self.files
            else None
        )  # fmt: skip
        data = b'' if error else self.files[repository, revision, name]
        self.send_response(error[1] if error else 200)
        if error:
            self.send_header('X-Error-Code', error[0])
        self.send_header('X-Repo-Commit', '0123456789' * 4)
        self.send_header('ETag', f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        return data

    def do_GET(self):
        data = self.do_HEAD()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, *args):
        pass


SCRIPT = """
import json, sys
from convert.readers import read
assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules
answers = []
for origin in sys.argv[1:]:
    try:
        source = read(origin)
        values = {name: t.numpy().tolist() for name, t in source.tensors.items()}
        answers.append([source.path.name, source.origin, values])
    except ValueError as error:
        answers.append(f'{type(error).__name__}: {error}')
assert 'torch' not in sys.modules
print(json.dumps(answers))
"""


def in_subprocess(tmp_path, endpoint, *origins, **env):
    env = {name: value for name, value in os.environ.items() if not name.startswith('HF_')} | {
        **{
            'HF_ENDPOINT': endpoint,
            'HF_HUB_CACHE': str(tmp_path / 'hub'),
            'HF_HOME': str(tmp_path),
        },
        **{'HF_HUB_DISABLE_XET': '1', 'HF_HUB_DISABLE_TELEMETRY': '1', 'NO_PROXY': '127.0.0.1'},
        **env,
    }
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT, *origins],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_hub(tmp_path):
    one, two = {'a': torch.tensor([1.0])}, {'a': torch.tensor([2.0])}
    st = save(one, tmp_path / 'x.safetensors', 'safetensors').read_bytes()
    old = save({'state_dict': two}, tmp_path / 'x.bin').read_bytes()
    Hub.files = {
        ('timm/both', 'main', 'model.safetensors'): st,
        ('timm/both', 'main', 'pytorch_model.bin'): old,
        ('timm/bin', 'v1.0', 'pytorch_model.bin'): old,
        ('timm/none', 'main', 'README.md'): b'',
    }
    Hub.asked = []
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f'http://127.0.0.1:{server.server_address[1]}'
    names = ('both', 'bin@v1.0', 'none', 'bin@v2', 'gated', 'absent')
    try:
        both, binary, *errors = in_subprocess(
            tmp_path, endpoint, *(f'hf:timm/{name}' for name in names)
        )
    finally:
        server.shutdown()
        server.server_close()
    assert both == ['model.safetensors', 'hf:timm/both', {'a': [1.0]}]
    assert binary == ['pytorch_model.bin', 'hf:timm/bin@v1.0', {'a': [2.0]}]
    reasons = (
        'the repository has neither model.safetensors nor pytorch_model.bin',
        'the repository has no such revision',
        'its owner must let you in: ask on its page, then run `hf auth login`',
        'no such repository; if it is private, run `hf auth login` first',
    )
    for name, reason, error in zip(names[2:], reasons, errors, strict=True):
        assert error == f'UserError: hf:timm/{name} cannot be downloaded: {reason}'
    assert ('timm/both', 'main', 'pytorch_model.bin') not in Hub.asked
    # Nobody answers any more: what is in the cache still loads.
    answers = in_subprocess(
        tmp_path, endpoint, 'hf:timm/both', 'hf:timm/bin@v1.0', 'hf:timm/new', HF_HUB_OFFLINE='1'
    )
    assert answers[:2] == [both, binary]
    offline = 'the hub cannot be reached and the file is not in the cache'
    assert answers[2] == f'UserError: hf:timm/new cannot be downloaded: {offline}'


def test_hub_without_answer_is_tried_once(monkeypatch):
    asked = []

    def download(repository, name, revision, local_files_only):
        asked.append((repository, name, revision, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError('no')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    offline = 'cannot be downloaded: the hub cannot be reached and the file is not in the cache'
    assert message('hf:a/b@c/d') == offline
    assert asked == [
        ('a/b', 'model.safetensors', 'c/d', False),
        ('a/b', 'pytorch_model.bin', 'c/d', True),
    ]


@pytest.mark.parametrize(
    'origin', ['hf:', 'hf:timm', 'hf:a/b/c', 'hf:a/b@', 'hf:../x', 'hf:a/b c', 'hf:-a/b']
)
def test_names_of_repositories(origin, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert message(origin) == 'is no repository: write hf:OWNER/REPO or hf:OWNER/REPO@REVISION'


def test_missing_packages(tmp_path, monkeypatch):
    for name in ('huggingface_hub', 'safetensors'):
        monkeypatch.setitem(sys.modules, name, None)
    assert message('hf:a/b') == 'needs a package that is missing: pip install huggingface_hub'
    path = tmp_path / 'a'
    path.write_bytes(b'\x02\0\0\0\0\0\0\0{}')
    assert message(path) == 'needs a package that is missing: pip install safetensors'
