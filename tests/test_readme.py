"""The README's Python runs, on `tiny` instead of `w18` to save time."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp

README = (Path(__file__).parents[1] / 'README.md').read_text()


def test_code_blocks():
    blocks = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    assert len(blocks) == 3
    scope: dict = {}
    for block in blocks:
        exec(
            compile(block.replace("'w18'", "'tiny'").replace('224', '64'), 'README.md', 'exec'),
            scope,
        )
    assert scope['logits'].shape == (2, 1000)
    assert [m.shape[1] for m in scope['maps']] == [16, 8, 4, 2]
    assert scope['pooled'].shape == (2, 64)
    images = jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(scope['Landmarks']().init, jax.random.key(0), images)
    assert shapes['params']['backbone'].keys() == scope['variables']['params']['backbone'].keys()
