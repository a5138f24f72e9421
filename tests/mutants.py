"""Changed copies of files, each decided by a seed: bytes, and what the bytes stand for."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import random
import zipfile
import zlib

# What readers may not expect of a number, a text or a list.
VALUES = (
    None, True, False, 0, -1, 1, 0.5, 2**31, -(2**31) - 1, 2**63, 2**70, 1e308, -1e308, 1e-320,
    float('nan'), float('inf'), '', 'x', 'a' * 5000, '\ud800', '\0', '../../etc/passwd',
    'os:system', 'é', '1', [], {}, [[]], [None], [{}], {'a': 1}, [1, 2, 3], ['a', 'a'],
)  # fmt: skip
NUMBERS = (
    0,
    1,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
OPCODES = [opcode.code.encode('latin1') for opcode in pickletools.opcodes]


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of any kind at any place."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, size = rng.randrange(len(changed) + 1), rng.choice((1, 2, 4, 8, 50, 500))
        kind = rng.randrange(7)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = rng.randbytes(size)
        elif kind == 4:
            changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 20))
        elif kind == 5:
            width, order = rng.choice((1, 2, 4, 8)), rng.choice(('little', 'big'))
            number = rng.choice(NUMBERS) % 256**width
            changed[at : at + width] = number.to_bytes(width, order)
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A value in it is another, twice there, gone, or nested; now and then its bytes change."""
    if rng.random() < 0.15:
        return of_bytes(data, rng)
    if rng.random() < 0.01:
        return rng.choice([b'[' * 200_000, b'{"a":' * 100_000, b'9' * 10_000, b'\xff\xfe', b''])
    tree = [json.loads(data)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        held, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0 and held is not tree:
            del held[key]
        elif kind == 1:
            other, name = rng.choice(places)
            held[key] = json.loads(json.dumps(other[name]))
        elif kind == 2:
            held[key] = rng.choice(([held[key]], {'a': held[key]}, [held[key]] * 3))
        elif kind == 3 and isinstance(held, dict):
            held[rng.choice(('', 'a', '\ud800', 'x' * 999))] = copy.deepcopy(rng.choice(VALUES))
        elif kind == 4 and isinstance(held[key], str):
            text = of_bytes(held[key].encode('utf-8', 'surrogatepass'), rng).decode(
                'utf-8', 'surrogateescape'
            )
            held[key] = text
        elif kind == 5 and isinstance(held[key], int | float):
            held[key] = held[key] * rng.choice((-1, 0, 0.5, 10, 10**12))
        else:
            held[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(tree[0]).encode()


def _places(tree):
    """Every (container, key) in it."""
    keys = range(len(tree)) if isinstance(tree, list) else list(tree)
    for key in keys:
        yield tree, key
        if isinstance(tree[key], list | dict):
            yield from _places(tree[key])


def of_text(data: bytes, rng: random.Random) -> bytes:
    """Lines and cells in other places; else bytes."""
    lines = data.split(b'\n')
    kind, at = rng.randrange(5), rng.randrange(len(lines))
    if kind == 0:
        lines[at] = lines[rng.randrange(len(lines))]
    elif kind == 1:
        rng.shuffle(lines)
    elif kind == 2:
        odd = (
            b'\0',
            b'"',
            b'\xff',
            b'\xed\xa0\x80',
            b',' * 9,
            b'\t',
            b'\r',
            b'\xe2\x80\xa8',
            b'"\n',
        )
        cut = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:cut] + rng.choice(odd) + lines[at][cut:]
    else:
        return of_bytes(data, rng)
    return b'\n'.join(lines)


def of_pickle(data: bytes, rng: random.Random) -> bytes:
    """An opcode is another, with another argument, or twice there."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    places = [place for *_, place in pickletools.genops(data)]
    at = rng.randrange(len(places))
    start, end = places[at], ([*places, len(data)])[at + 1]
    other = rng.randrange(len(places))
    taken = data[places[other] : ([*places, len(data)])[other + 1]]
    new = rng.choice(
        (
            rng.choice(OPCODES),
            rng.choice(OPCODES) + rng.randbytes(rng.choice((1, 4, 8))),
            taken,
            data[start:end] + taken,
            data[start : start + 1] + rng.choice(NUMBERS).to_bytes(8, 'little')[: end - start - 1],
            b'c'
            + rng.choice(
                (b'os\nsystem\n', b'builtins\neval\n', b'torch._utils\n_rebuild_tensor_v2\n')
            ),
        )
    )
    return data[:start] + new + data[end:]


def of_zip(data: bytes, rng: random.Random) -> bytes:
    """A record changes and its checksum with it; else any bytes of the archive."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(list(records))
    if name.endswith('.pkl') or rng.random() < 0.6:
        name = next(key for key in records if key.endswith('data.pkl'))
        records[name] = of_pickle(records[name], rng)
    elif rng.random() < 0.3:
        records[rng.choice(('../../x', '/x', 'a/../data.pkl', 'archive/data.pkl'))] = b'x'
    else:
        records[name] = of_bytes(records[name], rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def of_legacy(data: bytes, rng: random.Random) -> bytes:
    """The pickle of the object in it, or any bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    stream, ends = io.BytesIO(data), []
    for _ in range(4):  # a magic number, a version, sizes of types, the object
        list(pickletools.genops(stream))
        ends.append(stream.tell())
    start, end = ends[2:]
    return data[:start] + of_pickle(data[start:end], rng) + data[end:]


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The JSON in front of the numbers, its length with it; or any bytes."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    end = 8 + int.from_bytes(data[:8], 'little')
    header = of_json(data[8:end], rng)
    return len(header).to_bytes(8, 'little') + header + data[end:]


def of_png(data: bytes, rng: random.Random) -> bytes:
    """A chunk changes and its checksum with it; or any bytes."""
    if rng.random() < 0.3 or not data.startswith(b'\x89PNG'):
        return of_bytes(data, rng)
    chunks, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], 'big')
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number, kind = rng.randrange(len(chunks)), rng.randrange(4)
    name, content = chunks[number]
    if kind == 0:
        names = (b'IHDR', b'PLTE', b'tRNS', b'zTXt', b'iCCP', b'eXIf', b'acTL', b'fdAT', b'IEND')
        chunks.insert(number, (rng.choice(names), content))
    elif kind == 1 and name == b'IDAT':
        chunks[number] = name, zlib.compress(of_bytes(zlib.decompress(content), rng))
    elif kind == 2:
        del chunks[number]
    else:
        chunks[number] = name, of_bytes(content, rng)
    return data[:8] + b''.join(
        len(content).to_bytes(4, 'big')
        + name
        + content
        + zlib.crc32(name + content).to_bytes(4, 'big')
        for name, content in chunks
    )


def loads(data: bytes):
    """The JSON in these bytes; None of others."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def of_json_or_bytes(data: bytes, rng) -> bytes:
    return (of_json if data[:1] in (b'[', b'{') else of_bytes)(data, rng)
