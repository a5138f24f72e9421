"""What the TPU compiler makes of the train and the evaluation step; no TPU is needed.

    pip install libtpu
    python benchmarks/tpu_compile.py --arch w18 --topology v5e:4x4 --batch-per-chip 128 --mode train

One row: whether the program fits into a chip's memory, its peak bytes, the bytes accessed and
FLOPs an image as the compiler counts them (on-chip memory included, a move between memories three
times its size), the bytes that the program's text reads and writes in HBM, the collectives, and
the seconds to compile. `--option NAME=VALUE` is one of XLA.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import time
from pathlib import Path

# There is no metadata server to ask, and no other host.
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-1')
os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from hrnet_jax.archs import list_models
from hrnet_jax.errors import UserError
from hrnet_jax.inference.evaluation import make_eval_step
from hrnet_jax.inference.folded_blocks import Form
from hrnet_jax.models import create_model, variable_shapes
from hrnet_jax.runtime import cli, files
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.classification_recipes import Official
from hrnet_jax.training.step import (
    SIGNALS,
    create_state,
    make_optimizer,
    make_schedule,
    make_train_step,
)

GIB = 2**30
MEMORY = {'v2': 8, 'v3': 16, 'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32}  # GiB a chip
KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'collective-permute', 'all-to-all')
ARRAY = re.compile(r'(\w+)\[([\d,]*)\](?:\{([^}]*)\})?')
NO_ACCESS = ('parameter', 'constant', 'get-tuple-element', 'tuple', 'bitcast')
BYTES = {'f64': 8, 's64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's8': 1, 'u8': 1}


def lower(args, mesh):
    """The lowered step, and the images that it takes."""
    images = args.batch_per_chip * mesh.size
    size = args.image_size
    group = args.bn_group_size
    recipe = Official(
        batch_size=images, dtype=args.dtype, remat=args.remat, image_size=size, bn_group_size=group
    )
    model = create_model(
        args.arch, dtype=jnp.dtype(args.dtype), bn_group_size=group, remat=args.remat
    )
    shapes = variable_shapes(model)

    def shape(*dims, dtype=np.int32):
        return jax.ShapeDtypeStruct(dims, dtype)

    if args.mode == 'eval':
        model = model.clone(blocks=Form())  # as eval.py does; `folding.PLANS` has no more for TPUs
        shapes = variable_shapes(model)
        batch = {
            'image': shape(images, size, size, 3, dtype=np.uint8),
            'label': shape(images),
            'mask': shape(images, dtype=bool),
        }
        metric = get_task(recipe.task).metric(model)
        return make_eval_step(model, recipe.transform, mesh, metric).lower(shapes, batch), images
    schedule = make_schedule(recipe, 1000)
    tx = make_optimizer(recipe, schedule)
    state = jax.eval_shape(lambda v: create_state(v, tx, ema=False), shapes)
    batch = {
        'image': shape(1, images, size, size, 3, dtype=np.uint8),
        'label': shape(1, images),
        'weight': shape(1, images, dtype=np.float32),
        'signals': shape(mesh.size, len(SIGNALS), dtype=np.float32),
    }
    step = make_train_step(model, recipe, recipe.transform, tx, schedule, mesh)
    return step.lower(state, batch, {}), images


def collectives(text: str) -> tuple[int, int]:
    """Number of collectives in a compiled program, and the bytes of their results."""
    number = total = 0
    for line in text.splitlines():
        found = re.search(rf'= (.*?) ({"|".join(KINDS)})(-start)?\(', line)
        if found:
            number += 1
            for kind, dims in re.findall(r'(\w+)\[([\d,]*)\]', found[1]):
                total += BYTES.get(kind, 1) * int(np.prod([int(d) for d in dims.split(',') if d]))
    return number, total


def hbm_bytes(text: str) -> int:
    """What a compiled program reads and writes outside of on-chip memory, padding included; of
    loops nothing."""
    entry = text[text.index('\nENTRY') :]
    types: dict[str, str] = {}
    total = 0
    for name, type_, kind, rest in re.findall(
        r'^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)', entry, re.M
    ):
        types[name] = type_
        if kind in NO_ACCESS or kind.endswith('-done') or 'ConcatBitcast' in rest:
            continue
        if kind.endswith('-start'):  # (source, destination, ...), where a slice moves its own size
            places = ARRAY.findall(type_)[:2]
            size = min(map(_size, places))
            total += size * sum('S(1)' not in array[2] for array in places)
            continue
        operands = re.findall(r'%([\w.-]+)', rest.split(')')[0])
        arrays = [
            a for t in (type_, *(types.get(o, '') for o in operands)) for a in ARRAY.findall(t)
        ]
        total += sum(_size(array) for array in arrays if 'S(1)' not in array[2])
    return total


def _size(array: tuple[str, str, str]) -> int:
    """Bytes of an array as it lies in memory: the two minor dimensions in whole tiles."""
    kind, dims, layout = array
    sizes = [int(d) for d in dims.split(',') if d]
    order = [int(d) for d in layout.split(':')[0].split(',') if d.isdigit()]
    physical = [sizes[i] for i in order] or sizes
    if tile := re.search(r'T\((\d+),(\d+)\)', layout):
        for i, unit in enumerate(tile.groups()[::-1][: len(physical)]):
            physical[i] = -(-physical[i] // int(unit)) * int(unit)
    return BYTES.get(kind, 1) * math.prod(physical)


def option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition('=')
    if not equals:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=VALUE')
    return name, value


def main() -> None:
    p = cli.Parser(description=__doc__.splitlines()[0])
    p.add_argument('--arch', choices=list_models(), default='w18', help='network')
    p.add_argument('--topology', default='v5e:4x4', help='v5e:2x2 to v5e:16x16, v6e:2x2, ...')
    p.add_argument('--batch-per-chip', type=int, default=128, help='images')
    p.add_argument('--image-size', type=int, default=224, help='pixels')
    p.add_argument('--mode', choices=['train', 'eval'], default='train', help='which step')
    p.add_argument('--dtype', choices=['bfloat16', 'float32'], default='bfloat16', help='of it')
    p.add_argument(
        '--bn-group-size',
        type=lambda text: None if text == 'none' else int(text),
        default=32,
        help='images, or none for the whole batch',
    )
    p.add_argument('--remat', action='store_true', help='recompute in the backward pass')
    p.add_argument(
        '--option', action='append', default=[], type=option, metavar='NAME=VALUE', help='of XLA'
    )
    p.add_argument('--hlo', metavar='FILE', help='write the compiled program there')
    args = p.parse_args()
    if args.hlo:
        files.refuse_unwritable(Path(args.hlo))
    if importlib.util.find_spec('libtpu') is None:
        raise UserError('libtpu is missing: pip install libtpu')
    try:
        topology = topologies.get_topology_desc(platform='tpu', topology_name=args.topology)
    except Exception as error:  # the plug-in has its own kinds
        raise UserError(f'no topology {args.topology}: {str(error).splitlines()[0]}') from None
    devices = np.array(topology.devices)
    mesh = Mesh(devices, ('data',), axis_types=(AxisType.Auto,))
    lowered, images = lower(args, mesh)
    start = time.perf_counter()
    limit = MEMORY.get(args.topology.split(':')[0], 0)
    row = f'{args.arch} {args.mode} {args.topology} {args.batch_per_chip} a chip {args.dtype}: '
    try:
        compiled = lowered.compile(dict(args.option) or None)
    except Exception as error:
        if 'No such compile option' in str(error):
            raise UserError(str(error)) from None
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        used = re.search(r'Used ([\d.]+\w) of', str(error))
        print(f'{row}does NOT fit: {used[0] if used else str(error).splitlines()[0]}')
        return
    seconds = time.perf_counter() - start
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    # Arguments that a result takes the place of (the donated state) count once.
    peak = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    number, volume = collectives(text)
    print(
        f'{row}fits ({peak / GIB:.2f} of {limit} GiB, temporaries '
        f'{memory.temp_size_in_bytes / 1e9:.2f} GB); '
        f'{cost["bytes accessed"] / args.batch_per_chip / 1e6:.1f} MB '
        f'({hbm_bytes(text) / args.batch_per_chip / 1e6:.1f} in HBM) and '
        f'{cost["flops"] / args.batch_per_chip / 1e9:.2f} GFLOP an image; '
        f'{number} collectives of {volume / 1e6:.1f} MB; compiled in {seconds:.0f} s'
    )
    if args.hlo:
        files.write(args.hlo, text)


if __name__ == '__main__':
    cli.run(main)
