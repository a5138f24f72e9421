"""Files of strangers: changed ones by the thousand, and small ones that ask for much.

Each gives a result or one line; none runs code, takes more than 5 seconds, or 2 GB of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys

import hostile
import pytest
from runs import ROOT
from strangers import STRANGERS

import hrnet_jax
from hrnet_jax.tasks import task_of

# Of `hostile`, those that are read: nothing in them is wrong.
READ = {
    'pth names.pth', 'images more.png', 'images of a classifier more.png', 'label maps more.png',
    'images of a classifier text.png', 'images of a classifier profile.png',
    'people far__coco.json',
}  # fmt: skip


def fuzz(folder, count, seed, *kinds):
    """The report of tests/fuzz.py, in which nothing was found."""
    options = [str(folder), str(count), str(seed), *kinds]
    command = [sys.executable, str(ROOT / 'tests' / 'fuzz.py'), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-5000:]
    report = json.loads(done.stdout[done.stdout.index('{') :])
    found = {kind: held['found'] for kind, held in report.items() if held['found']}
    assert not found, json.dumps(found, indent=1)
    return report


def test_a_few_of_each(tmp_path):
    """And what is made to harm: terabytes that are claimed, bombs, programs, nests."""
    for kind, files in hostile.files().items():
        folder = tmp_path / 'given' / kind
        folder.mkdir(parents=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    report = fuzz(tmp_path, 0, 0, *STRANGERS)
    given = {f'{kind} {k}': v for kind, held in report.items() for k, v in held['given'].items()}
    assert len(given) == sum(map(len, hostile.files().values()))
    # A JSON beside a file is not taken, with a remark.
    assert {k for k, v in given.items() if v == 'result' and not k.startswith('beside')} == READ
    assert sum(held['inputs'] for held in report.values()) > 2_000
    assert 'pixels' in given['images large.png']
    assert 'PNG size too large' in given['images of a classifier large.png']
    assert 'too many pixels' in given['images of a classifier large.jpg']
    assert 'cannot identify' in given['images program.eps']  # which Ghostscript would run


@pytest.mark.faults
@pytest.mark.parametrize('kind', STRANGERS)
def test_a_hundred_thousand(tmp_path, kind):
    """In all; with another seed than the few hundred."""
    assert sum(stranger.count for stranger in STRANGERS.values()) >= 100_000
    report = fuzz(tmp_path, STRANGERS[kind].count, 1, kind)
    print(kind, {k: v for k, v in report[kind].items() if k != 'given'})
    assert report[kind]['inputs'] == STRANGERS[kind].count


@pytest.mark.parametrize('task', ['antigravity:TASK', 'os:system', 'none', 3, None, [], {}])
def test_a_file_cannot_have_a_module_imported(task, tmp_path, monkeypatch):
    """`--task MODULE:NAME` imports what the user names; a JSON of a stranger does not."""
    (tmp_path / 'antigravity.py').write_text('raise SystemExit("imported")')
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop('antigravity', None)
    with pytest.raises(hrnet_jax.UserError, match='unknown task'):
        task_of({'task': task})
    assert 'antigravity' not in sys.modules
