"""A backbone alone, such as the trunk of a model with another head: maps, to start others from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from hrnet_jax.errors import UserError
from hrnet_jax.tasks.base import Task, arch_of

_FIELDS = ('in_channels', 'outputs', 'upsample', 'align_corners')  # of HRNet, in checkpoint.json


class Backbone(Task):
    name = 'backbone'
    heads = ('backbone',)

    def refuse(self, what: str) -> NoReturn:
        raise UserError(
            f'a backbone alone gives maps and has no {what}: use it by hrnet_jax.transfer, or '
            'train a head on it with train.py --init'
        )

    def create_model(self, arch: Any, num_classes: int | None = None, **options: Any) -> Any:
        """An `HRNet`, whatever the number of classes."""
        from hrnet_jax.archs import get_arch
        from hrnet_jax.backbone import HRNet

        return HRNet(get_arch(arch), **options)

    def describe(self, model: Any) -> dict[str, Any]:
        from hrnet_jax.archs import get_arch

        fields = {name: getattr(model, name) for name in _FIELDS}
        return {'arch': dataclasses.asdict(get_arch(model.arch)), **fields}

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        from hrnet_jax.archs import Arch, get_arch

        arch = arch_of(meta, Arch, get_arch)
        return self.create_model(arch, **{name: meta[name] for name in _FIELDS} | options)

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, **options: Any
    ) -> dict[str, Any]:
        self.refuse('prediction')


TASK = Backbone()
