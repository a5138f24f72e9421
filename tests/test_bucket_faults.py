"""Training in buckets: killed while it copies, and by eight processes."""

from __future__ import annotations

import json
import random
import time

import jax
import numpy as np
import pytest
from runs import finish, launch
from servers import storage

import hrnet_jax
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.runtime.buckets import Bucket

pytestmark = pytest.mark.faults
KILLS = 10  # with each kind of server
FLAGS = ['--epochs', '4', '--checkpoint-steps', '3', '--keep', '2']


def states(url):
    """The steps that count, and those that are half there."""
    names = [name.split('/', 2)[1:] for name in Bucket(url).sizes(workdir.CHECKPOINTS)]
    whole = {int(step) for step, file in names if file == workdir.META}
    return whole, {int(step) for step, _ in names} - whole


@pytest.mark.parametrize('kind', ['gs', 's3'])
def test_killed_while_it_copies_it_goes_on_to_the_same_bits(kind, digits_data, tmp_path):
    assert finish(launch(tmp_path / 'whole', digits_data, *FLAGS, quick=True))[0][0] == 0
    chance, half, lost = random.Random(kind), 0, 0
    with storage(kind):
        url = f'{kind}://pod/run'
        for _ in range(KILLS):
            before = max(states(url)[0], default=0)
            until = before + 3 * chance.randrange(2)  # now and then one more is whole
            [process] = launch(url, digits_data, *FLAGS, quick=True)
            deadline = time.monotonic() + 240
            while not any(step > until for part in states(url) for step in part):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
            process.communicate()
            half += bool(states(url)[1])
            lost += max(states(url)[0], default=0) < before
        [(code, out, err)] = finish(launch(url, digits_data, *FLAGS, quick=True))
        assert code == 0, err
        assert 'damaged' not in out
        whole, left = states(url)
        meta = json.loads(Bucket(url).read(f'{workdir.CHECKPOINTS}/{max(whole)}/{workdir.META}'))
        record = Bucket(url).read(workdir.METRICS).decode().splitlines()
    last = checkpoint.read_json(tmp_path / 'whole' / workdir.CHECKPOINTS / str(max(whole)))
    assert [meta[part] for part in ('arrays', 'rest')] == [
        last[part] for part in ('arrays', 'rest')
    ]
    assert (lost, left) == (0, set())
    assert json.loads(record[-1])['step'] == max(whole)
    print(f'{kind}: killed {KILLS} times, {half} times with a step half there')
    assert half


def test_eight_processes_of_two_devices_are_one_of_sixteen(digits_data, tmp_path):
    """At a low learning rate: sums are made in another order, which training amplifies."""
    flags = ['--epochs', '1', '--bn-group-size', '16', '--learning-rate', '1e-6']
    flags += ['--warmup-epochs', '0', '--stop-at', '6']
    with storage('gs'):
        url = 'gs://pod/eight'
        ended = finish(launch(url, digits_data, *flags, processes=8, devices=2), 900)
        assert [code for code, _, _ in ended] == [0] * 8, ended
        _, eight = hrnet_jax.load(url)
    ended = finish(launch(tmp_path / 'one', digits_data, *flags, devices=16), 600)
    assert [code for code, _, _ in ended] == [0], ended
    _, one = hrnet_jax.load(tmp_path / 'one')

    def apart(a, b):
        """Relative: a variance may be 10, where float32 has steps of 1e-6."""
        return float(np.abs(a - b).max() / max(1, np.abs(b).max()))

    worst = max(jax.tree.leaves(jax.tree.map(apart, dict(eight), dict(one))))
    print(f'{worst:.1e} apart')
    assert worst <= 1e-6
