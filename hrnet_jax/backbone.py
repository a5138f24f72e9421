"""The backbone: parallel branches that exchange information again and again.

Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", TPAMI 2019,
section 3: `HRModule` is figure 3 and its fusion equation (1), `HRNet` is figure 2.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp

from hrnet_jax.archs import STRIDE, Arch, at_least_one, get_arch, whole_number
from hrnet_jax.errors import UserError
from hrnet_jax.layers import Array, BasicBlock, Bottleneck, Configured, Options, conv_norm
from hrnet_jax.upsampling import Upsample


class HRModule(nn.Module):
    """Residual blocks on every branch, then fusion of all branches into `outputs` of them.

    Attributes:
        channels: of each branch, finest first.
        blocks: BasicBlocks a branch.
        outputs: how many branches are returned: all, or in the last module of a pose network one.
        upsample, align_corners: see `HRNet`.
    """

    channels: tuple[int, ...]
    blocks: int
    outputs: int
    upsample: Upsample
    align_corners: bool
    opts: Options

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], train: bool) -> tuple[Array, ...]:
        branches = []
        for i, (x, channels) in enumerate(zip(maps, self.channels, strict=True)):
            fields, numbers = (channels, self.opts), range(self.blocks)
            chain = self.opts.blocks.chain
            branches.append(chain(BasicBlock, fields, f'branches_{i}', numbers, x, train))
        return tuple(self._fuse(branches, i, train) for i in range(self.outputs))

    def _fuse(self, branches: list[Array], i: int, train: bool) -> Array:
        """relu(sum over j of branch j brought to the size and channels of branch i)."""
        terms = []
        for j, x in enumerate(branches):
            name = f'fuse_layers_{i}_{j}'
            if j > i:
                names = (f'{name}_0', f'{name}_1')
                x = conv_norm(x, self.channels[i], 1, names, self.opts, train)
                height, width = branches[i].shape[1:3]
                way = self.upsample
                align = self.align_corners and way == 'bilinear'
                x = self.opts.blocks.upsample(x, 2 ** (j - i), (height, width), way, align)
            for k in range(i - j):  # none when j >= i
                last = k == i - j - 1
                names = (f'{name}_{k}_0', f'{name}_{k}_1')
                channels = self.channels[i if last else j]
                x = conv_norm(x, channels, 3, names, self.opts, train, stride=2)
                x = x if last else nn.relu(x)
            terms.append(x)
        return nn.relu(functools.reduce(operator.add, terms))


_Recomputed = nn.remat(HRModule, static_argnums=(2,))


class FeatureInfo(NamedTuple):
    """One map that a network returns: what it is called, its channels, and its stride."""

    name: str
    channels: int
    stride: int


def indices(given: Iterable[int]) -> tuple[int, ...]:
    """`out_indices` as a tuple.

    Raises:
        UserError: if they are anything but whole numbers.
    """
    try:
        return tuple(map(operator.index, given))
    except TypeError:
        raise UserError(f'out_indices are numbers, such as (1, 2), not {given!r}') from None


class Network(Configured, kw_only=True):
    """What every module with an HRNet inside is asked for, by keyword.

    Attributes:
        in_channels: of the images; checked.
        remat: recompute each HRModule in the backward pass instead of keeping its activations.
        upsample: how the fusion upsamples. 'nearest' by the factor (classification, pose,
            detection); 'bilinear' straight to the size of the target (official segmentation);
            'bilinear_two_step' by the factor and then to the size (mmsegmentation).
        align_corners: PyTorch's flag of that name, for 'bilinear' and for heads that join maps; in
            two steps corners are never aligned (mmsegmentation, whose heads alone have the flag).
    """

    in_channels: int = 3
    remat: bool = False
    upsample: Upsample = 'nearest'
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.upsample not in get_args(Upsample):
            raise UserError(f'upsample must be one of {get_args(Upsample)}, not {self.upsample!r}')
        object.__setattr__(self, 'in_channels', at_least_one('in_channels', self.in_channels))
        super().__post_init__()

    @nn.nowrap
    def hrnet(self, arch: Arch | str, **own: Any) -> HRNet:
        """The backbone with the same fields, as a submodule; `own`: those of `HRNet`, and name."""
        shared = {f.name: getattr(self, f.name) for f in _SHARED}
        return HRNet(arch, **shared, **own)


_SHARED = [f for f in dataclasses.fields(Network) if f.name not in ('parent', 'name')]


class HRNet(Network):
    """The HRNet backbone: (N, H, W, in_channels) -> four maps at strides 4, 8, 16 and 32.

    H and W must be multiples of 32 unless `upsample` is one of the bilinear ways.

    Attributes:
        arch: the sizes: a name of `list_models()` or your own `Arch`.
        outputs: branches that the last module fuses: four, or one for pose networks.
        out_indices: the maps that are returned: 0 is the stem's first (stride 2), 1 to 4 are the
            branches; by default all branches that there are.
        in_channels, remat, upsample, align_corners: by keyword, see `Network`.
        dtype, param_dtype, bn_group_size, frozen_norm: by keyword, see `layers.Options`.
    """

    task: ClassVar[str] = 'backbone'  # what a checkpoint of it says

    arch: Arch | str
    outputs: int = 4
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        outputs = whole_number(self.outputs)
        if outputs not in range(1, 5):
            raise UserError(f'outputs is the number of branches, 1 to 4, not {self.outputs!r}')
        object.__setattr__(self, 'outputs', outputs)
        if self.out_indices is not None:  # a list could not be hashed
            object.__setattr__(self, 'out_indices', indices(self.out_indices))
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that are returned, in their order."""
        arch = get_arch(self.arch)
        known = [FeatureInfo('stem', arch.stem, 2)]
        for i, channels in enumerate(arch.channels[: self.outputs]):
            known.append(FeatureInfo(f'branch{i}', channels, 4 * 2**i))
        chosen = range(1, len(known)) if self.out_indices is None else self.out_indices
        if not chosen or not set(chosen) <= set(range(len(known))) or len({*chosen}) < len(chosen):
            raise UserError(
                f'out_indices are different numbers from 0 to {len(known) - 1}, not {tuple(chosen)}'
            )
        return tuple(known[i] for i in chosen)

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """Returns maps (N, H / stride, W / stride, channels), as `feature_info` says.

        Raises:
            UserError: for images of a shape or type that does not fit, or a classifier's variables.
        """
        arch, info = get_arch(self.arch), self.feature_info
        opts = dataclasses.replace(self.opts, blocks=self.blocks.backbone)
        check_own(self.variables.get('params', {}))
        check_images(images.shape, self.in_channels, self.upsample == 'nearest')
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise UserError(
                f'images must be normalised, in floating point, not {images.dtype}: '
                'hrnet_jax.preprocess.normalize(images, transform)'
            )
        module = opts.blocks.module(_Recomputed if self.remat else HRModule)

        def conv(x: Array, features: int, names: tuple[str, str], stride: int = 2) -> Array:
            return nn.relu(conv_norm(x, features, 3, names, opts, train, stride))

        stem = conv(images, arch.stem, ('conv1', 'bn1'))
        x = conv(stem, arch.stem, ('conv2', 'bn2'))
        blocks, planes = arch.layer1
        x = Bottleneck(planes, True, opts, name='layer1_0')(x, train)
        fields = (planes, False, opts)
        x = opts.blocks.chain(Bottleneck, fields, 'layer1', range(1, blocks), x, train)

        channels = opts.blocks.widths(arch.channels)
        first = conv(x, channels[0], ('transition1_0_0', 'transition1_0_1'), stride=1)
        maps: tuple[Array, ...] = (first,)
        for stage in (2, 3, 4):
            # The new branch starts from the coarsest map there is.
            source = x if stage == 2 else maps[-1]
            name = f'transition{stage - 1}_{stage - 1}_0'
            names = (f'{name}_0', f'{name}_1')
            maps = (*maps, conv(source, channels[stage - 1], names))
            modules = arch.modules[stage - 2]
            for m in range(modules):
                outputs = self.outputs if (stage, m) == (4, modules - 1) else stage
                maps = module(
                    channels[:stage],
                    arch.blocks[stage - 2],
                    outputs,
                    self.upsample,
                    self.align_corners,
                    opts,
                    name=f'stage{stage}_{m}',
                )(maps, train)
        known = {4 * 2**i: x for i, x in enumerate(maps)} | {2: stem}
        return tuple(known[stride][..., :channels] for _, channels, stride in info)


