"""Makes checkpoint files, and checks what was read of them."""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from convert.readers import read
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


class Fake:
    """Pickled as a tensor of any shape over a storage of 4 numbers."""

    def __init__(self, offset, size, stride):
        self.numbers = offset, size, stride

    def __reduce__(self):
        storage = torch.arange(4.0)._typed_storage()
        args = (storage, *self.numbers, False, collections.OrderedDict())
        return torch._utils._rebuild_tensor_v2, args
