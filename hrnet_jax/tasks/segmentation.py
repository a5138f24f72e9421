"""Semantic segmentation: a class for each pixel, mean intersection over union."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hrnet_jax.tasks.base import Task, arch_of

# Of `Segmenter`, in checkpoint.json.
_FIELDS = (
    *('num_classes', 'in_channels', 'head', 'ocr_channels', 'key_channels', 'dropout'),
    *('upsample', 'align_corners'),
)


class Segmentation(Task):
    name = 'segmentation'

    def create_model(self, arch: Any, num_classes: int, **options: Any) -> Any:
        """A `Segmenter`."""
        from hrnet_jax.heads.segmentation import Segmenter

        return Segmenter(arch, num_classes=num_classes, **options)

    def describe(self, model: Any) -> dict[str, Any]:
        fields = {name: getattr(model, name) for name in _FIELDS}
        return {'arch': dataclasses.asdict(model.arch), **fields}

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        from hrnet_jax.archs import Arch, get_arch

        arch = arch_of(meta, Arch, get_arch)
        return self.create_model(arch, **{name: meta[name] for name in _FIELDS} | options)


TASK = Segmentation()
