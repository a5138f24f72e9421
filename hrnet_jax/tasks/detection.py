"""Detection: the objects in an image, each with its box, its class and how sure that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hrnet_jax.data.keep_ratio import KeepRatio, coco
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.tasks.base import Figure, Task, arch_of, options_of

# Of `Detector`, in checkpoint.json.
_FIELDS = (
    *('num_classes', 'in_channels', 'head', 'channels', 'pooling', 'threshold', 'iou', 'most'),
    *('upsample', 'align_corners'),
)


class Detection(Task):
    name = 'detection'
    heads = ('fcos', 'faster_rcnn')
    figures = (
        Figure('ap', 'AP', unit=''),
        Figure('ap50', 'AP at 0.5', unit=''),
        Figure('ap75', 'AP at 0.75', unit=''),
        Figure('aps', 'AP, small', unit=''),
        Figure('apm', 'AP, medium', unit=''),
        Figure('apl', 'AP, large', unit=''),
    )
    protocol = KeepRatio
    tensorflow = False

    # The model

    def create_model(self, arch: Any, num_classes: int = 80, **options: Any) -> Any:
        """A `Detector`."""
        from hrnet_jax.heads.detection import Detector

        return Detector(arch, num_classes=num_classes, **options)

    def build(self, arch: Any, recipe: Any, source: Any) -> Any:
        own = {'head': recipe.head, 'frozen_norm': recipe.frozen_norm}
        return self.create_model(arch, self.num_outputs(source), **own, **options_of(recipe))

    def describe(self, model: Any) -> dict[str, Any]:
        fields = {name: getattr(model, name) for name in _FIELDS}
        return {'arch': dataclasses.asdict(model.arch), **fields}

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        from hrnet_jax.archs import Arch, get_arch

        arch = arch_of(meta, Arch, get_arch)
        return self.create_model(arch, **{name: meta[name] for name in _FIELDS} | options)

    def protocol_of_file(
        self, model: Any, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Protocol, list[str]]:
        """mmdetection's FCOS gets BGR."""
        usual = {'channels': 'bgr' if model.head == 'fcos' else 'rgb'}
        given = {name: value for name, value in flags.items() if value is not None}
        return super().protocol_of_file(model, meta, multiple, **usual | given)

    def class_names(self, dataset: str) -> tuple[str, ...] | None:
        return tuple(coco().values()) if dataset == 'coco' else None


TASK = Detection()
