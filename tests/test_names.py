"""The public names: imported when they are asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hrnet_jax
import train
from hrnet_jax.commands import eval as evaluate

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


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('hrnet_w18', 'w18'),
        ('timm/hrnet_w18.ms_in1k', 'w18'),
        ('hrnet-w48', 'w48'),
        ('HRNetV2_W32', 'w32'),
        ('w18_small', 'w18_small_v1 or w18_small_v2'),
        ('hrnet_w18_ssld', 'w18'),
    ],
)
def test_architectures_by_other_names(name, meant):
    with pytest.raises(hrnet_jax.UserError, match=rf"'{name}'; perhaps {meant}; known: tiny"):
        hrnet_jax.create_model(name)


@pytest.mark.parametrize(
    ('main', 'given', 'said'),
    [
        (train.main, ('--recipe', 'fintune'), "'fintune'; perhaps finetune; known: official, "),
        (
            train.main,
            ('--recipe', 'Official'),
            "'Official'; perhaps official or official_pose; known: official, ",
        ),
        (
            train.main,
            ('--optimizer', 'adan'),
            "'adan'; perhaps adam or adamw; known: sgd, adam, adamw",
        ),
        (train.main, ('--recipe', 'xyz'), "invalid choice: 'xyz' (choose from "),
        (evaluate.main, ('--dtype', 'float'), "'float'; perhaps float32 or bfloat16; known: "),
    ],
)
def test_choices_by_near_names(main, given, said, refused):
    assert f'argument {given[0]}: ' in (line := refused(main, *given))
    assert said in line


@pytest.mark.parametrize('command', ['train', 'eval', 'predict', 'hrnet_jax.summary'])
def test_architectures_by_other_names_in_commands(command):
    given = {'predict': ['x.png']}.get(command, [])
    arguments = [sys.executable, '-m', command, *given, '--arch', 'hrnet_w18']
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown architecture 'hrnet_w18'; perhaps w18; known: tiny, " in done.stderr
    assert done.stderr.count('\n') == 1
