"""Recipes: everything that decides what a training run computes, as small documents.

A recipe is a class whose docstring tells its source, the command and what to expect, and whose
fields override those of `Recipe`. Each field is a flag of train.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from hrnet_jax.backbone import STRIDE
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError

Optimizer = Literal['sgd', 'adamw']
Schedule = Literal['step', 'cosine']
Similarity = Literal['js', 'kl']
Pair = tuple[float, float]


def _field(default: Any, help: str) -> Any:
    return dataclasses.field(default=default, metadata={'help': help})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The fields of all recipes, with the values that most of them share.

    `required` names those that have no default worth having.
    """

    required: ClassVar[tuple[str, ...]] = ()

    dataset: str = _field('imagenet2012', 'tfds data set, or folder:PATH of class folders')
    split: str = _field('train', 'split to train on: of tfds, or a folder in PATH')
    eval_split: str | None = _field(None, 'split to evaluate on; None: the usual one')
    epochs: float = _field(100, 'passes over the training split')
    batch_size: int = _field(128, 'images a step, over all devices and hosts')
    accumulate: int = _field(1, 'parts in which the gradient of a step is computed, to save memory')
    seed: int = _field(0, 'of initialisation, order of the data and augmentation')

    image_size: int = _field(224, 'edge of the training images in pixels')
    crop_scale: Pair = _field((0.08, 1.0), 'area of a random crop, as a part of the image')
    crop_ratio: Pair = _field((3 / 4, 4 / 3), 'width to height of a random crop')
    flip: float = _field(0.5, 'probability of a horizontal flip')
    randaugment_ops: int = _field(0, 'RandAugment: operations an image; 0: none')
    randaugment_magnitude: int = _field(9, 'RandAugment: strength, 0 to 30')
    mixup: float = _field(0.0, 'alpha of Mixup; 0: none')
    cutmix: float = _field(0.0, 'alpha of CutMix; 0: none; with Mixup, one of both by a coin')
    label_smoothing: float = _field(0.0, 'probability given to all classes alike')
    eval_resize: int = _field(256, 'evaluation: shorter edge in pixels')
    eval_crop: int = _field(224, 'evaluation: edge of the central square')

    optimizer: Optimizer = _field('sgd', 'sgd (with momentum) or adamw')
    learning_rate: float = _field(0.05, 'at a batch of `base_batch`; scales with batch_size')
    base_batch: int = _field(128, 'batch size that learning_rate is for')
    momentum: float = _field(0.9, 'of sgd')
    nesterov: bool = _field(True, 'momentum as Nesterov')
    weight_decay: float = _field(1e-4, 'sgd: added to the gradient; adamw: decoupled')
    decay_norms: bool = _field(True, 'decay biases and BatchNorm too')
    clip_norm: float | None = _field(None, 'largest norm of the whole gradient; None: any')
    schedule: Schedule = _field('step', 'of the learning rate: step or cosine')
    milestones: tuple[float, ...] = _field((30, 60, 90), 'step: epochs at which it is multiplied')
    gamma: float = _field(0.1, 'step: by what')
    by_epoch: bool = _field(False, 'cosine: one value an epoch instead of one a step')
    warmup_epochs: float = _field(0.0, 'epochs of linear increase from 0')
    ema: float | None = _field(None, 'decay a step of averaged weights; None: no average')

    dtype: Literal['bfloat16', 'float32'] = _field(
        'bfloat16', 'of the computation; weights, statistics and loss are float32'
    )
    bn_group_size: int | None = _field(32, 'images that share statistics; None: the whole batch')
    remat: bool = _field(False, 'recompute in the backward pass, to save memory')
    init: str | None = _field(None, 'checkpoint or training folder to start from')
    head_lr: float = _field(1.0, 'factor on the learning rate of the last layer')
    teacher: str | None = _field(None, 'checkpoint whose predictions are the targets')
    distill_weight: float = _field(1.0, 'part of the loss that compares with the teacher')
    distill_loss: Similarity = _field('js', 'divergence from the teacher: Jensen-Shannon or KL')
    temperature: float = _field(1.0, 'distillation: of both softmaxes')
    eval_every: float = _field(1.0, 'epochs between evaluations')
    max_corrupt: float = _field(0.001, 'part of the images of an epoch that may be unreadable')

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            hint = _HINTS[field.name]
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise UserError(f'{field.name} must be one of {get_args(hint)}, not {value!r}')
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
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


_HINTS = get_type_hints(Recipe)
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
class Official(Recipe):
    """As the ImageNet models were published.

    Source: HRNet-Image-Classification, experiments/*.yaml: 4 GPUs with 32 images each, SGD with
    Nesterov momentum, weight decay 1e-4 on everything, learning rate 0.05 divided by 10 at epochs
    30, 60 and 90 of 100, random crops and flips, nothing else.

        python train.py --arch w18 --recipe official --workdir runs/w18

    Expect (published): w18 76.8 % top-1, w32 78.5, w48 79.3. The paper's text says batch 256 and
    0.1, which is the same by the scaling of the learning rate: add --batch-size 256.
    """


@dataclasses.dataclass(frozen=True)
class MMPretrain(Recipe):
    """As in mmpretrain's configurations.

    Source: mmpretrain, configs/hrnet and configs/_base_/schedules/imagenet_bs256_coslr.py: plain
    SGD, 0.1 at batch 256, weight decay 1e-4, one cosine value an epoch over 100 epochs.

        python train.py --arch w18 --recipe mmpretrain --workdir runs/w18

    Expect: w18 about 77.1 % (the one reproduction that mmpretrain reports, on NPUs).
    """

    learning_rate: float = 0.1
    base_batch: int = 256
    batch_size: int = 256
    nesterov: bool = False
    schedule: Schedule = 'cosine'
    by_epoch: bool = True


