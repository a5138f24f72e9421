"""The file formats of checkpoints, recognised by content: what they hold, and whether it is whole."""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.pickles import DTYPES, LazyTensor, Unpickler
from hrnet_jax.errors import UserError

Reader = Callable[[Path], tuple[Any, list[str]]]  # -> the object in the file, remarks
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def recognise(path: Path) -> Reader:
    """The reader for a file.

    Raises:
        UserError: saying what it is, if no checkpoint.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = 'a directory: give the file in it' if stat.S_ISDIR(mode) else 'no regular file'
        raise UserError(f'is {kind}')
    with path.open('rb') as file:
        head = file.read(1024)
    for pattern, reader in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            if isinstance(reader, str):
                raise UserError(reader)
            return reader
    raise UserError('is no checkpoint: neither of torch.save nor safetensors')


def checked_digest(path: Path) -> str:
    """The sha256 of a file, compared with the beginning of it that publishers put in the name.

    That is a `-` and 8 to 64 hexadecimal digits before the extensions. Digits alone are taken for
    it only if they are 8 that do not start with 00 (the number of a step) and are no date from
    1990 to 2099, so 19126642 is.
    """
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    match = re.fullmatch(r'.*-([0-9a-f]{8,64})(\.\w+)*', path.name)
    promised = match[1] if match else ''
    if re.fullmatch(r'\d+', promised) and (len(promised) != 8 or _is_counter(promised)):
        return digest
    if not digest.startswith(promised):
        raise UserError(
            f'is damaged or renamed: its name promises a sha256 of {promised}..., its content has '
            f'{digest[: len(promised)]}...; get it again'
        )
    return digest


def _is_counter(digits: str) -> bool:
    try:
        return (
            digits.startswith('00')
            or 1990 <= datetime.datetime.strptime(digits, '%Y%m%d').year < 2100
        )
    except ValueError:
        return False


def read_zip(path: Path) -> tuple[Any, list[str]]:
    """The object in a file of PyTorch 1.6 and later, and remarks."""
    archive = zipfile.ZipFile(path)
    found = [name for name in archive.namelist() if re.fullmatch('[^/]*/data.pkl', name)]
    prefix = found[0].removesuffix('data.pkl') if len(found) == 1 else None
    if prefix is None:
        raise UserError(
            'is a zip archive, but not of torch.save: unpack it and give what is inside'
        )
    if f'{prefix}constants.pkl' in archive.namelist():
        raise UserError(
            'is a TorchScript archive: torch.save the state_dict() of what torch.jit.load returns'
        )
    remarks = []
    records = [record for record in archive.infolist() if record.file_size]
    if not any(record.CRC for record in records):
        # set_crc32_options(False) writes zeros; by chance it needs 32 zero bits in every record.
        remarks = ['the file was written without checksums, so damage cannot be seen']
        for record in records:
            record.CRC = None  # type: ignore[assignment]  # zipfile compares none then
    if (
        f'{prefix}byteorder' in archive.namelist()
        and archive.read(f'{prefix}byteorder') != b'little'
    ):
        raise UserError('is from a big-endian machine: load it with torch here and save it again')
    # One kept: neighbours often share a storage.
    fetch = functools.lru_cache(1)(lambda key: archive.read(f'{prefix}data/{key}'))
    unpickler = Unpickler(io.BytesIO(archive.read(found[0])), fetch)
    return unpickler.load(), remarks + unpickler.notes()


def read_legacy(path: Path) -> tuple[Any, list[str]]:
    """The object in a file of PyTorch before 1.6, and remarks."""
    places: dict[Any, tuple[int, int]] = {}

    @functools.lru_cache(1)
    def fetch(key: Any) -> bytes:
        with path.open('rb') as file:
            file.seek(places[key][0])
            return file.read(places[key][1])

    with path.open('rb') as file:
        if Unpickler(file, fetch).load() != _LEGACY_MAGIC:
            raise UserError(
                'is a plain pickle, not of torch.save: save a state dict with torch.save'
            )
        for _ in ('protocol version', 'sizes of C types'):
            Unpickler(file, fetch).load()
        unpickler = Unpickler(file, fetch)
        tree = unpickler.load()
        for key in Unpickler(file, fetch).load():
            (count,) = struct.unpack('<q', file.read(8))
            size = count * unpickler.dtypes[key].itemsize
            places[key] = file.tell(), size
            if count < 0 or file.tell() + size > path.stat().st_size:
                raise EOFError('a storage is cut off')
            file.seek(size, io.SEEK_CUR)
    return tree, unpickler.notes()


def read_safetensors(path: Path) -> tuple[Any, list[str]]:
    """The tensors in a safetensors file, sorted by name."""
    try:
        from safetensors import safe_open
    except ModuleNotFoundError:
        raise UserError('needs a package that is missing: pip install safetensors') from None
    file = safe_open(str(path), framework='numpy')
    tree: dict[str, Any] = {}
    for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        bits = re.sub(r'^(BF|F|I|U)(\d+)$', _long_name, part.get_dtype()).lower()
        # Another type is left as its name, which is no tensor.
        tree[name] = part.get_dtype()
        if bits in DTYPES:
            load = functools.partial(file.get_tensor, name)
            tree[name] = LazyTensor(tuple(part.get_shape()), DTYPES[bits], load)
    return tree, []


def _long_name(match: re.Match) -> str:
    return {'BF': 'bfloat', 'F': 'float', 'I': 'int', 'U': 'uint'}[match[1]] + match[2]


_FORMATS: tuple[tuple[bytes, Reader | str], ...] = (
    (rb'\Z', 'is empty: get it again'),
    (rb'PK(\3\4|\5\6)', read_zip),
    (rb'.{5}\0\0\0\{', read_safetensors),  # 8 bytes with the length of a JSON header
    (rb'\x80[\1-\5]', read_legacy),
    (
        rb'\s*<(?i:!doctype|html|\?xml|head|body)',
        'is a web page: the download went wrong, get it again',
    ),
    (rb'version https://git-lfs', 'is a git LFS pointer, not the weights: run git lfs pull'),
    (rb'\s*(\{\s*["}]|\[)', 'is JSON, not weights: give the .pth or .safetensors file'),
    (
        rb'(\./)?(sys_info|storages|tensors|pickle)\0.*ustar',
        'is of PyTorch before 0.1.10: load it with an old PyTorch and save it again',
    ),
    (rb'.{257}ustar', 'is a tar archive: unpack it and give the file inside'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf', 'is compressed: unpack it first'),
    (rb'\x89HDF', 'is an HDF5 file, not of PyTorch'),
)
