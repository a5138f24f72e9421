"""The public names: imported when they are asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hrnet_jax

ROOT = Path(__file__).parents[1]
LIGHT = """
import sys
import hrnet_jax.commands.eval  # and with it the reader
assert not {'jax', 'flax', 'tensorflow'} & sys.modules.keys()
hrnet_jax.data.sources.tensorflow()
assert 'jax' not in sys.modules  # TensorFlow's converter for phones asks for it
import jax
hrnet_jax.nnx, hrnet_jax.HRNet
"""


def test_type_checkers_and_python_find_the_same():
    checked = ast.parse(Path(hrnet_jax.__file__).with_suffix('.pyi').read_text())
    for node in checked.body:
        for alias in node.names:
            found = getattr(hrnet_jax, alias.name)
            assert found is getattr(sys.modules[node.module], alias.name)
    names = {alias.name for node in checked.body for alias in node.names}
    assert names == set(hrnet_jax.__all__)
    assert names <= set(dir(hrnet_jax))


def test_what_is_not_there():
    with pytest.raises(AttributeError, match="module 'hrnet_jax' has no attribute 'nothing'"):
        hrnet_jax.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from hrnet_jax import nothing  # noqa: F401


def test_reading_images_needs_no_jax():
    subprocess.run([sys.executable, '-c', LIGHT], check=True, timeout=100, cwd=ROOT)
