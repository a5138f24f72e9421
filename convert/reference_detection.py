"""Detectors in PyTorch up to what their heads say of each level, with mmdetection's names; see
`reference`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from convert.reference import Trunk
from hrnet_jax.archs import Arch
from hrnet_jax.heads.faster_rcnn import ANCHORS, BINS
from hrnet_jax.heads.hrfpn import LEVELS

OF_REGION = ('region logits', 'region deltas')  # of the upper left bins of the finest level


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)


def named(**layers: nn.Module) -> nn.Module:
    """A module that holds these."""
    module = nn.Module()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


class Neck(nn.Module):
    reduction_conv: Any
    fpn_convs: Any

    def __init__(self, inputs: int, channels: int, pooling: str, stride: int):
        super().__init__()
        self.pool = F.avg_pool2d if pooling == 'average' else F.max_pool2d
        self.reduction_conv = named(conv=conv(inputs, channels, 1))
        self.fpn_convs = nn.ModuleList(
            named(conv=conv(channels, channels, 3, stride)) for _ in range(LEVELS)
        )

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        same = [maps[0]]
        for i, x in enumerate(maps[1:], 1):
            same.append(F.interpolate(x, scale_factor=2**i, mode='bilinear'))
        x = self.reduction_conv.conv(torch.cat(same, 1))
        pooled = [x, *(self.pool(x, 2**i, 2**i) for i in range(1, LEVELS))]
        return [layer.conv(y) for layer, y in zip(self.fpn_convs, pooled, strict=True)]


class Pyramid(nn.Module):
    """The trunk, and the neck on it."""

    def __init__(self, arch: Arch, channels: int, pooling: str, stride: int, **trunk: Any):
        super().__init__()
        self.backbone = Trunk(arch, **trunk)
        self.neck = Neck(sum(arch.channels), channels, pooling, stride)

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen = self.backbone.stages(x)
        return seen | {'pyramid': self.neck(seen['stage4'])}


class FCOS(Pyramid):
    bbox_head: Any

    def __init__(self, arch: Arch, num_classes: int, channels: int, *more: Any, **trunk: Any):
        super().__init__(arch, channels, *more, **trunk)

        def tower() -> nn.ModuleList:
            return nn.ModuleList(
                named(conv=conv(channels, channels, 3, bias=False), gn=nn.GroupNorm(32, channels))
                for _ in range(4)
            )

        def scale() -> nn.Module:
            module = nn.Module()
            module.scale = nn.Parameter(torch.ones(()))
            return module

        self.bbox_head = named(
            cls_convs=tower(), reg_convs=tower(),
            conv_cls=conv(channels, num_classes, 3), conv_reg=conv(channels, 4, 3),
            conv_centerness=conv(channels, 1, 3),
            scales=nn.ModuleList(scale() for _ in range(LEVELS)),
        )  # fmt: skip

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen, head = super().stages(x), self.bbox_head
        found: dict[str, list[torch.Tensor]] = {'classes': [], 'distances': [], 'centerness': []}
        for x, level in zip(seen['pyramid'], head.scales, strict=True):
            y = z = x
            for layer in head.cls_convs:
                y = torch.relu(layer.gn(layer.conv(y)))
            for layer in head.reg_convs:
                z = torch.relu(layer.gn(layer.conv(z)))
            found['classes'].append(head.conv_cls(y))
            found['centerness'].append(head.conv_centerness(y))
            found['distances'].append((head.conv_reg(z) * level.scale).exp())
        return seen | found


class FasterRCNN(Pyramid):
    rpn_head: Any
    roi_head: Any

    def __init__(self, arch: Arch, num_classes: int, channels: int, *more: Any, **trunk: Any):
        super().__init__(arch, channels, *more, **trunk)
        self.rpn_head = named(
            rpn_conv=conv(channels, channels, 3),
            rpn_cls=conv(channels, ANCHORS, 1),
            rpn_reg=conv(channels, 4 * ANCHORS, 1),
        )
        layers = [nn.Linear(channels * BINS**2, 1024), nn.Linear(1024, 1024)]
        head = named(
            shared_fcs=nn.ModuleList(layers),
            fc_cls=nn.Linear(1024, num_classes + 1),
            fc_reg=nn.Linear(1024, 4 * num_classes),
        )
        self.roi_head = named(bbox_head=head)

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen, head = super().stages(x), self.rpn_head
        inner = [torch.relu(head.rpn_conv(x)) for x in seen['pyramid']]
        seen['objectness'] = [head.rpn_cls(x) for x in inner]
        seen['deltas'] = [head.rpn_reg(x) for x in inner]
        of_region = self.classify(seen['pyramid'][0][..., :BINS, :BINS])
        return seen | {name: [x] for name, x in zip(OF_REGION, of_region, strict=True)}

    def classify(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, C, 7, 7) -> logits (R, classes + 1) and deltas (R, classes, 4)."""
        head = self.roi_head.bbox_head
        x = regions.flatten(1)
        for layer in head.shared_fcs:
            x = torch.relu(layer(x))
        return head.fc_cls(x), head.fc_reg(x).unflatten(1, (-1, 4))
