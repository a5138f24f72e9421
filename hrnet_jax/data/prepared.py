"""What tfds has prepared: where it is, its splits and features; none of it needs TensorFlow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

from hrnet_jax.errors import UserError

_PREPARE = (
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('{name}', data_dir='{root}', file_format='tfrecord')"
    '.download_and_prepare({config})"'
)
_MANUAL = "download_config=tfds.download.DownloadConfig(manual_dir='FOLDER WITH {archives}')"


def open_builder(name: str, version: str, data_dir: str | None, archives: str = '') -> Any:
    """The newest copy on disk, by its own metadata: without the network or the builder's code.

    Args:
        archives: what tfds does not download itself.

    Raises:
        UserError: if there is none; it says how to prepare one.
    """
    import tensorflow_datasets as tfds
    from etils import epath

    root = data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
    root = epath.Path(os.path.expanduser(root))
    wanted = f'{name}:{version}' if version else name
    config = _MANUAL.format(archives=archives) if archives else ''
    prepare = _PREPARE.format(name=wanted, root=root, config=config)
    copies = [
        path.parent
        for pattern in ('*/dataset_info.json', '*/*/dataset_info.json')
        for path in (root / name).glob(pattern)
        if re.fullmatch(re.escape(version) or r'\d+\.\d+\.\d+', path.parent.name)
    ]
    if not copies:
        # With those of the community it would ask the network.
        known = tfds.list_builders(with_community_datasets=False)
        if name.split('/')[0] not in known and ':' not in name:
            raise UserError(f'{wanted} is not in {root}, and tfds has no data set of that name')
        if version and version not in (versions := _versions(name)):
            raise UserError(f'tfds has {name} in version {" or ".join(versions)}, not {version}')
        raise UserError(f'{wanted} is not prepared in {root}; prepare it once: {prepare}')
    configs = sorted({copy.parent.name for copy in copies})
    if len(configs) > 1:
        raise UserError(f'{name}: add one of its configs: {", ".join(configs)}')
    newest = max(copies, key=lambda copy: [int(x) for x in copy.name.split('.')])
    try:
        # Written by tfds before 4.0: only the builder's code knows the features.
        if not (newest / 'features.json').exists():
            return tfds.builder(f'{name}:{newest.name}', data_dir=root, try_gcs=False)
        builder = tfds.builder_from_directory(newest)
    except ImportError:
        raise
    except Exception as error:  # Damaged metadata: tfds has no error of its own for it.
        raise UserError(f'cannot open {newest}: {error}; prepare it again: {prepare}') from error
    formats = {x.value for x in (builder.info.file_format, *builder.info.alternative_file_formats)}
    if 'tfrecord' not in formats:
        raise UserError(
            f'{newest} holds {" and ".join(sorted(formats))} files; tfrecord is needed, prepare it '
            f'in another folder: {prepare}'
        )
    if builder.info.file_format.value != 'tfrecord':
        builder.info.set_file_format('tfrecord', override=True, override_if_initialized=True)
    return builder


def _versions(name: str) -> list[str]:
    """Those of a data set that tfds itself knows, by the builder's code."""
    import tensorflow_datasets as tfds

    kind = tfds.builder_cls(name.split('/')[0])
    of_configs = [
        x for config in kind.BUILDER_CONFIGS for x in (config.version, *config.supported_versions)
    ]
    every = (kind.VERSION, *kind.SUPPORTED_VERSIONS, *of_configs)
    return sorted({str(version) for version in every if version})


def split_of(info: Any, name: str, split: str) -> tuple[Any, Any]:
    """A split such as validation[:10%], and the one that it is a part of."""
    try:
        return info.splits[split], info.splits[re.split(r'[\[+]', split)[0]]
    except (KeyError, ValueError) as error:
        known = ', '.join(info.splits)
        raise UserError(f'{name} has no split {split!r}; it has: {known}') from error


def require_features(info: Any, name: str, features: Iterable[str]) -> None:
    """Raises UserError if the examples lack one of them."""
    if missing := sorted(set(features) - set(info.features)):
        known = ', '.join(info.features)
        raise UserError(f'{name} has no feature {" or ".join(missing)}; it has: {known}')


def require_whole(name: str, found: int, total: int) -> None:
    """Raises UserError if the files hold fewer examples than they should."""
    if found < total:
        raise UserError(
            f'{name}: its files hold {found} examples where dataset_info.json says {total}; they '
            'are damaged, prepare it again'
        )
