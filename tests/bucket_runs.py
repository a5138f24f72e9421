"""A training run's folder in a bucket, without the training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.runtime.buckets import Bucket
from hrnet_jax.tasks.classification_recipes import Digits
from hrnet_jax.training import home, saving
from hrnet_jax.training.step import create_state, make_optimizer

MODEL, RECIPE = create_model('tiny', 10), Digits()
CONFIG = {'task': 'classification', 'recipe': RECIPE.to_json()}
META = workdir.META


def make_state():
    tx = make_optimizer(RECIPE, lambda count: 0.1)
    return jax.device_get(create_state(init(MODEL, jax.random.key(0), 32), tx, ema=False))


class Run:
    """What a training run does with its folder."""

    def __init__(self, url):
        self.warnings = []
        self.home = home.open_home(url)
        describe = {**checkpoint.describe(MODEL), 'transform': RECIPE.transform.to_json()}
        describe |= {'published': None, 'class_names': None, 'training': {}}
        saving.prepare(self.home.path, CONFIG, force=False)
        saving.require_shared(self.home)
        self.store = saving.Store(self.home, describe, 2, self.warnings.append)

    def restored(self, state):
        found = self.store.restore(jax.eval_shape(lambda: state))
        return found and int(found.step)

    def start(self):
        saving.write_config(self.home.path, CONFIG)
        self.home.start(self.warnings.append)

    def save(self, state, step):
        self.store.save(dataclasses.replace(state, step=np.int32(step)))

    def end(self):
        self.store.close()
        self.home.close()


def steps(url):
    names = Bucket(url).sizes(workdir.CHECKPOINTS)
    return sorted(int(name.split('/')[1]) for name in names if name.endswith(META))
