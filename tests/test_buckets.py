"""Training folders and checkpoints in buckets, on servers of Google's and Amazon's kind."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from bucket_runs import CONFIG, META, MODEL, Run, make_state, steps
from servers import storage

import convert.__main__
import hrnet_jax
from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.errors import UserError
from hrnet_jax.initialisation import init
from hrnet_jax.runtime import buckets
from hrnet_jax.runtime.buckets import Bucket, Refused
from hrnet_jax.training import home

ROOT = Path(__file__).parents[1]
ONE = pytest.mark.parametrize('server', ['s3'], indirect=True)  # enough to show it


@pytest.fixture(scope='module', params=['gs', 's3'])
def server(request):
    with storage(request.param) as process:
        process.kind = request.param
        yield process


@pytest.fixture
def url(server, request):
    return f'{server.kind}://pod/{request.node.originalname}'


@pytest.fixture(scope='module')
def state():
    return make_state()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(buckets, 'WAITS', (0.1,))
    monkeypatch.setattr(buckets, '_ANSWER', 1)


def test_files(url, tmp_path):
    bucket = Bucket(url)
    assert bucket.sizes() == {}
    bucket.write('a/b.txt', b'hello')
    assert (bucket.sizes(), bucket.read('a/b.txt')) == ({'a/b.txt': 5}, b'hello')
    assert Bucket(url + '/a').sizes() == {'b.txt': 5}
    bucket.remove(['nothing', 'a/b.txt'])
    with pytest.raises(FileNotFoundError):
        bucket.read('a/b.txt')
    (tmp_path / 'x').mkdir()
    (tmp_path / 'x' / 'array').write_bytes(bytes(range(256)) * 30_000)  # in several parts
    (tmp_path / 'x' / 'end').write_bytes(b'\n\r')
    (tmp_path / 'last').touch()
    bucket.upload(tmp_path, 'step', 'last')
    bucket.download('step', tmp_path / 'back')
    assert (tmp_path / 'back/x/array').read_bytes() == (tmp_path / 'x/array').read_bytes()
    assert (tmp_path / 'back/x/end').read_bytes() == b'\n\r'
    assert (tmp_path / 'back/last').exists()
    bucket.remove_folder('step', 'last')
    assert bucket.sizes() == {}


def test_a_folder_is_no_file(url, monkeypatch):
    """As s3fs says it, if a file appears after the list and before the look at the folder."""
    bucket = Bucket(url)
    place = f'{bucket._root}/step'
    found = {place: {'name': place, 'type': 'directory', 'size': 0}}
    monkeypatch.setattr(bucket, '_call', lambda *a, **k: found)
    assert bucket.sizes('step') == {}


def test_what_cannot_be_used_is_said(url, impatient):
    kind = url.partition('://')[0]
    with pytest.raises(Refused, match=f'cannot write {kind}://none/x/a: there is no such bucket'):
        Bucket(f'{kind}://none/x').write('a', b'')
    with pytest.raises(UserError, match='foo://x: Protocol not known: foo'):
        Bucket('foo://x')


def test_a_lost_file_is_written_again_or_named(url, tmp_path, monkeypatch, impatient):
    for name in ('array', 'last'):
        (tmp_path / name).write_bytes(b'1')
    put = Bucket.put
    lost = iter([True])

    def once(self, local, name):
        if not (name.endswith('array') and next(lost, False)):
            put(self, local, name)

    monkeypatch.setattr(Bucket, 'put', once)
    Bucket(url).upload(tmp_path, 'step', 'last')
    assert Bucket(url).sizes() == {'step/array': 1, 'step/last': 1}
    monkeypatch.setattr(Bucket, 'put', lambda *x: None if x[2].endswith('array') else put(*x))
    with pytest.raises(Refused, match='step/array: it is not there afterwards'):
        Bucket(url).upload(tmp_path, 'step', 'last')
    assert Bucket(url).sizes() == {}


def test_a_run_goes_on_and_keeps_the_last_and_the_best(url, state):
    run = Run(url)
    assert run.restored(state) is None
    run.start()
    for step in (1, 2, 3, 4, 5):
        run.store.note(step, 90 - step if step > 1 else 99)
        run.save(state, step)
        run.store._manager.wait_until_finished()
    run.end()
    assert not run.home.path.exists()
    assert steps(url) == [1, 4, 5]
    assert json.loads(Bucket(url).read(workdir.CONFIG)) == CONFIG

    Bucket(url).write(f'{workdir.CHECKPOINTS}/6/raw/half', b'of a process that was killed')
    run = Run(url)
    assert (run.restored(state), run.store.best()) == (5, 1)
    run.start()
    run.save(state, 7)
    run.end()
    assert steps(url) == [1, 5, 7]
    assert not any('/6/' in name for name in Bucket(url).sizes())
    assert hrnet_jax.load(url)[0].arch.name == 'tiny'  # the best


@ONE
def test_a_step_that_is_removed_while_it_is_copied_leaves_nothing(url, state, monkeypatch):
    run = Run(url)
    put = Bucket.put

    def late(self, local, name):
        put(self, local, name)
        shutil.rmtree(run.home.path / workdir.CHECKPOINTS / '1', ignore_errors=True)

    run.save(state, 1)
    run.store._manager.wait_until_finished()
    monkeypatch.setattr(Bucket, 'put', late)
    run.start()
    run.end()
    assert not run.warnings
    assert not Bucket(url).sizes(workdir.CHECKPOINTS)


@ONE
def test_a_damaged_step_is_put_aside(url, state):
    run = Run(url)
    run.start()
    run.save(state, 1)
    run.save(state, 2)
    run.end()
    bucket = Bucket(url)
    bucket.remove(name for name in bucket.sizes() if '/2/raw/' in name)
    run = Run(url)
    assert run.restored(state) == 1
    assert 'damaged' in run.warnings[0]
    run.start()
    run.end()
    assert steps(url) == [1]
    assert f'damaged/2/{META}' in bucket.sizes()


@ONE
def test_names_that_lead_out_of_a_folder(url, tmp_path, monkeypatch):
    """Anyone may write them into a bucket; nothing of it is written here."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'deep' / 'er'))
    (tmp_path / 'deep' / 'er').mkdir(parents=True)
    for name in ('x/../../../checkpoint.json', '../../config.json', '../meta/metadata'):
        bucket = Bucket(f'{url}/{len(name)}')
        bucket.write(name, b'{}')
        for read in (hrnet_jax.load, home.open_home):
            with pytest.raises(UserError, match='would lie outside of its folder'):
                read(bucket.url)
    assert [*tmp_path.rglob('*.json')] == []


