"""Seconds from the start of eval.py until its first batch is counted, and where they go.

    python benchmarks/startup.py --arch w18 --ckpt converted/ --data-dir D

eval.py runs twice on 64 images, in processes of their own: with an empty compilation cache, and
with what the first run left there. All other arguments are passed on to eval.py.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
ROWS = (
    ('imports', 'Python, JAX, Flax, this package'),
    ('checkpoint', 'reading, checking and placing the weights'),
    ('fold', 'BatchNorm folded, kernels transformed'),
    ('data set', 'waited until the other process has opened it'),
    ('trace', 'JAX traces and lowers the step'),
    ('compile', 'XLA compiles it, or takes it from the cache'),
    ('the rest', 'first images decoded, first batch computed'),
    ('first batch', 'after all of these, since the process was started'),
)


def child(started: float) -> None:
    """eval.py in this process, watched; prints the seconds as JSON on the last line."""
    from hrnet_jax.data import reader

    seconds: dict[str, float] = dict.fromkeys((name for name, _ in ROWS), 0.0)

    def timed(module: Any, function: str, row: str) -> None:
        inner = getattr(module, function)

        def outer(*args: Any, **kwargs: Any) -> Any:
            start = time.time()
            result = inner(*args, **kwargs)
            seconds[row] += time.time() - start
            return result

        setattr(module, function, outer)

    begin, counting = reader.Reader.__init__, [False]

    def started_reader(self: reader.Reader, *args: Any) -> None:
        """eval.py imports JAX after this, and so do we."""
        begin(self, *args)
        import jax

        from hrnet_jax.inference import evaluation, folding
        from hrnet_jax.weights import loading

        timed(loading, 'load', 'checkpoint')
        timed(folding, 'fold', 'fold')
        make = evaluation.make_eval_step
        evaluation.make_eval_step = lambda *args, **kwargs: first(make(*args, **kwargs))
        jax.monitoring.register_event_duration_secs_listener(listen)
        seconds['imports'] = time.time() - started

    def listen(event: str, duration: float, **_: Any) -> None:
        if counting[0] and event.startswith('/jax/core/compile/'):
            seconds['compile' if 'backend_compile' in event else 'trace'] += duration

    def first(step: Any) -> Any:
        def outer(*operands: Any) -> Any:
            import jax

            counting[0] = not seconds['first batch']
            result = jax.block_until_ready(step(*operands))
            seconds['first batch'] = seconds['first batch'] or time.time() - started
            return result

        return outer

    reader.Reader.__init__ = started_reader  # type: ignore[method-assign]
    timed(reader.Reader, 'opened', 'data set')
    try:
        runpy.run_path(str(ROOT / 'eval.py'), run_name='__main__')
    finally:
        known = sum(seconds[name] for name, _ in ROWS[:-2])
        seconds['the rest'] = seconds['first batch'] - known
        print(json.dumps(seconds))


def main() -> None:
    if any(flag in sys.argv[1:] for flag in ('-h', '--help')):
        print(__doc__)
        return
    # With these, eval.py has no cache of its own.
    from hrnet_jax.runtime.compilation import VARIABLES

    runs = []
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(2):
            command = [sys.executable, __file__, '--limit', '64', *sys.argv[1:]]
            environment = {k: v for k, v in os.environ.items() if k not in VARIABLES}
            environment |= {'XDG_CACHE_HOME': cache, 'STARTUP_CHILD': str(time.time())}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(done.returncode)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(f'{"seconds":14}{"empty cache":>12}{"warm":>8}')
    for name, meaning in ROWS:
        print(f'{name:14}{runs[0][name]:12.1f}{runs[1][name]:8.1f}   {meaning}')


if __name__ == '__main__':
    if 'STARTUP_CHILD' in os.environ:
        child(float(os.environ['STARTUP_CHILD']))
    else:
        main()
