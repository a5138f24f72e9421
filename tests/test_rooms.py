"""What may import what: one way between rooms, no cycles between modules.

Imports inside functions count, and those by a string.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hrnet_jax

ROOT = Path(__file__).parents[1]
# Room -> the rooms that it may import beside itself and `base`, which all may.
TABLE = {
    'base': '',  # errors, version
    'runtime': '',
    'network': '',  # archs, layers, backbone, and what they take
    'heads': 'network',
    'models': 'heads network',  # models, initialisation, introspection, nnx
    'data': 'network runtime',
    'tasks': 'data models heads network',
    'checkpoints': 'tasks data models heads network runtime',
    'convert': 'checkpoints tasks data models heads network runtime',
    'weights': 'convert checkpoints tasks data models heads network runtime',
    'inference': 'tasks data models heads network runtime',
    'training': 'inference weights checkpoints tasks data models heads network runtime',
    'commands': 'training inference weights convert checkpoints tasks data models heads network '
    'runtime',
}
TOP = {
    'base': 'errors version',
    'network': 'archs layers moments backbone initialisers tracing upsampling',
    'models': 'models initialisation introspection nnx',
}
# Names of old and of the documentation, for users; no room imports one.
THIN = {'checkpoint', 'export', 'folding', 'preprocess', 'summary', 'visualize'}
# Packages that import by a string -> the table with the strings.
BY_STRING = {'hrnet_jax': '_PLACE', 'hrnet_jax.data': '_PLACE', 'hrnet_jax.tasks': '_PLACES'}


def modules() -> dict[str, Path]:
    found = {}
    for package in ('hrnet_jax', 'convert'):
        for path in (ROOT / package).rglob('*.py'):
            parts = path.relative_to(ROOT).with_suffix('').parts
            found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of ours that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{module}: a relative import'
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                found.add(inner if inner in MODULES else str(node.module))
    return by_string(module) | {n for n in found if n.split('.')[0] in ('hrnet_jax', 'convert')}


def by_string(module: str) -> set[str]:
    if module not in BY_STRING:
        return set()
    table = getattr(importlib.import_module(module), BY_STRING[module])
    places = {place.partition(':')[0] for place in table.values()}
    return {place if place in MODULES else f'{module}.{place}' for place in places}


def room(module: str) -> str:
    package, *rest = module.split('.')
    if package == 'convert':
        return 'commands' if rest == ['__main__'] else 'convert'
    if not rest or rest == ['data'] or rest[0] in THIN:
        return 'public'
    if rest[0] in TABLE and (ROOT / package / rest[0]).is_dir():
        return rest[0]
    (found,) = [name for name, held in TOP.items() if rest[0] in held.split()]
    return found


IMPORTS = {module: imports(module) for module in MODULES}


def test_rooms():
    wrong = set()
    for module, imported in IMPORTS.items():
        own = room(module)
        if own == 'public':
            continue
        allowed = {own, 'base', *TABLE[own].split()}
        wrong |= {(module, other) for other in imported if room(other) not in allowed}
    assert not wrong


@pytest.mark.parametrize(
    'graph',
    [IMPORTS, {name: allowed.split() for name, allowed in TABLE.items()}],
    ids=['modules', 'rooms'],
)
def test_no_cycles(graph):
    """`prepare` raises CycleError, which names the modules."""
    graphlib.TopologicalSorter(graph).prepare()


def test_imports_by_string():
    """Every module that has some is known, and every string is a module."""
    found = {m for m, path in MODULES.items() if 'import_module' in path.read_text()}
    assert found == BY_STRING.keys()
    for module in BY_STRING:
        assert by_string(module)
        assert by_string(module) <= IMPORTS[module] & MODULES.keys()


@pytest.mark.parametrize('name', sorted(TABLE.keys() - TOP.keys() - {'convert'}))
def test_every_room_says_what_it_is(name):
    """And what it may import: the rooms of the table, those below others not always by name."""
    text = ast.get_docstring(ast.parse(MODULES[f'hrnet_jax.{name}'].read_text())) or ''
    assert len(text.splitlines()) == 3
    said = re.search(r'^May import ([^;.]+)', text, re.MULTILINE)[1]
    allowed, rooms = set(TABLE[name].split()), TABLE.keys() - {name, 'base'}
    named = rooms if said == 'every room' else rooms & set(re.findall(r'\w+', said))
    assert named <= allowed
    below = {room for one in named for room in TABLE[one].split() if 'is below' in said}
    assert allowed <= named | below


@pytest.mark.parametrize('name', sorted(THIN))
def test_thin_modules(name):
    """What the documentation names is the same thing as in its room."""
    module = importlib.import_module(f'hrnet_jax.{name}')
    places = [importlib.import_module(other) for other in IMPORTS[module.__name__]]
    for public in module.__all__:
        found = getattr(module, public)
        assert any(found is getattr(place, public, None) for place in places)


def test_documented_names():
    assert callable(hrnet_jax.archs.ARCHS.get)
    assert callable(hrnet_jax.nnx.from_linen)
    assert callable(hrnet_jax.folding.compiler_options)
    assert callable(hrnet_jax.checkpoint.save)
    assert hrnet_jax.checkpoint.load is hrnet_jax.load
    assert hrnet_jax.preprocess.Transform is hrnet_jax.Transform
    assert callable(hrnet_jax.data.open_dataset)
    assert 'imagenet2012' in hrnet_jax.data.DATASETS
    with pytest.raises(AttributeError, match="'hrnet_jax.data' has no attribute 'nothing'"):
        hrnet_jax.data.nothing  # noqa: B018


def test_import_is_light():
    code = (
        'import sys, hrnet_jax\n'
        "heavy = {'jax', 'flax', 'numpy', 'tensorflow', 'torch', 'cv2', 'convert'}\n"
        'assert not heavy & sys.modules.keys()\n'
        'assert not [name for name in sys.modules if name.startswith("hrnet_jax.")]\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


@pytest.mark.parametrize('name', ['export', 'summary', 'visualize'])
def test_commands_in_modules(name):
    done = subprocess.run(
        [sys.executable, '-m', f'hrnet_jax.{name}', '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f'usage: python -m hrnet_jax.{name} ')
    assert not done.stderr


def test_evaluation_begins_without_jax():
    """The reading process knows the tasks, and eval.py starts it before it imports JAX."""
    code = (
        'import sys, hrnet_jax.commands.eval, hrnet_jax.data.reader\n'
        'from hrnet_jax import tasks\n'
        'for name in tasks.names(): tasks.get_task(name)\n'
        "assert not {'jax', 'flax', 'tensorflow'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
