"""Values bit for bit, from every format."""

from __future__ import annotations

import collections
import hashlib
import io
import pickle
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import FORMATS, MAGIC, Fake, as_bytes, check, message, save

from convert.readers import read
from hrnet_jax.errors import UserError


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


class OnDevice:
    """What `torch.save` writes of a tensor of another device."""

    def __init__(self, function, *args):
        self.function, self.args = getattr(torch._utils, function), args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
def test_saved_on_a_tpu(tmp_path, kind):
    tensor = torch.randn(3, 5)
    copied = '_rebuild_device_tensor_from_cpu_tensor'
    state = {
        'same': OnDevice(copied, tensor, torch.float32, 'xla:0', False),
        'smaller': OnDevice(copied, tensor, torch.bfloat16, 'xla:0', True),
    }
    expected = {'same': tensor, 'smaller': tensor.bfloat16()}
    source = read(save(state, tmp_path / 'a', kind))
    check(source.tensors, expected)
    assert source.notes == ()


@pytest.mark.parametrize('kind', ['zip', 'legacy'])
@pytest.mark.parametrize('name', ['_rebuild_device_tensor_from_numpy', '_rebuild_xla_tensor'])
def test_saved_on_a_tpu_as_numpy(tmp_path, kind, name):
    array = OnDevice(name, np.ones(3, np.float32), torch.float32, 'xla:0', False)
    text = message(save({'a': torch.ones(1), 'b': array}, tmp_path / 'a', kind))
    assert text.startswith('holds tensors of a device (a TPU, perhaps) that were saved as NumPy')
    assert 'v.cpu() for k, v in model.state_dict().items()' in text


@pytest.mark.parametrize('names', [('conv1.weight',), ('module.conv1.weight', 'module.bn1.bias')])
def test_shards_that_hold_nothing(tmp_path, names):
    state = {'module': {name: torch.zeros(0) for name in names}, 'ds_version': '0.14'}
    text = message(save(state, tmp_path / 'a'))
    assert text.startswith('holds names without numbers, as DeepSpeed (ZeRO-3) writes them')
    assert 'zero_to_fp32.py' in text
