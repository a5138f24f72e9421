"""Pose heads: heatmaps of keypoints, from the finest map, or from the four maps joined.

HRNet (Sun et al., CVPR 2019, figure 1) and, for faces and hands, HRNetV2 (Wang et al., TPAMI 2019,
section 3.3). Layers have mmpose's names.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import flax.linen as nn

from hrnet_jax.archs import Arch, at_least_one, get_arch
from hrnet_jax.backbone import FeatureInfo, HRNet, Network
from hrnet_jax.errors import UserError
from hrnet_jax.initialisers import Normal
from hrnet_jax.layers import Array, ConvNorm, Options, at_least_float32, conv

Head = Literal['finest', 'joined']


class PoseHead(nn.Module):
    """Maps -> (N, H / 4, W / 4, num_keypoints), at least in float32.

    Several maps are joined by a 1x1 convolution first.
    """

    num_keypoints: int
    align_corners: bool
    opts: Options

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], train: bool) -> Array:
        opts, x = self.opts, maps[0]
        if len(maps) > 1:
            layer = ConvNorm(sum(x.shape[-1] for x in maps), 1, ('conv_layers_0', 'conv_layers_1'))
            x = opts.blocks.conv_norm_joined(maps, layer, opts, train, self.align_corners)
            x = nn.relu(x)
        opts = dataclasses.replace(opts, dtype=at_least_float32(opts.dtype, opts.param_dtype))
        init = Normal(0.001)
        return conv(x, self.num_keypoints, 1, 'final_layer', opts, kernel_init=init, last=True)


class PoseNet(Network):
    """HRNet for keypoints: `backbone`, then `head`. H and W are multiples of 32.

    Attributes:
        arch: a name of `list_models()` or an `Arch`.
        num_keypoints: how many heatmaps there are.
        head: 'finest': of the finest of the four maps, the only one that the last module makes;
            'joined': of all four (HRNetV2).
        upsample, align_corners, and others: by keyword, see `Network`; HRNetV2 upsamples
            'bilinear', also in its fusion.
        transform: filled in by `hrnet_jax.load`, as of a `Classifier`.
    """

    arch: Arch
    num_keypoints: int = 17
    head: Head = 'finest'
    task: str = 'pose'
    transform: Any = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.head not in get_args(Head):
            raise UserError(f'head must be one of {", ".join(get_args(Head))}, not {self.head!r}')
        number = at_least_one('num_keypoints', self.num_keypoints)
        object.__setattr__(self, 'num_keypoints', number)
        object.__setattr__(self, 'arch', get_arch(self.arch))  # of a name, too
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """The length of the outputs, as other models call it."""
        return self.num_keypoints

    @property
    def outputs(self) -> int:
        """How many maps the backbone gives."""
        return 1 if self.head == 'finest' else 4

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that `features` returns."""
        return HRNet(self.arch, self.outputs, parent=None).feature_info

    def __call__(self, images: Array, train: bool = False) -> Array:
        """(N, H, W, in_channels) normalised RGB -> (N, H / 4, W / 4, num_keypoints) heatmaps,
        float32.

        Args:
            train: see `Classifier`.
        """
        return self._run(images, train)[-1]

    def features(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """-> the maps that the head gets: (N, H / s, W / s, arch.channels[i]), s from 4 on."""
        return self._run(images, train, heatmaps=False)

    @nn.compact
    def _run(self, images: Array, train: bool, heatmaps: bool = True) -> tuple[Array, ...]:
        maps = self.hrnet(self.arch, outputs=self.outputs, name='backbone')(images, train)
        if not heatmaps:
            return maps
        head = PoseHead(self.num_keypoints, self.align_corners, self.opts, name='head')
        return (head(maps, train),)