@dataclasses.dataclass(frozen=True)
class Strong(Recipe):
    """A modern 300-epoch recipe. These hyperparameters are ours, and not yet run to the end.

    Weights "cosine + CutMix, 300 epochs" were published for w18 and w48 without their
    hyperparameters; this is our reading of them with what has become usual since (Wightman et
    al. 2021, "ResNet strikes back"): CutMix and Mixup, label smoothing, RandAugment, warm-up,
    averaged weights, no decay of BatchNorm.

        python train.py --arch w18 --recipe strong --workdir runs/w18

    Expect: about the published 78.1 % for w18 (timm's hrnet_w18.ms_aug_in1k).
    """

    epochs: float = 300
    batch_size: int = 1024
    learning_rate: float = 0.05
    schedule: Schedule = 'cosine'
    warmup_epochs: float = 5
    decay_norms: bool = False
    randaugment_ops: int = 2
    randaugment_magnitude: int = 7
    mixup: float = 0.1
    cutmix: float = 1.0
    label_smoothing: float = 0.1
    ema: float | None = 0.9999
    clip_norm: float | None = 5.0


@dataclasses.dataclass(frozen=True)
class Distill(Recipe):
    """Soft targets of a converted teacher: the idea of SSLD (PaddleClas).

    Source: Cui et al. 2021, "Beyond Self-Supervision: A Simple Yet Effective Network Distillation
    Alternative": a frozen teacher and the Jensen-Shannon divergence between the two softmaxes as
    the only loss, cosine over many epochs, little weight decay. Theirs adds 4 million images of
    ImageNet-22k and publishes no HRNet hyperparameters; here it is ImageNet-1k, and the figures of
    the schedule are ours.

        python train.py --arch w18 --recipe distill --teacher converted/w48_ssld --workdir runs/w18

    Expect: more than the official recipe; published with the additional images: w18 81.1 %.
    """

    required = ('teacher',)

    epochs: float = 360
    batch_size: int = 256
    learning_rate: float = 0.1
    base_batch: int = 256
    schedule: Schedule = 'cosine'
    warmup_epochs: float = 5
    weight_decay: float = 7e-5


@dataclasses.dataclass(frozen=True)
class Finetune(Recipe):
    """From a converted checkpoint to another set of classes.

    The head's last layer is new where the number of classes differs, and learns ten times as fast;
    everything else starts from the checkpoint. The values are ours.

        python train.py --arch w18 --recipe finetune --init converted/w18 \\
            --dataset folder:flowers --split train --eval-split val --workdir runs/flowers

    Expect: a good classifier within minutes on a GPU for sets of thousands of images.
    """

    required = ('init',)

    epochs: float = 30
    batch_size: int = 64
    learning_rate: float = 0.01
    base_batch: int = 64
    schedule: Schedule = 'cosine'
    warmup_epochs: float = 1
    crop_scale: Pair = (0.25, 1.0)
    label_smoothing: float = 0.1
    head_lr: float = 10.0


@dataclasses.dataclass(frozen=True)
class Digits(Recipe):
    """The demo: `tiny` on scikit-learn's digit scans, from nothing.

        python examples/digits.py --data-dir demo/tfds
        python train.py --arch tiny --recipe digits --data-dir demo/tfds --workdir demo/run

    Expect: at least 98 % of the 599 held-out scans, in two minutes on two cores.
    """

    dataset: str = 'digits'
    eval_split: str | None = 'test'
    epochs: float = 40
    batch_size: int = 64
    base_batch: int = 64
    schedule: Schedule = 'cosine'
    warmup_epochs: float = 2
    weight_decay: float = 1e-3
    image_size: int = 32
    crop_scale: Pair = (0.7, 1.0)
    flip: float = 0.0
    eval_resize: int = 32
    eval_crop: int = 32
    dtype: Literal['bfloat16', 'float32'] = 'float32'
    eval_every: float = 5


RECIPES: dict[str, type[Recipe]] = {
    'official': Official,
    'mmpretrain': MMPretrain,
    'strong': Strong,
    'distill': Distill,
    'finetune': Finetune,
    'digits': Digits,
}


def add_arguments(parser: argparse._ArgumentGroup, defaults: Recipe) -> None:
    """A flag for each field, with its help and the value it has in `defaults`."""
    for field in dataclasses.fields(Recipe):  # a recipe's own fields have no help
        flag, hint = f'--{field.name.replace("_", "-")}', _HINTS[field.name]
        value = getattr(defaults, field.name)
        text = f'{field.metadata["help"]} (default: %(default)s)'
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
        if getattr(args, name) is None:
            raise UserError(f'this recipe needs --{name}')
    values: dict[str, Any] = {f.name: getattr(args, f.name) for f in dataclasses.fields(cls)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values)


def _or_none(kind: type) -> Any:
    def parse(text: str) -> Any:
        return None if text.lower() == 'none' else kind(text)

    parse.__name__ = kind.__name__  # what argparse calls a value that does not parse
    return parse


def describe() -> str:
    """The docstrings of all recipes."""
    return '\n\n'.join(f'{name}: {inspect.getdoc(cls)}' for name, cls in RECIPES.items())
