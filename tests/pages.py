"""README and the pages of docs, and the code in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ['README.md', *sorted(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md'))]


def blocks(page: str, language: str = 'python') -> list[str]:
    """With `tiny` and small images instead of `w18`, to save time."""
    found = re.findall(rf'```{language}\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    assert found
    return [
        block.replace("'w18'", "'tiny'").replace('224', '64').replace('480, 640', '96, 128')
        for block in found
    ]
