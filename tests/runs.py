"""Training runs of `tiny` on the digit scans, for the tests."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import pytest

import train as train_command
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.inference import folding
from hrnet_jax.runtime import cli

ROOT = Path(__file__).parents[1]
COMMAND = (
    'import sys, jax; jax.config.update("jax_num_cpu_devices", {devices}); '
    'from hrnet_jax.inference import folding; folding.CPU_OPTIONS |= {options}; '
    'sys.argv[0] = "{name}.py"; import {name}; from hrnet_jax.runtime import cli; '
    'cli.run({name}.main)'
)


def call(main, *arguments):
    """A command's `main` in this process: (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, 'argv', ['command', *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as exit,
    ):
        cli.run(main)
    return exit.value.code, out.getvalue(), err.getvalue()


def start(name, options, *, processes=1, devices=1, path=(), quick=True, folders=None):
    """A command, as from the shell, in one or more processes of so many CPU devices.

    Not `quick`: compiled as for users, whatever flags the tests have for XLA. `folders`: where
    each process runs, if not in the repository.
    """
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join(map(str, (ROOT, *path))),
        'JAX_PLATFORMS': 'cpu',
    }
    if not quick:
        environment.pop('XLA_FLAGS', None)
    if processes > 1:  # such programs are bound to their run
        environment['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{free.getsockname()[1]}'
        options = [*options, '--coordinator', address, '--num-processes', processes]
    own = folding.CPU_OPTIONS if quick else {}
    code = COMMAND.format(name=name, devices=devices, options=own)
    return [
        subprocess.Popen(
            [sys.executable, '-c', code, *map(str, options)]
            + (['--process-id', str(i)] if processes > 1 else []),
            cwd=folders[i] if folders else ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def flags(run, data_dir, recipe):
    """Of train.py."""
    where = ('--data-dir', data_dir, '--workdir', run)
    return ('--arch', 'tiny', '--recipe', recipe, *where, '--no-tensorboard', '--log-every', '2')


def train(run, data_dir, *more, recipe='digits'):
    """train.py in this process, on its two devices, to the end: what it printed."""
    with jax.numpy_dtype_promotion('standard'):
        code, out, err = call(train_command.main, *flags(run, data_dir, recipe), *more)
    assert (code, err) == (0, '')
    return out


def launch(run, data_dir, *more, recipe='digits', **where):
    """train.py in processes of its own; `where` as of `start`."""
    return start('train', [*flags(run, data_dir, recipe), *more], **where)


def finish(started, timeout=400):
    """Waits: [(exit code, stdout, stderr)]."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(started, outputs, strict=True)]


def wait_for_step(run, step, started, timeout=240):
    """Until the first process has recorded `step`."""
    deadline = time.monotonic() + timeout
    while not any(row['step'] >= step for row in rows(run, 'train')):
        assert time.monotonic() < deadline
        assert started[0].poll() is None, started[0].communicate()
        time.sleep(0.1)


def wait_for_checkpoint(run, started, timeout=240, after=0):
    """Until the first process has written one, which it must not have ended with."""
    deadline = time.monotonic() + timeout
    while not any(step > after for step in workdir.steps(Path(run))):
        assert time.monotonic() < deadline
        assert started[0].poll() is None, started[0].communicate()
        time.sleep(0.02)


def lose_checkpoints(run, after):
    """A copy beside the run, without what it saved after this step, as if it was killed then."""
    copy = run.with_name(f'{run.name}-{after}')
    shutil.copytree(run, copy)
    for step in workdir.steps(copy):
        if step > after:
            shutil.rmtree(copy / workdir.CHECKPOINTS / str(step))
    assert workdir.steps(copy)[-1] == after
    return copy


def resumed(whole, train, after, figure):
    """A copy that lost what came later goes on, and ends as the whole run, to the bit."""
    again = lose_checkpoints(whole, after)
    assert f'going on after {after}' in train(again)
    assert digests(again) == digests(whole)
    ours, theirs = (rows(run, 'eval')[-1] for run in (again, whole))
    assert ours[figure] == theirs[figure]
    return again


def save_classifier(folder, tiny):
    """The fixture `tiny` as a checkpoint whose pixels have a mean and a deviation of their own."""
    model, variables = tiny
    transform = {'resize': 32, 'crop': 32, 'mean': [0.4] * 3, 'std': [0.3] * 3}
    checkpoint.save(folder, variables, checkpoint.describe(model) | {'transform': transform})


def rows(run, kind):
    """The records of one kind in metrics.jsonl."""
    file = Path(run) / workdir.METRICS
    lines = file.read_text().splitlines() if file.exists() else []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # being written
            continue
    return [row for row in found if row['kind'] == kind]


def digests(run, step=None):
    """Digest of every array of a checkpoint, by default the last."""
    step = workdir.steps(Path(run))[-1] if step is None else step
    meta = checkpoint.read_json(Path(run) / workdir.CHECKPOINTS / str(step))
    return {
        (part, name): entry['digest']
        for part in ('arrays', 'ema', 'rest')
        for name, entry in (meta[part] or {}).items()
    }
