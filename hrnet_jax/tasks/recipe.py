"""What a recipe is: everything that decides what a training run computes, as a small document.

A recipe is a class whose docstring tells its source, the command and what to expect, and whose
fields override those of `Recipe`, or add some. Each field is a flag of train.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from hrnet_jax.archs import STRIDE
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError

Optimizer = Literal['sgd', 'adam', 'adamw']
Schedule = Literal['step', 'cosine', 'poly']
Similarity = Literal['js', 'kl']
Pair = tuple[float, float]


def setting(
    default: Any, help: str, evaluation: bool = False, none: str = '', inherited: bool = False
) -> Any:
    """A field; of `evaluation` if no training step depends on it; `none`: what None means;
    `inherited`: where it is None or (), the transform of the checkpoint `init` decides, or its
    network, if that is of the same task."""
    metadata = {'help': help, 'evaluation': evaluation, 'none': none, 'inherited': inherited}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose learning rate or weight decay is not that of the others.

    Attributes:
        pattern: regular expression that is searched in the path of an array in params, such as
            '^head/classifier/' or '/bias$'. Where several groups match, their factors multiply.
        rate: factor on the learning rate.
        decay: factor on the weight decay.
    """

    pattern: str
    rate: float = 1.0
    decay: float = 1.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What every run has, with the values that most runs share.

    `task` is the task's name; `required` names the fields that have no default worth having;
    `unused` those without effect in this recipe: they have no flag, and another value is refused.
    """

    task: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ('dataset',)
    unused: ClassVar[tuple[str, ...]] = ()

    dataset: str = setting('', 'a prepared tfds data set, or folder:PATH')
    split: str = setting('train', 'split to train on')
    eval_split: str | None = setting(None, 'split to evaluate on', True, 'the usual one')
    class_names: str | None = setting(
        None, 'text file of the classes in their order, one a line', False, 'the order of the data'
    )
    epochs: float = setting(100, 'passes over the training split')
    steps: int | None = setting(None, 'length of the run, instead of epochs', none='as epochs say')
    batch_size: int = setting(128, 'images a step, over all devices and hosts')
    accumulate: int = setting(1, 'parts in which a step computes its gradient, to save memory')
    seed: int = setting(0, 'decides the first weights, the order of the data and the augmentation')

    mean: tuple[float, ...] = setting(
        (), 'what is subtracted from the pixels: R G B, from 0 to 1',
        none='as --init has it, else as for ImageNet', inherited=True,
    )  # fmt: skip
    std: tuple[float, ...] = setting(
        (), 'what the pixels are then divided by', none='likewise', inherited=True
    )

    optimizer: Optimizer = setting('sgd', 'sgd (with momentum), adam or adamw')
    learning_rate: float = setting(
        0.05, 'for a batch of base_batch images; proportional to batch_size'
    )
    base_batch: int = setting(128, 'images in a batch for which learning_rate is meant')
    momentum: float = setting(0.9, 'momentum of sgd')
    nesterov: bool = setting(True, "Nesterov's form of momentum")
    weight_decay: float = setting(1e-4, 'sgd and adam: added to the gradient; adamw: decoupled')
    decay_norms: bool = setting(True, 'decay biases and BatchNorm too')
    clip_norm: float | None = setting(None, 'largest norm of the whole gradient', none='any')
    schedule: Schedule = setting('step', 'schedule of the learning rate: step, cosine or poly')
    milestones: tuple[float, ...] = setting(
        (30, 60, 90), 'step schedule: epochs at which the learning rate is multiplied by gamma'
    )
    gamma: float = setting(0.1, 'step schedule: factor at each milestone')
    power: float = setting(0.9, 'poly schedule: exponent of the part of the steps that is left')
    min_rate: float = setting(
        0.0, 'cosine and poly schedule: the learning rate at the end; scales as learning_rate'
    )
    by_epoch: bool = setting(False, 'cosine schedule: one value an epoch instead of one a step')
    warmup_epochs: float = setting(0.0, 'epochs in which the learning rate first rises, linearly')
    warmup_steps: int = setting(0, 'the same in steps, instead of warmup_epochs')
    warmup_factor: float = setting(0.0, 'part of the learning rate with which this rise begins')
    warmup: Literal['linear', 'constant'] = setting(
        'linear', 'the rate rises linearly in these steps, or at once after them'
    )
    ema: float | None = setting(
        None, 'averaged weights: part of the average that a step keeps', none='no average'
    )

    dtype: Literal['bfloat16', 'float32'] = setting(
        'bfloat16', 'type of the computation; weights, statistics and loss are float32'
    )
    bn_group_size: int | None = setting(
        32, 'images that share BatchNorm statistics', none='the whole batch'
    )
    remat: bool = setting(False, 'recompute in the backward pass, to save memory')
    init: str | None = setting(None, 'checkpoint or training folder whose weights it starts from')
    head_lr: float = setting(1.0, 'factor on the learning rate of the last layer')
    eval_every: float = setting(1.0, 'epochs between evaluations', True)
    max_corrupt: float = setting(0.001, 'part of the images of an epoch that may be unreadable')
    eval_max_corrupt: float = setting(
        0.0, 'part of the images of an evaluation that may be unreadable', True
    )

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = getattr(self, name)
            kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
            known = [x for kind in kinds if get_origin(kind) is Literal for x in get_args(kind)]
            if known and value not in (known if len(kinds) == 1 else [*known, None]):
                raise UserError(f'{name} must be one of {tuple(known)}, not {value!r}')
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name, None)
            values = value if isinstance(value, tuple) else (value,)
            if value is not None and not all(low <= x <= high for x in values):
                raise UserError(f'{name} must be from {low:g} to {high:g}, not {value}')
        for name in self.unused:
            if (value := getattr(self, name)) != type(self).__dataclass_fields__[name].default:
                raise UserError(f'{name} {value} has no effect in a recipe of {self.task}')
        self.check()
        _ = self.transform  # refuses a mean and a std that are none
        if self.batch_size % self.accumulate:
            raise UserError(
                f'accumulate {self.accumulate} does not divide a batch of {self.batch_size}'
            )
        group = self.bn_group_size
        if group and self.microbatch > group and self.microbatch % group:
            raise UserError(
                f'{self.microbatch} images (batch_size / accumulate) do not divide into BatchNorm '
                f'groups of {group}; choose a multiple, another bn_group_size, or None'
            )

    def check(self) -> None:
        """Raises UserError for fields of a subclass that make no sense."""

    def pair(self, name: str) -> None:
        """Raises UserError unless that field is two increasing numbers above 0."""
        pair = getattr(self, name)
        if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
            raise UserError(f'{name} must be two increasing numbers above 0, not {pair}')

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training images."""
        raise NotImplementedError

    @property
    def transform(self) -> Protocol:
        """What the evaluation does with an image; training normalises as it does."""
        raise NotImplementedError

    @property
    def pixels(self) -> dict[str, Any]:
        """`mean` and `std` for `Protocol.override`."""
        return {'mean': self.mean or None, 'std': self.std or None}

    @property
    def microbatch(self) -> int:
        """Images that go through the network at once, over all devices."""
        return self.batch_size // self.accumulate

    @property
    def bn_images(self) -> int:
        """How many images share BatchNorm statistics."""
        return min(self.bn_group_size or self.microbatch, self.microbatch)

    @property
    def scaled(self) -> float:
        """The factor on learning rates: it grows with the batch (Goyal et al. 2017)."""
        return self.batch_size / self.base_batch

    def total_steps(self, steps_per_epoch: int) -> int:
        """The length of the run."""
        return self.steps or max(round(self.epochs * steps_per_epoch), 1)

    def parameter_groups(self, head: Sequence[Sequence[str]]) -> tuple[Group, ...]:
        """Those of the fields `head_lr` and `decay_norms`; `head` has paths of layers in params."""
        groups = []
        if self.head_lr != 1:
            groups += [Group(f'^{re.escape("/".join(path))}/', rate=self.head_lr) for path in head]
        if not self.decay_norms:
            groups.append(Group('(^|/)(?!kernel$)[^/]+$', decay=0.0))
        return tuple(groups)

    def to_json(self) -> dict[str, Any]:
        """The fields, with those that follow from others filled in."""
        return json.loads(json.dumps(dataclasses.asdict(self) | self.filled()))

    def filled(self) -> dict[str, Any]:
        """Fields that are None because others decide them, with their values."""
        return {}


