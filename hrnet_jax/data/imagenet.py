"""The 1000 classes of ImageNet, in the order of every published checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import resources


@functools.cache
def classes() -> dict[str, str]:
    """WordNet 3.0 id -> name; the position is the class index."""
    text = resources.files('hrnet_jax.data').joinpath('imagenet_classes.txt').read_text()
    return {line.split(' ', 1)[0]: line.split(' ', 1)[1] for line in text.splitlines()}


def readable(names: Iterable[str]) -> list[str]:
    """WordNet ids as their names; other names as they are."""
    return [classes().get(name, name) for name in names]


def default_class_names(num_classes: int) -> list[str]:
    """ImageNet's class names (WordNet 3.0) for 1000 classes, '0', '1', ... for other numbers."""
    if num_classes != 1000:
        return [str(i) for i in range(num_classes)]
    return list(classes().values())
