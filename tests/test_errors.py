"""The line of a library's error that a user sees."""

from __future__ import annotations

import pytest

from hrnet_jax.errors import first_line


class Noded(Exception):
    """As of TensorFlow."""

    message = '{{function_node __wrapped__Read}} file is cut [Op:Read]\nmore'


class Asserted(Exception):
    message = 'assertion failed: [it is no image.  ] [Condition x > 0 did not hold:] [x (y:0)] [0]'


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ValueError('\n no such key \nmore'), 'no such key'),
        (Noded('other'), 'file is cut'),
        (Asserted(), 'it is no image'),
        (ValueError('it is no image.\nCondition x > 0'), 'it is no image'),
        (StopIteration(), 'StopIteration'),
        (OSError('x' * 600), 'x' * 500),
    ],
)
def test_first_line(error, line):
    assert first_line(error) == line