@dataclasses.dataclass(frozen=True)
class SquareRecipe(Recipe):
    """For networks that see a square of each image, with crops and operations as classifiers have.

    `eval_border` is `eval_resize / eval_crop`, where `eval_resize` is not given.
    """

    task: ClassVar[str] = 'classification'
    eval_border: ClassVar[float] = 256 / 224

    image_size: int = setting(224, 'edge of the training images in pixels')
    crop_scale: Pair = setting((0.08, 1.0), 'area of a random crop, as a part of the image')
    crop_ratio: Pair = setting((3 / 4, 4 / 3), 'width to height of a random crop')
    flip: float = setting(0.5, 'probability of a horizontal flip')
    randaugment_ops: int = setting(0, 'RandAugment: operations an image; 0: none')
    randaugment_magnitude: int = setting(9, 'RandAugment: strength, 0 to 30')
    eval_resize: int | None = setting(
        None, 'evaluation: shorter edge in pixels', True, 'eval_crop * 256 / 224'
    )
    eval_crop: int | None = setting(
        None, 'evaluation: edge of the central square in pixels', True, 'image_size'
    )
    teacher: str | None = setting(None, 'checkpoint whose predictions are the targets')
    distill_weight: float = setting(1.0, 'part of the loss that compares with the teacher')
    distill_loss: Similarity = setting('js', 'divergence from the teacher: Jensen-Shannon or KL')
    temperature: float = setting(1.0, 'distillation: temperature of both softmaxes')

    def check(self) -> None:
        self.pair('crop_scale')
        self.pair('crop_ratio')
        resize, crop = self._eval_sizes
        check_multiple(image_size=self.image_size, eval_crop=crop)
        if crop > resize:
            raise UserError(
                f'--eval-crop {crop} is larger than --eval-resize {resize}: the border would be '
                'black; give --eval-crop or --image-size, too'
            )

    @property
    def _eval_sizes(self) -> tuple[int, int]:
        """Resize and crop; those that are not given follow from the others."""
        crop = self.image_size if self.eval_crop is None else self.eval_crop
        resize = round(crop * self.eval_border) if self.eval_resize is None else self.eval_resize
        return resize, crop

    @property
    def size(self) -> tuple[int, int]:
        return self.image_size, self.image_size

    @property
    def transform(self) -> Transform:
        return Transform(*self._eval_sizes).override(**self.pixels)

    def filled(self) -> dict[str, Any]:
        return dict(zip(('eval_resize', 'eval_crop'), self._eval_sizes, strict=True))


