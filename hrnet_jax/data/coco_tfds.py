"""COCO's boxes as tfds has prepared them: where each image lies, and what is marked in it."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import IO, Any

from etils import epath

from hrnet_jax.data.keep_ratio import coco
from hrnet_jax.data.opencv import image_hw
from hrnet_jax.data.prepared import open_builder, require_features, require_whole, split_of
from hrnet_jax.data.records import Part, Span, examples, integers
from hrnet_jax.errors import UserError

NAMES = ('coco/2017', 'coco/2014')
_OBJECTS = ('area', 'is_crowd', 'label')
Example = tuple[Part, dict[str, Any], list[dict[str, Any]]]  # its image, in COCO's form; its boxes


def prepared_boxes(name: str, split: str | None, data_dir: str | None) -> dict[str, Any]:
    """What `coco_boxes.opened` takes; `name` may have a version, `split` a part such as [:10%].

    Raises:
        UserError: if it is not prepared, or its files are damaged.
    """
    name, _, version = name.partition(':')
    info = open_builder(name, version, data_dir).info
    split = 'validation' if split in (None, 'val') else split
    selected, base = split_of(info, name, split)
    require_features(info, name, ('image', 'image/filename', 'image/id', 'objects'))
    names = info.features['objects'].feature['label'].names
    known = {title: identity for identity, title in coco().items()}
    ids = [known.get(title, i) for i, title in enumerate(names, 1)]
    with futures.ThreadPoolExecutor(16) as pool:
        files = pool.map(lambda file: list(_examples(file, ids)), selected.file_instructions)
        found = [example for file in files for example in file]
    require_whole(name, len(found), selected.num_examples)
    return {
        'title': name,
        'split': split,
        'places': [place for place, _, _ in found],
        'images': {image['id']: image for _, image, _ in found},
        'annotations': [row for *_, rows in found for row in rows],
        'categories': dict(zip(ids, names, strict=True)),
        'path': name,
        'whole': (base.name, base.num_examples),
        'version': str(info.version),
        'published': ('coco', 'val2017') if name == NAMES[0] else None,
    }


def _examples(instruction: Any, ids: list[int]) -> Iterator[Example]:
    """Those that a split has of a file."""
    path = str(instruction.filename)
    title = path.split('/')[-1]
    try:
        chosen = examples(path)[instruction.skip :][: instruction.take]
        with epath.Path(path).open('rb') as file:
            for i, spans in enumerate(chosen, instruction.skip):
                place = Part(path, spans['image'], f'image of {title} example {i}')
                yield (place, *_annotated(file, spans, image_hw(place), ids))
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror or error}') from None
    except (ValueError, LookupError, struct.error) as error:
        raise UserError(f'cannot read {path}: {error}; prepare the data set again') from None


def _annotated(
    file: IO[bytes], spans: Mapping[str, Span], size: tuple[int, int], ids: list[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def content(name: str) -> bytes:
        start, stop = spans.get(name, (0, 0))  # of an empty list there is nothing
        file.seek(start)
        return file.read(stop - start)

    (identity,) = integers(content('image/id'))
    height, width = size
    area, crowd, label = (integers(content(f'objects/{name}')) for name in _OBJECTS)
    edges = struct.unpack(f'<{4 * len(label)}f', content('objects/bbox'))
    rows = []
    for i, kind in enumerate(label):
        top, left, bottom, right = edges[4 * i : 4 * i + 4]
        box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
        held = {'image_id': identity, 'category_id': ids[kind], 'bbox': box}
        rows.append({**held, 'area': area[i], 'iscrowd': crowd[i]})
    name = content('image/filename').decode()
    return {'id': identity, 'file_name': name, 'height': height, 'width': width}, rows
