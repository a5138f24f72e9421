"""What a recipe is: everything that decides what a training run computes, as a small document.

A recipe is a class whose docstring tells its source, the command and what to expect, and whose
fields override those of `Recipe`, or add some. Each field is a flag of train.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from hrnet_jax.archs import STRIDE
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError

Optimizer = Literal['sgd', 'adamw']
Schedule = Literal['step', 'cosine']
Similarity = Literal['js', 'kl']
Pair = tuple[float, float]


def setting(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={'help': help})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The fields of all recipes, with the values that most of them share.

    `task` is the task's name; `required` names the fields that have no default worth having.
    """

    task: ClassVar[str] = 'classification'
    required: ClassVar[tuple[str, ...]] = ()

    dataset: str = setting('imagenet2012', 'tfds data set, or folder:PATH of class folders')
    split: str = setting('train', 'split to train on: of tfds, or a folder in PATH')
    eval_split: str | None = setting(None, 'split to evaluate on; None: the usual one')
    epochs: float = setting(100, 'passes over the training split')
    batch_size: int = setting(128, 'images a step, over all devices and hosts')
    accumulate: int = setting(1, 'parts in which a step computes its gradient, to save memory')
    seed: int = setting(0, 'of initialisation, order of the data and augmentation')

    image_size: int = setting(224, 'edge of the training images in pixels')
    crop_scale: Pair = setting((0.08, 1.0), 'area of a random crop, as a part of the image')
    crop_ratio: Pair = setting((3 / 4, 4 / 3), 'width to height of a random crop')
    flip: float = setting(0.5, 'probability of a horizontal flip')
    randaugment_ops: int = setting(0, 'RandAugment: operations an image; 0: none')
    randaugment_magnitude: int = setting(9, 'RandAugment: strength, 0 to 30')
    eval_resize: int = setting(256, 'evaluation: shorter edge in pixels')
    eval_crop: int = setting(224, 'evaluation: edge of the central square')

    optimizer: Optimizer = setting('sgd', 'sgd (with momentum) or adamw')
    learning_rate: float = setting(0.05, 'at a batch of `base_batch`; scales with batch_size')
    base_batch: int = setting(128, 'batch size that learning_rate is for')
    momentum: float = setting(0.9, 'of sgd')
    nesterov: bool = setting(True, 'momentum as Nesterov')
    weight_decay: float = setting(1e-4, 'sgd: added to the gradient; adamw: decoupled')
    decay_norms: bool = setting(True, 'decay biases and BatchNorm too')
    clip_norm: float | None = setting(None, 'largest norm of the whole gradient; None: any')
    schedule: Schedule = setting('step', 'of the learning rate: step or cosine')
    milestones: tuple[float, ...] = setting((30, 60, 90), 'step: epochs at which it is multiplied')
    gamma: float = setting(0.1, 'step: by what')
    by_epoch: bool = setting(False, 'cosine: one value an epoch instead of one a step')
    warmup_epochs: float = setting(0.0, 'epochs of linear increase from 0')
    ema: float | None = setting(None, 'decay a step of averaged weights; None: no average')

    dtype: Literal['bfloat16', 'float32'] = setting(
        'bfloat16', 'of the computation; weights, statistics and loss are float32'
    )
    bn_group_size: int | None = setting(32, 'images that share statistics; None: the whole batch')
    remat: bool = setting(False, 'recompute in the backward pass, to save memory')
    init: str | None = setting(None, 'checkpoint or training folder to start from')
    head_lr: float = setting(1.0, 'factor on the learning rate of the last layer')
    teacher: str | None = setting(None, 'checkpoint whose predictions are the targets')
    distill_weight: float = setting(1.0, 'part of the loss that compares with the teacher')
    distill_loss: Similarity = setting('js', 'divergence from the teacher: Jensen-Shannon or KL')
    temperature: float = setting(1.0, 'distillation: of both softmaxes')
    eval_every: float = setting(1.0, 'epochs between evaluations')
    max_corrupt: float = setting(0.001, 'part of the images of an epoch that may be unreadable')

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise UserError(f'{name} must be one of {get_args(hint)}, not {value!r}')
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name, None)
            values = value if isinstance(value, tuple) else (value,)
            if value is not None and not all(low <= x <= high for x in values):
                raise UserError(f'{name} must be from {low:g} to {high:g}, not {value}')
        for name in ('crop_scale', 'crop_ratio'):
            pair = getattr(self, name)
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise UserError(f'{name} must be two increasing numbers above 0, not {pair}')
        if self.image_size % STRIDE or self.eval_crop % STRIDE:
            raise UserError(f'image_size and eval_crop must be multiples of {STRIDE}')
        if self.batch_size % self.accumulate:
            raise UserError(f'{self.accumulate} parts do not divide a batch of {self.batch_size}')
        group = self.bn_group_size
        if group and self.microbatch > group and self.microbatch % group:
            raise UserError(
                f'{self.microbatch} images (batch_size / accumulate) do not divide into BatchNorm '
                f'groups of {group}; choose a multiple, another bn_group_size, or None'
            )

    @property
    def microbatch(self) -> int:
        """Images that go through the network at once, over all devices."""
        return self.batch_size // self.accumulate

    @property
    def transform(self) -> Transform:
        """That of the evaluation."""
        return Transform(self.eval_resize, self.eval_crop)

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))


