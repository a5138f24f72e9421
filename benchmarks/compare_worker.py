"""One contender of compare.py in a process of its own, and the handle by which it is led.

The process obeys lines of JSON on stdin, one answer each; between them it sleeps. It imports JAX or
PyTorch, never both, and only once it is confined to its cores.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from compare_profile import by_kind

LIMIT = 1800  # seconds to wait for an answer
ROOT = Path(__file__).resolve().parents[1]


class Failed(Exception):
    """A contender could not do what it was asked; one line."""


class Worker:
    """The process, as its parent sees it. `end` must be called whatever happens."""

    def __init__(self, spec: dict[str, Any]):
        threads = str(spec['threads'])
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
        environment = os.environ | {
            'PYTHONPATH': path,
            'OMP_NUM_THREADS': threads,
            'MKL_NUM_THREADS': threads,
            'TORCHINDUCTOR_COMPILE_THREADS': threads,
            # By default JAX takes three quarters of a GPU for itself.
            'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
            # Or the seconds to the first result would depend on earlier runs.
            'JAX_ENABLE_COMPILATION_CACHE': 'false',
            'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
            **spec.get('environment', {}),
        }
        self.limit = spec.get('limit', LIMIT)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  # `end` closes it
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(spec)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment,
        )  # fmt: skip

    def ask(self, order: str, **more: Any) -> dict[str, Any]:
        """Sends an order and waits for the answer.

        Raises:
            Failed: if there is none, or if it tells of an error.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({'order': order} | more).encode() + b'\n')
            stdin.flush()
            answered = select.select([stdout], [], [], self.limit)[0]
        except BrokenPipeError:
            answered = [stdout]
        if not answered:
            raise Failed(f'no answer in {self.limit:.0f} s')
        line = stdout.readline()
        if not line:
            raise Failed(self._last_words())
        answer = json.loads(line)
        if 'error' in answer:
            raise Failed(answer['error'])
        return answer

    def _last_words(self) -> str:
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            return 'it closed its output'
        if code == -9:
            return 'killed, probably for want of memory'
        self.log.seek(0)
        lines = self.log.read().decode(errors='replace').strip().splitlines()
        return f'exit code {code}' + (f': {lines[-1][:200]}' if lines else '')

    def end(self) -> None:
        """Lets it end by itself, and makes it end if it does not."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        for force in (lambda: None, self.process.terminate, self.process.kill):
            force()
            try:
                self.process.wait(10)
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.stdout.close()
        self.log.close()


def best_rate(amount: float, call: Any, wait: Any, seconds: float = 0.5) -> float:
    """Amount a second of the fastest of the calls made in about so many seconds, 3 at least."""
    wait(call())
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        wait(call())
        times.append(time.perf_counter() - start)
    return amount / min(times)


def picture(folder: str) -> tuple[str, np.ndarray]:
    """The file that a chain begins with, and the boxes in it: (N, 4), x, y, width and height."""
    with np.load(f'{folder}/batch.npz') as file:
        return f'{folder}/picture.jpg', file['boxes']


def results(result: Any, name: str, joined: Any) -> dict[str, Any]:
    """By their names: that of one array, or those of a dict of arrays or of levels of maps, which
    are `joined`."""
    if not isinstance(result, dict):
        return {name: result}
    return {k: joined(v) if isinstance(v, list | tuple) else v for k, v in result.items()}


def resident_peak() -> int:
    """Bytes. Linux's `ru_maxrss` would begin with the peak of the process that started this one."""
    try:
        for line in Path('/proc/self/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def obey(side: Any, order: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    if order['order'] == 'rates':
        return side.rates()
    if order['order'] == 'build':
        import numpy as np

        start = time.perf_counter()
        outputs = side.first()
        seconds = time.perf_counter() - start
        np.savez(order['file'], **outputs)
        return {'seconds': seconds}
    if order['order'] == 'time':
        # A GPU's queue is kept full, as programs do, except where latency is what is asked. On a
        # CPU there is none, and JAX would compute several at once.
        each = spec['mode'] == 'latency' or side.platform == 'cpu'
        with side.session():
            side.wait(side.step())
            start = time.perf_counter()
            for _ in range(order['iterations']):
                result = side.step()
                if each:
                    side.wait(result)
            side.wait(result)
            return {'seconds': time.perf_counter() - start}
    if order['order'] == 'profile':
        with side.session():
            kernels = side.profile(order['iterations'])
        return {'kernels': kernels[: order['longest']], 'kinds': by_kind(kernels)}
    if order['order'] == 'memory':
        return {'bytes': side.peak() or resident_peak()}
    return {'platform': side.platform, 'device': side.device, 'bytes': resident_peak()}


def main() -> None:
    spec = json.loads(sys.argv[1])
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, spec['cpus'])
    # What libraries print must not be taken for answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    side = None
    for line in sys.stdin:
        try:
            if side is None:
                side = importlib.import_module(spec['side']).Side(spec)
            answer = obey(side, json.loads(line), spec)
        except Exception as error:
            import traceback

            traceback.print_exc()
            text = (str(error).strip() or 'no message').splitlines()[0]
            answer = {'error': f'{type(error).__name__}: {text[:300]}'}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
    main()
