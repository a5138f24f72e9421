"""Networks for detection: of mmdetection, and the pyramid alone, also of the official code."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from convert.kinds import Kind, Shapes, length
from convert.layouts import Layout
from hrnet_jax.backbone import Network
from hrnet_jax.heads.detection import Detector, Head
from hrnet_jax.heads.hrfpn import Pyramid


def _width(shapes: Shapes) -> int:
    return length(shapes, 'neck.reduction_conv.0.weight') or 32


def _detector(
    head: Head, classes: str, more: int, arch: Any, shapes: Shapes, **options: Any
) -> Network:
    """`more`: how many outputs of the layer `classes` are no classes."""
    number = max(length(shapes, f'bbox_head.{classes}.weight') - more, 1)
    return Detector(arch=arch, num_classes=number, head=head, channels=_width(shapes), **options)


def _pyramid(arch: Any, shapes: Shapes, **options: Any) -> Network:
    return Pyramid(arch=arch, channels=_width(shapes), **options)


def _named(*names: str) -> re.Pattern[str]:
    return re.compile(rf'({"|".join(names)})\.(weight|bias)$')


_TRUNK = ('backbone.', 'backbone.')
_MMDET = (
    _TRUNK,
    ('neck.reduction_conv.conv.', 'neck.reduction_conv.0.'),
    ('neck.fpn_convs.{}.conv.', 'neck.fpn_conv.{}.'),
)
_OFFICIAL = (_TRUNK, ('neck.', 'neck.'))
_NECK = {
    'joining layer': _named(r'neck\.reduction_conv\.0'),
    'pyramid': _named(r'neck\.fpn_conv\.\d+'),
}
# What a file has of networks that are not here -> what they are called.
_OTHERS: Mapping[str, str] = {
    r'semantic_head\.|roi_head\.semantic_head\.': 'Hybrid Task Cascade (HTC)',
    r'(roi_head\.)?mask_head\.\d+\.': 'Cascade Mask R-CNN',
    r'(roi_head\.)?mask_head\.': 'Mask R-CNN',
    r'(roi_head\.)?bbox_head\.\d+\.': 'Cascade R-CNN',
}


def _fields(stride: int) -> dict[str, Any]:
    return {'pooling': 'average', 'stride': stride}


_FCOS_HEAD = (*_MMDET, ('bbox_head.', 'bbox_head.'))
_OLD = {name: name.replace('fcos', 'conv') for name in ('fcos_cls', 'fcos_reg', 'fcos_centerness')}
FCOS = Kind(
    'fcos',
    'detector (FCOS)',
    functools.partial(_detector, 'fcos', 'conv_cls', 0),
    {
        **_NECK,
        'towers': re.compile(r'bbox_head\.(cls|reg)_convs\.\d+\.(conv|gn)\.'),
        'classes': _named(r'bbox_head\.conv_cls'),
        'distances': _named(r'bbox_head\.conv_reg'),
        'centre-ness': _named(r'bbox_head\.conv_centerness'),
        'scales': re.compile(r'bbox_head\.scales\.\d+\.scale$'),
    },
    (
        Layout('mmdet', _FCOS_HEAD, fields=_fields(2)),
        # Before mmdetection 2.1.
        Layout(
            'mmdet2.0',
            (*((f'bbox_head.{k}.', f'bbox_head.{v}.') for k, v in _OLD.items()), *_FCOS_HEAD),
            fields=_fields(2),
        ),
    ),
    label='FCOS',
)
FASTER_RCNN = Kind(
    'faster_rcnn',
    'detector (Faster R-CNN)',
    functools.partial(_detector, 'faster_rcnn', 'fc_cls', 1),
    {
        **_NECK,
        'proposals': _named(r'rpn_head\.rpn_(conv|cls|reg)'),
        'shared layers': _named(r'bbox_head\.shared_fcs\.\d+'),
        'classes': _named(r'bbox_head\.fc_cls'),
        'deltas': _named(r'bbox_head\.fc_reg'),
    },
    (
        Layout(
            'mmdet',
            (*_MMDET, ('rpn_head.', 'rpn_head.'), ('roi_head.bbox_head.', 'bbox_head.')),
            fields=_fields(1),
        ),
    ),
    label='Faster R-CNN',
    others=_OTHERS,
)
PYRAMID = Kind(
    'pyramid',
    'backbone with a pyramid',
    _pyramid,
    _NECK,
    (
        Layout('mmdet', _MMDET, fields=_fields(1)),
        Layout('official', _OFFICIAL, fields=_fields(1)),
    ),
    label='pyramid',
    others={r'(?!(backbone|neck)\.)': 'a detector of another kind'},
)
