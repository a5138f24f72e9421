"""HRNet for classification in PyTorch, with the official names: the reference to verify against.

The structure is that of the paper and of HRNet-Image-Classification. It needs PyTorch, which
nothing else in the project does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

from convert.conversion import to_torch
from convert.recognise import Model
from hrnet_jax.archs import Arch, get_arch
from hrnet_jax.heads.classification import Classifier, classifier_arch
from hrnet_jax.models import Variables


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


class HRModule(nn.Module):
    def __init__(self, channels: tuple[int, ...], blocks: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(basic(c) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList()
        for i, out in enumerate(channels):
            row = nn.ModuleList()
            for j, width in enumerate(channels):
                if j > i:
                    up = nn.Upsample(scale_factor=2 ** (j - i), mode='nearest')
                    row.append(nn.Sequential(*conv_norm(width, out, 1), up))
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
        return [
            torch.relu(sum(layer(x) for layer, x in zip(row, maps, strict=True)))  # type: ignore
            for row in self.fuse_layers
        ]


class HRNet(nn.Module):
    """The classifier. `stages` returns every map on the way, by the name of its stage."""

    stage2: Any  # made by add_module, which a type checker does not follow

    def __init__(
        self, arch: Arch, num_classes: int = 1000, in_channels: int = 3, head_bias: bool = True
    ):
        super().__init__()
        arch = classifier_arch(arch)
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
            made = (HRModule(c[:stage], depth) for _ in range(modules))
            self.add_module(f'stage{stage}', nn.Sequential(*made))

        h = arch.head
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
        y = self.incre_modules[0](maps[0])
        for i, down in enumerate(self.downsamp_modules, 1):
            y = self.incre_modules[i](maps[i]) + down(y)
        pooled = self.final_layer(y).mean((2, 3))
        return seen | {'pooled': [pooled], 'logits': [self.classifier(pooled)]}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stages(x)['logits'][0]


def verify(
    model: Model,
    variables: Variables,
    state: dict[str, Any],
    size: tuple[int, int] = (224, 224),
) -> dict[str, float]:
    """Runs the converted model beside the reference with the file's own tensors.

    Args:
        state: the file's tensors under official names, as NumPy arrays.
        size: height and width of the two random images.

    Of a backbone its own stages are compared, and of the last the maps that it has.

    Returns:
        stage -> the largest max|a - b| / max|b| over its maps.
    """
    whole = isinstance(model, Classifier)
    classes = model.num_classes if whole else 1
    reference = HRNet(
        get_arch(model.arch), classes, model.in_channels, 'final_layer.0.bias' in state
    )
    # Counters do not enter the result, and not every file has them.
    counters = {
        k: v
        for k, v in reference.state_dict().items()
        if k.endswith('num_batches_tracked') or not whole
    }
    tensors = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in state.items()}
    reference.load_state_dict(counters | tensors)
    images = np.random.default_rng(0).standard_normal((2, *size, model.in_channels), np.float32)
    with torch.no_grad():
        theirs = reference.eval().stages(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    with jax.default_matmul_precision('highest'):
        ours = jax.jit(stages_of(model))(variables, images)
    return {
        name: max(_difference(a, b) for a, b in zip(ours[name], maps, strict=whole))
        for name, maps in theirs.items()
        if name in ours
    }


def stages_of(model: Model) -> Callable[[Variables, Any], dict[str, list[jax.Array]]]:
    """A function of (variables, images) with the same result as `HRNet.stages`, NHWC."""
    whole, arch = isinstance(model, Classifier), get_arch(model.arch)
    place, method = (('backbone',), 'features') if whole else ((), '__call__')
    last = {f'layer1_{arch.layer1[0] - 1}': 'layer1', 'bn2': 'stem'}
    last |= {f'stage{s}_{m - 1}': f'stage{s}' for s, m in zip((2, 3, 4), arch.modules, strict=True)}

    def run(variables: Variables, images: Any) -> dict[str, list[jax.Array]]:
        def wanted(module: Any, method: str) -> bool:
            return module.name in last and module.path[:-1] == place and method == '__call__'

        maps, extra = model.apply(variables, images, method=method, capture_intermediates=wanted)
        kept = extra['intermediates']['backbone'] if whole else extra['intermediates']
        seen = {last[name]: jax.tree.leaves(value['__call__']) for name, value in kept.items()}
        seen['stem'] = [jax.nn.relu(seen['stem'][0])]
        if not whole:
            return seen
        pooled, logits = (
            model.apply(variables, maps, method=lambda m, x, all=all: m.head(x, False, logits=all))
            for all in (False, True)
        )
        return seen | {'pooled': [pooled], 'logits': [logits]}

    return run


def _difference(ours: jax.Array, theirs: torch.Tensor) -> float:
    b = theirs.numpy()
    a = np.asarray(ours).transpose(0, 3, 1, 2) if b.ndim == 4 else np.asarray(ours)
    return float(np.abs(a - b).max() / np.abs(b).max())


def reference_of(variables: Variables, arch: Arch, num_classes: int, in_channels: int = 3) -> HRNet:
    """The PyTorch model, in evaluation mode, with converted variables."""
    model = HRNet(arch, num_classes, in_channels)
    state = to_torch(variables, arch, 'official')
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()})
    return model.eval()
