"""python -m hrnet_jax.export --arch A --ckpt DIR --out FILE: the network as one program.

FILE is StableHLO as `jax.export` writes it. To run it takes JAX and flatbuffers; neither hrnet_jax
nor Flax is needed:

    import jax.export
    program = jax.export.deserialize(open('w18.stablehlo', 'rb').read())
    logits = jax.jit(program.call)(images)  # program.in_avals: shape and type of the images

Images are float32 (N, H, W, 3), normalised; with --preprocess they are uint8. The result is that of
the model, of a classifier logits, float32 (N, classes). FILE.json says what FILE does not: the
classes in order, how to resize, crop and normalise an image, the step of a training run. JAX does
not notice a flipped bit in FILE; "sha256" in FILE.json is that of its bytes.

With --weights-beside the weights are in FILE.npz and are the first argument:

    weights = jax.device_put(dict(numpy.load('w18.stablehlo.npz')))
    logits = jax.jit(program.call)(weights, images)

On a CPU the program is faster with `hrnet_jax.folding.CPU_OPTIONS`, a dict which cannot be stored
in FILE: jax.jit(program.call, compiler_options=CPU_OPTIONS).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from hrnet_jax.backbone import check_images, image_hw
from hrnet_jax.data.preprocess import normalize
from hrnet_jax.data.protocol import Protocol
from hrnet_jax.errors import UserError
from hrnet_jax.inference import folding
from hrnet_jax.inference.folding import Folded, apply, compiler_options, fold
from hrnet_jax.layers import Configured
from hrnet_jax.models import Variables

PLATFORMS = tuple(name for name in folding.PLATFORMS if name != 'gpu')
TOLERANCE = 1e-5  # rounding gives 1e-6 to 3e-6
LIMIT = 2**31 - 2**24  # bytes; the file's format ends at 2 GiB


def export(
    model: nn.Module,
    variables: Variables,
    *,
    image_size: int | tuple[int, int] = 224,
    batch: int | None = None,
    platforms: Sequence[str] | None = None,
    transform: Protocol | None = None,
    weights_beside: bool = False,
) -> jax.export.Exported:
    """The program (images) -> what the model gives, of a classifier logits (N, num_classes) in
    float32; `.serialize()` gives its bytes.

    Args:
        model: any Flax module of images; folded here by `fold_for`, unless it is folded.
        variables: the model's.
        image_size: height and width, or both in one.
        batch: images a call; None for any number from 1.
        platforms: those of `PLATFORMS` that the program will run on; None for JAX's own.
        transform: images are uint8 and are normalised inside as it says; resizing and cropping
            stay outside. None for float32 images that are normalised.
        weights_beside: the program is (weights, images) -> logits; its weights are
            `flat_weights(fast.variables)` of `fast = fold_for(model, variables, platforms)`.

    Raises:
        UserError: for an unknown platform, sizes that do not fit the model, or weights of more
            than 2 GiB inside.
    """
    platforms = known_platforms(platforms)
    if not isinstance(model, nn.Module):
        raise UserError(f'a Flax module can be exported, not {type(model).__name__}')
    height, width = image_hw(image_size)
    channels = check_size(model, height, width)
    if batch is not None and not (isinstance(batch, int) and batch > 0):
        raise UserError(f'batch must be an integer of at least 1, or None, not {batch!r}')
    if transform and channels != 3:
        raise UserError(f'images of {channels} channels have no known preprocessing')
    folded = getattr(model, 'folded', False)
    fast = Folded(model, variables) if folded else fold_for(model, variables, platforms)
    weights = flat_weights(fast.variables)
    size = sum(leaf.nbytes for leaf in weights.values())
    if size > LIMIT and not weights_beside:
        raise UserError(f'{size / 1e9:.1f} GB of weights do not fit inside; put them beside it')

    def outputs(weights: dict[str, Any], images: jax.Array) -> jax.Array:
        if transform:
            images = normalize(images, transform, getattr(model, 'dtype', None) or np.float32)
        tree = unflatten_dict(weights, sep='/')
        # In one piece: their best number depends on the machine that runs it.
        return apply(fast.model, tree, images, in_pieces=False)

    number = jax.export.symbolic_shape('batch')[0] if batch is None else batch
    shape = (number, height, width, channels)
    images = jax.ShapeDtypeStruct(shape, np.uint8 if transform else np.float32)
    inside = jax.jit(lambda images: outputs(weights, images))
    with _without_paths():
        if weights_beside:
            return jax.export.export(jax.jit(outputs), platforms=platforms)(weights, images)
        return jax.export.export(inside, platforms=platforms)(images)


def check_size(model: Any, height: int, width: int) -> int:
    """The channels of the model's images; raises UserError for a size that it does not take."""
    if min(height, width) < 1:
        raise UserError(f'images must be at least 1 high and wide, not {height} x {width}')
    channels = getattr(model, 'in_channels', 3)
    multiples = getattr(model, 'upsample', '') == 'nearest'
    check_images((1, height, width, channels), channels, multiples)
    return channels


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """No paths of this machine in the program."""
    name = 'jax_traceback_in_locations_limit'
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)