_ANY = float('inf')
_RANGES: dict[str, tuple[float, float]] = {
    'epochs': (1e-9, 1e6),
    'batch_size': (1, 1e9),
    'accumulate': (1, 1e6),
    'seed': (0, 2**31 - 1),
    'image_size': (STRIDE, 1e5),
    'crop_scale': (0, 1),
    'flip': (0, 1),
    'randaugment_ops': (0, 16),
    'randaugment_magnitude': (0, 30),
    'mixup': (0, _ANY),
    'cutmix': (0, _ANY),
    'label_smoothing': (0, 1),
    'eval_resize': (1, 1e5),
    'eval_crop': (STRIDE, 1e5),
    'learning_rate': (0, _ANY),
    'base_batch': (1, 1e9),
    'momentum': (0, 1),
    'weight_decay': (0, _ANY),
    'clip_norm': (1e-30, _ANY),
    'milestones': (0, 1e9),
    'gamma': (0, 1),
    'warmup_epochs': (0, 1e6),
    'ema': (0, 1),
    'bn_group_size': (1, 1e9),
    'head_lr': (0, _ANY),
    'distill_weight': (0, 1),
    'temperature': (1e-6, 1e6),
    'eval_every': (1e-9, 1e9),
    'max_corrupt': (0, 1),
}


@dataclasses.dataclass(frozen=True)
class LabelRecipe(Recipe):
    """For targets that are a vector over classes, which can be mixed and smoothed."""

    mixup: float = setting(0.0, 'alpha of Mixup; 0: none')
    cutmix: float = setting(0.0, 'alpha of CutMix; 0: none; with Mixup, one of both by a coin')
    label_smoothing: float = setting(0.0, 'probability given to all classes alike')


def hints(cls: type[Recipe]) -> dict[str, Any]:
    """Field -> type."""
    types = get_type_hints(cls)
    return {field.name: types[field.name] for field in dataclasses.fields(cls)}


def add_arguments(parser: argparse._ArgumentGroup, defaults: Recipe) -> None:
    """A flag for each field, with its help and the value it has in `defaults`."""
    for name, hint in hints(type(defaults)).items():
        flag, value = f'--{name.replace("_", "-")}', getattr(defaults, name)
        text = f'{_help(type(defaults), name)} (default: %(default)s)'
        options: dict[str, Any] = {'default': value, 'help': text}
        if hint is bool:
            options['action'] = argparse.BooleanOptionalAction
        elif get_origin(hint) is tuple:
            options |= {'type': float, 'nargs': '+', 'metavar': 'FLOAT'}
        elif get_origin(hint) is Literal:
            options['choices'] = get_args(hint)
        else:
            kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
            options['type'] = _or_none(kinds[0]) if type(None) in get_args(hint) else kinds[0]
            options['metavar'] = kinds[0].__name__.upper()
        parser.add_argument(flag, **options)


def from_arguments(cls: type[Recipe], args: argparse.Namespace) -> Recipe:
    """The recipe that the flags of `add_arguments` describe.

    Raises:
        UserError: for values that make no sense.
    """
    for name in cls.required:
        if getattr(args, name) in (None, ''):
            raise UserError(f'this recipe needs --{name}')
    values: dict[str, Any] = {f.name: getattr(args, f.name) for f in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values)


def _help(cls: type[Recipe], name: str) -> str:
    """Of the field where it was first written: one that overrides it has none."""
    for base in cls.__mro__:
        field = base.__dict__.get('__dataclass_fields__', {}).get(name)
        if field is not None and 'help' in field.metadata:
            return field.metadata['help']
    return ''


def _or_none(kind: type) -> Any:
    def parse(text: str) -> Any:
        return None if text.lower() == 'none' else kind(text)

    parse.__name__ = kind.__name__  # what argparse calls a value that does not parse
    return parse


def describe(recipes: Mapping[str, type[Recipe]]) -> str:
    """Their docstrings."""
    return '\n\n'.join(f'{name}: {inspect.getdoc(cls)}' for name, cls in recipes.items())
