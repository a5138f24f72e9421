"""HRNet in JAX: Flax modules, converted PyTorch weights, exact evaluation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hrnet_jax.version import __version__

if TYPE_CHECKING:
    from hrnet_jax.archs import Arch, list_models
    from hrnet_jax.backbone import FeatureInfo, HRNet
    from hrnet_jax.checkpoint import load
    from hrnet_jax.errors import UserError
    from hrnet_jax.folding import Folded, fold
    from hrnet_jax.heads.classification import Classifier
    from hrnet_jax.heads.features import FeatureMaps
    from hrnet_jax.hub import push_to_hub
    from hrnet_jax.inference import Prediction, predict
    from hrnet_jax.initialisation import init
    from hrnet_jax.models import create_model
    from hrnet_jax.preprocess import Transform
    from hrnet_jax.weights import Transferred, matching, transfer

__all__ = [
    '__version__',
    'Arch',
    'Classifier',
    'FeatureInfo',
    'FeatureMaps',
    'Folded',
    'HRNet',
    'Prediction',
    'Transferred',
    'Transform',
    'UserError',
    'create_model',
    'fold',
    'init',
    'list_models',
    'load',
    'matching',
    'predict',
    'push_to_hub',
    'transfer',
]
# Imported when they are asked for: the process that reads images (`reader`) needs no JAX.
_PLACES = {
    'archs': 'Arch list_models',
    'backbone': 'FeatureInfo HRNet',
    'checkpoint': 'load',
    'errors': 'UserError',
    'folding': 'Folded fold',
    'heads.classification': 'Classifier',
    'heads.features': 'FeatureMaps',
    'hub': 'push_to_hub',
    'inference': 'Prediction predict',
    'initialisation': 'init',
    'models': 'create_model',
    'preprocess': 'Transform',
    'weights': 'Transferred matching transfer',
}
_PLACE = {name: module for module, names in _PLACES.items() for name in names.split()}

if not TYPE_CHECKING:  # which would take every name for one that exists

    def __getattr__(name: str) -> Any:
        """A public name, or a module of this package."""
        module = f'{__name__}.{_PLACE.get(name, name)}'
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not (error.name or '').startswith(f'{__name__}.'):
                raise
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}') from None
        if name in _PLACE:
            found = globals()[name] = getattr(found, name)
        return found


def __dir__() -> list[str]:
    return sorted({name for name in globals() if name.startswith('__')} | {*__all__})
