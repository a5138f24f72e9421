"""Networks for pose in PyTorch, with the official names; see `reference`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convert.reference import Trunk, conv_norm, resized
from hrnet_jax.archs import Arch


class Finest(Trunk):
    """Heatmaps of the finest map, the only one that the last module makes."""

    def __init__(self, arch: Arch, num_keypoints: int, **trunk: Any):
        super().__init__(arch, **trunk)
        last = self.stage4[-1]
        last.fuse_layers = last.fuse_layers[:1]
        self.final_layer = nn.Conv2d(arch.channels[0], num_keypoints, 1)

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen = super().stages(x)
        return seen | {'logits': [self.final_layer(seen['stage4'][0])]}


class Joined(Trunk):
    """Heatmaps of the four maps."""

    def __init__(self, arch: Arch, num_keypoints: int, **trunk: Any):
        super().__init__(arch, **trunk)
        width = sum(arch.channels)
        joining = conv_norm(width, width, 1, bias=True)
        self.head = nn.Sequential(*joining, nn.ReLU(), nn.Conv2d(width, num_keypoints, 1))

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen = super().stages(x)
        maps = seen['stage4']
        joined = torch.cat([resized(m, maps[0], self.align_corners) for m in maps], 1)
        return seen | {'logits': [self.head(joined)]}
