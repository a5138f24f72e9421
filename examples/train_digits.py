"""Trains `tiny` on the digit scans in PyTorch: the origin of examples/tiny_digits.pth.

    python examples/train_digits.py --out examples/tiny_digits.pth   # 2 minutes on two cores

The file has the form of the official training checkpoints; `tiny_digits.json` beside it records
how many of the held-out scans PyTorch got right.
"""

from __future__ import annotations

import json
from pathlib import Path

import digits
import numpy as np
import torch

from convert.reference import HRNet
from hrnet_jax.archs import ARCHS
from hrnet_jax.data.preprocess import resize_crop
from hrnet_jax.runtime import cli

BATCH = 64
LEARNING_RATE = 0.05


def pixels(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, 8, 8, 1) -> normalised (N, 3, 32, 32), as the evaluation sees them."""
    t = digits.TRANSFORM
    x = np.stack([resize_crop(image, t) for image in images]).astype(np.float32) / np.float32(255)
    x = (x - np.array(t.mean, np.float32)) / np.array(t.std, np.float32)
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def augment(x: torch.Tensor) -> torch.Tensor:
    """Random affine maps: rotation within 15 degrees, 10 % in scale and shift."""
    n = len(x)
    angle = (torch.rand(n) * 2 - 1) * np.pi / 12
    scale = 1 + (torch.rand(n) * 2 - 1) * 0.1
    theta = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    shift = (torch.rand(n, 2, 1) * 2 - 1) * 0.1
    grid = torch.nn.functional.affine_grid(
        torch.cat([theta * scale.view(n, 1, 1), shift], 2), list(x.shape), align_corners=False
    )
    sample = torch.nn.functional.grid_sample
    return sample(x, grid, padding_mode='border', align_corners=False)


def main() -> None:
    parser = cli.Parser(description='Train tiny on the digit scans with PyTorch.')
    parser.add_argument('--out', default='examples/tiny_digits.pth', help='the checkpoint to write')
    parser.add_argument('--epochs', type=int, default=60, help='passes over the 1,198 scans')
    args = parser.parse_args()
    torch.manual_seed(0)

    splits = {k: (pixels(x), torch.from_numpy(y)) for k, (x, y) in digits.scans().items()}
    x, y = splits['train']
    model = HRNet(ARCHS['tiny'], digits.CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
    steps = args.epochs * (len(x) // BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in cli.progress(range(args.epochs), desc='epochs'):
        order = torch.randperm(len(x))
        for i in range(len(x) // BATCH):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            logits = model.train()(augment(x[chosen]))
            loss = torch.nn.functional.cross_entropy(logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    x, y = splits['test']
    with torch.no_grad():
        top = model.eval()(x).topk(5).indices == y[:, None]
    result = {
        'num_examples': len(y),
        'top1_correct': int(top[:, 0].sum()),
        'top5_correct': int(top.sum()),
        'torch': torch.__version__,
    }
    print(json.dumps(result))
    perf = 100 * result['top1_correct'] / len(y)
    out = Path(args.out)
    state = {'epoch': args.epochs, 'model': 'tiny', 'state_dict': model.state_dict(), 'perf': perf}
    torch.save(state, out)
    out.with_suffix('.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    cli.run(main)
