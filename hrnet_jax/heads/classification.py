"""The classification head (Wang et al., TPAMI 2019, appendix; HRNet-W*-C in the official code)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from hrnet_jax.archs import ARCHS, Arch, at_least_one, check_sizes, get_arch
from hrnet_jax.backbone import FeatureInfo, HRNet, Network
from hrnet_jax.errors import UserError
from hrnet_jax.layers import Array, Bottleneck, Options, at_least_float32, conv_norm, dense


@dataclasses.dataclass(frozen=True)
class ClassifierArch(Arch):
    """The sizes of an HRNet and of its classification head.

    Attributes: as of `hrnet_jax.Arch`, and
        head: channels that the head widens the four maps to.
        features: length of the pooled feature vector.
    """

    head: tuple[int, ...] = (128, 256, 512, 1024)
    features: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, {'head': 4, 'features': 0})
        if any(n % 4 for n in self.head):
            raise UserError(f'{self.name}: head widths {self.head} should be multiples of 4')


# Heads that are not as the others.
HEADS: dict[str, dict[str, Any]] = {'tiny': {'head': (16, 32, 48, 64), 'features': 64}}


def classifier_arch(arch: str | Arch) -> ClassifierArch:
    """The architecture with its head; one that has a head passes through.

    Raises:
        UserError: if the name is not in the table.
    """
    arch = get_arch(arch)
    if isinstance(arch, ClassifierArch):
        return arch
    known = HEADS.get(arch.name, {}) if arch == ARCHS.get(arch.name) else {}
    return ClassifierArch(**vars(arch), **known)


def widen(x: Array, i: int, arch: ClassifierArch, opts: Options, train: bool) -> Array:
    """The map of branch i with arch.head[i] channels, as layers of the module that calls this."""
    return Bottleneck(arch.head[i] // 4, True, opts, name=f'incre_modules_{i}_0')(x, train)


class ClassificationHead(nn.Module):
    """Four maps -> widened, joined from fine to coarse, pooled, classified."""

    arch: ClassifierArch
    num_classes: int
    opts: Options

    @nn.compact
    def __call__(self, maps: tuple[Array, ...], train: bool, logits: bool = True) -> Array:
        """Returns (N, num_classes) logits, or the (N, arch.features) pooled features; float32."""
        opts, head = self.opts, self.arch.head
        widened = [widen(x, i, self.arch, opts, train) for i, x in enumerate(maps)]
        y = widened[0]
        for i, x in enumerate(widened[1:]):
            names = (f'downsamp_modules_{i}_0', f'downsamp_modules_{i}_1')
            y = x + nn.relu(conv_norm(y, head[i + 1], 3, names, opts, train, stride=2))
        names = ('final_layer_0', 'final_layer_1')
        y = nn.relu(conv_norm(y, self.arch.features, 1, names, opts, train))
        dtype = at_least_float32(opts.dtype, opts.param_dtype)
        pooled = jnp.mean(y.astype(dtype), (1, 2))
        return dense(pooled, self.num_classes, 'classifier', opts, last=True) if logits else pooled


class Classifier(Network):
    """HRNet for image classification: `backbone`, then `head`.

    Attributes: arch (a name or an `Arch`, which becomes a `ClassifierArch`), num_classes, and by
    keyword what `hrnet_jax.HRNet` takes; task: what the logits are for, the name of a task, which
    `hrnet_jax.predict` and checkpoints follow. `hrnet_jax.load` fills in transform and class_names,
    of the checkpoint, for `hrnet_jax.predict`: models that differ in them alone are equal.
    """

    arch: Arch
    num_classes: int = 1000
    task: str = 'classification'
    transform: Any = dataclasses.field(default=None, compare=False, repr=False)
    class_names: tuple[str, ...] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'arch', classifier_arch(self.arch))  # of a name, too
        object.__setattr__(self, 'num_classes', at_least_one('num_classes', self.num_classes))
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that `features` returns."""
        return HRNet(self.arch, parent=None).feature_info

    def setup(self) -> None:
        self.backbone = self.hrnet(self.arch)
        self.head = ClassificationHead(classifier_arch(self.arch), self.num_classes, self.opts)

    def __call__(self, images: Array, train: bool = False) -> Array:
        """(N, H, W, in_channels) normalised RGB -> (N, num_classes) logits, float32.

        Args:
            train: BatchNorm normalises by the statistics of the batch; the running ones change only
                where `apply` is called with mutable=['batch_stats'], which returns them.
        """
        return self.head(self.backbone(images, train), train)

    def features(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """-> four maps, strides 4, 8, 16, 32: (N, H / s, W / s, arch.channels[i])."""
        return self.backbone(images, train)

    def embed(self, images: Array, train: bool = False) -> Array:
        """-> the pooled features (N, arch.features) before the classifier, float32."""
        return self.head(self.backbone(images, train), train, logits=False)
