"""A PyTorch file of a checkpoint, and the JSON beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from convert import timm
from convert.recognise import kind_of_model
from convert.writing import to_torch
from hrnet_jax.checkpoints import beside
from hrnet_jax.checkpoints.format import model_of
from hrnet_jax.checkpoints.published import all_published
from hrnet_jax.errors import UserError, first_line
from hrnet_jax.models import Variables
from hrnet_jax.runtime.files import refuse_existing, replacing
from hrnet_jax.tasks import task_of

_COMPUTED = ('upsample', 'align_corners', 'pooling')  # what changes the results of the same weights
FORMATS = ('.pth', '.safetensors')


@dataclasses.dataclass
class Written:
    """What is to be written; made before the arrays are read, because it shows mistakes.

    Attributes:
        out: the file.
        layout: the name of one of the layouts of such networks.
        meta: the JSON of the checkpoint.
        force: replace what is there.

    Raises:
        UserError: if the file cannot have this name, or something is there, or there is no such
            layout.
    """

    out: Path
    layout: str
    meta: dict[str, Any]
    force: bool = False

    def __post_init__(self) -> None:
        if self.out.suffix not in FORMATS:
            raise UserError(f'--out {self.out}: the file must end in {" or ".join(FORMATS)}')
        task = task_of(self.meta)
        kind = kind_of_model(model_of(self.meta)) if task.heads else None
        layouts = {layout.name: layout for layout in kind.layouts} if kind else {}
        if kind is None or self.layout not in layouts:
            known = f'known: {", ".join(layouts)}' if layouts else 'it has none'
            raise UserError(
                f'the checkpoint is for {task.name}, which has no layout {self.layout}; {known}'
            )
        self.layouts = layouts
        self.config = self.out.with_name(timm.CONFIG)
        self.content = None
        if self.layout == 'timm':
            self.content = timm.config(self.meta, self.head_bias)
        self.foreign = bool(self.content) and self.config.exists()
        self.foreign &= 'architecture' not in beside.parsed(self.config)
        for path in (self.out, beside.place(self.out), *self._configs()):
            refuse_existing(path, self.force)

    @property
    def head_bias(self) -> bool:
        """False for a model whose own implementation has none, so that it loads there strictly."""
        published = all_published().get((self.meta.get('published') or {}).get('name', ''))
        source, own = self.meta.get('source', {}), self.layouts[self.layout]
        theirs = self.layouts.get(source.get('layout', 'official'), own).head_bias
        bare = source.get('head_bias') is False and theirs
        return own.head_bias and not bare and (not published or published.head_bias)

    def write(self, model: Any, variables: Variables) -> str:
        """Writes the files; returns a line that says what was written."""
        state = to_torch(variables, model.arch, self.layout, head_bias=self.head_bias)
        with contextlib.ExitStack() as stack:
            for config in self._configs():
                temporary = stack.enter_context(replacing(config, self.force))
                temporary.write_text(json.dumps(self.content, indent=1) + '\n')
            temporary = stack.enter_context(replacing(self.out, self.force))
            temporary.touch()  # the error of a place that cannot be written is the system's
            try:
                _save(state, temporary, self.out.suffix)
            except (OSError, UserError):
                raise
            except Exception as error:  # of a full disk, the libraries have their own kinds
                raise UserError(f'cannot write {self.out}: {first_line(error)}') from error
            beside.write(stack, self.out, temporary, self.meta, self.force, layout=self.layout)
        names = [path.name for path in (beside.place(self.out), *self._configs())]
        size = self.out.stat().st_size / 1e6
        note = f'; {self.config.name} is not of timm and stays' * self.foreign
        usual = self.layouts[self.layout].fields.items()
        own = {k: getattr(model, k) for k, v in usual if k in _COMPUTED and getattr(model, k) != v}
        if own:
            said = ' and '.join(f'{name} {value}' for name, value in own.items())
            note += f'; the program that reads it must set {said}, which is not usual there'
        return (
            f'{self.out}: {len(state)} tensors, {self.layout} layout, {size:.1f} MB; '
            f'beside it {" and ".join(names)}{note}'
        )

    def _configs(self) -> list[Path]:
        return [self.config] if self.content and not self.foreign else []


def _save(state: dict[str, Any], file: Path, suffix: str) -> None:
    if suffix == '.safetensors':
        from safetensors.numpy import save_file

        save_file(state, file, {'format': 'pt'})
        file.chmod(0o644)  # the library makes it its owner's alone
        return
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            'writing .pth needs PyTorch (pip install torch); .safetensors does not'
        ) from None
    torch.save({k: torch.from_numpy(v.copy()) for k, v in state.items()}, file)