def check_multiple(**sizes: int) -> None:
    """Raises UserError for a field that is not a multiple of the network's largest stride."""
    for name, size in sizes.items():
        if size % STRIDE:
            low = size // STRIDE * STRIDE
            raise UserError(
                f'{flag(name)} {size} is no multiple of {STRIDE}; the next that fit are {low} '
                f'and {low + STRIDE}'
            )


_ANY = float('inf')
_RANGES: dict[str, tuple[float, float]] = {
    'epochs': (1e-9, 1e6),
    'steps': (1, 1e9),
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
    'dropout': (0, 0.99),
    'crop_size': (32, 1e5),
    'pyramid': (1, 1e4),
    'resize': (0.01, 100),
    'class_share': (0, 1),
    'ohem_threshold': (1e-9, 1),
    'ohem_kept': (1, 1e9),
    'class_weights': (0, _ANY),
    'aux_weight': (0, _ANY),
    'input_size': (32, 1e5),
    'padding': (0.1, 10),
    'sigma': (0.1, 100),
    'loss_weight': (0, _ANY),
    'half_body': (0, 1),
    'half_body_least': (1, 1e4),
    'half_body_upper': (0, 1),
    'shift': (0, 1),
    'shift_share': (0, 1),
    'rotation': (0, 180),
    'rotation_share': (0, 1),
    'eval_resize': (1, 1e5),
    'eval_crop': (STRIDE, 1e5),
    'learning_rate': (0, _ANY),
    'base_batch': (1, 1e9),
    'momentum': (0, 1),
    'weight_decay': (0, _ANY),
    'clip_norm': (1e-30, _ANY),
    'milestones': (0, 1e9),
    'gamma': (0, 1),
    'power': (0, _ANY),
    'min_rate': (0, _ANY),
    'warmup_epochs': (0, 1e6),
    'warmup_steps': (0, 1e9),
    'warmup_factor': (0, 1),
    'ema': (0, 1),
    'bn_group_size': (1, 1e9),
    'head_lr': (0, _ANY),
    'distill_weight': (0, 1),
    'temperature': (1e-6, 1e6),
    'eval_every': (1e-9, 1e9),
    'max_corrupt': (0, 1),
    'eval_max_corrupt': (0, 1),
}


@dataclasses.dataclass(frozen=True)
class LabelRecipe(SquareRecipe):
    """For targets that are a vector over classes, which can be mixed and smoothed."""

    mixup: float = setting(0.0, 'alpha of Mixup; 0: none')
    cutmix: float = setting(
        0.0, 'alpha of CutMix; 0: none; with Mixup, chance takes one of the two'
    )
    label_smoothing: float = setting(0.0, 'part of the target that all classes share equally')

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.mixup or self.cutmix) and self.microbatch < 2:
            raise UserError(
                'Mixup and CutMix need 2 images at once, not 1 (batch_size / accumulate); take a '
                'larger batch, or --mixup 0 --cutmix 0'
            )


def hints(cls: type[Recipe]) -> dict[str, Any]:
    """Field -> type."""
    types = get_type_hints(cls)
    return {field.name: types[field.name] for field in dataclasses.fields(cls)}


def flag(name: str) -> str:
    """That of a field."""
    return f'--{name.replace("_", "-")}'


def flags(cls: type[Recipe]) -> list[str]:
    """The fields that have one."""
    return [field.name for field in dataclasses.fields(cls) if field.name not in cls.unused]


def evaluation_fields(cls: type[Recipe]) -> set[str]:
    """Those that may change while a run goes on: no step of the training depends on them."""
    return {f.name for f in dataclasses.fields(cls) if metadata(cls, f.name).get('evaluation')}


def inherited_fields(cls: type[Recipe]) -> set[str]:
    """Those that `init` may decide."""
    return {f.name for f in dataclasses.fields(cls) if metadata(cls, f.name).get('inherited')}


def metadata(cls: type[Recipe], name: str) -> Mapping[str, Any]:
    """Of the field where it was last written with `setting`: what overrides a value has none."""
    for base in cls.__mro__:
        field = base.__dict__.get('__dataclass_fields__', {}).get(name)
        if field is not None and 'help' in field.metadata:
            return field.metadata
    return {}
