"""The table and the picture of compare.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare_tasks import RIVALS, Cell, network, size

from hrnet_jax.runtime import files

COLUMNS = (
    '| network | images | mode | precision | batch | contender | images/s | ms '
    '| ours / it (min to max) | floor, images/s (FLOPs, bytes) | reached | peak memory '
    '| first result | difference |',
    '|---|---|---|---|---|---|---|---|---|---|---|---|---|---|',
)
OURS = '#2f6db3'


def cells_of(args: Any) -> Iterator[Cell]:
    """What is to be measured; latency is asked once, at batch 1."""
    axes = (args.mode, args.arch, args.head, args.image_size, args.dtype, args.batch)
    for mode, arch, head, image_size, dtype, batch in itertools.product(*map(dict.fromkeys, axes)):
        if mode == 'latency':
            if batch != args.batch[0]:
                continue
            batch = 1
        yield {
            'task': args.task, 'arch': arch, 'head': head, 'image_size': image_size, 'mode': mode,
            'dtype': dtype, 'batch': batch,
        }  # fmt: skip


def digits(value: float) -> str:
    """At least three of them where there is a point, and no exponent."""
    return f'{value:.{max(0, 2 - len(str(int(value))) + 1)}f}'


def row(cell: Cell, name: str) -> str:
    """A line of the table."""
    entry = cell['contenders'][name]
    start = [network(cell), size(cell), cell['mode'], cell['dtype'], str(cell['batch']), name]
    if entry['failed']:
        text = ' '.join(entry['failed'].replace('|', '/').split())
        return f'| {" | ".join(start)} | failed: {text} | | | | | | | |'
    ratio = entry.get('ratio')
    limits = [digits(cell['floor'][f'images_per_second_by_{k}']) for k in ('flops', 'bytes')]
    found = [f'{key} {value:.0e}' for key, value in entry.get('difference', {}).items()]
    values = [
        digits(entry['images_per_second']),
        digits(entry['milliseconds']),
        f'{ratio["median"]:.2f} ({ratio["min"]:.2f} to {ratio["max"]:.2f})' if ratio else '',
        ', '.join(limits),
        f'{100 * entry["of_floor"]:.0f} %',
        f'{entry["peak_bytes"] / 1e9:.2f} GB' if entry['peak_bytes'] else '',
        f'{entry["seconds_to_first_result"]:.1f} s',
        ', '.join(found),
    ]
    return f'| {" | ".join(start + values)} |'


def draw(document: dict[str, Any], path: Path) -> None:
    """Writes a panel for each mode: a bar for each contender, grouped by what was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: dict[str, list[Cell]] = {}
    for cell in document['cells']:
        panels.setdefault(cell['mode'], []).append(cell)
    heights = [sum(len(c['contenders']) + 1.6 for c in cells) for cells in panels.values()]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + 0.75 * len(heights) + 0.9))
    figure.set_layout_engine('constrained')
    FigureCanvasAgg(figure)
    every = figure.subplots(len(panels), squeeze=False, gridspec_kw={'height_ratios': heights})[
        :, 0
    ]
    for axes, (mode, cells), height in zip(every, panels.items(), heights, strict=True):
        _panel(axes, cells, height)
        axes.set_title(mode, loc='left', fontsize=11, fontweight='bold')
        axes.set_xlabel('images/s', fontsize=9)
    chip = document['processor'] if document['platform'] == 'cpu' else document['device']
    cores = f'{document["threads"]} core{"s" if document["threads"] > 1 else ""}'
    names = ('jax', 'torch', 'timm', 'mmpretrain', 'mmsegmentation')
    versions = [f'{n} {document["versions"][n]}' for n in names if n in document['versions']]
    figure.suptitle(f'{chip}, {cores}; {", ".join(versions)}', fontsize=9, x=0.01, ha='left')
    with files.replacing(path, force=True) as temporary:
        figure.savefig(temporary, dpi=130, format=path.suffix[1:].lower())


def _panel(axes: Any, cells: list[Cell], height: float) -> None:
    speeds = [
        entry['images_per_second']
        for cell in cells
        for entry in cell['contenders'].values()
        if not entry['failed']
    ]
    longest, y, ticks = max(speeds, default=1.0), 0.0, []
    for cell in cells:
        head = f'{network(cell)}, {size(cell)}, batch {cell["batch"]}, {cell["dtype"]}'
        axes.text(0, y + 0.1, head, fontsize=9, va='center', fontweight='bold', color='#333333')
        y += 1
        for name, entry in cell['contenders'].items():
            ticks.append((y, name))
            if entry['failed']:
                short = entry['failed'][:70]
                axes.text(0, y, f' failed: {short}', va='center', fontsize=8, parse_math=False)
            else:
                speed = entry['images_per_second']
                low, high = min(entry['rounds']), max(entry['rounds'])
                axes.barh(
                    y, speed, 0.82, color=RIVALS[name].colour if name in RIVALS else OURS,
                    xerr=[[speed - low], [high - speed]],
                    error_kw={'elinewidth': 1, 'capsize': 2, 'ecolor': '#333333'},
                )  # fmt: skip
                text = digits(speed)
                if 'ratio' in entry:
                    ratio = entry['ratio']
                    text += (
                        f'   ours {ratio["median"]:.2f}× ({ratio["min"]:.2f}–{ratio["max"]:.2f})'
                    )
                axes.text(high + 0.012 * longest, y, text, va='center', fontsize=8.5)
            y += 1
        y += 0.6
    axes.set_yticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=9)
    axes.set(ylim=(height - 1, -0.6), xlim=(0, 1.45 * longest))
    axes.tick_params(axis='y', length=0)
    axes.tick_params(axis='x', labelsize=8)
    axes.spines[['top', 'right']].set_visible(False)
