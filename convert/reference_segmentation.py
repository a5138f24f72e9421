"""The heads of segmentation in PyTorch, with the official names; see `reference`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from convert.reference import Trunk, conv_norm, resized
from hrnet_jax.archs import Arch


def fcn(channels: int, classes: int) -> nn.Sequential:
    layers = conv_norm(channels, channels, 1, bias=True)
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(channels, classes, 1))


class Segmentation(Trunk):
    """What the heads of segmentation share: the maps joined, and logits of their size."""

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen = super().stages(x)
        return seen | {'logits': self.heads(seen['stage4'])[-1:]}

    def joined(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([resized(m, maps[0], self.align_corners) for m in maps], 1)

    def heads(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """All logits that are trained; those that count are the last."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages(x)['logits'][0]


class FCN(Segmentation):
    def __init__(self, arch: Arch, num_classes: int, **trunk: Any):
        super().__init__(arch, **trunk)
        self.last_layer = fcn(sum(arch.channels), num_classes)

    def heads(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.last_layer(self.joined(maps))]


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class Attention(nn.Module):
    """Yuan et al., ECCV 2020, equations 7 and 8."""

    def __init__(self, channels: int, key: int):
        super().__init__()

        def layers(*widths: int) -> nn.Sequential:
            made: list[nn.Module] = []
            for inputs, outputs in itertools.pairwise(widths):
                made += [nn.Conv2d(inputs, outputs, 1, bias=False), norm_relu(outputs)]
            return nn.Sequential(*made)

        self.f_pixel, self.f_object = (layers(channels, key, key) for _ in range(2))
        self.f_down, self.f_up = layers(channels, key), layers(key, channels)
        self.scale = key**-0.5

    def forward(self, x: torch.Tensor, rough: torch.Tensor) -> torch.Tensor:
        weights = rough.flatten(2).softmax(2)
        regions = (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2)[..., None]
        query = self.f_pixel(x).flatten(2).transpose(1, 2)
        key, value = (f(regions).flatten(2) for f in (self.f_object, self.f_down))
        told = (query @ key * self.scale).softmax(2) @ value.transpose(1, 2)
        return self.f_up(told.transpose(1, 2).unflatten(2, x.shape[2:]))


class OCR(Segmentation):
    def __init__(
        self,
        arch: Arch,
        num_classes: int,
        channels: int = 512,
        key_channels: int = 256,
        **trunk: Any,
    ):
        super().__init__(arch, **trunk)
        width = sum(arch.channels)
        self.aux_head = fcn(width, num_classes)
        self.conv3x3_ocr = nn.Sequential(*conv_norm(width, channels, 3, bias=True), nn.ReLU())
        self.ocr_distri_head = nn.Module()
        self.ocr_distri_head.object_context_block = Attention(channels, key_channels)
        self.ocr_distri_head.conv_bn_dropout = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), norm_relu(channels)
        )
        self.cls_head = nn.Conv2d(channels, num_classes, 1)

    def heads(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        x = self.joined(maps)
        rough, x = self.aux_head(x), self.conv3x3_ocr(x)
        head: Any = self.ocr_distri_head
        x = head.conv_bn_dropout(torch.cat([head.object_context_block(x, rough), x], 1))
        return [rough, self.cls_head(x)]
