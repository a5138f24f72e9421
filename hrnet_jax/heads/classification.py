"""The classification head (Wang et al., TPAMI 2019, appendix; HRNet-W*-C in the official code)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hrnet_jax.archs import Arch, get_arch
from hrnet_jax.backbone import FeatureInfo, HRNet
from hrnet_jax.layers import Array, Bottleneck, Configured, Options, at_least_float32, conv_norm


def linear_init(fan_in: int):
    """PyTorch's default for a linear layer, kernel and bias: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def widen(x: Array, i: int, arch: Arch, opts: Options, train: bool) -> Array:
    """The map of branch i with arch.head[i] channels, as layers of the module that calls this."""
    return Bottleneck(arch.head[i] // 4, True, opts, name=f'incre_modules_{i}_0')(x, train)


class ClassificationHead(nn.Module):
    """Four maps -> widened, joined from fine to coarse, pooled, classified."""

    arch: Arch
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
        if not logits:
            return pooled
        init = linear_init(self.arch.features)
        dense = nn.Dense(
            self.num_classes,
            dtype=dtype,
            param_dtype=opts.param_dtype,
            kernel_init=init,
            bias_init=init,
            name='classifier',
        )
        return dense(pooled)


class Classifier(Configured):
    """HRNet for image classification: `backbone`, then `head`.

    Attributes: as of `hrnet_jax.HRNet` (without `outputs` and `out_indices`), and num_classes.
    """

    arch: Arch
    num_classes: int = 1000
    in_channels: int = 3
    remat: bool = False

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Of the maps that `features` returns."""
        return HRNet(self.arch, parent=None).feature_info

    def setup(self) -> None:
        arch = get_arch(self.arch)
        self.backbone = HRNet(arch, self.in_channels, remat=self.remat, **vars(self.opts))
        # Convolutions of four sizes, each once: Winograd's would be a fifth of what is compiled.
        opts = dataclasses.replace(self.opts, winograd=0)
        self.head = ClassificationHead(arch, self.num_classes, opts)

    def __call__(self, images: Array, train: bool = False) -> Array:
        """(N, H, W, in_channels) normalised RGB -> (N, num_classes) logits, float32."""
        return self.head(self.backbone(images, train), train)

    def features(self, images: Array, train: bool = False) -> tuple[Array, ...]:
        """-> four maps, strides 4, 8, 16, 32: (N, H / s, W / s, arch.channels[i])."""
        return self.backbone(images, train)

    def embed(self, images: Array, train: bool = False) -> Array:
        """-> the pooled features (N, arch.features) before the classifier, float32."""
        return self.head(self.backbone(images, train), train, logits=False)
