"""benchmarks/gpu.py in its small form, on a CPU; how kernels are told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / 'benchmarks'))

from compare_profile import by_kind, kind_of, summed  # noqa: E402


@pytest.mark.parametrize(
    ('kernel', 'kind'),
    [
        ('sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc', 'convolution'),
        ('void nhwcAddPaddingKernel<__nv_bfloat16>', 'copy, transpose, pad'),
        ('wrapped_transpose', 'copy, transpose, pad'),
        ('nvjet_sm90_tst_128x256_64x4_2x1_v_bx_coopA_relubias_TNN', 'matrix product'),
        ('input_reduce_fusion', 'reduction'),
        ('loop_maximum_fusion', 'elementwise'),
        ('something', 'other'),
    ],
)
def test_kinds(kernel, kind):
    assert kind_of(kernel) == kind


def test_kernels_are_summed_without_their_numbers():
    kernels = summed(
        [('loop_add_fusion', 1.0), ('loop_add_fusion.12', 2.0), ('wrapped_copy_3', 9.0)]
    )
    assert kernels == [('wrapped_copy', 1, 9.0), ('loop_add_fusion', 2, 3.0)]
    assert by_kind(kernels) == {'copy, transpose, pad': (1, 9.0), 'elementwise': (2, 3.0)}


@pytest.mark.long
def test_small_form(tmp_path):
    file = tmp_path / 'gpu.json'
    arguments = '--small --against --rounds 2 --seconds 0.1 --stages training w18 variants --modes'
    arguments = [*arguments.split(), 'inference', '--only', 'not padded', '--json', file]
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / 'gpu.py', *arguments],
        capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found['stages']['training']['result']['equal_to_the_bit']
    evaluation = found['stages']['training']['result']['evaluation']
    assert evaluation['correct'] == evaluation['PyTorch']
    assert all('failed' not in stage for stage in found['stages'].values())
    variant = found['cells'][-1]['contenders']['not padded']
    assert variant['difference']['logits'] < 1e-5
    assert 'times as fast' in done.stdout
