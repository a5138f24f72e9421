"""python tests/fuzz.py FOLDER COUNT SEED KIND...: many changed files of each kind, read one by one.

COUNT is for each kind; 0: a fiftieth of what `make test-faults` reads.

Before them the files in FOLDER/given/KIND are read: NAME, or ANYTHING__NAME for one that is read
under this name, with + for /.

A file may give a result or a `UserError`. Other errors are printed with their places, and their
files are kept in FOLDER. More than 5 seconds of work are an error, too, a minute ends the process,
memory is limited, and what starts a process, opens a connection or writes a file counts as code
that a file has run.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3', 'CUDA_VISIBLE_DEVICES': '-1'}
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

SECONDS, HANG = 5, 60
MEMORY = 2 * 2**30  # bytes above what the imports take
RUNS = ('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'socket.connect')
Inputs = Iterator[tuple[str, str, bytes]]  # label, name, content


def changed(kind: str, whole: dict[str, bytes], mutate: Any, count: int, seed: int) -> Inputs:
    names = list(whole)
    for number in range(count):
        name = names[number % len(names)]
        content = mutate(whole[name], random.Random(f'{kind} {seed} {number}'))
        yield f'{number}{Path(name).suffix}', name, content


def given(folder: Path, first: str) -> Inputs:
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        _, _, name = path.name.rpartition('__')
        yield path.name, name.replace('+', '/') if '__' in path.name else first, path.read_bytes()


def watch(folder: Path, events: list[str]) -> None:
    """Notes what a reader of files has no reason to do."""

    def hook(event: str, arguments: tuple) -> None:
        if event in RUNS:
            events.append(f'{event} {arguments!r:.200}')
        elif event == 'open' and set(str(arguments[1])) & set('wax+'):
            place = str(arguments[0])
            if not place.startswith((str(folder), os.devnull)) and not place.isdecimal():
                events.append(f'open {arguments!r:.200}')

    sys.addaudithook(hook)


def bound() -> None:
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Reading:
    """One kind of files, of which whole ones have been read."""

    def __init__(self, kind: str, folder: Path):
        from strangers import STRANGERS

        self.kind, self.folder, self.work = kind, folder / kind, folder / kind / 'work'
        self.stranger = STRANGERS[kind]
        self.work.mkdir(parents=True)
        names = self.stranger.make(self.work)
        self.whole = {name: (self.work / name).read_bytes() for name in names}
        for name in names:
            self.stranger.read(self.work / name)  # imports what is needed
        self.outcomes: dict[str, str] = {}
        self.found: dict[str, list[str]] = {}
        self.total = self.refused = 0
        self.slowest = 0.0

    def all(self, inputs: Inputs, events: list[str]) -> None:
        for label, name, content in inputs:
            (self.work / name).write_bytes(content)
            started = time.process_time()
            faulthandler.dump_traceback_later(HANG, exit=True)
            problem = self.one(label, self.work / name)
            faulthandler.cancel_dump_traceback_later()
            seconds = time.process_time() - started
            self.slowest, self.total = max(self.slowest, seconds), self.total + 1
            if seconds > SECONDS:
                problem = f'{seconds:.1f} s'
            if events:
                problem = f'ran {events}'
                events.clear()
            if problem:
                same = self.found.setdefault(problem.partition(' at ')[2] or problem, [])
                same.append(f'{problem} ({label})')
                (self.folder / label).write_bytes(content)
            (self.work / name).write_bytes(self.whole.get(name, b''))

    def one(self, label: str, path: Path) -> str | None:
        """What is wrong, if anything is."""
        from hrnet_jax.errors import UserError

        try:
            self.stranger.read(path)
            self.outcomes[label] = 'result'
        except (UserError, *self.stranger.refusals()) as error:
            self.refused += 1
            self.outcomes[label] = ' '.join(str(error).split())[:300]
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)[:-5:-1]
            places = ' < '.join(f'{Path(f.filename).name}:{f.lineno}' for f in trace)
            return f'{type(error).__name__}: {str(error)[:100]!r} at {places}'
        return None


def main(folder: Path, count: int, seed: int, kinds: list[str]) -> dict[str, Any]:
    from hrnet_jax.runtime import cli

    cli.prepare()
    warnings.simplefilter('ignore')
    events: list[str] = []
    readings = [Reading(kind, folder) for kind in kinds]
    watch(folder, events)
    bound()
    report = {}
    for x in readings:
        first = given(folder / 'given' / x.kind, next(iter(x.whole)))
        x.all(first, events)
        outcomes = dict(x.outcomes)
        number = count or x.stranger.count // 50
        x.all(changed(x.kind, x.whole, x.stranger.mutate, number, seed), events)
        report[x.kind] = {
            'inputs': x.total,
            'refused': x.refused,
            'slowest': round(x.slowest, 2),
            'memory': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            'found': [f'{len(same)} x {same[0]}' for same in x.found.values()],
            'given': outcomes,
        }
    return report


if __name__ == '__main__':
    folder, count, seed, *kinds = sys.argv[1:]
    print(json.dumps(main(Path(folder).absolute(), int(count), int(seed), kinds), indent=1))
