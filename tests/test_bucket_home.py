"""What may happen to a training folder in a bucket while it is copied there, without a server."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time

import pytest
from bucket_runs import CONFIG, Run, make_state, steps

from hrnet_jax.checkpoints import workdir
from hrnet_jax.errors import UserError
from hrnet_jax.runtime.buckets import Bucket, Refused
from hrnet_jax.training import home, saving


@pytest.fixture(scope='module')
def state():
    return make_state()


def test_a_step_that_was_put_aside_is_written_again(state):
    """Also where the bucket still has the damaged one."""
    run, url = Run('memory://again'), 'memory://again'
    saving.write_config(run.home.path, CONFIG)
    run.save(state, 1)
    run.save(state, 2)
    run.start()
    run.end()
    bucket = Bucket(url)
    bucket.remove(name for name in bucket.sizes() if '/2/raw/' in name)
    run = Run(url)
    assert run.restored(state) == 1
    run.save(state, 2)
    run.store.close()
    run.start()
    run.end()
    assert Run(url).restored(state) == 2


def test_killed_after_its_first_step_is_copied_it_goes_on(state, monkeypatch):
    """The configuration is there before the step."""
    url, write = 'memory://first', Bucket.write

    def killed(self, name, data):
        assert not steps(url)
        write(self, name, data)

    run = Run(url)
    run.save(state, 1)
    run.store.close()
    run.home._warn = run.warnings.append
    saving.write_config(run.home.path, CONFIG)
    (run.home.path / workdir.METRICS).write_text('')
    monkeypatch.setattr(Bucket, 'write', killed)
    with pytest.raises(UserError):
        run.home._copy()
    monkeypatch.setattr(Bucket, 'write', write)
    assert Run(url).restored(state) == 1


def test_what_vanishes_here_stays_in_the_bucket(state):
    """As files in /tmp may, after some days: of the best step."""
    run = Run('memory://vanished')
    run.store.note(1, 99)
    for step in (1, 2, 3):
        run.save(state, step)
    run.store.close()
    run.start()
    run.home.settle()
    deadline = time.monotonic() + 20
    while steps('memory://vanished') != [1, 2, 3]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shutil.rmtree(run.home.path / workdir.CHECKPOINTS / '1')
    run.save(state, 4)
    run.end()
    assert steps('memory://vanished') == [1, 3, 4]


def test_a_warning_that_nobody_takes_does_not_end_the_copying(state, monkeypatch):
    """As where the output is a pipe that was closed."""

    def closed(line):
        raise BrokenPipeError

    def refuse(*arguments):
        raise Refused('no')

    run, put = Run('memory://closed'), Bucket.put
    saving.write_config(run.home.path, CONFIG)
    monkeypatch.setattr(Bucket, 'put', refuse)
    run.home.start(closed)
    run.save(state, 1)
    run.store._manager.wait_until_finished()
    deadline = time.monotonic() + 20
    while not run.home._problem and time.monotonic() < deadline:
        time.sleep(0.1)
    with pytest.raises(UserError, match='no'):
        run.home.settle()
    monkeypatch.setattr(Bucket, 'put', put)
    assert run.home._thread.is_alive()
    run.end()
    assert steps('memory://closed') == [1]


def test_folders_that_orbax_removes_meanwhile_are_no_problem(state, monkeypatch):
    """Its files are not looked at for the record."""
    run = Run('memory://meanwhile')
    saving.write_config(run.home.path, CONFIG)
    half = run.home.path / workdir.CHECKPOINTS / '1.orbax-checkpoint-tmp'
    half.mkdir()
    scandir = os.scandir

    def gone(path):
        if str(path) == str(half):
            shutil.rmtree(half, ignore_errors=True)
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', gone)
    run.start()
    run.end()
    assert not run.warnings
    assert Bucket('memory://meanwhile').sizes() == {
        workdir.CONFIG: len(json.dumps(CONFIG, indent=1)) + 1
    }


def test_what_the_bucket_refuses_at_the_end_stays_here(tmp_path, monkeypatch):
    """The next run removes the copies of processes that were killed, and nothing else."""

    def refuse(*arguments):
        raise Refused('no')

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(Bucket, 'write', refuse)
    run = home.open_home('memory://refused')
    run.start(print)
    (run.path / workdir.METRICS).write_text('all that there is')
    with pytest.raises(UserError, match='no; what is missing there is in ') as error:
        run.close()
    [kept] = tmp_path.iterdir()
    assert str(error.value).endswith(str(kept))
    used, killed = (home.open_home('memory://refused') for _ in range(2))
    killed._own.release()  # as if its process had ended
    for folder in tmp_path.iterdir():
        os.utime(folder, (0, 0))
    home.open_home('memory://refused').close()
    assert sorted(tmp_path.iterdir()) == sorted([kept, used.path])
    used.close()
    assert (kept / workdir.METRICS).read_text() == 'all that there is'
