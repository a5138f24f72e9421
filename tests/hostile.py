"""Small files that ask for much memory or time, or for a program to be run."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import struct
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

EDGE = 50_000


def png(width: int, height: int, *more: tuple[bytes, bytes], pixels: bytes = b'') -> bytes:
    """A PNG file of grey pixels with these chunks."""
    chunks = [(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)), *more]
    chunks += [(b'IDAT', pixels or zlib.compress(bytes(4096))), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        len(content).to_bytes(4, 'big')
        + name
        + content
        + zlib.crc32(name + content).to_bytes(4, 'big')
        for name, content in chunks
    )


def stored(form: str, place: bytes, edges: bytes) -> bytes:
    """A picture of PIL's, with `edges` in the place of what follows `place`."""
    file = io.BytesIO()
    Image.new('RGB', (16, 16)).save(file, form)
    data = file.getvalue()
    at = data.index(place) + len(place)
    return data[:at] + edges + data[at + len(edges) :]


def _large() -> dict[str, bytes]:
    bomb = zlib.compress(bytes(2**26), 9)  # 64 MB of zeros in 64 kB
    jpeg = b'\xff\xc0\x00\x11\x08'  # SOF0, its length, bits
    radiance = b'#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n'
    return {
        'large.png': png(EDGE, EDGE),
        'text.png': png(8, 8, (b'zTXt', b'a\0\0' + bomb), pixels=zlib.compress(bytes(72))),
        'profile.png': png(8, 8, (b'iCCP', b'a\0\0' + bomb), pixels=zlib.compress(bytes(72))),
        'more.png': png(8, 8, pixels=bomb),
        'large.jpg': stored('JPEG', jpeg, struct.pack('>HH', 65_000, 65_000)),
        'large.gif': stored('GIF', b'GIF87a', struct.pack('<HH', 65_535, 65_535)),
        'large.bmp': stored('BMP', b'(\0\0\0', struct.pack('<ii', 100_000, 100_000)),
        'large.ppm': b'P6 100000 100000 255\n' + bytes(100),
        'large.pfm': b'Pf\n100000 100000\n-1.0\n' + bytes(100),
        'large.ras': struct.pack('>8I', 0x59A66A95, EDGE, EDGE, 24, 0, 1, 0, 0) + bytes(100),
        'large.hdr': radiance + bytes(100),
        'large.tif': _tiff(),
        'program.eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n'
        b'(/tmp/hostile) (w) file closefile\nshowpage\n%%EOF\n',
    }


def _tiff() -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (16, 16)).save(file, 'TIFF')
    data = file.getvalue()
    for tag, kind in itertools.product((256, 257), (3, 4)):  # the edges, short or long
        large = struct.pack('<HHII', tag, 4, 1, 100_000)
        data = data.replace(struct.pack('<HHII', tag, kind, 1, 16), large)
    return data


def _torch(tree: object) -> bytes:
    file = io.BytesIO()
    torch.save(tree, file)
    return file.getvalue()


def _archives() -> dict[str, bytes]:
    """Of a state dict of one tensor, and its table of contents changed."""
    whole = _torch({'a': torch.arange(8.0)})
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        record = archive.getinfo('archive/data/0')
    sizes = struct.pack('<III', record.CRC, record.file_size, record.file_size)
    claimed = struct.pack('<III', record.CRC, 2**32 - 2, 2**32 - 2)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(2**26))
    many = io.BytesIO()
    with zipfile.ZipFile(many, 'w') as archive:
        for i in range(20_000):
            archive.writestr(f'archive/data/{i}', b'')
    names = [str(i) for i in range(700)]
    inner = dict.fromkeys(names, 0)
    shared = dict.fromkeys(names, dict.fromkeys(names, inner))
    underscores = 'ema_' * 20_000
    return {
        'claims.pth': whole.replace(sizes, claimed),
        'packed.pth': packed.getvalue(),
        'many.pth': many.getvalue(),
        'shared.pth': _torch(shared),
        'wrapped.pth': _torch({'state_dict': shared, 'model': shared, 'ema': shared}),
        'names.pth': _torch({underscores + '!': 1, 'module.' * 20_000 + 'a': torch.ones(1)}),
        'wide.pth': _torch(torch.zeros(1).expand(2**20, 2**20)),
    }


