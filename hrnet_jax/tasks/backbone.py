"""A backbone alone, such as the trunk of a model with another head: maps, to start others from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import Task, arch_of

# In checkpoint.json: of HRNet, and of one with a pyramid.
_FIELDS = ('in_channels', 'outputs', 'upsample', 'align_corners')
_OF_PYRAMID = ('in_channels', 'channels', 'pooling', 'stride', 'upsample', 'align_corners')


class Backbone(Task):
    name = 'backbone'
    heads = ('backbone', 'pyramid')

    def refuse(self, what: str) -> NoReturn:
        raise UserError(
            f'a backbone alone gives maps and has no {what}: use it by hrnet_jax.transfer, or '
            'train a head on it with train.py --init'
        )

    def create_model(self, arch: Any, num_classes: int | None = None, **options: Any) -> Any:
        """An `HRNet`, whatever the number of classes; a `Pyramid` where it has `channels`."""
        from hrnet_jax.archs import get_arch
        from hrnet_jax.backbone import HRNet
        from hrnet_jax.heads.hrfpn import Pyramid

        return (Pyramid if 'channels' in options else HRNet)(get_arch(arch), **options)

    def describe(self, model: Any) -> dict[str, Any]:
        from hrnet_jax.archs import get_arch

        names = _OF_PYRAMID if hasattr(model, 'channels') else _FIELDS
        fields = {name: getattr(model, name) for name in names}
        return {'arch': dataclasses.asdict(get_arch(model.arch)), **fields}

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        from hrnet_jax.archs import Arch, get_arch

        arch = arch_of(meta, Arch, get_arch)
        names = _OF_PYRAMID if 'channels' in meta else _FIELDS
        return self.create_model(arch, **{name: meta[name] for name in names} | options)

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, **options: Any
    ) -> dict[str, Any]:
        self.refuse('prediction')


TASK = Backbone()
