"""Networks for semantic segmentation: FCN and OCR, of the official code and of mmsegmentation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from convert.kinds import Kind, Shapes, length, under_head
from convert.layouts import Layout
from hrnet_jax.backbone import Network
from hrnet_jax.heads.segmentation import Segmenter


def _fcn(arch: Any, shapes: Shapes, **options: Any) -> Network:
    options['num_classes'] = length(shapes, 'head.last_layer.3.weight') or 1
    return Segmenter(arch=arch, head='fcn', **options)


def _ocr(arch: Any, shapes: Shapes, **options: Any) -> Network:
    attention = 'head.ocr_distri_head.object_context_block'
    for field, layer in (
        ('num_classes', 'head.cls_head'),
        ('ocr_channels', 'head.conv3x3_ocr.0'),
        ('key_channels', f'{attention}.f_pixel.0'),
    ):
        options[field] = length(shapes, f'{layer}.weight') or 1
    return Segmenter(arch=arch, head='ocr', **options)


def _mmseg(head: str, module: str, classes: str) -> tuple[tuple[str, str], ...]:
    """A head of mmsegmentation: one convolution with BatchNorm, and that to the classes."""
    return (
        (f'{module}.conv.', f'head.{head}.0.'),
        (f'{module}.bn.', f'head.{head}.1.'),
        (f'{classes}.conv_seg.', f'head.{head}.3.'),
    )


def _attention() -> Iterable[tuple[str, str]]:
    theirs, ours = 'decode_head.1.object_context_block', 'head.ocr_distri_head'
    places = {
        'bottleneck': ('conv_bn_dropout.0', 'conv_bn_dropout.1.0'),
        'value_project': ('object_context_block.f_down.0', 'object_context_block.f_down.1.0'),
        'out_project': ('object_context_block.f_up.0', 'object_context_block.f_up.1.0'),
    }
    for name, other in (('query_project', 'f_pixel'), ('key_project', 'f_object')):
        for i in (0, 1):
            inner = f'object_context_block.{other}'
            places[f'{name}.{i}'] = f'{inner}.{2 * i}', f'{inner}.{2 * i + 1}.0'
    for name, (conv, norm) in places.items():
        yield f'{theirs}.{name}.conv.', f'{ours}.{conv}.'
        yield f'{theirs}.{name}.bn.', f'{ours}.{norm}.'


_OFFICIAL = under_head('last_layer', 'aux_head', 'conv3x3_ocr', 'ocr_distri_head', 'cls_head')
_MMSEG = {'upsample': 'bilinear_two_step', 'align_corners': False}
_STEP = {'upsample': 'bilinear'}
_ALIGN = 'align_corners is not in the file, and taken as '
_ONE_STEP = 'nor is the upsampling, taken as bilinear; else say --upsample'
FCN = Kind(
    'fcn',
    'segmentation network (FCN)',
    _fcn,
    {
        'last layers': re.compile(r'head\.last_layer\.[01]\.'),
        'classes': re.compile(r'head\.last_layer\.3\.(weight|bias)$'),
    },
    (
        Layout(
            'official',
            _OFFICIAL,
            True,
            {**_STEP, 'align_corners': False},
            (
                'align_corners',
                f'{_ALIGN}no, as most official networks without OCR have it; else say '
                f'--align-corners; {_ONE_STEP}',
            ),
        ),
        Layout(
            'mmseg',
            (
                ('backbone.', 'backbone.'),
                *_mmseg('last_layer', 'decode_head.convs.0', 'decode_head'),
            ),
            fields=_MMSEG,
        ),
    ),
    re.compile(r'head\.last_layer'),
    'FCN',
)
OCR = Kind(
    'ocr',
    'segmentation network (OCR)',
    _ocr,
    {
        'first guess': re.compile(r'head\.aux_head\.[013]\.'),
        'pixels': re.compile(r'head\.conv3x3_ocr\.[01]\.'),
        'object context': re.compile(r'head\.ocr_distri_head\.'),
        'classes': re.compile(r'head\.cls_head\.(weight|bias)$'),
    },
    (
        Layout(
            'official',
            _OFFICIAL,
            True,
            {**_STEP, 'align_corners': True, 'dropout': 0.05},
            (
                'align_corners',
                f'{_ALIGN}yes, as official networks with OCR have it; else say '
                f'--no-align-corners; {_ONE_STEP}',
            ),
        ),
        Layout(
            'mmseg',
            (
                ('backbone.', 'backbone.'),
                *_mmseg('aux_head', 'decode_head.0.convs.0', 'decode_head.0'),
                ('decode_head.1.bottleneck.conv.', 'head.conv3x3_ocr.0.'),
                ('decode_head.1.bottleneck.bn.', 'head.conv3x3_ocr.1.'),
                ('decode_head.1.conv_seg.', 'head.cls_head.'),
                *_attention(),
            ),
            fields=_MMSEG,
        ),
    ),
    re.compile(r'head\.(aux_head|conv3x3_ocr)'),
    'OCR',
)
