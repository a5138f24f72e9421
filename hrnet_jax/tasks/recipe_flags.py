"""The fields of a recipe as flags of train.py, and what its help says of recipes."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from hrnet_jax.errors import UserError
from hrnet_jax.tasks.recipe import Recipe, evaluation_fields, flag, flags, hints, metadata


def add_arguments(parser: argparse._ArgumentGroup, cls: type[Recipe]) -> None:
    """A flag for each field that is used, with its help; one that is not given leaves no trace."""
    types = hints(cls)
    for name in flags(cls):
        hint, text = types[name], metadata(cls, name).get('help', '')
        options: dict[str, Any] = {
            'default': argparse.SUPPRESS,
            'help': f'{text} ({_default(cls, name)})'.replace('%', '%%'),
        }
        if optional := type(None) in get_args(hint):
            (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
        if hint is bool:
            options['action'] = argparse.BooleanOptionalAction
        elif get_origin(hint) is tuple:
            kind, *others = get_args(hint)
            options |= {'type': kind, 'metavar': kind.__name__.upper()}
            options['nargs'] = '+' if ... in others else 1 + len(others)
        elif get_origin(hint) is Literal:
            options['choices'] = get_args(hint)
        else:
            options['type'] = _or_none(hint) if optional else hint
            options['metavar'] = hint.__name__.upper()
        parser.add_argument(flag(name), **options)


def _default(cls: type[Recipe], name: str) -> str:
    default, none = cls.__dataclass_fields__[name].default, metadata(cls, name).get('none')
    if name in cls.required and default in (None, ''):
        return 'needed'
    if default in (None, ()):
        return f'default: {none or "none"}'
    return f'default: {default}' + (f'; none: {none}' if none else '')


def from_arguments(cls: type[Recipe], args: argparse.Namespace) -> Recipe:
    """The recipe that the flags of `add_arguments` describe.

    Raises:
        UserError: for values that make no sense.
    """
    for name in cls.required:
        if getattr(args, name, cls.__dataclass_fields__[name].default) in (None, ''):
            raise UserError(f'this recipe needs {flag(name)}')
    values: dict[str, Any] = {
        name: getattr(args, name) for name in flags(cls) if hasattr(args, name)
    }
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return cls(**values)


def going_on(
    cls: type[Recipe], args: argparse.Namespace, before: Mapping[str, Any]
) -> tuple[Recipe, list[str]]:
    """The recipe of a run that may have been begun, and the flags that it keeps from then.

    Args:
        before: the recipe as JSON, as the run was begun; empty for a new one. Its fields of the
            evaluation hold where `args` has no other value.

    Raises:
        UserError: for values that make no sense.
    """
    free, given = evaluation_fields(cls), vars(args)
    kept = {k: before[k] for k in sorted(free & before.keys()) if k not in given}
    fixed = {k: v for k, v in given.items() if k not in free}
    plain = from_arguments(cls, argparse.Namespace(**fixed)).to_json()
    recipe = from_arguments(cls, argparse.Namespace(**kept | given))
    return recipe, [f'{flag(k)} {value}' for k, value in kept.items() if plain[k] != value]


def _or_none(kind: type) -> Any:
    def parse(text: str) -> Any:
        return None if text.lower() == 'none' else kind(text)

    parse.__name__ = kind.__name__  # what argparse calls a value that does not parse
    return parse


def describe(recipes: Mapping[str, type[Recipe]], chosen: str | None = None) -> str:
    """The docstring of the one that is chosen; otherwise a line for each."""
    docs = {name: _doc(cls) for name, cls in recipes.items()}
    if chosen in docs:
        return f'{chosen}: {docs[chosen]}'
    width = max(map(len, docs), default=0)
    lines = [f'  {name:{width}}  {text.splitlines()[0]}' for name, text in docs.items()]
    return '\n'.join(['recipes; --recipe NAME --help says more of one:', *lines])


def _doc(cls: type[Recipe]) -> str:
    """Its docstring; what a dataclass has in the place of none says nothing here."""
    text = inspect.getdoc(cls) or ''
    return text if text and not text.startswith(f'{cls.__name__}(') else 'no description.'
