"""What benchmarks/tpu_compile.py reads in the text of a compiled program."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / 'benchmarks'))

import tpu_compile  # noqa: E402

PROGRAM = """HloModule m

ENTRY %main {
  %p = f32[10,18]{1,0:T(8,128)} parameter(0)
  %q = f32[64,128]{1,0:T(8,128)} parameter(1)
  %c = (f32[10,18]{1,0:T(8,128)S(1)}, f32[10,18]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)
  %d = f32[10,18]{1,0:T(8,128)S(1)} copy-done(%c)
  %s = ((f32[64,128]{1,0:T(8,128)}), f32[16,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%q)
  %t = f32[16,128]{1,0:T(8,128)S(1)} slice-done(%s)
  ROOT %f = f32[10,18]{0,1:T(8,128)} fusion(%d, %p, %t), kind=kLoop, calls=%g
}
"""


def test_bytes_in_hbm():
    """Rows of 18 lie in tiles of 8 by 128; a slice moves its own size; on-chip is not counted."""
    row_major, column_major, piece = 16 * 128 * 4, 24 * 128 * 4, 16 * 128 * 4
    moved = row_major + piece
    assert tpu_compile.hbm_bytes(PROGRAM) == moved + column_major + row_major


def test_options():
    assert tpu_compile.option('xla_a=b=c') == ('xla_a', 'b=c')
    with pytest.raises(argparse.ArgumentTypeError, match="'xla_a' is not NAME=VALUE"):
        tpu_compile.option('xla_a')