@ONE
def test_names_that_no_disk_takes(url):
    for place, names in {
        'both': ('checkpoint.json', 'checkpoint.json/checkpoint.json'),
        'long': ('a' * 300 + '/checkpoint.json',),
    }.items():
        for name in names:
            Bucket(f'{url}/{place}').write(name, b'{}')
        with pytest.raises(UserError, match=f'cannot copy {url}/{place}/'):
            hrnet_jax.load(f'{url}/{place}')


def test_a_checkpoint_that_changes_while_it_is_copied_is_not_cached(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    url, download = 'memory://changing', Bucket.download
    checkpoint.save(url, init(MODEL, jax.random.key(0), 32), checkpoint.describe(MODEL))

    def half(self, name, folder):
        whole = self.read(checkpoint.JSON)
        self.remove([checkpoint.JSON])
        download(self, name, folder)
        self.write(checkpoint.JSON, whole)

    monkeypatch.setattr(Bucket, 'download', half)
    with pytest.raises(UserError, match='was changed meanwhile; try again'):
        hrnet_jax.load(url)
    monkeypatch.setattr(Bucket, 'download', download)
    assert hrnet_jax.load(url)[0].num_classes == 10


@ONE
def test_another_folder_is_refused(url, state):
    Bucket(url).write('thesis/chapter1.tex', b'')
    with pytest.raises(UserError, match='holds files of something else'):
        Run(url)


@ONE
def test_training_goes_on_without_the_bucket_until_a_save(server, url, state, impatient):
    run = Run(url)
    run.start()
    run.save(state, 1)
    run.store._manager.wait_until_finished()
    run.home.settle()
    server.send_signal(signal.SIGSTOP)
    try:
        run.save(state, 2)
        run.store._manager.wait_until_finished()
        deadline = time.monotonic() + 60
        while not run.warnings and time.monotonic() < deadline:
            time.sleep(0.1)
        assert 'training goes on' in run.warnings[0]
        with pytest.raises(UserError, match=f'cannot .* {url}'):
            run.save(state, 3)
    finally:
        server.send_signal(signal.SIGCONT)
    run.save(state, 4)
    run.end()
    assert steps(url) == [3, 4]  # what was saved when the bucket refused is not lost


@ONE
def test_converted_files(url, command, refused, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    source = ROOT / 'examples/tiny_digits.pth'
    code, out, _ = command(convert.__main__.main, source, '--out', url)
    assert (code, f'{url}/tiny: tiny, 10 classes' in out) == (0, True)
    assert f'{url}/tiny exists' in refused(convert.__main__.main, source, '--out', url)
    assert command(convert.__main__.main, source, '--out', url, '--force')[0] == 0

    _, variables = hrnet_jax.load(url)
    back = f'{url}/back.safetensors'
    code, out, _ = command(convert.__main__.main, f'{url}/tiny', '--to', 'timm', '--out', back)
    assert (code, back in out) == (0, True)
    Bucket(url).get('back.safetensors', tmp_path / 'back.safetensors')
    _, done = convert.from_torch(tmp_path / 'back.safetensors')
    jax.tree.map(np.testing.assert_array_equal, done, dict(variables))
    assert f'{back} exists' in refused(
        convert.__main__.main, f'{url}/tiny', '--to', 'timm', '--out', back
    )
