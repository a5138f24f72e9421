"""train.py on arrays, killed and started again: the part of gpu.py that needs no tfds.

    python benchmarks/gpu_train.py [--small]

The digits of scikit-learn lie in memory instead of in a tfds data set; all else is what train.py
runs. One run goes through; another is killed (SIGKILL) after its first checkpoint, started again,
and must end with the same checkpoint, bit by bit. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'examples')]

import digits  # noqa: E402

from hrnet_jax.data.preprocess import resize_crop  # noqa: E402
from hrnet_jax.data.sources import LABEL  # noqa: E402

LIMIT = 240  # seconds for one run


def pixels(split: str) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 32, 32, 3) and int32 labels, as the evaluation sees them."""
    images, labels = digits.scans()[split]
    shown = np.stack([resize_crop(image, digits.TRANSFORM) for image in images])
    shown = np.broadcast_to(shown, (*shown.shape[:3], 3)).copy()
    return shown, labels.astype(np.int32)


class Arrays:
    """In the place of `TrainData`: batches as a function of (seed, step)."""

    def __init__(self, source: Any, recipe: Any, *_: Any):
        self.recipe, (self.images, self.labels) = recipe, pixels(source.split)
        self.steps_per_epoch = len(self.images) // recipe.batch_size
        self.fields = source.fields

    def batches(self, start: int = 0) -> Any:
        step, n = start, self.recipe.batch_size
        while True:
            chosen = np.random.default_rng((self.recipe.seed, step)).permutation(len(self.images))
            chosen = chosen[:n].reshape((self.recipe.accumulate, -1))
            weight = np.ones(chosen.shape, np.float32)
            yield {'image': self.images[chosen], 'label': self.labels[chosen], 'weight': weight}
            step += 1


def opened(name: str, split: str | None = None, data_dir: str | None = None) -> Any:
    split = split or 'test'
    count = len(digits.scans()[split][0])
    return SimpleNamespace(
        dataset=SimpleNamespace(name=name), split=split, num_examples=count, num_classes=10,
        class_names=None, notes=(), fields=(LABEL,),
    )  # fmt: skip


def batches(source: Any, transform: Any, size: int, *_: Any) -> Any:
    images, labels = pixels(source.split)
    for i in range(0, len(images), size):
        held = [np.resize(x[i : i + size], (size, *x.shape[1:])) for x in (images, labels)]
        yield {'image': held[0], 'label': held[1], 'mask': np.arange(i, i + size) < len(images)}


def train(arguments: list[str]) -> None:
    """What train.py does with these arguments."""
    from hrnet_jax.commands.train import entry
    from hrnet_jax.data import evaluation, training

    evaluation.open_dataset, evaluation.batches = opened, batches  # type: ignore[assignment]
    evaluation.competing_classes = lambda *_: None  # type: ignore[assignment]
    training.TrainData = Arrays  # type: ignore[assignment,misc]
    sys.argv = ['train.py', *arguments]
    entry()


def count() -> dict[str, int]:
    """Digits that the converted network of examples/ names rightly, and PyTorch's count."""
    import jax

    import hrnet_jax
    from convert import from_torch
    from hrnet_jax.inference.evaluation import data_mesh, evaluate
    from hrnet_jax.tasks import get_task

    arch, variables = from_torch(str(ROOT / 'examples' / 'tiny_digits.pth'))
    model = hrnet_jax.create_model(arch, num_classes=10)
    fast = hrnet_jax.fold(model, variables)
    source = opened('digits')
    result = evaluate(
        fast.model,
        fast.variables,
        batches(source, None, 64),
        digits.TRANSFORM,
        get_task('classification').metric(fast.model),
        mesh=data_mesh(),
    )
    wanted = json.loads((ROOT / 'examples' / 'tiny_digits.json').read_text())['top1_correct']
    return {'platform': jax.default_backend(), 'correct': result.top1_correct, 'PyTorch': wanted}


def start(folder: Path, epochs: float, **more: Any) -> subprocess.Popen:
    command = [
        sys.executable, __file__, '--train', '--arch', 'tiny', '--recipe', 'digits',
        '--workdir', str(folder), '--epochs', str(epochs), '--eval-every', str(epochs / 2),
        '--checkpoint-steps', '8', '--ema', '0.99', '--mixup', '0.2', '--no-tensorboard',
    ]  # fmt: skip
    environment = os.environ | {
        'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} --xla_gpu_deterministic_ops=true',
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        'JAX_ENABLE_COMPILATION_CACHE': 'false',
    }
    log = (folder.parent / f'{folder.name}.log').open('a')
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finish(process: subprocess.Popen, folder: Path) -> None:
    code = process.wait(LIMIT)
    if code:
        words = (folder.parent / f'{folder.name}.log').read_text().strip().splitlines()
        raise SystemExit(f'train.py ended with {code}: {words[-1] if words else ""}')


def digests(folder: Path) -> dict[str, Any]:
    """Of every array in the last checkpoint."""
    steps = sorted((folder / 'checkpoints').iterdir(), key=lambda p: int(p.name))
    from hrnet_jax import checkpoint

    meta = checkpoint.read_json(steps[-1])
    return {name: meta[name] for name in ('arrays', 'ema', 'rest')} | {'step': steps[-1].name}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--train', action='store_true')
    parser.add_argument('--count', action='store_true')
    parser.add_argument('--small', action='store_true')
    args, rest = parser.parse_known_args()
    if args.train:
        return train(rest)
    if args.count:
        return print(json.dumps(count()))
    epochs = 1.5 if args.small else 12
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name, 'whole'), Path(name, 'killed')
        first, second = start(whole, epochs), start(killed, epochs)
        saved = killed / 'checkpoints'
        deadline = time.monotonic() + LIMIT
        while not (saved.is_dir() and any(p.name.isdigit() for p in saved.iterdir())):
            if time.monotonic() > deadline or second.poll() is not None:
                finish(second, killed)
                break
            time.sleep(0.02)
        second.kill()
        second.wait()
        resumed_after = sorted(int(p.name) for p in saved.iterdir() if p.name.isdigit())
        second = start(killed, epochs)
        counted = subprocess.run(
            [sys.executable, __file__, '--count'], capture_output=True, text=True, timeout=LIMIT,
            env=os.environ | {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'},
        )  # fmt: skip
        finish(first, whole)
        finish(second, killed)
        a, b = digests(whole), digests(killed)
        log = (Path(name) / 'whole.log').read_text().strip().splitlines()
        out = {
            'resumed_after': resumed_after, 'steps': a['step'],
            'equal_to_the_bit': a == b, 'best': log[-1] if log else '',
            'evaluation': json.loads(counted.stdout.strip().splitlines()[-1])
            if counted.returncode == 0 else counted.stderr.strip().splitlines()[-1],
        }  # fmt: skip
    print(json.dumps(out))


if __name__ == '__main__':
    main()
