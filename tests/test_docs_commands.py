"""Every command in README and docs has flags and values that exist."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import runpy
import shlex
import sys
import tomllib

import pytest
import yaml
from pages import PAGES, ROOT, blocks

from hrnet_jax.runtime import cli

# A command with arguments, up to what ends it in a text or in a shell.
COMMAND = re.compile(
    r'python3?(?: -u)? (-m convert|-m hrnet_jax\.\w+'
    r'|(?:/\S*/)?(?:train|eval|predict|benchmarks/(?!startup)[a-z_]+|examples/to_onnx)\.py)'
    r'((?: +[^\s`|>&;]+)*)'
)
COMMANDS = sorted(
    {
        found
        for page in PAGES
        for found in COMMAND.findall((ROOT / page).read_text().replace('\\\n', ' '))
        if found[1].strip()
    }
)


class Parsed(Exception):
    """A command's arguments were understood."""


def test_every_command_was_found():
    assert len(COMMANDS) > 25
    scripts = {script for script, _ in COMMANDS}
    assert {'-m convert', '-m hrnet_jax.export', 'benchmarks/compare.py', 'train.py'} <= scripts


@pytest.mark.parametrize(('script', 'rest'), COMMANDS)
def test_commands_are_understood(script, rest, monkeypatch, tmp_path):
    """Every command in README and docs has flags and values that exist."""

    def understood(parser, *_):
        argparse.ArgumentParser.parse_args(parser)
        raise Parsed

    monkeypatch.setattr(cli.Parser, 'parse_args', understood)
    monkeypatch.setattr(sys, 'argv', [script, *shlex.split(rest, comments=True)])
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    (tmp_path / 'angle.py').write_text(blocks('docs/tasks.md')[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, 'environ', {**os.environ})  # tpu_compile.py sets some
    name = script.removeprefix('-m ').replace('convert', 'convert.__main__')
    if script.startswith('-m '):
        main = importlib.import_module(name).main
    else:
        main = runpy.run_path(str(ROOT / script.split('hrnet/src/')[-1]))['main']
    with pytest.raises((Parsed, SystemExit)) as ended:
        main()
    assert ended.type is Parsed or '--help' in rest


def test_manifest_of_kubernetes(monkeypatch):
    [block] = blocks('docs/pods.md', 'yaml')
    pod = yaml.safe_load(block)['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    name, *arguments = pod['containers'][0]['command']
    known = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    module, _, function = known['scripts'][name].partition(':')
    assert hasattr(importlib.import_module(module), function)
    monkeypatch.setattr(sys, 'argv', [name, *arguments])
    assert importlib.import_module(module).parser()[0].parse_args().batch_size == 512
