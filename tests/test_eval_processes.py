"""eval.py from the shell: two processes, output that is not taken, where its seconds go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from evaluated import COUNT, counts
from imagenet import jpeg
from runs import ROOT, finish, start

from hrnet_jax.data import imagenet


def test_where_the_seconds_go(setting):
    """benchmarks/startup.py: both runs, and what it watches in them."""
    script = ROOT / 'benchmarks' / 'startup.py'
    options = ('--arch', 'tiny', '--ckpt', setting[1], '--data-dir', setting[0])
    command = [sys.executable, *map(str, (script, *options))]
    table = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    lines = table.splitlines()[1:]
    rows = {line[:14].strip(): list(map(float, line[14:34].split())) for line in lines}
    for seconds in zip(*rows.values(), strict=True):
        *parts, total = seconds
        assert total == pytest.approx(sum(parts), abs=0.1 * len(parts))
    for row in ('imports', 'checkpoint', 'trace', 'compile', 'first batch'):
        assert rows[row][0] > 0, row


def two_processes(ckpt, data_dir, result, *more, **where):
    """eval.py in two processes of two devices each: exit codes and outputs."""
    options = ('--arch', 'tiny', '--ckpt', ckpt, '--data-dir', data_dir, '--batch-size', 16)
    options += ('--json', result, *more)
    ended = finish(start('eval', options, processes=2, devices=2, **where))
    return [code for code, *_ in ended], [outputs for _, *outputs in ended]


def test_two_processes_give_the_same_integers(setting, tmp_path):
    codes, outputs = two_processes(setting[1], setting[0], tmp_path / 'r.json')
    assert codes == [0, 0], outputs
    result = json.loads((tmp_path / 'r.json').read_text())
    assert result['num_examples'] == COUNT
    assert (result['top1_correct'], result['top5_correct']) == counts(setting)
    assert 'top-1' in outputs[0][0]
    assert 'top-1' not in outputs[1][0]


def test_both_processes_stop_when_one_fails(setting, tmp_path):
    """A broken image in the second half of the set, which the second process reads."""
    root = tmp_path / 'broken'
    for i in range(12):
        place = root / list(imagenet.classes())[i]
        place.mkdir(parents=True)
        (place / 'a.jpg').write_bytes(jpeg(i + 1) if i != 10 else b'no image')
    codes, outputs = two_processes(setting[1], '.', tmp_path / 'r.json', '--dataset', root)
    assert codes == [2, 2]
    assert 'a.jpg' in outputs[1][1]
    assert 'process 1 failed' in outputs[0][1]
    assert not (tmp_path / 'r.json').exists()


def test_both_processes_stop_when_one_cannot_load(setting, tmp_path):
    """The second process finds a damaged checkpoint."""
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        shutil.copytree(setting[1], folder / 'converted')
    file = folders[1] / 'converted' / 'tiny' / 'checkpoint.json'
    file.write_text(file.read_text()[:200])
    codes, outputs = two_processes('converted', setting[0], tmp_path / 'r.json', folders=folders)
    assert codes == [2, 2], outputs
    assert 'damaged' in outputs[1][1]
    assert 'process 1 failed' in outputs[0][1]


def test_output_that_is_not_taken(setting, tmp_path):
    """By `| head`, or by a full disk."""
    code = 'from hrnet_jax.commands.eval import entry; entry()'
    options = ('--ckpt', setting[1], '--data-dir', setting[0], '--limit', 4)
    command = [sys.executable, '-c', code, *map(str, options)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ''
    assert process.returncode == 1
    code = 'def main():\n  raise BrokenPipeError(32, "socket")\ncli.run(main)'
    code = f'from hrnet_jax.runtime import cli\n{code}'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, **pipes)
    assert 'BrokenPipeError: [Errno 32] socket' in done.stderr  # of something else
    if os.path.exists('/dev/full'):
        command = [sys.executable, '-m', 'convert', 'examples/tiny_digits.pth', '--out', tmp_path]
        with open('/dev/full', 'w') as full:
            done = subprocess.run(command, cwd=ROOT, **pipes | {'stdout': full})
        assert (done.returncode, done.stderr) == (2, 'error: No space left on device\n')
