r"""hrnet_jax beside timm and OpenMMLab's packages: one command, one run, one machine.

    pip install -e . matplotlib optax tqdm torch torchvision timm
    pip install --no-deps mmpretrain==1.2.0 mmsegmentation==1.2.2 mmpose==1.3.2 mmdet==3.3.0 \
        mmcv-lite==2.1.0 mmengine
    pip install addict einops ftfy importlib_metadata json_tricks mat4py modelindex munkres \
        'opencv-python-headless<5' prettytable pycocotools pyyaml regex rich scipy 'setuptools<81' \
        shapely termcolor yapf

    python benchmarks/compare.py --arch w18 w48 --batch 32 --dtype float32 bfloat16 --json run.json
    taskset -c 0 python benchmarks/compare.py --arch w18_small_v1 --mode latency --against timm
    python benchmarks/compare.py --batch 128 --dtype bfloat16 --mode train --out run.png
    python benchmarks/compare.py --task segmentation --head fcn ocr --image-size 512x1024 --batch 1
    python benchmarks/compare.py --task pose --arch w32 w48 --mode inference latency chain
    python benchmarks/compare.py --task detection --head fcos faster_rcnn --image-size 416x640 \
        800x1344 --batch 1 --mode inference

It runs on a CPU or on an NVIDIA GPU (jax[cuda12] and PyTorch with CUDA); TensorFlow is not needed.

Every contender is a process of its own, on the same cores, with the same weights (ours, random,
converted) and the same random images, which lie on the device. Before anything is timed, results
are compared with ours: the logits, or for a training step its loss and the change of the last bias.
In segmentation these are logits at stride 4, in pose heatmaps, in detection what the heads say of
the pyramid (of Faster R-CNN those of its first stage), and that is what is timed. Then contenders
take turns, one at a time, while the others sleep.

- Ours: without training, BatchNorm folded and jax.jit; for training, `make_train_step` with the
  Official recipe, statistics over the whole batch, from uint8 images.
- The others: channels_last; bfloat16 is autocast. Training is forward, cross-entropy,
  backward and SGD with the same constants, from normalised images. timm-compile is torch.compile,
  with mode='reduce-overhead' for latency. float32 means no TF32 on either side.
- Latency is at batch 1 and waits for every result; the other modes keep a GPU's queue full.
- Chain, of detection, in float32: from the file of a picture to its objects; mmdet's own needs
  operators that mmcv-lite has not, and is left out.
- Chain, of pose, in float32: from the file of a picture with so many people to their keypoints.
  It decodes, crops, asks the network, also of the mirror images, and decodes heatmaps: by
  `hrnet_jax.predict`, and by mmpose's `inference_topdown`, which both get the picture decoded once.
- Ratio: our images/s over theirs of the same round, median (smallest to largest).
- Floor: FLOPs (three times the forward pass's for training) over the rate of a large matrix product
  in the same precision, and bytes over the bandwidth of a large copy, each the best that either
  framework reaches just before. Bytes are parameters, and the input and output of every convolution
  once. `reached` is the part of the lower floor that a contender attains; an algorithm that
  convolves with fewer FLOPs may exceed 100 %.
- Peak memory: of the process on a CPU, its libraries too; what the framework allocated on a GPU.
- First result: from model and weights in memory to the first result on the host, compilation (and
  the folding of ours) included.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
from compare_measure import LIMITS, OURS, floor, measure
from compare_report import COLUMNS, cells_of, draw, row
from compare_tasks import MODES, RIVALS, TASKS, network
from compare_worker import Failed, Worker

import hrnet_jax
from hrnet_jax.backbone import STRIDE
from hrnet_jax.errors import UserError
from hrnet_jax.runtime import cli, files

FILE = Path(__file__).name
PACKAGES = (
    'jax', 'jaxlib', 'flax', 'torch', 'timm', 'mmpretrain', 'mmsegmentation', 'mmpose', 'mmdet',
    'mmcv-lite', 'mmcv',
)  # fmt: skip


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def installed(contenders: list[str]) -> list[str]:
    """Those that can be imported; of the others one line each."""
    found = []
    for name in contenders:
        if missing := RIVALS[name].missing():
            note(f'{name} is left out ({", ".join(missing)} missing): install as {FILE} begins')
        else:
            found.append(name)
    return found


def machine_rates(common: dict[str, Any], dtype: str, torch: bool) -> tuple[dict, dict]:
    """(the platform and device of JAX, {'JAX': rates, 'PyTorch': rates})."""
    rates, found, chip = {}, common, {}
    for name in ('JAX', 'PyTorch')[: 1 + torch]:
        side = 'compare_jax' if name == 'JAX' else 'compare_torch'
        worker = Worker(found | {'mode': 'rates', 'dtype': dtype, 'side': side})
        try:
            start = worker.ask('start')
            if not chip:
                chip = {key: start[key] for key in ('platform', 'device')}
                found = common | {'platform': chip['platform']}
            rates[name] = worker.ask('rates')
        except Failed as error:
            raise UserError(f'{name}: {error}') from None
        finally:
            worker.end()
    return chip, rates


def processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.split(':', 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    found = {'python': platform.python_version(), 'hrnet_jax': hrnet_jax.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def pixels(text: str) -> tuple[int, int]:
    """'224' or '512x1024' -> (height, width)."""
    height, *rest = map(int, text.split('x'))
    (width,) = rest or (height,)
    return height, width


def take_defaults(p: cli.Parser, args: Any) -> None:
    """The task's, in the place of None; what the task does not have is refused."""
    task = TASKS[args.task]
    heads = list(task.heads)
    rivals = [name for name, rival in RIVALS.items() if rival.task == args.task]
    defaults = {'head': heads[:1], 'against': rivals, 'image_size': [task.image_size]}
    for flag, values in defaults.items():
        if getattr(args, flag) is None:
            setattr(args, flag, values)
    for flag, values in {'head': heads, 'mode': task.modes, 'against': rivals}.items():
        if wrong := sorted(set(getattr(args, flag)) - set(values)):
            have = ', '.join(filter(None, values)) or 'none'
            p.error(f'--{flag} {wrong[0]} is not for {args.task}, which has: {have}')


