"""Data sets with several labels an image: CSV files beside the images, and tfds.

A CSV names an image in its first column, relative to its own folder, and then either the labels,
separated by spaces, or 0 or 1 in a column for each class:

    file,labels                     file,cat,dog,night
    a.jpg,cat night                 a.jpg,1,0,1
    b.jpg,                          b.jpg,0,0,0

The classes are the columns; or the lines of classes.txt beside the file; or all labels that occur
in the CSV files of the folder, sorted.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hrnet_jax.data.evaluation import checked, missing
from hrnet_jax.data.folder import open_files
from hrnet_jax.data.listing import is_image, read_text
from hrnet_jax.data.sources import Dataset, Facts, Field, Source, tensorflow
from hrnet_jax.data.tfds import Targets, open_tfds
from hrnet_jax.errors import UserError, listed

CLASSES = 'classes.txt'


def open_multilabel(name: str, split: str | None, data_dir: str | None) -> Source:
    """`folder:PATH` with SPLIT.csv in it, PATH/FILE.csv, or a tfds set with a list of labels."""
    try:
        tensorflow()
        path = name.removeprefix('folder:')
        if name != path or name.startswith(('/', '.', '~')) or name.endswith('.csv'):
            return checked(_open_csv(Path(path).expanduser(), split))
        return checked(open_tfds(name, split, data_dir, label_targets))
    except ImportError as error:
        raise missing(error) from error


def label_targets(row: Dataset, features: Mapping[str, Any]) -> Targets:
    """The only feature that is a list of classes; 'labels' if there are several."""
    found = {
        name: feature.feature
        for name, feature in features.items()
        if getattr(getattr(feature, 'feature', None), 'num_classes', None)
    }
    if not found:
        raise UserError(f'{row.name} has no list of labels; it has: {", ".join(features)}')
    if len(found) > 1 and 'labels' not in found:
        raise UserError(f'{row.name} has several lists of labels: {", ".join(found)}')
    name = next(iter(found)) if len(found) == 1 else 'labels'
    count = found[name].num_classes

    def read(example: Mapping[str, Any]) -> dict[str, Any]:
        tf = tensorflow()
        labels = tf.cast(example[name], tf.int32)
        several = tf.reduce_sum(tf.one_hot(labels, count, dtype=tf.int32), 0)
        wrong = tf.reduce_sum(tf.cast((labels < 0) | (labels >= count), tf.int32))
        return {'label': tf.cast(tf.minimum(several, 1), tf.uint8), 'wrong': wrong}

    names = getattr(found[name], 'names', None)
    return Targets((name,), (_field(count),), read, count, tuple(names) if names else None, _check)


def _field(classes: int) -> Field:
    return Field('label', 'uint8', (classes,))


def _check(source: Facts, batch: Mapping[str, np.ndarray]) -> None:
    for name, wrong in zip(batch['name'], batch['wrong'], strict=True):
        if wrong:
            raise UserError(
                f'{source.dataset.name}: {os.fsdecode(name)} has a label that is none of the '
                f'{source.num_classes} classes'
            )


def _open_csv(path: Path, split: str | None) -> Source:
    if path.suffix == '.csv' and split:
        raise UserError(f'{path} is one split; name its folder, folder:{path.parent}, for {split}')
    if path.suffix != '.csv':
        held = sorted(file.stem for file in path.glob('*.csv'))
        if split not in held:
            what = f'no {split}.csv' if split else 'no split was named'
            raise UserError(
                f'{path}: {what}; it holds {", ".join(held) or "no CSV file"} '
                '(a CSV names the images and their labels)'
            )
        path = path / f'{split}.csv'
    files, labels, classes = _read(path)
    folder = path.parent
    if (folder / CLASSES).is_file():
        named = [line.strip() for line in read_text(folder / CLASSES).splitlines() if line.strip()]
        if len(set(named)) < len(named):
            raise UserError(f'{folder / CLASSES} names {listed(_twice(named))} more than once')
        if classes is not None and set(classes) != set(named):
            raise UserError(f'{path}: its columns are not the classes of {folder / CLASSES}')
        classes = named
    if classes is None:
        every = [_read(other)[1] for other in sorted(folder.glob('*.csv'))]
        classes = sorted({label for part in every for row in part for label in row})
    if not any(labels):
        raise UserError(f'{path}: no image has a label')
    number = {label: i for i, label in enumerate(classes)}
    table = np.zeros((len(files), len(classes)), np.uint8)
    for i, row in enumerate(labels):
        if unknown := sorted(row - number.keys()):
            raise UserError(f'{path}: {files[i]} has {listed(unknown)}, which are no classes')
        table[i, [number[label] for label in row]] = 1
    empty = [label for label, count in zip(classes, table.sum(0), strict=True) if not count]
    return open_files(
        Dataset(str(path), split or '', len(files)),
        [str(folder / file) for file in files],
        {'label': table, 'wrong': np.zeros(len(files), np.int32)},
        fields=(_field(len(classes)),),
        num_classes=len(classes),
        class_names=tuple(classes),
        notes=(f'{path}: no image with {listed(empty)}',) if empty else (),
        check=_check,
    )


def _read(path: Path) -> tuple[list[str], list[set[str]], list[str] | None]:
    """Files, the labels of each, and the classes where the columns name them."""
    try:
        table = list(csv.reader(io.StringIO(read_text(path), newline='')))
    except csv.Error as error:
        raise UserError(f'cannot read {path}: {error}') from None
    rows = [[cell.strip() for cell in row] for row in table]
    rows = [row for row in rows if any(row)]
    header = ['file', 'labels']
    first = rows[0][0] if rows else ''
    if rows and not (is_image(first) or (path.parent / first).is_file()):
        header, rows = rows[0], rows[1:]
    if '' in header[1:]:
        raise UserError(f'{path}: a column has no name')
    if not rows or not header[1:]:
        raise UserError(f'{path} names no images with labels')
    for row in rows:
        if len(row) != len(header):
            raise UserError(
                f'{path}: {row[0]} has {len(row)} columns, the first line {len(header)}'
            )
    files, cells = [row[0] for row in rows], {cell for row in rows for cell in row[1:]}
    if twice := _twice(files):
        raise UserError(f'{path} names {listed(twice)} more than once')
    if len(header) == 2 and (header[1].lower() in ('label', 'labels') or not cells <= {'0', '1'}):
        labels = [set(row[1].split()) for row in rows]
        if joined := sorted({x for row in labels for x in row if set(x) & set(',;|')}):
            raise UserError(f'{path}: labels are separated by spaces, unlike {listed(joined)}')
        return files, labels, None
    if not cells <= {'0', '1'}:
        raise UserError(f'{path}: values are 0 or 1, unlike {listed(sorted(cells - {"0", "1"}))}')
    classes = header[1:]
    if len(set(classes)) < len(classes):
        raise UserError(f'{path} names a class in two columns')
    chosen = [{c for c, x in zip(classes, row[1:], strict=True) if x == '1'} for row in rows]
    return files, chosen, classes


def _twice(names: Sequence[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