def fold_for(model: nn.Module, variables: Variables, platforms: Sequence[str] | None) -> Folded:
    """`hrnet_jax.fold` in the form of the platform; for several kinds in the plain form. A module
    that is not ours stays as it is."""
    kinds = {folding.PLATFORMS[name] for name in known_platforms(platforms)}
    if not isinstance(model, Configured):
        return Folded(model, variables)
    if len(kinds) > 1:
        return folding.folded_as(model, variables, {})
    return fold(model, variables, kinds.pop())


def flat_weights(variables: Variables) -> dict[str, Any]:
    """{'params/backbone/conv1/kernel': array, ...}, what a program takes as its weights."""
    return flatten_dict(variables, sep='/')


def known_platforms(platforms: Sequence[str] | None) -> tuple[str, ...]:
    """`platforms`, each once; JAX's own if None.

    Raises:
        UserError: if one is not of `PLATFORMS`.
    """
    names = (jax.export.default_export_platform(),) if platforms is None else platforms
    if unknown := [name for name in names if name not in PLATFORMS]:
        raise UserError(f'unknown platform {unknown[0]!r}; known: {", ".join(PLATFORMS)}')
    if not names:
        raise UserError(f'no platform; known: {", ".join(PLATFORMS)}')
    return tuple(dict.fromkeys(names))


def difference(
    program: jax.export.Exported,
    weights: dict[str, Any] | None,
    model: nn.Module,
    variables: Variables,
    transform: Protocol,
) -> float:
    """The worst difference of a program's outputs, each relative to its largest value.

    On random images, for a program of any batch at two sizes.

    Args:
        weights: None if they are inside.
        model, variables: not folded.
        transform: used for a program of uint8 images.
    """
    images = program.in_avals[-1]
    batch, *shape = images.shape
    random = np.random.default_rng(0)
    raw = images.dtype == np.uint8
    reference = Folded(model, variables)
    # The same options: XLA's libraries for a CPU round differently, which GroupNorm amplifies.
    call = jax.jit(program.call, compiler_options=compiler_options(reference.model))
    worst = 0.0
    for n in (batch,) if isinstance(batch, int) else (1, 3):
        size = (n, *shape)
        x = random.integers(0, 256, size, np.uint8) if raw else random.standard_normal(size, 'f')
        got = jax.tree.leaves(call(x) if weights is None else call(weights, x))
        pixels = normalize(x, transform) if raw else jnp.asarray(x)
        # One at a time: one program for all, and any batch fits.
        each = [jax.tree.leaves(reference(pixels[i : i + 1])) for i in range(n)]
        for ours, parts in zip(got, zip(*each, strict=True), strict=True):
            wanted = np.concatenate(parts)
            scale = np.max(np.abs(wanted)) or 1
            worst = np.maximum(worst, np.max(np.abs(ours - wanted)) / scale)  # NaN stays
    return float(worst)


def check(
    file: Path, stored: Path | None, model: nn.Module, variables: Variables, transform: Protocol
) -> str:
    """Runs the written files beside the model; says how they compare.

    Raises:
        UserError: if they differ by more than rounding.
    """
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    here = jax.export.default_export_platform()
    if here not in program.platforms:
        return f'note: not compared with the model, because this machine runs {here}'
    weights = None
    if stored:
        with np.load(stored) as arrays:
            weights = dict(arrays)
    worst = difference(program, weights, model, variables, transform)
    if not worst <= TOLERANCE:  # NaN is not
        raise UserError(f'the program differs from the model by {worst:.1e} of the largest value')
    return f'worst difference from the model on {here}, relative to the largest value: {worst:.1e}'
