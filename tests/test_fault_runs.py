"""Training runs that are killed at any moment, that are long, and whose disk is full."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs

from hrnet_jax.checkpoints import workdir
from hrnet_jax.training.saving import prepare

SETTING = ('--epochs', '4', '--ema', '0.9', '--checkpoint-steps', '2', '--keep', '3')
STEPS = 72
KILLS, LONG = 50, 20_000
# A thread that writes, every second, what the process holds: bytes of memory, bytes of arrays.
WATCHED = """
import gc, sys, threading, time
import jax
def watch():
    while True:
        time.sleep(1)
        pages = int(open('/proc/self/statm').read().split()[1])
        held = sum(x.nbytes for x in jax.live_arrays())
        print(pages * 4096, held, file=log, flush=True)
log = open(sys.argv.pop(1), 'w')
threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = 'train.py'
import train
from hrnet_jax.runtime import cli
cli.run(train.main)
"""


def saving(run):
    """Whether a checkpoint is being written."""
    folder = run / workdir.CHECKPOINTS
    names = os.listdir(folder) if folder.is_dir() else ()
    return any(not name.isdecimal() for name in names)


def kill(run, data_dir, rng, in_a_save):
    """Starts or goes on, and kills at a random moment; False if the run came to its end before."""
    [process] = runs.launch(run, data_dir, *SETTING, quick=True)
    launched, deadline = time.time(), time.monotonic() + 600
    early = time.monotonic() + rng.uniform(0, 5) if rng.random() < 0.1 else deadline
    while process.poll() is None and not any(
        row['time'] > launched for row in runs.rows(run, 'train')
    ):
        if time.monotonic() > early:  # at times while it starts
            break
        assert time.monotonic() < deadline
        time.sleep(0.02)
    end = time.monotonic() + rng.uniform(0, 3)
    while process.poll() is None and time.monotonic() < end + 3:
        if saving(run) if in_a_save else time.monotonic() >= end:
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    [(code, _, err)] = runs.finish([process])
    assert code in (0, -signal.SIGKILL), err
    return code != 0


@pytest.mark.faults
def test_killed_at_fifty_random_moments(digits_data, tmp_path):
    """Every second time while it writes a checkpoint. It goes on each time, to the same bits."""
    whole = tmp_path / 'whole'
    [(code, _, err)] = runs.finish(runs.launch(whole, digits_data, *SETTING, quick=True))
    assert code == 0, err
    rng, killed, number, while_saving = random.Random(0), 0, 0, 0
    while killed < KILLS:
        run = tmp_path / str(number)
        while killed < KILLS:
            if not kill(run, digits_data, rng, killed % 2 == 1):
                break
            killed += 1
            while_saving += saving(run)
        [(code, out, err)] = runs.finish(runs.launch(run, digits_data, *SETTING, quick=True))
        assert code == 0, err
        assert workdir.steps(run)[-1] == STEPS
        assert runs.digests(run) == runs.digests(whole)
        assert not (run / workdir.DAMAGED).exists()
        assert not saving(run)  # what was half-written is gone
        number += 1
    print(
        f'{killed} kills, {while_saving} while a checkpoint was written, {number} runs: same bits'
    )
    assert while_saving >= KILLS // 10


@pytest.mark.faults
def test_twenty_thousand_steps(digits_data, tmp_path):
    """Memory of the host and of the device stays flat, and so does the time of a step."""
    run, log = tmp_path / 'run', tmp_path / 'memory'
    batch, every = 8, 100
    epochs = str(LONG * batch // 1198 + 1)
    options = ['--arch', 'tiny', '--recipe', 'digits', '--data-dir', digits_data]
    options += ['--workdir', run, '--epochs', epochs, '--stop-at', LONG, '--log-every', every]
    options += ['--eval-every', '25', '--checkpoint-steps', '2000', '--no-tensorboard']
    options += ['--learning-rate', '0.001', '--batch-size', batch, '--bn-group-size', batch]
    command = [sys.executable, '-c', WATCHED, str(log), *map(str, options)]
    environment = os.environ | {'PYTHONPATH': str(runs.ROOT)}
    environment.pop('XLA_FLAGS', None)  # compiled as for users
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=runs.ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for row in runs.rows(run, 'train') if 'images_per_second' in row]
    assert rows[-1]['step'] >= LONG - every
    ends = (
        [r for r in rows if 1000 < r['step'] <= 2000],
        [r for r in rows if r['step'] > LONG - 1000],
    )
    first, last = (
        statistics.median(batch / row['images_per_second'] for row in part) for part in ends
    )
    memory = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    tenth = len(memory) // 10
    early, late = memory[tenth : 2 * tenth], memory[-tenth:]
    host = [max(row[0] for row in part) / 2**20 for part in (early, late)]
    device = [statistics.median(row[1] for row in part) / 2**20 for part in (early, late)]
    print(f'a step {1000 * first:.1f} -> {1000 * last:.1f} ms')
    print(f'host {host[0]:.0f} -> {host[1]:.0f} MB, arrays {device[0]:.2f} -> {device[1]:.2f} MB')
    assert last < 1.2 * first
    assert host[1] < 1.05 * host[0] + 50
    assert device[1] < 1.05 * device[0] + 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    place = tmp_path / 'disk'
    place.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', place])
    if made.returncode:
        pytest.skip('only root can mount a small disk')
    yield place
    subprocess.run(['umount', '-l', place], check=True)


@pytest.mark.faults
def test_a_full_disk(digits_data, small_disk):
    """The run ends in one line, and goes on from its last whole step when there is room."""
    run = small_disk / 'run'
    flags = (*SETTING[:-1], '1')
    filler = small_disk / 'filler'
    [process] = runs.launch(run, digits_data, *flags, quick=True)
    runs.wait_for_checkpoint(run, [process])
    with open(filler, 'wb') as file:
        try:
            while True:
                file.write(bytes(65536))
                file.flush()
        except OSError:
            pass
    [(code, _, err)] = runs.finish([process])
    assert code == 2, err
    assert 'No space left' in err or 'RESOURCE_EXHAUSTED' in err, err
    assert [line[:6] for line in err.splitlines() if not line.startswith('warning:')] == ['error:']
    before = workdir.steps(run)[-1]
    filler.unlink()
    subprocess.run(['mount', '-o', 'remount,size=50m', small_disk], check=True)
    [(code, out, err)] = runs.finish(runs.launch(run, digits_data, *flags, quick=True))
    assert code == 0, err
    assert f'going on after {before}' in out


@pytest.mark.faults
def test_two_processes_of_which_one_dies(digits_data, tmp_path):
    """The other ends, too, and does not wait without end."""
    run = tmp_path / 'run'
    flags = ('--epochs', '100', '--checkpoint-steps', '4', '--bn-group-size', '16')
    started = runs.launch(run, digits_data, *flags, processes=2, quick=True)
    runs.wait_for_checkpoint(run, started)
    started[1].kill()
    since = time.monotonic()
    [(code, _, err), _] = runs.finish(started, timeout=300)
    print(f'the other process ended after {time.monotonic() - since:.0f} s, with code {code}')
    assert code not in (0, -signal.SIGKILL), err


@pytest.mark.faults
def test_two_processes_with_a_folder_each(digits_data, tmp_path):
    """A folder that is not shared is found at the start."""
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        folder.mkdir()
    ended = runs.finish(runs.launch('run', digits_data, processes=2, folders=folders, quick=True))
    assert [code for code, *_ in ended] == [2, 2], ended
    assert 'it must be shared' in ended[1][2]


def test_a_folder_that_can_only_be_read(digits_data, small_disk, refused):
    """As when a disk with errors is mounted again."""
    import train

    prepare(small_disk / 'run', {}, force=False)
    subprocess.run(['mount', '-o', 'remount,ro', small_disk], check=True)
    options = ('--arch', 'tiny', '--recipe', 'digits', '--data-dir', digits_data)
    line = refused(train.main, *options, '--workdir', small_disk / 'run')
    assert f'cannot write {small_disk / "run"}: Read-only file system' in line


@pytest.mark.parametrize('armed', [False, True])
def test_a_signal_is_obeyed_where_nobody_reads(armed):
    """Standard error is a pipe that was closed, or a terminal that has gone."""
    code = (
        'import time; from hrnet_jax.training.interrupt import Interrupt; asked = Interrupt(); '
        f'asked.armed = {armed}; asked.__enter__(); print("ready", flush=True); time.sleep(60)'
    )
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=writer, cwd=runs.ROOT
    )
    os.close(writer)
    try:
        process.stdout.readline()
        for _ in range(1 + armed):
            process.send_signal(signal.SIGTERM)
            time.sleep(1.2 * armed)
        assert process.wait(10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_cannot_be_written(digits_data, tmp_path, refused):
    """Found before the data is opened, in one line; nothing is left."""
    import train

    file = tmp_path / 'file'
    file.write_text('mine')
    link = tmp_path / 'link'
    link.symlink_to(tmp_path / 'nowhere' / 'else')
    for place in (file, file / 'run', Path('/proc/nothing/run'), link / 'run'):
        line = refused(
            train.main, '--arch', 'tiny', '--recipe', 'digits', '--data-dir', digits_data,
            '--workdir', place,
        )  # fmt: skip
        assert 'cannot write' in line or 'holds files of something else' in line, line
    assert file.read_text() == 'mine'
