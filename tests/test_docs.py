"""README and docs: links, files, names and figures that they give are there."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from pages import PAGES, ROOT

from hrnet_jax.checkpoints.published import all_published
from hrnet_jax.data.preprocess import Transform


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub and mkdocs make them."""
    headings = re.findall(r'^#+ (.+)$', page.read_text(), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if not link.startswith('https://'):
            name, _, anchor = link.partition('#')
            target = (ROOT / page).parent / name if name else ROOT / page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link
    for name in re.findall(r'(?:hrnet_jax|tests|benchmarks|examples|docs)/[\w./]*\w/?', text):
        outside = name == 'hrnet_jax/src'  # a place on somebody's disk, in docs/pods.md
        assert outside or (ROOT / name).exists() or f'hrnet/{name}' in text, name


def test_every_page_can_be_reached():
    nav = re.findall(r': (\w+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
    assert sorted(f'docs/{name}' for name in nav) == PAGES[1:]
    readme = (ROOT / 'README.md').read_text()
    assert all(page in readme for page in PAGES[1:])


def test_named_checkpoints_and_figures_are_those_of_the_tables():
    hub = {entry.hub for entry in all_published().values() if entry.hub}
    files = {name for entry in all_published().values() for name in entry.files}
    files |= {'hrnet_w18.pth'}  # of nobody: any file
    text = '\n'.join((ROOT / page).read_text() for page in PAGES)
    assert set(re.findall(r'timm/hrnet_[\w.]*\w', text)) == hub
    assert set(re.findall(r'\b(?:hrnet|HRNet)\w[\w-]*\.pth(?:\.tar)?', text)) <= files
    rows = re.findall(
        r'^\| `(\S+)` \| \w+ \| (\d+), (\d+)( bicubic)? \| ([\d.]+) / ([\d.]+) \|$',
        (ROOT / 'docs/accuracy.md').read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 19
    for name, resize, crop, filter, *figures in rows:
        transform = Transform(int(resize), int(crop), filter.strip() or 'bilinear')
        published = all_published()[name].results[transform]['imagenet2012']['validation']
        assert published == dict(zip(('top1', 'top5'), map(float, figures), strict=True))


@pytest.mark.parametrize('page', PAGES)
def test_shells_and_extras(page):
    text = (ROOT / page).read_text()
    for block in re.findall(r'```(?:ba)?sh\n(.*?)```', text, re.DOTALL):
        subprocess.run(['bash', '-n'], input=block, text=True, check=True)
    known = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    for named in re.findall(r"'\.\[([\w,]+)\]'", text):
        assert set(named.split(',')) <= set(known['optional-dependencies'])


def test_every_promise_has_its_test():
    """Of docs/reliability.md."""
    named = set(re.findall(r'`(test_\w+)`', (ROOT / 'docs/reliability.md').read_text()))
    texts = [file.read_text() for file in (ROOT / 'tests').glob('test_*.py')]
    there = {name for text in texts for name in re.findall(r'^def (test_\w+)', text, re.MULTILINE)}
    assert len(named) > 60
    assert not named - there
