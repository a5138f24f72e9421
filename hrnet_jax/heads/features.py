"""Maps for dense tasks: as they are, widened, or joined into one."""

from __future__ import annotations

from typing import Literal, get_args

import flax.linen as nn
import jax.numpy as jnp

from hrnet_jax.archs import Arch
from hrnet_jax.backbone import FeatureInfo, HRNet, Network, indices
from hrnet_jax.errors import UserError
from hrnet_jax.heads.classification import ClassifierArch, classifier_arch, widen
from hrnet_jax.layers import Array, Options
from hrnet_jax.upsampling import resize_bilinear

Kind = Literal['branches', 'widened', 'concatenated']


class FeatureMaps(Network):
    """HRNet as a feature extractor, with the variables of a classifier: `backbone` and `head`.

    Attributes:
        arch: a name of `list_models()` or your own `Arch`.
        kind: 'branches' as they leave the network; 'widened' by the classification head's first
            layers (to 128, 256, 512, 1024 channels, what timm's `features_only` gives, unless
            `arch` is a `ClassifierArch` with others);
            'concatenated' all at the size of the first, bilinear, as one map (the representation
            of HRNetV2: Wang et al., TPAMI 2019, section 3.3, figure 4b).
        out_indices: which maps: 0 is the stem's first (stride 2), 1 to 4 the branches.
        in_channels, remat, dtype, param_dtype, ...: by keyword, see `HRNet`.
    """

    arch: Arch | str
    kind: Kind = 'branches'
    out_indices: tuple[int, ...] = (1, 2, 3, 4)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UserError(f'kind must be one of {", ".join(get_args(Kind))}, not {self.kind!r}')
        object.__setattr__(self, 'out_indices', indices(self.out_indices))  # a list has no hash
        if self.kind == 'concatenated' and list(self.out_indices) != sorted(set(self.out_indices)):
            raise UserError(f'to be concatenated, out_indices must rise, not {self.out_indices}')
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that are returned, in their order."""
        info = HRNet(self.arch, out_indices=self.out_indices, parent=None).feature_info
        if self.kind == 'concatenated':
            channels = sum(part.channels for part in info)
            return (FeatureInfo('concatenated', channels, info[0].stride),)
        if self.kind == 'widened':
            head = classifier_arch(self.arch).head
            return tuple(
                FeatureInfo(f'widened{i - 1}', head[i - 1], part.stride) if i else part
                for i, part in zip(self.out_indices, info, strict=True)
            )
        return info

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """(N, H, W, in_channels) normalised RGB -> maps (N, H / stride, W / stride, channels).

        Raises:
            UserError: for images or `out_indices` that do not fit.
        """
        params = self.variables.get('params', {})
        if 'conv1' in params and 'backbone' not in params:
            raise UserError(
                'these are the variables of an HRNet alone: pass '
                "{k: {'backbone': v} for k, v in variables.items()}"
            )
        backbone = self.hrnet(self.arch, out_indices=self.out_indices, name='backbone')
        maps = backbone(images, train)
        if self.kind == 'widened':
            head = _Widened(classifier_arch(self.arch), self.out_indices, self.opts, name='head')
            return head(maps, train)
        if self.kind == 'concatenated':
            size = (maps[0].shape[1], maps[0].shape[2])
            same = [resize_bilinear(x, size, self.align_corners) for x in maps]
            return (jnp.concatenate(same, -1),)
        return maps


class _Widened(nn.Module):
    arch: ClassifierArch
    out_indices: tuple[int, ...]
    opts: Options

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], train: bool) -> tuple[Array, ...]:
        return tuple(
            widen(x, i - 1, self.arch, self.opts, train) if i else x
            for i, x in zip(self.out_indices, maps, strict=True)
        )
