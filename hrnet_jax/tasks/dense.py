"""What the tasks share whose network is HRNet with a head of another kind than a classifier's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from hrnet_jax.tasks.base import Task, arch_of


@dataclasses.dataclass(frozen=True)
class AsTheyAre:
    """A decoder for outputs that the network itself decodes on the device."""

    def __call__(self, outputs: Any) -> Any:
        return outputs


class DenseTask(Task):
    """A task with a model of an `Arch` and a few more fields.

    Attributes:
        fields: those of the model, in checkpoint.json.
    """

    fields: ClassVar[tuple[str, ...]]

    def fields_of(self, names: Any) -> tuple[str, ...]:
        """`fields`, of a model or of a checkpoint's JSON that has these names."""
        return self.fields

    def describe(self, model: Any) -> dict[str, Any]:
        from hrnet_jax.archs import get_arch

        fields = {name: getattr(model, name) for name in self.fields_of(dir(model))}
        return {'arch': dataclasses.asdict(get_arch(model.arch)), **fields}

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        from hrnet_jax.archs import Arch, get_arch

        own = {name: meta[name] for name in self.fields_of(meta)}
        return self.create_model(arch_of(meta, Arch, get_arch), **own | options)
