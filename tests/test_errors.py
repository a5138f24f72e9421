"""The line of a library's error that a user sees."""

from __future__ import annotations

import pytest

from hrnet_jax.errors import first_line


class Noded(Exception):
    """As of TensorFlow."""

    message = '{{function_node __wrapped__Read}} file is cut [Op:Read]\nmore'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('\n no such key \nmore'), 'no such key'),
        (Noded('other'), 'file is cut'),
        (StopIteration(), 'StopIteration'),
        (OSError('x' * 300), 'x' * 200),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line
