"""timm's config.json, which lies beside the weights in a folder or a repository of the hub."""

from __future__ import annotations

import math
from typing import Any

from hrnet_jax.checkpoints.published import PUBLISHED
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError

CONFIG = 'config.json'
# timm's name of a model -> our architecture, whether it has biases before BatchNorm in the head.
MODELS = {
    entry.hub.removeprefix('timm/').split('.')[0]: (entry.arch, entry.head_bias)
    for entry in PUBLISHED.values()
    if entry.hub
}


def config(meta: dict[str, Any], head_bias: bool) -> dict[str, Any] | None:
    """The content for a checkpoint with this JSON; None where timm has no such model."""
    arch, transform = meta['arch'], Transform.from_json(meta['transform'])
    wanted = (arch['name'], head_bias)
    name = next((name for name, has in MODELS.items() if has == wanted), None)
    if name is None or meta['in_channels'] != 3:
        return None
    names = meta.get('class_names')
    return {
        'architecture': name,
        'num_classes': meta['num_classes'],
        'num_features': arch['features'],
        **({'label_names': names} if names else {}),
        'pretrained_cfg': {
            'custom_load': False,
            'input_size': [3, transform.crop, transform.crop],
            'fixed_input_size': False,
            'interpolation': transform.interpolation,
            'crop_pct': _crop_pct(transform),
            'crop_mode': 'center',
            'mean': list(transform.mean),
            'std': list(transform.std),
            'num_classes': meta['num_classes'],
            'pool_size': [transform.crop // 32] * 2,
            'first_conv': 'conv1',
            'classifier': 'classifier',
        },
    }


def told(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a config.json says, as the JSON of a checkpoint would; remarks on what is no such thing.

    A config.json of another program says nothing.
    """
    if str(content.get('architecture')) not in MODELS:
        return {}, []
    said: dict[str, Any] = {'layout': 'timm'}
    notes = []
    try:
        said['transform'] = _transform(content.get('pretrained_cfg', content)).to_json()
    except (UserError, TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        notes.append(f'the transform of {CONFIG} is not taken: {error}')
    names = content.get('label_names')
    if isinstance(names, dict):  # number -> name
        order = [names.get(str(i)) for i in range(len(names))]
        names = order if all(order) else None
    if names:
        said['class_names'] = list(map(str, names))
    return said, notes


def _transform(fields: dict[str, Any]) -> Transform:
    """timm resizes the shorter edge to the whole part of size / crop_pct."""
    *_, height, width = fields['input_size']
    if height != width:
        raise UserError(f'images of {height} x {width} are not square')
    if (mode := fields.get('crop_mode', 'center')) != 'center':
        raise UserError(f'crop_mode {mode} is none of ours')
    default = Transform(interpolation='bicubic')
    return Transform(
        math.floor(width / fields.get('crop_pct', 0.875)),
        width,
        fields.get('interpolation', default.interpolation),
        fields.get('mean', default.mean),
        fields.get('std', default.std),
    )


def _crop_pct(transform: Transform) -> float:
    """The shortest number of which timm makes the same length of the shorter edge."""
    exact = transform.crop / transform.resize
    rounded = (round(exact, digits) for digits in range(2, 17))
    fits = (x for x in rounded if x and math.floor(transform.crop / x) == transform.resize)
    return next(fits, transform.crop / (transform.resize + 0.5))
