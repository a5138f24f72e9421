"""Draws docs/resolutions.png: what the four maps of an HRNet know, each by itself.

    python examples/resolutions.py --out docs/resolutions.png

A small HRNet is trained on pages of digit scans. One linear layer on each of the four maps names
the digit at every place of that map. The picture shows a page of scans that are held out.
"""

from __future__ import annotations

import digits
import flax.linen as nn
import jax
import numpy as np
import optax
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

import hrnet_jax
from hrnet_jax.runtime import cli

ARCH = hrnet_jax.Arch('small', (12, 24, 48, 96), (1, 16), (1, 1, 1), (1, 1, 1), 32)
STRIDES = (4, 8, 16, 32)
INK = 0.35  # a brighter pixel is a part of its digit
BATCH = 8


class Digits(nn.Module):
    """Images -> for each stride logits (N, H / stride, W / stride, 11); class 0 is the paper."""

    @nn.compact
    def __call__(self, images, train=False):
        maps = hrnet_jax.HRNet(ARCH, name='backbone')(images, train)
        return [nn.Conv(digits.CLASSES + 1, (1, 1))(x) for x in maps]


def page(scans, labels, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A page of digits of many sizes, without overlap: (size, size) in [0, 1], and the classes."""
    ink, classes = np.zeros((size, size), np.float32), np.zeros((size, size), np.int32)
    taken = np.zeros((size, size), bool)
    for edge in np.sort(rng.integers(18, 90, 60 * size * size // 160**2))[::-1]:
        top, left = rng.integers(0, size - edge, 2)
        place = np.s_[top : top + edge, left : left + edge]
        if taken[place].any():
            continue
        taken[place] = True
        chosen = rng.integers(len(scans))
        scan = Image.fromarray(scans[chosen][..., 0]).resize((edge, edge), Image.Resampling.BICUBIC)
        ink[place] = np.asarray(scan, np.float32) / 255
        classes[place] = np.where(ink[place] > INK, labels[chosen] + 1, 0)
    return ink, classes


def as_images(ink: np.ndarray) -> np.ndarray:
    return np.repeat((ink[..., None] - 0.5) * 4, 3, -1)


def shares(classes: jax.Array, stride: int) -> jax.Array:
    """What part of each place of a map each class covers."""
    return nn.avg_pool(jax.nn.one_hot(classes, digits.CLASSES + 1), (stride,) * 2, (stride,) * 2)


def train(steps: int) -> tuple[Digits, dict]:
    model, rng = Digits(), np.random.default_rng(0)
    variables = hrnet_jax.init(model, jax.random.key(0), image_size=160)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, 3e-3), weight_decay=1e-3)

    @jax.jit
    def step(variables, state, images, classes):
        def loss(params):
            given = {**variables, 'params': params}
            logits, new = model.apply(given, images, train=True, mutable=['batch_stats'])
            parts = [
                optax.softmax_cross_entropy(x, shares(classes, s)).mean()
                for x, s in zip(logits, STRIDES, strict=True)
            ]
            return sum(parts), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
        updates, state = optimizer.update(grads, state, variables['params'])
        return {'params': optax.apply_updates(variables['params'], updates), **new}, state, value

    state, scans = optimizer.init(variables['params']), digits.scans()['train']
    for i in range(steps):
        pages = [page(*scans, rng, 160) for _ in range(BATCH)]
        ink, classes = map(np.stack, zip(*pages, strict=True))
        variables, state, value = step(variables, state, as_images(ink), classes)
        if i % 100 == 99:
            print(f'step {i + 1:5} of {steps}  loss {value:.3f}', flush=True)
    return model, variables


def draw(model: Digits, variables: dict, out: str) -> None:
    ink, classes = page(*digits.scans()['test'], np.random.default_rng(5), 256)
    logits = jax.jit(model.apply)(variables, as_images(ink)[None])
    colours = np.concatenate([[[0.07] * 3], colormaps['tab10'].colors])
    truth = np.asarray(jax.nn.one_hot(classes, digits.CLASSES + 1))
    shown = [('the page', np.repeat(ink[..., None], 3, -1)), ('the digits', truth @ colours)]
    for x, stride in zip(logits, STRIDES, strict=True):
        size = f'{x.shape[1]} × {x.shape[2]}'
        shown.append((f'stride {stride}: {size}', np.asarray(jax.nn.softmax(x[0])) @ colours))
    figure = Figure(figsize=(12, 2.45), layout='constrained')
    for axes, (title, picture) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        axes.imshow(picture, interpolation='nearest')
        axes.set_title(title, fontsize=10)
        axes.axis('off')
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = cli.Parser(description='Draw what the four maps of an HRNet know.')
    parser.add_argument('--out', default='docs/resolutions.png', help='the picture')
    parser.add_argument('--steps', type=int, default=1500, help='of training')
    args = parser.parse_args()
    draw(*train(args.steps), args.out)
    print(f'drawn: {args.out}')


if __name__ == '__main__':
    cli.run(main)
