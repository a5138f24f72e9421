"""The kinds of networks that are converted. A head more is a row here, and its layers in PyTorch in
`reference.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from convert.detection import FASTER_RCNN, FCOS, PYRAMID
from convert.kinds import Kind, Shapes, length, under_head
from convert.layouts import Layout
from convert.pose import FINEST, JOINED
from convert.segmentation import FCN, OCR
from hrnet_jax.backbone import HRNet, Network
from hrnet_jax.heads.classification import classifier_arch
from hrnet_jax.models import create_model


def _classifier(arch: Any, shapes: Shapes, **options: Any) -> Network:
    return create_model(arch, length(shapes, 'head.classifier.weight') or 1000, **options)


def _widths(shapes: Shapes) -> dict[str, Any]:
    widths = (length(shapes, f'head.incre_modules.{i}.0.conv3.weight') for i in range(4))
    return {'head': tuple(widths), 'features': length(shapes, 'head.final_layer.0.weight')}


def _trunk(arch: Any, shapes: Shapes, **options: Any) -> Network:
    """Networks for pose end in the finest map alone."""
    last = (re.match(r'backbone\.stage4\.(\d+)\.fuse_layers\.(\d+)\.', key) for key in shapes)
    rows = [(int(m[1]), int(m[2])) for m in last if m]
    return HRNet(arch, outputs=1 if rows and max(rows)[1] == 0 else 4, **options)


_OFFICIAL = under_head('incre_modules', 'downsamp_modules', 'final_layer', 'classifier')
CLASSIFIER = Kind(
    'classifier',
    'classifier',
    _classifier,
    {
        'widening layers': re.compile(r'head\.incre_modules\.'),
        'downsampling layers': re.compile(r'head\.downsamp_modules\.'),
        'final layer': re.compile(r'head\.final_layer\.[01]\.'),
        'classifier': re.compile(r'head\.classifier\.(weight|bias)$'),
    },
    (
        Layout('official', _OFFICIAL, True),
        Layout('timm', _OFFICIAL, True),
        Layout(
            'mmpretrain',
            (
                ('backbone.', 'backbone.'),
                ('neck.0.increase_layers.', 'head.incre_modules.'),
                ('neck.0.downsample_layers.{}.conv.', 'head.downsamp_modules.{}.0.'),
                ('neck.0.downsample_layers.{}.bn.', 'head.downsamp_modules.{}.1.'),
                ('neck.0.final_layer.conv.', 'head.final_layer.0.'),
                ('neck.0.final_layer.bn.', 'head.final_layer.1.'),
                ('head.fc.', 'head.classifier.'),
            ),
        ),
    ),
    re.compile(r'head\.(downsamp_modules\.\d+|final_layer)'),
    arch=classifier_arch,
    sizes=_widths,
)
KINDS = (CLASSIFIER, FCN, OCR, FINEST, JOINED, PYRAMID, FCOS, FASTER_RCNN)
# Of any network: the names of the trunk are the official ones behind a prefix.
BACKBONE = Kind(
    'backbone',
    'backbone',
    _trunk,
    layouts=(
        Layout(
            'official',
            under_head(),
            fields={'upsample': 'nearest', 'align_corners': False},
            doubt=(
                'upsample',
                'the fusion is taken to upsample by nearest; if the file is of a segmentation '
                'network, say --upsample bilinear (official) or bilinear_two_step (mmsegmentation)',
            ),
        ),
    ),
)
TRUNKS = (PYRAMID, BACKBONE)  # what --backbone takes of a file: the first that it has


def kind_of(keys: Iterable[str]) -> Kind | None:
    """The kind of network that has these canonical keys, whole."""
    head = [key for key in keys if not key.startswith('backbone.')]
    whole = [kind for kind in KINDS if {kind.part(key) for key in head} >= kind.parts.keys()]
    most = max(whole, key=lambda kind: len(kind.parts), default=None)
    return most if head else BACKBONE
