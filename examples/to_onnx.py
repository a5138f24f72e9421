"""A converted checkpoint as ONNX, through jax2onnx, compared with the model in ONNX Runtime.

    pip install jax2onnx onnxruntime
    python examples/to_onnx.py --ckpt converted/ --arch w18 --out w18.onnx

Input `images`: float32 (N, H, W, 3), normalised, any N. Output `logits`: float32 (N, classes).
"""

from __future__ import annotations

import logging
from pathlib import Path

import jax
import numpy as np

from hrnet_jax import checkpoint
from hrnet_jax.backbone import STRIDE
from hrnet_jax.commands.arguments import add_checkpoint
from hrnet_jax.data.preprocess import Transform
from hrnet_jax.errors import UserError
from hrnet_jax.inference.folding import apply, fold
from hrnet_jax.runtime import cli
from hrnet_jax.runtime.files import refuse_unwritable, replacing

TOLERANCE = 1e-5


def main() -> None:
    p = cli.Parser(description=__doc__)
    add_checkpoint(p)
    p.add_argument('--out', required=True, metavar='FILE', help='the .onnx file to write')
    p.add_argument('--image-size', type=int, help="edge in pixels; None: the checkpoint's crop")
    p.add_argument('--force', action='store_true', help='replace what exists')
    args = p.parse_args()
    out = Path(args.out)
    refuse_unwritable(out)
    try:
        import onnx
        import onnxruntime
        from jax2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise UserError(f'{error.name} is missing: pip install jax2onnx onnxruntime') from None
    logging.getLogger('onnx_ir').setLevel(logging.ERROR)

    folder = checkpoint.find(args.ckpt, args.arch)
    transform = Transform.from_json(checkpoint.read_json(folder)['transform'])
    size = transform.override(STRIDE, crop=args.image_size).crop
    model, variables = checkpoint.load(folder, args.arch, weights=args.weights)
    fast = fold(model, variables, 'onnx')  # the plain form: convolutions, no transforms of them
    shape = (size, size, model.in_channels)
    network = to_onnx(
        lambda images: fast.model.apply(fast.variables, images),
        [('N', *shape)],
        model_name=model.arch.name,
        input_names=['images'],
        output_names=['logits'],
    )
    with replacing(out, args.force) as temporary:
        onnx.save(network, temporary)
        session = onnxruntime.InferenceSession(str(temporary))
        reference = jax.jit(lambda images: apply(model, variables, images))
        for n in (1, 3):
            images = np.random.default_rng(n).standard_normal((n, *shape), np.float32)
            wanted = np.asarray(reference(images))
            worst = np.abs(session.run(None, {'images': images})[0] - wanted).max()
            worst /= np.abs(wanted).max()
            if not worst <= TOLERANCE:  # NaN is not
                raise UserError(f'ONNX Runtime differs by {worst:.1e} of the largest logit')
            print(f'{n} images: worst difference {worst:.1e} of the largest logit')
    print(f'{out}: {model.arch.name}, {out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    cli.run(main)
