"""The process that reads an evaluation set."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import segments

from hrnet_jax import data
from hrnet_jax.commands.eval import reads_with_tensorflow
from hrnet_jax.data.evaluation import Share
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.data.reader import Reader, Request
from hrnet_jax.data.views import Views
from hrnet_jax.errors import Unavailable, UserError
from hrnet_jax.tasks import get_task

SMALL = Transform(resize=32, crop=32)
# Starts a reader, says which process that is, and waits to be killed.
PARENT = """
import sys, time
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.data.evaluation import Share
from hrnet_jax.data.reader import Reader, Request
reader = Reader()
reader.read(Request('digits', 'test', sys.argv[1], 10, Transform(), Share(1)))
reader.opened()
print(reader._process.pid, flush=True)
time.sleep(100)
"""


def reading(digits_data, **fields):
    values = {'name': 'digits', 'split': 'test', 'data_dir': digits_data, 'num_classes': 10}
    reader = Reader()
    share = {f.name: fields.pop(f.name) for f in dataclasses.fields(Share) if f.name in fields}
    share = Share(**{'batch_size': 20} | share)
    reader.read(Request(**values | {'transform': SMALL, 'share': share} | fields))
    return reader


# eval.py, interrupted by Ctrl-C as soon as the reader is started.
INTERRUPTED = """
import os, signal, sys
from hrnet_jax.runtime import cli
from hrnet_jax.commands import eval
class Reader(eval.Reader):
    def __init__(self, *args):
        assert not {'jax', 'tensorflow'} & sys.modules.keys()
        super().__init__(*args)
        print(self._process.pid, flush=True)
        os.killpg(0, signal.SIGINT)
eval.Reader = Reader
cli.run(eval.main)
"""
# Says that it is being imported, and fails.
BROKEN = """
from pathlib import Path
Path(__file__).with_name('imported').touch()
raise {error}('no descriptors')
"""


def alive(process):
    try:
        return Path(f'/proc/{process}/stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


def test_the_batches_of_the_second_of_two_processes(digits_data):
    source = data.open_dataset('digits', 'test', digits_data)
    reader = reading(digits_data, limit=70, devices=4, process_index=1, process_count=2)
    opened = reader.opened()
    assert (opened.total, opened.steps, opened.context) == (70, 3, {})
    assert opened.facts == source.facts
    batches = list(reader.batches())
    expected = list(data.batches(source, SMALL, 12, 1, 2, 70))
    assert len(batches) == len(expected) == opened.steps
    for ours, theirs in zip(batches, expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ('fields', 'kind', 'words'),
    [
        ({'split': 'validation'}, UserError, "digits has no split 'validation'"),
        ({'num_classes': 1000}, UserError, 'digits has 10 classes, the checkpoint 1000'),
        ({'batch_size': None}, RuntimeError, 'Traceback'),
    ],
)
def test_what_goes_wrong_there_is_raised_here(digits_data, fields, kind, words):
    with pytest.raises(kind, match=words):
        reading(digits_data, **fields).opened()


def test_a_reader_that_is_killed(digits_data):
    reader = reading(digits_data, batch_size=1, transform=Transform())
    reader.opened()
    os.kill(reader._process.pid, signal.SIGKILL)
    with pytest.raises(Unavailable, match='ended with code -9: killed, perhaps for memory'):
        list(reader.batches())


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='alive() reads it')
def test_a_reader_ends_with_the_process_that_started_it(digits_data, tmp_path):
    (tmp_path / 'parent.py').write_text(PARENT)
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])}
    command = [sys.executable, str(tmp_path / 'parent.py'), digits_data]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(child)


def test_a_reader_that_is_asked_for_nothing(capfd):
    reader = Reader()
    reader._process.stdin.close()  # what the end of this process would do
    assert reader._process.wait(100) == 0
    assert 'Traceback' not in capfd.readouterr().err


@pytest.mark.parametrize(
    ('error', 'kind', 'words'),
    [('TypeError', RuntimeError, 'Traceback'), ('ImportError', UserError, 'pip install')],
)
def test_tensorflow_is_imported_before_it_is_needed(
    digits_data, tmp_path, monkeypatch, capfd, error, kind, words
):
    """And what is wrong with it shows only when it is."""
    (tmp_path / 'tensorflow.py').write_text(BROKEN.format(error=error))
    monkeypatch.syspath_prepend(tmp_path)
    reader = Reader()
    deadline = time.monotonic() + 100
    while not (tmp_path / 'imported').exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert capfd.readouterr().err == ''
    reader.read(Request('digits', None, digits_data, 10, SMALL, Share(1)))
    with pytest.raises(kind, match=f'(?s){words}.*no descriptors|no descriptors.*{words}'):
        reader.opened()


def test_label_maps_need_no_tensorflow(once, tmp_path, monkeypatch):
    (tmp_path / 'tensorflow.py').write_text(BROKEN.format(error='ImportError'))
    monkeypatch.syspath_prepend(tmp_path)
    made = segments.make_folder(tmp_path / 'set')
    ckpt = once('segmenter', segments.make_checkpoint)
    for place, needed in ((ckpt, False), (ckpt / 'tiny', False), (tmp_path, True)):
        asked = argparse.Namespace(task=None, ckpt=str(place))
        assert reads_with_tensorflow(asked) is needed
    reader, task = Reader(tensorflow=False), get_task('segmentation')
    name = f'folder:{tmp_path}/set'
    reader.read(Request(name, 'val', None, 5, Views(), Share(3), opener=task))
    assert reader.opened().total == 3
    [batch] = reader.batches()
    np.testing.assert_array_equal(batch['label'], np.stack([label for _, label in made]))
    assert not (tmp_path / 'imported').exists()


def test_an_interrupt_while_jax_is_imported(tmp_path):
    command = [sys.executable, '-c', INTERRUPTED, '--ckpt', str(tmp_path)]
    environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])}
    kwargs = {'capture_output': True, 'text': True, 'timeout': 100, 'env': environment}
    done = subprocess.run(command, start_new_session=True, **kwargs)
    assert (done.returncode, done.stderr) == (130, '')
    assert not alive(int(done.stdout))


def test_what_others_print_or_have_in_the_folder(digits_data, tmp_path, monkeypatch):
    """A site that prints, and modules of the same names in the working directory."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text('print("welcome" * 10)')
    (tmp_path / 'pickle.py').write_text('raise RuntimeError')
    (tmp_path / 'hrnet_jax').mkdir()
    (tmp_path / 'hrnet_jax' / '__init__.py').write_text('')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path / 'site'))
    reader = reading(digits_data, limit=40, transform=Transform())
    assert reader.opened().total == 40
    assert sum(len(batch['label']) for batch in reader.batches()) == 40
