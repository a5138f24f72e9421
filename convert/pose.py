"""Networks for pose: of the official codes and of mmpose, with one map or with four joined."""

from __future__ import annotations

import functools
import re
from typing import Any

from convert.kinds import Kind, Shapes, length, under_head
from convert.layouts import Layout
from hrnet_jax.backbone import Network
from hrnet_jax.heads.pose import Head, PoseNet


def _net(head: Head, arch: Any, shapes: Shapes, **options: Any) -> Network:
    number = length(shapes, 'head.final_layer.weight') or 1
    return PoseNet(arch=arch, num_keypoints=number, head=head, **options)


def _mmpose(*rules: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (('backbone.', 'backbone.'), *rules)


_HEATMAPS = re.compile(r'head\.final_layer\.(weight|bias)$')
_JOINED = {'upsample': 'bilinear', 'align_corners': False}
FINEST = Kind(
    'finest',
    'pose network',
    functools.partial(_net, 'finest'),
    {'heatmaps': _HEATMAPS},
    (
        Layout('official', under_head('final_layer')),
        Layout('mmpose', _mmpose(('head.final_layer.', 'head.final_layer.'))),
        Layout('mmpose0', _mmpose(('keypoint_head.final_layer.', 'head.final_layer.'))),
    ),
)
# The official code is HRNet-Facial-Landmark-Detection.
JOINED = Kind(
    'joined',
    'pose network (HRNetV2)',
    functools.partial(_net, 'joined'),
    {
        'joining layers': re.compile(r'head\.conv_layers\.[01]\.\w+$'),
        'heatmaps': _HEATMAPS,
    },
    (
        Layout(
            'official',
            (
                ('head.0.', 'head.conv_layers.0.'),
                ('head.1.', 'head.conv_layers.1.'),
                ('head.3.', 'head.final_layer.'),
                ('', 'backbone.'),
            ),
            True,
            _JOINED,
        ),
        Layout('mmpose', _mmpose(('head.', 'head.')), True, _JOINED),
        Layout(
            'mmpose0',
            _mmpose(
                ('keypoint_head.final_layer.0.', 'head.conv_layers.0.'),
                ('keypoint_head.final_layer.1.', 'head.conv_layers.1.'),
                ('keypoint_head.final_layer.3.', 'head.final_layer.'),
            ),
            True,
            _JOINED,
        ),
    ),
    re.compile(r'head\.conv_layers'),
    'HRNetV2',
)