def image_hw(size: Any) -> tuple[int, int]:
    """Height and width of an image size, which is one integer or two.

    Raises:
        UserError: if it is something else.
    """
    try:
        pair = [operator.index(n) for n in (size if isinstance(size, Iterable) else (size, size))]
    except TypeError:
        pair = []
    if len(pair) != 2:
        raise UserError(f'image size {size!r} is neither one integer nor two')
    return pair[0], pair[1]


def check_own(params: Mapping[str, Any]) -> None:
    """Raises UserError for the params of a model around an HRNet, not of the HRNet itself."""
    if 'backbone' in params and 'conv1' not in params:
        raise UserError(
            'these are the variables of a model whose backbone is an HRNet: pass '
            "{k: v['backbone'] for k, v in variables.items()}, or take hrnet_jax.FeatureMaps"
        )


def check_images(shape: tuple[int, ...], channels: int, multiples: bool) -> None:
    """Raises UserError unless `shape` is (N, H, W, channels) of a size that the network takes."""
    if len(shape) != 4 or shape[-1] != channels:
        raise UserError(f'images must have shape (N, H, W, {channels}), not {tuple(shape)}')
    for axis, size in (('height', shape[1]), ('width', shape[2])):
        if multiples and (size % STRIDE or not size):
            below = size // STRIDE * STRIDE
            fit = f'{below} and {below + STRIDE}' if below else f'at least {STRIDE}'
            raise UserError(
                f'image {axis} {size} is not a multiple of {STRIDE}; the next sizes that fit: {fit}'
            )