def _legacy() -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save({'a': torch.arange(8.0)}, file, _use_new_zipfile_serialization=False)
    whole = file.getvalue()
    count = whole.rindex(struct.pack('<q', 8) + bytes(4))
    start = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    return {
        'storage.pth': whole[:count] + struct.pack('<q', 2**50) + whole[count + 8 :],
        'negative.pth': whole[:count] + struct.pack('<q', -8) + whole[count + 8 :],
        'bytes.pth': start + b'\x80\x04\x8e' + struct.pack('<Q', 2**40) + b'x',
        'text.pth': start + b'\x80\x04\x8d' + struct.pack('<Q', 2**34) + b'x',
        'frame.pth': start + b'\x80\x04\x95' + struct.pack('<Q', 2**34) + b'x',
        'doubled.pth': start + b'\x80\x02]q\0' + b'(h\0h\0e' * 5_000 + b'.',
        'tuples.pth': start + b'\x80\x02)' + b'2\x86' * 5_000 + b'.',
        'sets.pth': start + b'\x80\x02cbuiltins\nset\n](K\1' + b'\x85' * 9_000 + b'e\x85R.',
    }


def _safetensors() -> dict[str, bytes]:
    def file(header: object, length: int | None = None) -> bytes:
        text = json.dumps(header).encode()
        return (len(text) if length is None else length).to_bytes(8, 'little') + text + bytes(32)

    def tensor(shape: list, end: int = 32) -> dict:
        return {'a': {'dtype': 'F32', 'shape': shape, 'data_offsets': [0, end]}}

    return {
        'header.safetensors': file(tensor([8]), 2**62),
        'long.safetensors': file(tensor([8]), 2**31),
        'shape.safetensors': file(tensor([2**40, 2**40])),
        'end.safetensors': file(tensor([2**40], 2**42)),
        'product.safetensors': file(tensor([2**33, 2**33])),
        'deep.safetensors': b'\xff\xff\0\0\0\0\0\0' + b'{"a":' * 13_107,
    }


def _json(name: str) -> dict[str, bytes]:
    return {
        f'deep__{name}': b'[' * 500_000,
        f'objects__{name}': b'{"a":' * 500_000,
        f'number__{name}': b'[' + b'9' * 100_000 + b']',
        f'bytes__{name}': bytes(range(256)),
        f'empty__{name}': b'',
        f'name__{name}': b'["\\ud800"]',
    }


def _far() -> bytes:
    """People whose boxes and keypoints are as far away as numbers go."""
    person = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1e11, 1, 1e11, 1e-9]}
    people = [person | {'keypoints': [1e300, -1e300, 2] * 17, 'area': 1e-9}]
    category = {'id': 1, 'name': 'person', 'keypoints': [str(i) for i in range(17)]}
    images = [{'id': 1, 'file_name': '000000000001.png'}]
    return json.dumps({'images': images, 'annotations': people, 'categories': [category]}).encode()


def _digits() -> bytes:
    """A network whose layers have numbers without end."""
    names = ('stage2.0.branches.0.0.conv1.weight', f'layer1.{"9" * 5000}.conv1.weight')
    names += (f'stage{"1" * 5000}.0.branches.0.0.conv1.weight', f'stage2.{"9" * 30}.branches.0.0.a')
    return json.dumps(dict.fromkeys(names, [4, 4, 1, 1])).encode()


def _short() -> bytes:
    """People of MPII's form with a joint too few in one of two lists."""
    person = {'image': 'a.jpg', 'joints': [[1, 2]] * 16, 'joints_vis': [1] * 15}
    return json.dumps([person | {'center': [30, 40], 'scale': 1.5}] * 2).encode()


def _mat() -> bytes:
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {'headboxes_src': np.zeros((2, 2, 2**22))}, do_compression=True)
    return file.getvalue()


def files() -> dict[str, dict[str, bytes]]:
    """Kind of `strangers` -> name, see `fuzz` -> content."""
    large = _large()
    return {
        'pth': _archives(),
        'legacy': _legacy(),
        'safetensors': _safetensors(),
        'images': large,
        'images of a classifier': large,
        'label maps': large,
        'people': {**_json('coco.json'), 'far__coco.json': _far()},
        'objects': _json('coco.json'),
        'boxes': _json('rows.json'),
        'checkpoint': _json('classification+checkpoint.json'),
        'network': _json('tiny.json') | {'digits__tiny.json': _digits()},
        'run': _json('config.json') | _json('checkpoints+6+meta+metadata'),
        'beside': _json('a.pth.json') | _json('config.json'),
        'mpii': {
            **_json('annotations+mpii_val.json'),
            'short__annotations+mpii_val.json': _short(),
            'bomb__annotations+mpii_gt_val.mat': _mat(),
        },
    }
