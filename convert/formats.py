"""The file formats of checkpoints, recognised by content; whether a file is whole."""

from __future__ import annotations

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
from hrnet_jax.checkpoints.hub_files import hint
from hrnet_jax.errors import UserError

Reader = Callable[[Path], tuple[Any, list[str]]]  # -> the object in the file, remarks
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_SAFETENSORS = {
    **{'BF16': 'bfloat16', 'F16': 'float16', 'F32': 'float32', 'F64': 'float64', 'BOOL': 'bool'},
    **{f'I{bits}': f'int{bits}' for bits in (8, 16, 32, 64)},
    **{f'U{bits}': f'uint{bits}' for bits in (8, 16, 32, 64)},
}
# After the last `-` of a name: a long number, a step, a date from 1990 to 2099.
_NO_HASH = r'\d{9,}|00\d{6}|(199\d|20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])'


def find_format(path: Path) -> Reader:
    """The reader for a file.

    Raises:
        UserError: saying what it is, if no checkpoint.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = 'a directory: give the file in it' if stat.S_ISDIR(mode) else 'no regular file'
            raise UserError(f'is {kind}')
        with path.open('rb') as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise UserError(f'does not exist{hint(str(path))}') from None
    except OSError as error:
        raise UserError(f'cannot be read: {error.strerror}') from error
    for pattern, reader in _FORMATS:
        if re.match(pattern, head, re.DOTALL):
            if isinstance(reader, str):
                raise UserError(reader)
            return reader
    raise UserError('is no checkpoint: neither of torch.save nor safetensors')


def digest_of(path: Path) -> tuple[str, str | None]:
    """The sha256 of a file; where its name promises another, a remark.

    Publishers put the beginning of the hash into the name: a `-` and 8 to 64 hexadecimal digits
    before the extensions, or before a `_` and a date. Of decimal digits alone only 8 count, and not
    if they start with 00 (as steps do) or make a date from 1990 to 2099: 20220120 is none, 19126642
    is a hash.
    """
    with path.open('rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    match = re.fullmatch(r'.*-([0-9a-f]{8,64})(_\d{8})?(\.\w+)*', path.name)
    promised = match[1] if match else ''
    if digest.startswith(promised) or re.fullmatch(_NO_HASH, promised):
        return digest, None
    return digest, (
        f'its name promises a sha256 of {promised}..., its content has {digest[: len(promised)]}...'
    )


def read_zip(path: Path) -> tuple[Any, list[str]]:
    """The object in a file of PyTorch 1.6 and later, and remarks."""
    archive = zipfile.ZipFile(path)
    names = archive.namelist()
    found = [name for name in names if re.fullmatch(r'[^/]+/data\.pkl', name)]
    if len(found) != 1:
        raise UserError(
            'is a zip archive, but not of torch.save: unpack it and give the file inside'
        )
    prefix = found[0].removesuffix('data.pkl')
    if f'{prefix}constants.pkl' in names:
        raise UserError(
            'is a TorchScript archive: torch.save the state_dict() of what torch.jit.load returns'
        )
    remarks = []
    records = [record for record in archive.infolist() if record.file_size]
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        # torch.save compresses nothing; a small file that unpacks to gigabytes is an attack.
        raise UserError('is a compressed archive, which torch.save does not write: save it again')
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise EOFError('records that overlap, or are cut off')
    if not any(record.CRC for record in records):
        # set_crc32_options(False) writes zeros; by chance it needs 32 zero bits in every record.
        remarks = ['the file was written without checksums, so damage cannot be seen']
        for record in records:
            record.CRC = None  # type: ignore[assignment]  # zipfile compares none then
    if f'{prefix}byteorder' in names and archive.read(f'{prefix}byteorder') != b'little':
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

    end = path.stat().st_size
    with path.open('rb') as file:
        if Unpickler(file, fetch).load() != _LEGACY_MAGIC:
            raise UserError('is a plain pickle: save the state dict with torch.save instead')
        for _ in ('protocol version', 'sizes of C types'):
            Unpickler(file, fetch).load()
        unpickler = Unpickler(file, fetch)
        tree = unpickler.load()
        for key in Unpickler(file, fetch).load():
            (count,) = struct.unpack('<q', file.read(8))
            size = count * unpickler.dtypes[key].itemsize
            places[key] = file.tell(), size
            if count < 0 or file.tell() + size > end:
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
        tree[name] = kind = part.get_dtype()
        if kind in _SAFETENSORS:  # else the name of the type stays, which is no tensor
            load = functools.partial(file.get_tensor, name)
            tree[name] = LazyTensor(tuple(part.get_shape()), DTYPES[_SAFETENSORS[kind]], load)
    return tree, []


_FORMATS: tuple[tuple[bytes, Reader | str], ...] = (
    (rb'\Z', 'is empty: get it again'),
    (rb'PK(\x03\x04|\x05\x06)', read_zip),
    (rb'.{5}\0\0\0\{', read_safetensors),  # 8 bytes with the length of a JSON header
    (rb'\x80[\x01-\x05]', read_legacy),
    (
        rb'\s*<(?i:!doctype|!--|html|\?xml|head|body)',
        'is a web page: the download went wrong, get it again',
    ),
    (rb'version https://git-lfs', 'is a git LFS pointer, not the weights: run git lfs pull'),
    (rb'\s*(\{\s*["}]|\[)', 'is JSON, not weights: give the .pth or .safetensors file'),
    (
        rb'(?=.{257}ustar)(.{512})*(sys_info|pickle|tensors|storages)\0',
        'is of PyTorch before 0.1.10: load it with an old PyTorch and save it again',
    ),
    (rb'.{257}ustar', 'is a tar archive: unpack it and give the file inside'),
    (rb'\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf', 'is compressed: unpack it first'),
    (rb'\x89HDF', 'is an HDF5 file, not of PyTorch'),
)
