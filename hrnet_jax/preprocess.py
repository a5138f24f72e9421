"""The names of `data.preprocess`, where the documentation has them."""

from hrnet_jax.data.preprocess import (
    SUPPORT,
    Transform,
    normalize,
    open_image,
    resize_crop,
    to_rgb,
)

__all__ = [
    'SUPPORT',
    'Transform',
    'normalize',
    'open_image',
    'resize_crop',
    'to_rgb',
]
