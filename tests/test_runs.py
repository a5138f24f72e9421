"""The checkpoints of a run: what is kept, what is noticed, what is read instead."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import time

import jax
import numpy as np
import pytest

from hrnet_jax import checkpoint
from hrnet_jax.checkpoints import workdir
from hrnet_jax.data import imagenet
from hrnet_jax.errors import UserError
from hrnet_jax.initialisation import init
from hrnet_jax.models import create_model
from hrnet_jax.tasks.classification_recipes import Digits
from hrnet_jax.training import home, saving
from hrnet_jax.training.home import Home
from hrnet_jax.training.step import create_state, make_optimizer

IDS = list(imagenet.classes())
MODEL = create_model('tiny', 10)
RECIPE = Digits(ema=0.9)


def state_of(variables):
    tx = make_optimizer(RECIPE, lambda count: 0.1)
    return jax.device_get(create_state(variables, tx, ema=True))


@pytest.fixture(scope='module')
def whole():
    """The state of a network."""
    return state_of(init(MODEL, jax.random.key(0), 32))


@pytest.fixture(scope='module')
def state():
    """Of a few arrays, without a zero: damage to any byte counts."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    head = {'kernel': normal(64, 10), 'bias': normal(10)}
    params = {'backbone': {'kernel': normal(3, 3, 64, 64)}, 'head': {'classifier': head}}
    made = state_of({'params': params, 'batch_stats': {'mean': normal(64), 'var': normal(64)}})
    moments = jax.tree.map(lambda x: normal(*x.shape) if x.shape else x, made.opt_state)
    return made.replace(opt_state=moments)


@pytest.fixture
def store(tmp_path):
    describe = {**checkpoint.describe(MODEL), 'transform': RECIPE.transform.to_json()}
    describe |= {'published': None, 'class_names': None, 'training': {}}
    saving.prepare(tmp_path, {'recipe': RECIPE.to_json()}, force=False)
    warnings = []
    saving.write_config(tmp_path, {'recipe': RECIPE.to_json()})
    store = saving.Store(Home(tmp_path), describe, 2, warnings.append)
    store.warnings = warnings
    yield store
    store.close()


def save(store, state, *steps):
    for step in steps:
        params = jax.tree.map(lambda x, step=step: x + np.float32(step), state.params)
        store.save(state.replace(step=np.int32(step), params=params))
    store.close()


def read(store, state):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), state)
    return store.restore(shapes)


