"""Hostile and odd pickles: nothing is executed, harmless extras load."""

from __future__ import annotations

import argparse
import collections
import copyreg
import datetime
import enum
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import MAGIC, check, message, rewrite, save

from convert import pickles
from convert.readers import read


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
