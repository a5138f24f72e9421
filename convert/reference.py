"""HRNet in PyTorch, with the official names: the reference to verify against.

The structure is that of the papers and of the official code. It needs PyTorch, which nothing else
in the project does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from convert.writing import to_torch
from hrnet_jax.archs import Arch
from hrnet_jax.heads.classification import classifier_arch
from hrnet_jax.models import Variables
from hrnet_jax.upsampling import Upsample


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False
) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=bias)
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """A residual block of convolutions (inputs, outputs, kernel), named as the official ones."""

    def __init__(self, convs: list[tuple[int, int, int]], project: bool = False):
        super().__init__()
        self.names = []
        for i, sizes in enumerate(convs, 1):
            conv, norm = conv_norm(*sizes)
            self.add_module(f'conv{i}', conv)
            self.add_module(f'bn{i}', norm)
            self.names.append((f'conv{i}', f'bn{i}'))
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(*conv_norm(convs[0][0], convs[-1][1], 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for i, (conv, norm) in enumerate(self.names):
            y = getattr(self, norm)(getattr(self, conv)(y if i == 0 else torch.relu(y)))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def basic(channels: int) -> Block:
    return Block([(channels, channels, 3)] * 2)


def bottleneck(inputs: int, planes: int, project: bool) -> Block:
    return Block([(inputs, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)], project)


def resized(x: torch.Tensor, like: torch.Tensor, align_corners: bool) -> torch.Tensor:
    size = like.shape[2:]
    return F.interpolate(x, size=size, mode='bilinear', align_corners=align_corners)


class HRModule(nn.Module):
    def __init__(
        self, channels: tuple[int, ...], blocks: int, upsample: Upsample, align_corners: bool
    ):
        super().__init__()
        self.upsample, self.align_corners = upsample, align_corners
        self.branches = nn.ModuleList(
            nn.Sequential(*(basic(c) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList()
        for i, out in enumerate(channels):
            row = nn.ModuleList()
            for j, width in enumerate(channels):
                if j > i:
                    row.append(nn.Sequential(*conv_norm(width, out, 1)))
                elif j == i:
                    row.append(nn.Identity())
                else:
                    steps: list[nn.Module] = []
                    for k in range(i - j):
                        last = k == i - j - 1
                        step = conv_norm(width, out if last else width, 3, 2)
                        steps.append(nn.Sequential(*step, *([] if last else [nn.ReLU()])))
                    row.append(nn.Sequential(*steps))
            self.fuse_layers.append(row)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for i, row in enumerate(self.fuse_layers):
            each = [layer(x) for layer, x in zip(row, maps, strict=True)]  # type: ignore
            each = [self._up(x, j - i, maps[i]) if j > i else x for j, x in enumerate(each)]
            fused.append(torch.relu(sum(each)))
        return fused

    def _up(self, x: torch.Tensor, steps: int, like: torch.Tensor) -> torch.Tensor:
        if self.upsample == 'nearest':
            return F.interpolate(x, scale_factor=2**steps, mode='nearest')
        if self.upsample == 'bilinear_two_step':
            x = F.interpolate(x, scale_factor=2**steps, mode='bilinear')
            return resized(x, like, False)
        return resized(x, like, self.align_corners)


class Trunk(nn.Module):
    """The backbone. `stages` returns every map on the way, by the name of its stage."""

    stage2: Any  # made by add_module, which a type checker does not follow
    stage4: Any

    def __init__(
        self,
        arch: Arch,
        in_channels: int = 3,
        upsample: Upsample = 'nearest',
        align_corners: bool = False,
    ):
        super().__init__()
        self.align_corners = align_corners
        c, (blocks, planes) = arch.channels, arch.layer1
        self.conv1, self.bn1 = conv_norm(in_channels, arch.stem, 3, 2)
        self.conv2, self.bn2 = conv_norm(arch.stem, arch.stem, 3, 2)
        self.layer1 = nn.Sequential(
            *(
                bottleneck(arch.stem if b == 0 else 4 * planes, planes, b == 0)
                for b in range(blocks)
            )
        )

        def down(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Sequential(*conv_norm(inputs, outputs, 3, 2), nn.ReLU()))

        first = nn.Sequential(*conv_norm(4 * planes, c[0], 3), nn.ReLU())
        self.transition1 = nn.ModuleList([first, down(4 * planes, c[1])])
        self.transition2 = nn.ModuleList([nn.Identity(), nn.Identity(), down(c[1], c[2])])
        self.transition3 = nn.ModuleList([*(nn.Identity() for _ in range(3)), down(c[2], c[3])])
        for stage, modules, depth in zip((2, 3, 4), arch.modules, arch.blocks, strict=True):
            made = (HRModule(c[:stage], depth, upsample, align_corners) for _ in range(modules))
            self.add_module(f'stage{stage}', nn.Sequential(*made))

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        seen = {'stem': [x]}
        x = self.layer1(x)
        seen['layer1'] = [x]
        maps = self.stage2([layer(x) for layer in self.transition1])
        seen['stage2'] = maps
        for stage in (3, 4):
            transition = getattr(self, f'transition{stage - 1}')
            maps = getattr(self, f'stage{stage}')([*maps, transition[-1](maps[-1])])
            seen[f'stage{stage}'] = maps
        return seen


class HRNet(Trunk):
    """The classifier."""

    def __init__(
        self, arch: Arch, num_classes: int = 1000, in_channels: int = 3, head_bias: bool = True
    ):
        arch = classifier_arch(arch)
        super().__init__(arch, in_channels)
        c, h = arch.channels, arch.head
        self.incre_modules = nn.ModuleList(
            nn.Sequential(bottleneck(c[i], h[i] // 4, True)) for i in range(4)
        )
        self.downsamp_modules = nn.ModuleList(
            nn.Sequential(*conv_norm(h[i], h[i + 1], 3, 2, head_bias), nn.ReLU()) for i in range(3)
        )
        self.final_layer = nn.Sequential(
            *conv_norm(h[3], arch.features, 1, 1, head_bias), nn.ReLU()
        )
        self.classifier = nn.Linear(arch.features, num_classes)

    def stages(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        seen = super().stages(x)
        maps = seen['stage4']
        y = self.incre_modules[0](maps[0])
        for i, down in enumerate(self.downsamp_modules, 1):
            y = self.incre_modules[i](maps[i]) + down(y)
        pooled = self.final_layer(y).mean((2, 3))
        return seen | {'pooled': [pooled], 'logits': [self.classifier(pooled)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages(x)['logits'][0]


def reference_of(variables: Variables, arch: Arch, num_classes: int, in_channels: int = 3) -> HRNet:
    """The PyTorch model, in evaluation mode, with converted variables."""
    model = HRNet(arch, num_classes, in_channels)
    state = to_torch(variables, arch, 'official')
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return model.eval()
