r"""Everything that is to be known of an NVIDIA GPU, in one command and a bounded time.

    python benchmarks/gpu.py --json gpu.json --minutes 9
    python benchmarks/gpu.py --json gpu.json --stages w18 --only 'padded to 16' 'no command buffers'
    JAX_PLATFORMS=cpu python benchmarks/gpu.py --json small.json --small

It needs JAX for the GPU, PyTorch with CUDA, timm, optax, Orbax and scikit-learn; no data set and no
network. Each stage writes the JSON file when it ends, so that a run that is cut off keeps what it
had. A stage that does not end in time loses its slowest contenders only.

1. `training`: train.py on scikit-learn's digits, killed and started again, beside a run that was
   not: the last checkpoints must be equal to the bit. The network of examples/tiny_digits.pth
   must count as many digits as PyTorch did.
2. `w18`: float32 beside PyTorch, then inference and latency in bfloat16 beside timm, eager and
   compiled, with where their time goes, and beside the variants of `--only`.
3. `w18-train`: loss and update of a step of w18_small_v1 in float32 beside PyTorch, then w18 in
   bfloat16 with half of the batch, likewise. Contenders share the GPU's memory.
4. `variants`: inference and latency of w18 with one change at a time, beside w18 as it is.
5. `train-variants`: the same for the training step, with a quarter of the batch.
6. `w48`, `w48-train`: as `w18`, in bfloat16; a quarter of the batch to train.

Programs are compiled side by side, one process each, and then timed one at a time: the seconds to
the first result are therefore longer than alone.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from compare import machine_rates, processor, versions
from compare_measure import OURS, Contest, floor, write_inputs
from compare_report import COLUMNS, row

from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli, files

RIVALS = ('timm', 'timm-compile')
TIMING = 80  # seconds kept for it
THREADS = 4  # of each process; many compile at the same time
BUFFERED = 'FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION'


def flags(text: str) -> dict[str, Any]:
    return {'environment': {'XLA_FLAGS': text}}


# Name -> (modes, what it adds to the specification of ours).
VARIANTS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    'not padded': (('inference', 'latency'), {'fields': {'kernels': 'OHWI'}}),
    'padded to 8': (('inference',), {'fields': {'channel_multiple': 8, 'kernels': 'OHWI'}}),
    'padded to 32': (('inference',), {'fields': {'channel_multiple': 32, 'kernels': 'OHWI'}}),
    'kernels HWIO': (('inference', 'latency'), {'fields': {'channel_multiple': 16}}),
    'products for 1x1': (('inference', 'train'), {'experiment': 'products for 1x1'}),
    'convolutions as fusions': (
        ('inference', 'latency', 'train'),
        flags('--xla_gpu_experimental_enable_conv_fusion=true'),
    ),
    'no command buffers': (('latency', 'train'), flags('--xla_gpu_enable_command_buffer=')),
    'more command buffers': (
        ('latency',),
        flags(f'--xla_gpu_enable_command_buffer={BUFFERED} --xla_gpu_graph_min_graph_size=1'),
    ),
    'fusions and command buffers': (
        ('latency',),
        flags(
            '--xla_gpu_experimental_enable_conv_fusion=true '
            f'--xla_gpu_enable_command_buffer={BUFFERED} --xla_gpu_graph_min_graph_size=1'
        ),
    ),
    'NCHW': (('inference', 'train'), flags('--xla_gpu_force_conv_nchw=true')),
    'no autotuning': (('inference', 'train'), flags('--xla_gpu_autotune_level=0')),
    'latency-hiding scheduler': (
        ('inference', 'train'),
        flags('--xla_gpu_enable_latency_hiding_scheduler=true'),
    ),
    'Triton for fusions': (
        ('inference', 'train'),
        flags('--xla_gpu_experimental_enable_fusion_block_level_rewriter=true'),
    ),
    'programmatic launch': (
        ('latency',),
        flags('--xla_gpu_enable_pdl=true --xla_gpu_enable_pdl_launch=true'),
    ),
    'remat': (('train',), {'options': {'remat': True}}),
    'training not padded': (('train',), {'step': {'channel_multiple': 1}}),
    'training padded to 8': (('train',), {'step': {'channel_multiple': 8}}),
    'training padded to 16': (('train',), {'step': {'channel_multiple': 16}}),
    'training padded to 32': (('train',), {'step': {'channel_multiple': 32}}),
}


def cell(arch: str, mode: str, dtype: str, batch: int, size: int = 224) -> dict[str, Any]:
    return {
        'task': 'classification', 'arch': arch, 'head': '', 'image_size': (size, size),
        'mode': mode, 'dtype': dtype, 'batch': batch,
    }  # fmt: skip


class Run:
    """What has been found, written to the file after every stage."""

    def __init__(self, args: Any, end: float):
        self.args, self.end = args, end
        self.rates: dict[str, Any] = {}
        cpus = sorted(os.sched_getaffinity(0))
        self.common: dict[str, Any] = {'threads': min(THREADS, len(cpus)), 'cpus': cpus}
        cpu = os.environ.get('JAX_PLATFORMS') == 'cpu'
        self.common |= {'platform': 'cpu' if cpu else 'gpu'}
        self.document: dict[str, Any] = {
            'versions': versions(), 'processor': processor(), 'threads': self.common['threads'],
            'cells': [], 'stages': {},
        }  # fmt: skip

    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def write(self) -> None:
        files.write(self.args.json, json.dumps(self.document, indent=1) + '\n')

    def stage(self, name: str, function: Callable[[], Any]) -> None:
        """Calls it if there is time; notes how long it took, or why it failed."""
        if self.left() < 20:
            print(f'{name}: no time left', flush=True)
            return
        start = time.monotonic()
        try:
            found = {'result': function()}
        except Exception as error:  # the other stages still count
            found = {'failed': f'{type(error).__name__}: {error}'[:500]}
            print(f'{name}: {found["failed"]}', flush=True)
        self.document['stages'][name] = {**found, 'seconds': round(time.monotonic() - start, 1)}
        self.write()

    def compare(self, cells: list[dict[str, Any]], rivals: tuple[str, ...], variants: bool) -> None:
        """Builds all contenders of all cells side by side, then times one after the other."""
        contests = []
        for one in cells:
            chosen: dict[str, dict[str, Any]] = {}
            if variants or (self.args.only and one['dtype'] == 'bfloat16'):
                chosen = {
                    name: spec
                    for name, (modes, spec) in VARIANTS.items()
                    if one['mode'] in modes and name in (self.args.only or VARIANTS)
                }
            if self.args.dump and one['dtype'] == 'bfloat16':
                where = self.args.dump / f'{one["arch"]}-{one["mode"]}'
                chosen[OURS] = flags(f'--xla_dump_to={where} --xla_dump_hlo_as_text')
            here = () if variants else rivals[: 1 if one['dtype'] == 'float32' else None]
            limit = max(self.left() - TIMING, 1)
            contest = Contest(one, here, self.common | {'limit': limit}, chosen)
            contests.append((contest, tempfile.TemporaryDirectory()))
        try:
            self._build(contests)
            for contest, _ in contests:
                self._measure(contest)
        finally:
            workers = [w for contest, _ in contests for w in contest.workers.values()]
            with concurrent.futures.ThreadPoolExecutor(max(len(workers), 1)) as pool:
                list(pool.map(lambda worker: worker.end(), workers))
            for _, folder in contests:
                folder.cleanup()

    def _build(self, contests: list[tuple[Contest, Any]]) -> None:
        def first(contest: Contest, name: str, folder: str) -> None:
            contest.first(name, folder)
            seconds = contest.entries[name].get('seconds_to_first_result')
            text = f'{seconds:.0f} s' if seconds else contest.entries[name]['failed']
            print(f'built: {contest.cell["arch"]} {contest.cell["mode"]} '
                  f'{contest.cell["dtype"]}, {name}: {text}', flush=True)  # fmt: skip

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(
                lambda pair: write_inputs(Path(pair[1].name), pair[0].cell, [
                    name for name in pair[0].entries if name in RIVALS]),
                contests,
            ))  # fmt: skip
            jobs = [
                pool.submit(first, contest, name, folder.name)
                for contest, folder in contests for name in contest.entries
            ]  # fmt: skip
            for job in jobs:
                job.result()
        for contest, folder in contests:
            for name in list(contest.workers):
                try:
                    contest.differ(name, folder.name)
                except UserError as error:  # timed all the same
                    contest.entries[name]['suspect'] = str(error)
                    print(error, flush=True)

    def _measure(self, contest: Contest) -> None:
        one = contest.cell
        if one['dtype'] in self.rates:
            rates = self.rates[one['dtype']]
        else:
            chip, rates = machine_rates(self.common, one['dtype'], bool(self.args.against))
            self.rates[one['dtype']] = rates
            self.document |= chip
        one |= {'rates': rates, 'floor': floor(one, rates)}
        contest.run(self.args.rounds, self.args.seconds)
        for name in (OURS, 'timm-compile'):
            if name in contest.workers and one['dtype'] == 'bfloat16':
                found = contest.ask(name, 'profile', iterations=3, longest=40)
                contest.entries[name]['profile'] = found
        contest.summarise()
        one['contenders'] = contest.entries
        self.document['cells'].append(one)
        for name in contest.entries:
            print(row(one, name), flush=True)
        self.write()

    def training(self) -> dict[str, Any]:
        """See gpu_train.py."""
        file = Path(__file__).with_name('gpu_train.py')
        command = [sys.executable, str(file), *(['--small'] if self.args.small else [])]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=max(self.left() - 5, 1)
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ['no message']
            raise UserError(f'exit code {done.returncode}: {lines[-1]}')
        print(done.stdout.strip(), flush=True)
        return json.loads(done.stdout.strip().splitlines()[-1])


def report(document: dict[str, Any]) -> None:
    """The table, where the time goes, and what won."""
    print('\n' + '\n'.join(COLUMNS))
    for one in document['cells']:
        for name in one['contenders']:
            print(row(one, name))
    for one in document['cells']:
        for name, entry in one['contenders'].items():
            kinds = (entry.get('profile') or {}).get('kinds')
            if kinds:
                whole = sum(time for _, time in kinds.values())
                parts = ', '.join(
                    f'{kind} {100 * time / whole:.0f} % ({calls // 3})'
                    for kind, (calls, time) in kinds.items()
                )
                print(
                    f'\n{one["arch"]} {one["mode"]}, {name}: {whole / 3000:.2f} ms a step; {parts}'
                )
    print()
    for one in document['cells']:
        for name, entry in one['contenders'].items():
            if name not in VARIANTS or 'ratio' not in entry:
                continue
            gain = 1 / entry['ratio']['median']
            advice = ': try it as the default' if gain > 1.02 else ''
            print(f'{one["arch"]} {one["mode"]}, {name}: {gain:.3f} times as fast{advice}')


def main() -> None:
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument(
        '--json', metavar='FILE', type=Path, required=True, help='write everything there'
    )
    p.add_argument('--minutes', type=float, default=9.0, help='after which nothing is begun')
    stages = ['training', 'w18', 'w18-train', 'w48', 'variants', 'train-variants', 'w48-train']
    p.add_argument('--stages', nargs='+', choices=stages, default=stages, help='in their order')
    p.add_argument('--only', nargs='+', choices=list(VARIANTS), help='these variants')
    p.add_argument('--modes', nargs='+', choices=['inference', 'latency', 'train'],
                   default=['inference', 'latency', 'train'], help='in bfloat16')  # fmt: skip
    p.add_argument('--against', nargs='*', choices=RIVALS, default=list(RIVALS), help='rivals')
    p.add_argument('--batch', type=int, default=256, help='images')
    p.add_argument('--dump', metavar='FOLDER', type=Path, help='write the compiled programs there')
    p.add_argument('--rounds', type=int, default=5, help='turns of each contender')
    p.add_argument('--seconds', type=float, default=0.5, help='of a turn')
    p.add_argument('--small', action='store_true', help='tiny networks and images, for a CPU')
    args = p.parse_args()
    files.refuse_unwritable(args.json)
    end = time.monotonic() + 60 * args.minutes
    jax.config.update('jax_platforms', 'cpu')  # this process computes next to nothing
    run, rivals = Run(args, end), tuple(args.against)
    size, batch = (32, 2) if args.small else (224, args.batch)

    def cells(arch: str, dtype: str, modes: list[str], batch: int) -> list[dict[str, Any]]:
        if args.small:
            arch, dtype = 'w18_small_v1' if rivals else 'tiny', 'float32'
        return [cell(arch, m, dtype, 1 if m == 'latency' else batch, size) for m in modes]

    asked = [m for m in args.modes if m != 'train']
    training = [m for m in args.modes if m == 'train']
    part = max(batch // 4, 1)
    half = max(batch // 2, 1)
    plans = {
        'w18': cells('w18', 'float32', asked[:1], min(batch, 32))
        + cells('w18', 'bfloat16', asked, batch),
        'w18-train': cells('w18_small_v1', 'float32', training, min(batch, 32))
        + cells('w18', 'bfloat16', training, half),
        'w48': cells('w48', 'bfloat16', asked, batch),
        'variants': cells('w18', 'bfloat16', asked, batch),
        'train-variants': cells('w18', 'bfloat16', training, part),
        'w48-train': cells('w48', 'bfloat16', training, part),
    }
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        beside = None
        if 'training' in args.stages:  # little work for a GPU, beside the compilation of w18
            beside = pool.submit(run.stage, 'training', run.training)
        for name in (name for name in plans if name in args.stages):
            variants = name.endswith('variants')
            run.stage(name, functools.partial(run.compare, plans[name], rivals, variants))
            if beside:
                beside.result()
    report(run.document)


if __name__ == '__main__':
    cli.run(main)