def main() -> None:
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else []
    count = len(cores) or os.cpu_count() or 1
    p = cli.Parser(description=__doc__.splitlines()[0])
    several: dict[str, Any] = {'nargs': '+'}
    p.add_argument('--task', choices=list(TASKS), default='classification')
    p.add_argument('--arch', choices=hrnet_jax.list_models(), default=['w18'], **several)
    heads = sorted(filter(None, {head for task in TASKS.values() for head in task.heads}))
    p.add_argument('--head', choices=heads, help='of the task', **several)
    p.add_argument('--batch', type=int, default=[32], help='images; latency has 1', **several)
    p.add_argument('--mode', choices=MODES, default=['inference', 'latency'], **several)
    p.add_argument('--dtype', choices=list(LIMITS), default=['float32'], **several)
    p.add_argument(
        '--against', choices=list(RIVALS), nargs='*', help="all of the task's; none: ours alone"
    )
    p.add_argument(
        '--image-size', type=pixels, metavar='SIZE', help='an edge, or 512x1024: height x width',
        **several,
    )  # fmt: skip
    p.add_argument('--rounds', type=int, default=7, help='turns of each contender')
    p.add_argument('--seconds', type=float, default=2.0, help='of a turn')
    p.add_argument('--threads', type=int, default=count, help='cores for each contender')
    p.add_argument('--json', metavar='FILE', type=Path, help='write everything there')
    p.add_argument('--out', metavar='PICTURE', type=Path, help='draw the bars there')
    args = p.parse_args()
    wrong = not 0 < args.seconds < 3600 or args.threads > count
    if wrong or min(args.rounds, args.threads, *args.batch) <= 0:
        p.error(f'numbers must be positive, and --threads at most {count}')
    take_defaults(p, args)
    if any(edge < STRIDE or edge % STRIDE for edge in sum(args.image_size, ())):
        p.error(f'--image-size must be multiples of {STRIDE}')
    if args.out:
        import matplotlib  # noqa: F401  # missed now rather than at the end

        if args.out.suffix.lower() not in ('.png', '.pdf', '.svg', '.jpg'):
            p.error(f'--out {args.out} should end in .png, .pdf, .svg or .jpg')
    for path in (args.json, args.out):
        if path:
            files.refuse_unwritable(path)
    jax.config.update('jax_platforms', 'cpu')  # this process computes next to nothing
    against = installed(list(dict.fromkeys(args.against)))
    common = {'threads': args.threads, 'cpus': cores[: args.threads], 'platform': None}
    document: dict[str, Any] = {
        'command': shlex.join([Path(sys.executable).name, *sys.argv]),
        'date': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'versions': versions(),
        'processor': processor(),
        'threads': args.threads,
        'cells': [],
    }
    print('\n'.join(COLUMNS), flush=True)
    for cell in cells_of(args):
        unknown = [name for name in against if network(cell) not in RIVALS[name].names]
        for name in unknown:
            note(f'{name} has no {network(cell)}')
        rivals = [name for name in against if name not in unknown]
        # Next to what they are compared with: other programs slow a machine at times.
        chip, cell['rates'] = machine_rates(common, cell['dtype'], bool(rivals))
        document |= chip
        common['platform'] = chip['platform']
        for name, rate in cell['rates'].items():
            note(
                f'{cell["dtype"]}, {name}: matrix product {rate["flops"] / 1e9:.0f} GFLOP/s, '
                f'copy {rate["bytes"] / 1e9:.1f} GB/s'
            )
        cell['floor'] = floor(cell, cell['rates'])
        measure(cell, rivals, common, args.rounds, args.seconds)
        document['cells'].append(cell)
        for name in cell['contenders']:
            print(row(cell, name), flush=True)
        if args.json:
            files.write(args.json, json.dumps(document, indent=1) + '\n')
    if args.out:
        draw(document, args.out)
    failed = [cell for cell in document['cells'] if cell['contenders'][OURS]['failed']]
    if failed:
        raise UserError(f'{OURS} failed in {len(failed)} of {len(document["cells"])} measurements')


if __name__ == '__main__':
    cli.run(main)
