"""timm's config.json, which lies beside the weights in a folder or a repository of the hub."""

from __future__ import annotations

import functools
import math
from typing import Any

from hrnet_jax.checkpoints.published import all_published
from hrnet_jax.data import imagenet
from hrnet_jax.data.preprocess import SUPPORT, Transform
from hrnet_jax.errors import UserError

CONFIG = 'config.json'
_DEFAULT = Transform(interpolation='bicubic')  # of timm


@functools.cache
def models() -> dict[str, tuple[str, bool]]:
    """timm's name -> our architecture, whether it has biases before BatchNorm in the head."""
    return {
        entry.hub.removeprefix('timm/').split('.')[0]: (entry.arch, entry.head_bias)
        for entry in all_published().values()
        if entry.hub
    }


def config(meta: dict[str, Any], head_bias: bool) -> dict[str, Any] | None:
    """The content for a checkpoint with this JSON; None where timm has no such model."""
    arch, transform = meta['arch'], Transform.from_json(meta.get('transform'))
    wanted = (arch['name'], head_bias)
    name = next((name for name, has in models().items() if has == wanted), None)
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


def model_of(content: dict[str, Any]) -> tuple[str, int | None] | None:
    """The architecture in a config.json, and the number of classes if it says one; None if it is of
    another program. That of transformers' TimmWrapper is one of timm, too."""
    name = str(content.get('architecture')).split('.')[0]
    if name not in models():
        return None
    names = _names(content)
    said = (content.get('num_classes'), len(names) if names else None)
    counts = [n for n in (*said, _fields(content).get('num_classes')) if isinstance(n, int)]
    return models()[name][0], next(iter(counts), None)


def told(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a config.json says, as the JSON of a checkpoint would; remarks on what is not taken.

    A config.json of another program says nothing.
    """
    if model_of(content) is None:
        return {}, []
    said: dict[str, Any] = {'layout': 'timm'}
    try:
        transform, notes = _transform(_fields(content))
        said['transform'] = transform.to_json()
    except (UserError, TypeError, ValueError, ZeroDivisionError) as error:
        notes = [f'the transform of {CONFIG} is not taken: {error}']
    names = _names(content)
    if names == []:
        notes.append(f'the class names of {CONFIG} are not taken: they are not numbered from 0')
    elif names and names != list(imagenet.classes()):  # for which predict.py has better ones
        said['class_names'] = names
    return said, notes


def _fields(content: dict[str, Any]) -> dict[str, Any]:
    """Those of the images; in old files beside the architecture."""
    inner = content.get('pretrained_cfg')
    return inner if isinstance(inner, dict) else content


def _names(content: dict[str, Any]) -> list[str] | None:
    """Of the classes, in order; [] if the order is not clear, None if there are none."""
    keys = ('label_names', 'labels', 'id2label')  # of timm, of old timm, of transformers
    held = [place[key] for place in (content, _fields(content)) for key in keys if place.get(key)]
    names = next(iter(held), None)
    if isinstance(names, dict):  # number -> name
        names = [names.get(str(i)) for i in range(len(names))]
        names = names if all(names) else []
    if not isinstance(names, list):
        return None
    names = [str(name) for name in names]
    unnamed = names and names == [f'LABEL_{i}' for i in range(len(names))]  # as transformers says
    return None if unnamed else names


def _transform(fields: dict[str, Any]) -> tuple[Transform, list[str]]:
    """timm resizes the shorter edge to the whole part of size / crop_pct. Remarks on what is taken
    in the place of what is not there, or not done here."""
    usual: dict[str, Any] = {
        'input_size': [3, _DEFAULT.crop, _DEFAULT.crop],
        'crop_pct': 0.875,
        'interpolation': _DEFAULT.interpolation,
        'mean': _DEFAULT.mean,
        'std': _DEFAULT.std,
    }
    held = usual | {name: fields[name] for name in usual if fields.get(name) is not None}
    notes = []
    if lacking := [name for name in usual if fields.get(name) is None]:
        notes.append(f'{CONFIG} does not say {", ".join(lacking)}: taken as timm has it by default')
    if (mode := fields.get('crop_mode') or 'center') != 'center':
        notes.append(
            f'crop_mode {mode} of {CONFIG} is not done here: images are resized by their shorter '
            'edge and cropped at the centre, which gives other figures than timm'
        )
    if held['interpolation'] not in SUPPORT:
        notes.append(
            f'interpolation {held["interpolation"]} of {CONFIG} is not done here: taken as '
            f'{_DEFAULT.interpolation}; else say --interpolation'
        )
        held['interpolation'] = _DEFAULT.interpolation
    *_, height, width = held['input_size']
    if height != width:
        raise UserError(f'images of {height} x {width} are not square')
    resize = math.floor(width / held['crop_pct'])
    return Transform(resize, width, held['interpolation'], held['mean'], held['std']), notes


def _crop_pct(transform: Transform) -> float:
    """The shortest number of which timm makes the same length of the shorter edge."""
    exact = transform.crop / transform.resize
    rounded = (round(exact, digits) for digits in range(2, 17))
    fits = (x for x in rounded if x and math.floor(transform.crop / x) == transform.resize)
    return next(fits, transform.crop / (transform.resize + 0.5))
