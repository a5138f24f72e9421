"""HRNet in JAX: Flax modules, converted PyTorch weights, exact evaluation."""

from hrnet_jax.archs import Arch, list_models
from hrnet_jax.backbone import FeatureInfo, HRNet
from hrnet_jax.checkpoint import load
from hrnet_jax.errors import UserError
from hrnet_jax.folding import Folded, fold
from hrnet_jax.heads.classification import Classifier
from hrnet_jax.heads.features import FeatureMaps
from hrnet_jax.hub import push as push_to_hub
from hrnet_jax.inference import Prediction, predict
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.preprocess import Transform
from hrnet_jax.version import __version__
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
