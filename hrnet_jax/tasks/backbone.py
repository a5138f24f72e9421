"""A backbone alone, such as the trunk of a model with another head: maps, to start others from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from hrnet_jax.errors import UserError
from hrnet_jax.tasks.dense import DenseTask

_OF_PYRAMID = ('in_channels', 'channels', 'pooling', 'stride', 'upsample', 'align_corners')


class Backbone(DenseTask):
    name = 'backbone'
    heads = ('backbone', 'pyramid')
    fields = ('in_channels', 'outputs', 'upsample', 'align_corners')

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

    def fields_of(self, names: Any) -> tuple[str, ...]:
        return _OF_PYRAMID if 'channels' in names else self.fields

    def prediction_options(
        self, model: Any, class_names: Sequence[str] | None, **options: Any
    ) -> dict[str, Any]:
        self.refuse('prediction')


TASK = Backbone()
