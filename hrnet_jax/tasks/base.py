"""What a task is: all that commands, trainer, evaluation and checkpoints ask of one.

A task is one object of a subclass of `Task`; what is not overridden is that of networks that give
one vector an image. docs/tasks.md makes one in a hundred lines.
"""

from __future__ import annotations

import argparse
import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from hrnet_jax.data import classes, evaluation
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.data.sources import Facts, Source
from hrnet_jax.errors import UserError

# Tasks take these from here, too.
from hrnet_jax.tasks.metric import Array, Batch, Figure, Metric, Result, Totals  # noqa: F401
from hrnet_jax.tasks.training_data import TrainingData

if TYPE_CHECKING:
    from hrnet_jax.tasks.recipe import Group, Recipe
Opened = Any  # a `Source` or an `Indexed`, as the task opens it
Variables = dict[str, Any]


class Unknown(UserError):
    """A checkpoint is of a model that this program does not know."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One class for one image: its index, its name, and its probability (0 to 1)."""

    index: int
    name: str
    probability: float


class Task:
    """See the module. What a task has not, it refuses in one line. Attributes:

    name: in checkpoint.json and in recipes.
    recipes: name -> `Recipe`, what --recipe takes.
    figures: of an evaluation; none without one. See `figures_of`.
    training_figures: of them those that `loss` gives for each step.
    default_dataset: what eval.py takes where neither flag nor training folder says one.
    datasets: names that it takes beside those of tfds, for the help of eval.py.
    one_class: the outputs are logits of classes of which one is right.
    heads: of the PyTorch files that its checkpoints are made from and written to; names of the
        converter, such as 'classifier'.
    protocol: the class of what a checkpoint's `transform` holds.
    outputs: what a number of the network's outputs is called, for messages.
    helpers: flags of predict.py, of `add_prediction_flags`, that name a checkpoint of another
        task, which is asked first: see `helped`.
    tensorflow: its data is read with TensorFlow, which is imported while JAX is.
    """

    name: ClassVar[str]
    recipes: ClassVar[Mapping[str, type[Recipe]]] = {}
    figures: ClassVar[tuple[Figure, ...]] = ()
    training_figures: ClassVar[tuple[str, ...]] = ()
    default_dataset: ClassVar[str | None] = None
    datasets: ClassVar[tuple[str, ...]] = ()
    one_class: ClassVar[bool] = False
    heads: ClassVar[tuple[str, ...]] = ()
    protocol: ClassVar[type[Protocol]] = Transform
    outputs: ClassVar[str] = 'classes'
    helpers: ClassVar[tuple[str, ...]] = ()
    tensorflow: ClassVar[bool] = True

    def refuse(self, what: str) -> NoReturn:
        """Raises UserError: the task has no `what`, such as evaluation."""
        raise UserError(f'{self.name} has no {what}')

    # The model

    def create_model(self, arch: Any, num_classes: int = 1000, **options: Any) -> Any:
        """A Flax module; outputs of one number a class unless overridden."""
        from hrnet_jax.models import create_model

        return create_model(arch, num_classes, task=self.name, **options)

    def build(self, arch: Any, recipe: Recipe, source: Facts) -> Any:
        """The model of a run on this training set."""
        return self.create_model(arch, self.num_outputs(source), **options_of(recipe))

    def head_layers(self, model: Any) -> tuple[tuple[str, ...], ...]:
        """Paths in params of the layers that a recipe's `head_lr` is for, and that start anew where
        a checkpoint is of another task or of other classes: by default the last."""
        from hrnet_jax.models import last_layers

        return tuple(last_layers(model))

    def parameter_groups(self, model: Any, recipe: Recipe) -> Sequence[Group]:
        """Parameters with a learning rate or a weight decay of their own: by default those of
        `head_layers`, as `head_lr` says, and what `decay_norms` leaves without decay."""
        return recipe.parameter_groups(self.head_layers(model))

    def describe(self, model: Any) -> dict[str, Any]:
        """What checkpoint.json says of the model; JSON."""
        return {
            'arch': dataclasses.asdict(model.arch),
            'num_classes': model.num_classes,
            'in_channels': model.in_channels,
        }

    def output_names(self, meta: Mapping[str, Any]) -> Sequence[str] | None:
        """The names of the network's outputs in a checkpoint's JSON, if it has some."""
        return meta.get('class_names')

    def model_of(self, meta: Mapping[str, Any], **options: Any) -> Any:
        """The model that `describe` has described.

        Raises:
            Unknown: if this program knows no such model.
        """
        from hrnet_jax.heads.classification import ClassifierArch, classifier_arch

        arch = arch_of(meta, ClassifierArch, classifier_arch)
        channels = meta['in_channels']
        return self.create_model(arch, meta['num_classes'], in_channels=channels, **options)

    def protocol_of_file(
        self, model: Any, meta: Mapping[str, Any], multiple: int = 1, **flags: Any
    ) -> tuple[Protocol, list[str]]:
        """See `Protocol.of_file`; `model`: what the file is of."""
        return self.protocol.of_file(getattr(model, 'num_classes', None), meta, multiple, **flags)

    def class_names(self, dataset: str) -> tuple[str, ...] | None:
        """Those of a published checkpoint for this data set, where it must say them."""
        return None

    def usual_names(self, protocol: Any) -> tuple[str, ...] | None:
        """Those of the classes of a converted file that names none, where the protocol tells."""
        return None

    def facts(self, source: Facts) -> dict[str, Any]:
        """What checkpoint.json says of the data that the model was trained on; JSON."""
        return {'class_names': list(source.class_names) if source.class_names else None}

    # Data: called in a process without JAX

    def open_dataset(self, name: str, split: str | None, data_dir: str | None) -> Opened:
        """A data set for training or evaluation, and by keyword what `add_data_flags` adds; raises
        UserError."""
        return evaluation.open_dataset(name, split, data_dir)

    def check_files(self, source: Opened, transform: Any, max_corrupt: float) -> None:
        """Raises UserError, before a long run, for files that its evaluation could not read:
        more than the part `max_corrupt`."""
        if isinstance(source, Source) and isinstance(transform, Transform):
            evaluation.check_files(source, transform, max_corrupt)

    def renumbered(self, source: Opened, names: Sequence[str]) -> Opened:
        """The source with its classes numbered as in `names`; see `data.classes.renumbered`."""
        return classes.renumbered(source, names)

    def batches(
        self, source: Opened, transform: Any, share: evaluation.Share
    ) -> evaluation.Batches:
        """Those of an evaluation that a process reads: see `data.evaluation.batches`."""
        return evaluation.shared(source, transform, share)

    def training_data(self, source: Opened, recipe: Any, *share: int) -> TrainingData:
        """What gives the batches of training.

        Args:
            share: the number of this process, and how many there are.

        Raises:
            UserError: if the data set is too small, or a batch cannot be shared out.
        """
        from hrnet_jax.data.training import TrainData

        return TrainData(source, recipe, *share)

    def transform(self, recipe: Any, source: Opened) -> Protocol:
        """What the evaluations of a run on this training set do with an image; training normalises
        as it does."""
        return recipe.transform

    def num_outputs(self, source: Facts) -> int:
        """The length of the network's output for this data; raises UserError."""
        if source.num_classes is None:
            raise UserError(f'{source.dataset.name} does not say how many classes it has')
        return source.num_classes

    def check_training(self, source: Facts) -> None:
        """Raises UserError for a set that cannot be trained on."""

    def check_recipe(self, recipe: Any, outputs: int) -> None:
        """Raises UserError for a recipe that is not for a network with so many outputs."""

    def check_evaluation(self, meta: Mapping[str, Any], source: Facts) -> None:
        """Raises UserError for a set that is not for the checkpoint with this JSON."""

    def context(self, source: Opened, data_dir: str | None) -> dict[str, Any]:
        """What `metric` must know of the data set beside its examples."""
        return {}

    # Evaluation

    def metric(self, model: Any, **context: Any) -> Metric:
        self.refuse('evaluation')

    def figures_of(self, model: Any, metric: Metric) -> tuple[Figure, ...]:
        """Those of `figures` that `metric` gives and that can say something of this model: they are
        shown, and the first decides which checkpoint is best."""
        return self.figures

    # Training

    def prepare(
        self, batch: dict[str, Array], key: Array, recipe: Any, model: Any
    ) -> dict[str, Array]:
        """The batch as the loss wants it, traced; may change images (uint8, or float 0 to 255)."""
        return batch

    def forward(
        self, apply: Callable[..., Any], images: Array, batch: dict[str, Array], key: Array
    ) -> tuple[Any, Variables]:
        """The network's outputs in training and its new statistics, traced.

        Args:
            apply: (images, ...) -> both; takes rngs={'dropout': key} and further arguments of the
                model's call.
            batch: with the fields of `prepare`, for networks that need targets inside.
        """
        return apply(images)

    def loss(
        self, outputs: Any, batch: dict[str, Array], recipe: Any
    ) -> tuple[Array, dict[str, Array]]:
        """(N,) loss of each image; and for each of `training_figures` (N,). Traced, float32."""
        self.refuse('training')

    def distance(self, outputs: Array, teacher: Array, recipe: Any) -> Array:
        """(N,) how far the outputs are from a teacher's: the loss of distillation."""
        self.refuse('distillation')

    # Prediction

    def prediction_options(self, model: Any, class_names: Any, **options: Any) -> dict[str, Any]:
        """What `decoder` and `found` take, checked; raises UserError."""
        if options:
            raise UserError(f'{self.name} has no option {", ".join(options)} to predict with')
        return {}

    def check_helper(self, flag: str, task: Task, meta: Mapping[str, Any]) -> None:
        """Raises UserError if a checkpoint of this task, with this JSON, cannot be what `flag` of
        `helpers` wants."""

    def helped(self, flag: str, found: Sequence[Any], options: dict[str, Any]) -> dict[str, Any]:
        """What `predict` takes, with what the checkpoint of `flag` has found in each image."""
        return options

    def file_options(self, paths: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
        """What `predict` takes, of the task's flags of predict.py and the images' files."""
        return options

    def decoder(self, options: Mapping[str, Any]) -> Callable[[Any], Any]:
        """A hashable function, traced: outputs -> arrays (N, ...).

        Args:
            options: those of `prediction_options`, and transform.
        """
        self.refuse('prediction')

    def open_image(self, path: str, **flags: Any) -> Any:
        """The picture in a file, for predict.py; `flags`: those of the protocol that are given.

        Raises:
            UserError: if it cannot be read.
        """
        from hrnet_jax.data.preprocess import open_image

        return open_image(path, turned=flags.get('exif') is not False)

    def every_part(
        self, transform: Any, images: Sequence[Any], options: Mapping[str, Any]
    ) -> Iterator[list[tuple[dict[str, np.ndarray], Any]]]:
        """`parts` of one image after another."""
        for index, image in enumerate(images):
            yield self.parts(transform, image, index, options)

    def at_once(
        self, batch_size: int, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> int:
        """How many examples of arrays of these shapes go through the network together; at most
        `batch_size`."""
        return batch_size

    def parts(
        self, transform: Any, image: Any, index: int, options: Mapping[str, Any]
    ) -> list[tuple[dict[str, np.ndarray], Any]]:
        """What `transform.outputs` is given of image number `index`, as a batch has it for one
        example: image, uint8 (H, W, 3), such as one crop for each person; and what `joined` must
        know of each."""
        return [({'image': transform.prepare(image)}, None)]

    def joined(self, parts: Sequence[tuple[Any, Any]], options: Mapping[str, Any]) -> Any:
        """The result of an image, of what was decoded of each of its `parts`, in their order."""
        [(decoded, _)] = parts
        return self.found(decoded, options)

    def found(self, decoded: Any, options: Mapping[str, Any]) -> Any:
        """What `hrnet_jax.predict` returns for one image, of its decoded NumPy arrays."""
        self.refuse('prediction')

    def lines(self, found: Any, options: Mapping[str, Any]) -> list[str]:
        """What predict.py prints below the name of an image."""
        return [f'  {found}']

    def to_json(self, found: Any, options: Mapping[str, Any]) -> Any:
        """What predict.py --json has of an image."""
        return found

    def json_rows(
        self, paths: Sequence[str], found: Sequence[Any], options: Mapping[str, Any]
    ) -> list[Any]:
        """What predict.py --json writes of all images: by default a row each, with `to_json`."""
        return [
            {'image': path, 'predictions': self.to_json(one, options)}
            for path, one in zip(paths, found, strict=True)
        ]

    def draw(
        self, images: Sequence[Any], titles: Sequence[str], found: Sequence[Any], path: Path,
        form: str, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Writes a picture of all images with what was found."""
        self.refuse('pictures')

    def write(self, paths: Sequence[str], found: Sequence[Any], options: Mapping[str, Any]) -> None:
        """Writes what the task's own flags of predict.py ask for."""

    def add_data_flags(self, group: argparse._ArgumentGroup) -> None:
        """Flags of eval.py, with None as default; their names are arguments of `open_dataset`."""

    def add_evaluation_flags(self, group: argparse._ArgumentGroup) -> None:
        """Flags of eval.py, with None as default; their names are arguments of `metric`."""

    def add_prediction_flags(self, group: argparse._ArgumentGroup) -> None:
        """Flags of predict.py, with None as default; their names are options of `predict`."""


_BLOCKS = 400  # of an architecture in a file; the largest published has 40


def arch_of(meta: Mapping[str, Any], kind: type, known: Callable[[str], Any]) -> Any:
    """The architecture in a checkpoint's JSON.

    Args:
        kind: its class.
        known: gives that of a name in the table.

    Raises:
        Unknown: if it is another than `known` gives, or none.
    """
    from hrnet_jax.archs import ARCHS

    try:
        items = meta['arch'].items()
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in items}
        arch = kind(**values)
        blocks = arch.layer1[0] + sum(map(operator.mul, arch.modules, arch.blocks))
    except (AttributeError, TypeError):
        raise Unknown('an architecture this program does not know') from None
    if not isinstance(arch.name, str) or blocks > _BLOCKS:
        raise Unknown(f'an architecture of {blocks} blocks, named {arch.name!r:.60}')
    if arch.name in ARCHS and arch != known(arch.name):
        raise Unknown(f'another {arch.name} than this program')
    return arch


def options_of(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of every model."""
    import jax.numpy as jnp

    return {
        'dtype': jnp.dtype(recipe.dtype),
        'bn_group_size': recipe.bn_group_size,
        'remat': recipe.remat,
    }
