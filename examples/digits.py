"""scikit-learn's 1,797 scans of handwritten digits as a tfds data set.

    python examples/digits.py --data-dir demo/tfds

The scans are 8 x 8 pixels of 17 grey levels. Every third is held out as the split `test` (599);
the others are `train` (1,198). Source: E. Alpaydin and C. Kaynak, UCI Machine Learning Repository.
"""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np

from hrnet_jax.data.preprocess import Transform
from hrnet_jax.runtime import cli

TRANSFORM = Transform(resize=32, crop=32)
CLASSES = 10


def scans() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split -> (uint8 images (N, 8, 8, 1), int labels (N,))."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    test = np.arange(len(images)) % 3 == 2
    return {
        'train': (images[~test], digits.target[~test]),
        'test': (images[test], digits.target[test]),
    }


def prepare(data_dir: str) -> None:
    """Writes the data set with tfds's own builder; nothing to do where it is there."""
    import tensorflow_datasets as tfds

    class Digits(tfds.core.GeneratorBasedBuilder):
        """Handwritten digits, 8 x 8."""

        VERSION = tfds.core.Version('1.0.0')

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                description=__doc__,
                features=tfds.features.FeaturesDict(
                    {
                        'image': tfds.features.Image(shape=(8, 8, 1)),
                        'label': tfds.features.ClassLabel(num_classes=CLASSES),
                        'file_name': tfds.features.Text(),
                    }
                ),
                supervised_keys=('image', 'label'),
            )

        def _split_generators(self, dl_manager):
            return {
                name: self._generate_examples(name, *arrays) for name, arrays in scans().items()
            }

        def _generate_examples(self, name: str, images: np.ndarray, labels: np.ndarray):
            for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                file_name = f'{name}_{i:04d}.png'
                yield i, {'image': image, 'label': int(label), 'file_name': file_name}

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    builder = Digits(data_dir=data_dir, file_format='tfrecord')
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it downloads, and does not
        builder.download_and_prepare()


def main() -> None:
    parser = cli.Parser(description='Prepare the digit scans as a tfds data set.')
    parser.add_argument('--data-dir', required=True, help='where tfds data sets lie')
    prepare(parser.parse_args().data_dir)


if __name__ == '__main__':
    cli.run(main)
