"""What a task is (`base`), and one file a task: its data, metric, loss, decoding and results.

May import data, models, heads and network; only models, metrics and losses need JAX.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hrnet_jax.errors import UserError

if TYPE_CHECKING:
    from hrnet_jax.archs import Arch
    from hrnet_jax.heads.classification import Classifier
    from hrnet_jax.tasks.base import Task
    from hrnet_jax.tasks.recipe import Recipe

DEFAULT = 'classification'  # of checkpoints that do not say
# Name -> where it is; a new task is a line here and a file beside.
_PLACES = {
    'classification': 'hrnet_jax.tasks.classification:TASK',
    'multilabel': 'hrnet_jax.tasks.multilabel:TASK',
    'backbone': 'hrnet_jax.tasks.backbone:TASK',
    'segmentation': 'hrnet_jax.tasks.segmentation:TASK',
    'pose': 'hrnet_jax.tasks.pose:TASK',
    'detection': 'hrnet_jax.tasks.detection:TASK',
}
_REGISTERED: dict[str, Task] = {}


def names() -> list[str]:
    """The tasks that there are."""
    return [*_PLACES, *_REGISTERED]


def get_task(task: str | Task) -> Task:
    """The task of that name; 'MODULE:NAME' is a `Task` of the user's; a `Task` passes through.

    Raises:
        UserError: if there is none.
    """
    if isinstance(task, str) and ':' in task:
        return register(_imported(task))
    return _known(task) if isinstance(task, str) else task


def _known(name: Any) -> Task:
    """What a file names is never imported: that would run code which the file chooses."""
    if isinstance(name, str) and name in _REGISTERED:
        return _REGISTERED[name]
    if not isinstance(name, str) or name not in _PLACES:
        raise UserError(
            f'unknown task {name!r:.60}; known: {", ".join(names())}; one of your own is named as '
            '--task MODULE:NAME, or registered: hrnet_jax.tasks.register'
        )
    return _imported(_PLACES[name])


def register(task: Task) -> Task:
    """Makes a task of one's own known by its name, for this process."""
    if task.name in _PLACES:
        raise UserError(f'{task.name} is a task of hrnet_jax; choose another name')
    _REGISTERED.pop(task.name, None)
    if taken := sorted(task.recipes.keys() & recipes().keys()):
        raise UserError(f'task {task.name}: there is a recipe {", ".join(taken)} already')
    _REGISTERED[task.name] = task
    return task


def task_of(meta: Mapping[str, Any]) -> Task:
    """Of a checkpoint's JSON; raises UserError if it is not known."""
    return _known(meta.get('task', DEFAULT))


def task_of_model(model: Any) -> Task:
    """What a model says that it is for; raises UserError if it says nothing."""
    task = getattr(model, 'task', None)
    if task is None:
        raise UserError(
            f'{type(model).__name__} does not say what it is for, as a Classifier does: give a task'
        )
    return get_task(task)


def recipes() -> dict[str, type[Recipe]]:
    """Those of all tasks, by name."""
    return {name: cls for task in names() for name, cls in get_task(task).recipes.items()}


def create_model(
    arch: str | Arch, num_classes: int | None = None, *, task: str = DEFAULT, **options: Any
) -> Classifier:
    """A model; variables come from `init` or `load`.

    Args:
        arch: a name of `list_models()` or an `Arch`.
        num_classes: length of the outputs; by default that of the task: 1000 classes, 19 of
            'segmentation', 80 of 'detection', 17 keypoints of 'pose', which also takes
            `num_keypoints`.
        task: what it is for: 'classification', 'multilabel', 'segmentation', 'pose', 'detection',
            or one of your own; 'backbone': an `HRNet`, without a use for `num_classes`.
        **options: in_channels, channels, head, features; dtype, param_dtype, remat,
            bn_group_size, ...: see `hrnet_jax.models.create_model` and `hrnet_jax.HRNet`.

    Raises:
        UserError: for an unknown task or architecture, or sizes that make no network.
    """
    given = () if num_classes is None else (num_classes,)
    return get_task(task).create_model(arch, *given, **options)


def _imported(place: str) -> Task:
    module, _, name = place.partition(':')
    if not module or not name or module.startswith('.'):
        raise UserError(f'task {place}: a module and a name are needed, MODULE:NAME')
    try:
        held = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f'{error.name}.'):
            raise  # of what the module itself imports
        raise UserError(f'task {place}: Python finds no module {module}') from None
    if not hasattr(held, name):
        raise UserError(f'task {place}: {module} has no {name}')
    task = getattr(held, name)
    from hrnet_jax.tasks.base import Task

    if not isinstance(task, Task):
        raise UserError(f'task {place} is no hrnet_jax.tasks.base.Task')
    return task