def test_a_state_comes_back_to_the_bit(store, state):
    assert read(store, state) is None
    save(store, state, 7)
    found = read(store, state)
    assert found.step == 7
    expected = state.replace(
        step=np.int32(7), params=jax.tree.map(lambda x: x + np.float32(7), state.params)
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_last_and_the_best_are_kept(store, state):
    for step, top1 in ((8, 50.0), (9, 70.0), (10, 60.0), (11, 65.0), (12, None)):
        if top1 is not None:
            store.scores[step] = top1
        save(store, state, step)
    assert workdir.steps(store.path) == [9, 11, 12]
    assert store.best() == 9
    assert workdir.evaluations(store.path) == store.scores
    assert checkpoint.find(store.path).name == '9'
    known, store.scores = store.scores, {}
    assert read(store, state).step == 12
    assert store.scores == known


def test_averaged_or_raw_weights(store, whole):
    save(store, whole, 3)
    _, averaged = checkpoint.load(store.path)
    _, raw = checkpoint.load(store.path, weights='raw')
    kernel = ('params', 'backbone', 'conv1', 'kernel')
    for tree, added in ((averaged, 0), (raw, 3)):
        own = whole.params['backbone']['conv1']['kernel'] + np.float32(added)
        for key in kernel:
            tree = tree[key]
        np.testing.assert_array_equal(tree, own)
    with pytest.raises(UserError, match='ema or raw'):
        checkpoint.load(store.path, weights='mean')


def flip_bits(folder):
    """In every file of arrays, one in 200 bytes: not all of them are in use."""
    for file in folder.rglob('d/*'):
        content = bytearray(file.read_bytes())
        for i in range(len(content) // 4, len(content) * 3 // 4, 200):
            content[i] ^= 4
        file.write_bytes(content)


@pytest.mark.parametrize('item', ['raw', 'ema', 'rest'])
def test_flipped_bits_are_noticed_and_the_step_before_is_taken(store, state, item):
    save(store, state, 1, 2)
    flip_bits(store.path / 'checkpoints' / '2' / item)
    assert read(store, state).step == 1
    assert len(store.warnings) == 1
    assert 'checkpoints/2' in store.warnings[0]
    assert (store.path / 'damaged' / '2' / item).is_dir()
    save(store, state, 2)
    assert read(store, state).step == 2


@pytest.mark.parametrize('damage', ['empty folder', 'no json', 'no item', 'cut json'])
def test_other_damage(store, state, damage, monkeypatch):
    monkeypatch.setattr(home, '_PATIENCE', 0)
    save(store, state, 1, 2)
    folder = store.path / 'checkpoints' / '2'
    if damage == 'no item':
        shutil.rmtree(folder / 'rest')
    elif damage == 'no json':
        (folder / 'meta' / 'metadata').unlink()
    elif damage == 'cut json':
        (folder / 'meta' / 'metadata').write_text('{"version": 1')
    else:
        shutil.rmtree(folder)
        folder.mkdir()
    (store.path / 'checkpoints' / 'notes.txt').write_text('mine')
    assert read(store, state).step == 1
    assert 'it is now in damaged' in store.warnings[0]
    save(store, state, 2)
    assert read(store, state).step == 2


@pytest.mark.parametrize('field', workdir.FIELDS)
def test_a_json_without_a_field(store, state, field):
    """With the right digest, as anyone can compute it."""
    save(store, state, 1)
    file = store.path / 'checkpoints' / '1' / workdir.META
    meta = json.loads(file.read_text())
    for key in (field, 'digest'):
        del meta[key]
    file.write_text(json.dumps(checkpoint.with_digest(meta)))
    for call in (lambda: read(store, state), lambda: checkpoint.load(store.path)):
        with pytest.raises(UserError, match=f"it has no '{field}'"):
            call()


def test_never_from_the_beginning_in_silence(store, state):
    save(store, state, 1)
    flip_bits(store.path / 'checkpoints' / '1' / 'raw')
    with pytest.raises(UserError, match='none of its checkpoints can be read'):
        read(store, state)
    assert workdir.steps(store.path) == [1]


def test_another_optimiser_does_not_fit(store, state):
    save(store, state, 1, 2)
    tx = make_optimizer(Digits(optimizer='adamw', ema=0.9), lambda count: 0.1)
    other = state.replace(opt_state=jax.device_get(tx.init(state.params)))
    with pytest.raises(UserError, match='--init'):
        read(store, other)
    without = state.replace(ema={})
    assert read(store, without).step == 2
    save(store, without, 3)
    with pytest.raises(UserError, match='without averaged weights.*--init'):
        read(store, state)
    shutil.rmtree(store.path / 'checkpoints' / '3')
    assert workdir.steps(store.path) == [2]
    clipped = make_optimizer(Digits(clip_norm=1.0, head_lr=2.0, ema=0.9), lambda count: 0.1)
    same = state.replace(opt_state=jax.device_get(clipped.init(state.params)))
    assert read(store, same).step == 2


def test_a_write_that_fails_is_one_line(store, state):
    """In the background, as on a full disk: the next look says so."""
    save(store, state, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        store.save(state.replace(step=np.int32(2)))
        while store._manager.is_saving_in_progress():
            time.sleep(0.1)
        with pytest.raises(UserError, match='cannot write the checkpoint in [^\n]*$'):
            store.check()
        store.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store._manager = None
    assert workdir.steps(store.path) == [1]
    assert read(store, state).step == 1


def test_prepare(tmp_path):
    config = {'task': 'classification', 'arch': 'tiny', 'recipe': {'seed': 0, 'batch_size': 64}}
    saving.prepare(tmp_path, config, force=False)
    saving.write_config(tmp_path, config)
    saving.prepare(tmp_path, config, force=False)
    changed = config | {'recipe': {'seed': 1, 'batch_size': 64}}
    # Nothing was saved yet, so nothing can be lost.
    assert not saving.prepare(tmp_path, changed, force=False)
    assert not workdir.recipe(tmp_path)
    meta = tmp_path / workdir.CHECKPOINTS / '5' / workdir.META
    meta.parent.mkdir(parents=True)
    meta.touch()
    assert workdir.recipe(tmp_path) == config['recipe']
    with pytest.raises(UserError, match=r'recipe\.seed 0, not 1'):
        saving.prepare(tmp_path, changed, force=False)
    saving.prepare(tmp_path, changed, force=True)
    [text] = saving.prepare(tmp_path, changed, force=False, free={'recipe.seed'})
    assert text == 'recipe.seed 0, not 1'
    changed['recipe']['batch_size'] = 32
    with pytest.raises(UserError, match=r'with recipe\.batch_size 64, not 32; name another'):
        saving.prepare(tmp_path, changed, force=False, free={'recipe.seed'})
    assert json.loads((tmp_path / 'config.json').read_text()) == config  # not before it goes on
    (tmp_path / 'config.json').write_text('{"arch"')
    with pytest.raises(UserError, match='damaged'):
        saving.prepare(tmp_path, config, force=False)


def test_scores_of_another_evaluation_are_left_out(store, state):
    def restored(recipe):
        store.describe['transform'] = recipe.transform.to_json()
        store.describe['training'] = {'recipe': recipe.to_json()}
        assert read(store, state).step == 1
        return store.scores

    store.describe['training'] = {'recipe': RECIPE.to_json()}
    store.note(1, 70.0)
    save(store, state, 1)
    assert restored(dataclasses.replace(RECIPE, eval_every=1)) == {1: 70.0}
    assert not store.warnings
    changes = {'eval_resize': 64, 'image_size': 64, 'eval_split': 'train'}
    for name, value in changes.items():
        assert restored(dataclasses.replace(RECIPE, **{name: value})) == {}
    assert all('the best is chosen anew' in line for line in store.warnings)
    assert 'resize 32, not 64' in store.warnings[0]
    assert 'eval_split test, not train' in store.warnings[-1]
    assert len(store.warnings) == len(changes)
    assert restored(RECIPE) == {1: 70.0}


def test_another_task_is_refused(store, state, tmp_path):
    """The first release wrote no task: what it wrote is for classification."""
    config = json.loads((tmp_path / 'config.json').read_text())
    save(store, state, 1)
    saving.prepare(tmp_path, {'task': 'classification', **config}, force=False)
    with pytest.raises(UserError, match='task classification, not multilabel'):
        saving.prepare(tmp_path, {'task': 'multilabel', **config}, force=False)
    store.describe['task'] = 'multilabel'
    with pytest.raises(UserError, match='is for classification, not multilabel.*--init'):
        read(store, state)


NUMBERS = [str(i) for i in range(12)]


@pytest.mark.parametrize(
    ('before', 'now', 'said'),
    [
        (sorted(NUMBERS), NUMBERS, 'class 2 of the run is 10, class 2 of the data now is 2; '),
        (['ant', 'bee'], ['bee', 'ant'], 'names in the order of the run, one a line, keeps that'),
        (['ant', 'bee'], ['ant', 'cow'], 'class 1 of the data now is cow; name the classes as bef'),
        (None, [*IDS[1:], IDS[0]], f'run is {IDS[0]}, class 0 of the data now is {IDS[1]}'),
        (None, IDS, None),
        (['ant', 'bee'], ['ant', 'bee'], None),
        (['ant', 'bee'], None, None),
    ],
)  # fmt: skip
def test_the_order_of_classes_stays(tmp_path, before, now, said):
    for step, names in ((1, ['x'] * len(now or '')), (2, before)):  # the newest counts
        file = tmp_path / workdir.CHECKPOINTS / str(step) / workdir.META
        file.parent.mkdir(parents=True)
        training = {'step': step, 'scores': {}}
        meta = dict.fromkeys(('arrays', 'ema', 'rest'), {}) | {'training': training}
        meta |= {'class_names': names, 'num_classes': len(now or '')}
        file.write_text(json.dumps(checkpoint.with_digest(meta)))
    if said is None:
        saving.require_classes(tmp_path, now)
    else:
        with pytest.raises(UserError, match=said) as stop:
            saving.require_classes(tmp_path, now)
        assert str(stop.value).endswith('; --force goes on in spite of it')
    saving.require_classes(tmp_path / 'new', now)


def test_a_folder_of_the_first_release(store, whole):
    """It named no task, and its scores after what they were."""
    store.note(6, 70.0)
    save(store, whole, 6)
    file = store.path / 'checkpoints' / '6' / workdir.META
    meta = json.loads(file.read_text())
    del meta['digest'], meta['version'], meta['task']
    meta['training']['top1'] = meta['training'].pop('scores')
    file.write_text(json.dumps(checkpoint.with_digest(meta)))
    store.scores = {}
    assert read(store, whole).step == 6
    assert store.scores == workdir.evaluations(store.path) == {6: 70.0}
    model, _ = checkpoint.load(store.path)
    assert model.num_classes == 10
