"""Weights from the Hugging Face hub, played by a server on loopback."""

from __future__ import annotations

import json
import sys

import hub
import huggingface_hub
import pytest
import torch
from checkpoints import message, save

SCRIPT = """
import json, sys
from convert.readers import read
assert 'torch' not in sys.modules and 'huggingface_hub' not in sys.modules
answers = []
for origin in sys.argv[1:]:
    try:
        source = read(origin)
        values = {name: t.numpy().tolist() for name, t in source.tensors.items()}
        answers.append([source.path.name, source.origin, values])
    except ValueError as error:
        answers.append(f'{type(error).__name__}: {error}')
assert 'torch' not in sys.modules
print(json.dumps(answers))
"""


def in_subprocess(tmp_path, endpoint, *origins, **env):
    return json.loads(hub.run(SCRIPT, tmp_path, endpoint, *origins, **env))


def test_hub(tmp_path):
    one, two = {'a': torch.tensor([1.0])}, {'a': torch.tensor([2.0])}
    st = save(one, tmp_path / 'x.safetensors', 'safetensors').read_bytes()
    old = save({'state_dict': two}, tmp_path / 'x.bin').read_bytes()
    files = {
        ('timm/both', 'main', 'model.safetensors'): st,
        ('timm/both', 'main', 'pytorch_model.bin'): old,
        ('timm/bin', 'v1.0', 'pytorch_model.bin'): old,
        ('timm/none', 'main', 'README.md'): b'',
    }
    names = ('both', 'bin@v1.0', 'none', 'bin@v2', 'gated', 'absent')
    with hub.serve(files) as (endpoint, asked):
        both, binary, *errors = in_subprocess(
            tmp_path, endpoint, *(f'hf:timm/{name}' for name in names)
        )
    assert both == ['model.safetensors', 'hf:timm/both', {'a': [1.0]}]
    assert binary == ['pytorch_model.bin', 'hf:timm/bin@v1.0', {'a': [2.0]}]
    reasons = (
        'the repository has neither model.safetensors nor pytorch_model.bin',
        'the repository has no such revision',
        'its owner must let you in: ask on the page of the repository, then run `hf auth login`',
        'no such repository; if it is private, run `hf auth login` first',
    )
    for name, reason, error in zip(names[2:], reasons, errors, strict=True):
        assert error == f'UserError: hf:timm/{name} cannot be downloaded: {reason}'
    assert ('timm/both', 'main', 'pytorch_model.bin') not in asked
    # Nobody answers any more: what is in the cache still loads.
    answers = in_subprocess(
        tmp_path, endpoint, 'hf:timm/both', 'hf:timm/bin@v1.0', 'hf:timm/new', HF_HUB_OFFLINE='1'
    )
    assert answers[:2] == [both, binary]
    offline = 'the hub cannot be reached and the file is not in the cache'
    assert answers[2] == f'UserError: hf:timm/new cannot be downloaded: {offline}'


def test_hub_without_answer_is_tried_once(monkeypatch):
    asked = []

    def download(repository, name, revision, local_files_only):
        asked.append((repository, name, revision, local_files_only))
        raise huggingface_hub.errors.LocalEntryNotFoundError('no')

    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
    offline = 'cannot be downloaded: the hub cannot be reached and the file is not in the cache'
    assert message('hf:a/b@c/d') == offline
    assert asked == [
        ('a/b', 'model.safetensors', 'c/d', False),
        ('a/b', 'pytorch_model.bin', 'c/d', True),
    ]


@pytest.mark.parametrize(
    'origin', ['hf:', 'hf:timm', 'hf:a/b/c', 'hf:a/b@', 'hf:../x', 'hf:a/b c', 'hf:-a/b']
)
def test_names_of_repositories(origin, monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert message(origin) == 'is no repository: write hf:OWNER/REPO or hf:OWNER/REPO@REVISION'


def test_missing_packages(tmp_path, monkeypatch):
    for name in ('huggingface_hub', 'safetensors'):
        monkeypatch.setitem(sys.modules, name, None)
    assert message('hf:a/b') == 'needs a package that is missing: pip install huggingface_hub'
    path = tmp_path / 'a'
    path.write_bytes(b'\x02\0\0\0\0\0\0\0{}')
    assert message(path) == 'needs a package that is missing: pip install safetensors'
