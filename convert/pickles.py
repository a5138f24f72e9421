"""An unpickler of what `torch.save` writes, safe whatever the file holds, without PyTorch.

A pickle is a program whose calls the file chooses. Here only the functions below can be called,
every other global is inert, and no attribute of anything can be set.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
import re
from collections.abc import Callable
from typing import IO, Any, ClassVar

import ml_dtypes
import numpy as np

from hrnet_jax.errors import UserError, first_line, listed

_SHOWN = 6  # inert names in a note
_TYPES = (
    *('float16', 'float32', 'float64', 'int8', 'int16', 'int32', 'int64', 'bool'),
    *('uint8', 'uint16', 'uint32', 'uint64', 'complex64', 'complex128', ml_dtypes.bfloat16),
)
DTYPES = {dtype.name: dtype for dtype in map(np.dtype, _TYPES)}
_STORAGES = {
    **{'Double': 'float64', 'Float': 'float32', 'Half': 'float16', 'BFloat16': 'bfloat16'},
    **{'Long': 'int64', 'Int': 'int32', 'Short': 'int16', 'Char': 'int8', 'Byte': 'uint8'},
    **{'ComplexDouble': 'complex128', 'ComplexFloat': 'complex64', 'Bool': 'bool'},
    **{'QInt32': 'int32', 'QInt8': 'int8', 'QUInt8': 'uint8', 'Untyped': 'uint8'},
}


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor in a file; nothing of it is read before `numpy()`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)
    name: str = ''

    def numpy(self) -> np.ndarray:
        """The values, perhaps read-only; a UserError if bytes are missing or damaged."""
        try:
            return self.read()
        except Exception as error:
            raise UserError(
                f'tensor {self.name!r} cannot be read: {first_line(error)}; the file is damaged, '
                'get it again'
            ) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """A run of bytes in a file that tensors are views of."""

    load: Callable[[], bytes]
    dtype: np.dtype
    start: int = 0  # only in files of PyTorch before 0.4

    def view(self, offset: int, shape: tuple, stride: tuple, dtype: np.dtype) -> np.ndarray:
        data, size = self.load(), dtype.itemsize
        start = (self.start + offset) * size
        try:  # NumPy checks that every element lies in the buffer
            array = np.ndarray(shape, dtype, data, start, [n * size for n in stride])
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f'it reaches outside its storage of {len(data)} bytes') from None
        return array.copy() if array.nbytes < len(data) else array  # so that the rest can go


class Inert:
    """Stands for a global we do not know: takes any call and any item, does nothing."""

    name = ''

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return object.__new__(cls if isinstance(cls, type) else type(cls))

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def append(self, *args: Any) -> None:
        pass

    extend = add = __setitem__ = append


class _Tuple(tuple):
    """Hashed by identity: the hash of a deep nest of tuples would overflow the C stack."""

    __slots__ = ()
    __hash__ = object.__hash__


def _dict(*args: Any) -> dict:
    """For OrderedDict and defaultdict; the first argument of the latter is a class."""
    return dict(args[0]) if args and isinstance(args[0], list) else {}


def _tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, grad=False, hooks=None, metadata=None
) -> LazyTensor | Inert:
    return _tensor_v3(storage, offset, size, stride, grad, hooks, None, metadata)


def _tensor_v3(
    storage: Any, offset: int, size: tuple, stride: tuple, grad, hooks, dtype, metadata=None
) -> LazyTensor | Inert:
    if dtype is None:
        dtype = getattr(storage, 'dtype', None)
    # Metadata says that the numbers are to be negated or conjugated.
    if not isinstance(storage, Storage) or not isinstance(dtype, np.dtype) or metadata:
        return Inert()
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError('a tensor of an impossible shape')
    view = functools.partial(storage.view, offset, tuple(size), tuple(stride), dtype)
    return LazyTensor(tuple(size), dtype, view)


def _parameter(data: Any, *rest: Any) -> Any:
    return data


def _from_type(function: Any, kind: Any, args: tuple, state: Any) -> Any:
    return function(*args)  # whatever can be called is of this module


def _from_device(data: Any, dtype: Any, *rest: Any) -> Any:
    """Of a TPU or another device, copied to the host before it was saved."""
    if not isinstance(data, LazyTensor) or not isinstance(dtype, np.dtype):
        return Inert()
    if data.dtype == dtype:
        return data
    return LazyTensor(data.shape, dtype, lambda: data.read().astype(dtype))


def _from_numpy(*args: Any) -> Any:
    raise UserError(
        'holds tensors of a device (a TPU, perhaps) that were saved as NumPy arrays; load it with '
        'torch there, and save {k: v.cpu() for k, v in model.state_dict().items()} again'
    )


_GLOBALS: dict[tuple[str, str], Any] = {
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_tensor_v3'): _tensor_v3,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('torch._utils', '_rebuild_parameter_with_state'): _parameter,
    ('torch._tensor', '_rebuild_from_type_v2'): _from_type,
    ('torch._utils', '_rebuild_device_tensor_from_cpu_tensor'): _from_device,
    ('torch._utils', '_rebuild_device_tensor_from_numpy'): _from_numpy,
    ('torch._utils', '_rebuild_xla_tensor'): _from_numpy,
    ('torch', 'Size'): _Tuple,
    ('collections', 'OrderedDict'): _dict,
    ('collections', 'defaultdict'): _dict,
    ('builtins', 'set'): set,
    ('builtins', 'frozenset'): frozenset,
    ('__builtin__', 'set'): set,
    ('__builtin__', 'frozenset'): frozenset,
    **{('torch', name): dtype for name, dtype in DTYPES.items()},
    **{
        (module, f'{prefix}{name}Storage'): DTYPES[dtype]
        for module, prefix in (('torch', ''), ('torch.storage', ''), ('torch.storage', '_'))
        for name, dtype in _STORAGES.items()
    },
}


class Unpickler(pickle._Unpickler):
    """Builds plain containers, `LazyTensor` and `Inert`, nothing else.

    Python's own implementation, not the one in C: there BUILD sets attributes of any object, EXT
    may skip `find_class`, and one damaged memo index allocates gigabytes.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], fetch: Callable[[Any], bytes]):
        # Python 2 wrote numbers of NumPy as text that only latin1 always decodes.
        super().__init__(file, encoding='latin1')
        self.fetch = fetch
        self.inert: dict[str, type[Inert]] = {}
        self.dtypes: dict[Any, np.dtype] = {}  # of each storage, at its first use

    def find_class(self, module: str, name: str) -> Any:
        known = _GLOBALS.get((module, name))  # whole names only: dots lead nowhere
        if known is not None:
            return known
        shown = re.sub(r'[^\w.]', '?', f'{module}.{name}')[:80]
        return self.inert.setdefault(shown, type('Inert', (Inert,), {'name': shown}))

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and pid[:1] == ('module',):
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != 'storage':
            raise pickle.UnpicklingError('an unknown kind of persistent object')
        dtype, key, view = pid[1], pid[2], pid[5:] and pid[5]
        if not isinstance(dtype, np.dtype):  # quantised numbers
            return Inert()
        self.dtypes.setdefault(key, dtype)
        return Storage(functools.partial(self.fetch, key), dtype, view[1] if view else 0)

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError('an extension code')

    def _ignore_state(self) -> None:
        self.stack.pop()

    def _tuple(self, load: Callable) -> None:
        load(self)
        self.stack[-1] = _Tuple(self.stack[-1])

    dispatch[pickle.BUILD[0]] = _ignore_state
    for _op in (pickle.TUPLE[0], pickle.TUPLE1[0], pickle.TUPLE2[0], pickle.TUPLE3[0]):
        dispatch[_op] = functools.partial(_tuple, load=dispatch[_op])

    def notes(self) -> list[str]:
        names = sorted(self.inert)
        return [f'left inert: {listed(names, _SHOWN)}'] if names else []
