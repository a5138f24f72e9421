"""Environments of launchers: joined, ignored, or one line that says what to add."""

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest

import train
from hrnet_jax.errors import UserError
from hrnet_jax.runtime import distributed, launchers

SLURM = {
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_NTASKS': '4',
    'SLURM_STEP_NUM_TASKS': '4',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
}
OPEN_MPI = {
    'OMPI_COMM_WORLD_SIZE': '2',
    'OMPI_COMM_WORLD_RANK': '1',
    'OMPI_COMM_WORLD_LOCAL_RANK': '1',
    'OMPI_MCA_orte_hnp_uri': '1.0;tcp://10.0.0.1:1234',
}


@pytest.fixture
def environment(monkeypatch):
    """Sets what a launcher sets, and nothing of the others."""
    for name in (*SLURM, *OPEN_MPI, launchers._TPU_HOSTS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, '_may_be_tpu', lambda: False)

    def put(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.fixture
def start(environment, monkeypatch):
    """Starts, and says whether JAX was asked to join other processes."""
    joined = []
    monkeypatch.setattr('jax.distributed.initialize', lambda *given: joined.append(given))

    def call(values, **flags):
        environment(values)
        names = ('coordinator', 'num_processes', 'process_id')
        distributed.start(argparse.Namespace(**dict.fromkeys(names) | flags))
        return joined

    return call


@pytest.mark.parametrize(
    'values', [SLURM, OPEN_MPI, {launchers._TPU_HOSTS: 'a,b'}, OPEN_MPI | {'SLURM_JOB_ID': '7'}]
)
def test_joined(start, values):
    assert start(values) == [()]


@pytest.mark.parametrize('size', ['', 'many', '1'])
@pytest.mark.parametrize('name', ['SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'])
def test_one_process(start, name, size):
    """What is empty or no number is as if it were not there."""
    assert start({name: size, launchers._TPU_HOSTS: ''}) == []


FIVE = {name: OPEN_MPI[name] for name in list(OPEN_MPI)[:3]}  # Open MPI 5
TERMINAL = {name: SLURM[name] for name in ('SLURM_JOB_ID', 'SLURM_STEP_NUM_TASKS', 'SLURM_PROCID')}
HALF = [
    (
        FIVE,
        'Open MPI says by OMPI_COMM_WORLD_SIZE that there are 2 processes, but JAX cannot join '
        'them without OMPI_MCA_orte_hnp_uri: add --coordinator HOST:PORT --num-processes 2 '
        '--process-id 1; for one process alone, unset OMPI_COMM_WORLD_SIZE',
    ),
    (
        TERMINAL,  # of an editor
        'Slurm says by SLURM_STEP_NUM_TASKS that there are 4 processes, but JAX cannot join them '
        'without SLURM_STEP_NODELIST, SLURM_NTASKS, SLURM_LOCALID: add --coordinator HOST:PORT '
        '--num-processes 4 --process-id 3; for one process alone, unset SLURM_STEP_NUM_TASKS',
    ),
    ({'SLURM_STEP_NUM_TASKS': '3'}, '--num-processes 3 --process-id ID;'),
]


@pytest.mark.parametrize(('values', 'words'), HALF)
def test_half_an_environment(start, values, words):
    with pytest.raises(UserError) as error:
        start(values)
    assert words in str(error.value)


def test_flags_come_first(start):
    flags = {'coordinator': 'host:1234', 'num_processes': 2, 'process_id': 0}
    assert start(HALF[0][0], **flags) == [('host:1234', 2, 0)]


@pytest.mark.parametrize(
    ('other', 'said'),
    [
        ({}, None),
        ({'images': 8}, 'images: 7, 8'),
        ({'class_names': ('cat', 'cow')}, "class names: here ('cat', 'dog')"),
        ({'class_names': None}, "class names: here ('cat', 'dog')"),
        ({'flip': False}, 'flip: here True'),
    ],
)
def test_what_all_processes_must_have(monkeypatch, other, said):
    """The rows of both processes, as each would send its own."""
    values, sent = {'images': 7, 'class_names': ('cat', 'dog'), 'flip': True}, []
    monkeypatch.setattr(distributed, 'alone', lambda: False)
    gather = 'jax.experimental.multihost_utils.process_allgather'
    monkeypatch.setattr(gather, lambda row: sent.append(row) or np.stack([row, row]))
    distributed.require_same(**values | other)
    monkeypatch.setattr(gather, lambda row: np.stack([row, sent[0]]))
    if said is None:
        distributed.require_same(**values)
    else:
        with pytest.raises(UserError, match=f'^the processes differ in {re.escape(said)}$'):
            distributed.require_same(**values)


def test_exit_code(refused, environment, tmp_path):
    """2: the same would not work later. It was 75, which schedulers take for 'start again'."""
    environment(HALF[0][0])
    options = ('--arch', 'tiny', '--recipe', 'digits', '--workdir', tmp_path / 'run')
    assert 'add --coordinator' in refused(train.main, *options)
