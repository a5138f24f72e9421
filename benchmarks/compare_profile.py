"""Where the time of a step goes, by kind of kernel, for compare.py and gpu.py."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

# The first pattern that is found in a kernel's name says its kind.
KINDS = (
    ('copy, transpose, pad', r'transpose|copy|memcpy|memset|pad|convert_layout|nchw|nhwcToNchw'),
    ('convolution', r'conv|cudnn|implicit|dgrad|wgrad|fprop'),
    ('matrix product', r'gemm|dot|matmul|cublas|nvjet|xmma'),
    ('reduction', r'reduce|norm|welford|_red_'),
    ('elementwise', r'fusion|elementwise|triton_|add|relu|vectorized|loop|wrapped'),
)
Kernel = tuple[str, int, float]  # name, calls, microseconds


def kind_of(name: str) -> str:
    """Of a kernel or an operation."""
    for kind, pattern in KINDS:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    return 'other'


def summed(events: Iterable[tuple[str, float]]) -> list[Kernel]:
    """(name, microseconds) of every call -> kernels whose names differ only in their number, the
    longest first."""
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0])
    for name, microseconds in events:
        total = totals[re.sub(r'([._]?\d+)+$', '', name)]
        total[0] += 1
        total[1] += microseconds
    rows = [(name, int(calls), time) for name, (calls, time) in totals.items()]
    return sorted(rows, key=lambda row: -row[2])


def by_kind(kernels: list[Kernel]) -> dict[str, tuple[int, float]]:
    """Kind -> (calls, microseconds), the longest first."""
    totals: dict[str, tuple[int, float]] = {}
    for name, calls, time in kernels:
        before = totals.get(kind_of(name), (0, 0.0))
        totals[kind_of(name)] = (before[0] + calls, before[1] + time)
    return dict(sorted(totals.items(), key=lambda item: -item[1][1]))


def of_jax(step: Callable[[], Any], iterations: int) -> list[Kernel]:
    """Kernels of so many steps: of a GPU, or the operations on a CPU."""
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(iterations):
                result = step()
            jax.block_until_ready(result)
        file = next(Path(folder).rglob('*.xplane.pb'))
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
        gpu = [plane for plane in planes if '/device:GPU' in plane.name]
        lines = [
            line for plane in gpu or planes for line in plane.lines
            if 'Stream' in line.name or (not gpu and 'XLA' in line.name)
        ]  # fmt: skip
        return summed((e.name, e.duration_ns / 1000) for line in lines for e in line.events)


def of_torch(step: Callable[[], Any], iterations: int, gpu: bool) -> list[Kernel]:
    """The same of PyTorch."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        for _ in range(iterations):
            step()
        if gpu:
            torch.cuda.synchronize()
    name = 'self_device_time_total' if gpu else 'self_cpu_time_total'
    rows = [(e.key, e.count, float(getattr(e, name))) for e in found.key_averages()]
    return sorted((row for row in rows if row[2] > 0), key=lambda row: -row[2])
