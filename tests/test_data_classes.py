"""Which class a folder is, and which output of a checkpoint."""

from __future__ import annotations

import os
import unicodedata

import imagenet as pictures
import numpy as np
import pytest

from hrnet_jax import data
from hrnet_jax.data import evaluation, imagenet
from hrnet_jax.data.classes import in_order, of_checkpoint, read_names, renumbered
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import get_task
from hrnet_jax.tasks.classification_recipes import Digits
from hrnet_jax.training.experiment import Experiment, Options

IDS = list(imagenet.classes())


@pytest.fixture
def make(tmp_path):
    """A folder with one image in a folder for each name, opened."""

    def call(*names, root='set'):
        for number, name in enumerate(names):
            (tmp_path / root / name).mkdir(parents=True)
            pictures.picture(number, 9, 9).save(tmp_path / root / name / 'a.png')
        return data.open_dataset(str(tmp_path / root))

    return call


def labels(source):
    """Folder -> label, as they are read."""
    records = source.records(0, source.num_examples).as_numpy_iterator()
    found = list(records)
    source.check(source, {k: np.array([x[k] for x in found]) for k in ('name', 'original')})
    return {os.path.basename(os.path.dirname(x['name'].decode())): int(x['label']) for x in found}


@pytest.mark.parametrize(
    ('names', 'ordered', 'said'),
    [
        ('cat dog owl', 'cat dog owl', None),
        ('0 1 2 3', '0 1 2 3', None),
        ('00 01 02', '00 01 02', None),
        ('0 1 10 2 3 4 5 6 7 8 9', '0 1 2 3 4 5 6 7 8 9 10', 'folders 0 to 10 are the classes of'),
        ('0 1 02', '0 1 02', 'not in alphabetical order (0, 02, 1)'),
        ('1 2 3', '1 2 3', 'in the order 1, 2, 3; --class-names FILE says another order'),
        ('1 2 3 4 5 6 7 8 9 10', '1 10 2 3 4 5 6 7 8 9', 'in the order 1, 10, 2, 3, 4'),
        ('0 2 3', '0 2 3', 'in the order 0, 2, 3'),
        ('class10 class9', 'class10 class9', 'in the order class10, class9'),
        ('ant Zebra bee', 'Zebra ant bee', 'in the order Zebra, ant, bee'),
        ('B a', 'B a', 'in the order B, a'),
        (f'{IDS[7]} {IDS[3]}', f'{IDS[3]} {IDS[7]}', None),
    ],
)
def test_order_of_folders(names, ordered, said):
    found, notes = in_order(names.split())
    assert found == ordered.split()
    assert [said in note for note in notes] == ([True] if said else [])


def test_numbers_are_the_labels(make):
    names = [str(i) for i in range(12)]
    source = make(*names)
    assert labels(source) == {name: int(name) for name in names}
    assert any('folders 0 to 11' in note for note in source.notes)


def test_a_file_says_the_order(make, tmp_path):
    source = make('ant', 'Zebra', 'bee')
    file = tmp_path / 'names.txt'
    file.write_text('\ufeffant\nbee\n\n Zebra \nworm\n')
    for task in (renumbered, get_task('classification').renumbered):
        changed = task(source, read_names(str(file)))
        assert labels(changed) == {'ant': 0, 'bee': 1, 'Zebra': 2}
        assert changed.class_names == ('ant', 'bee', 'Zebra', 'worm')
    for content, said in (
        ('ant\nbee\n', 'Zebra is not among the 2 class names'),
        ('bee\n', 'Zebra, ant are not among the 1 class names'),
        ('ant\nant\nb\n', 'names ant more than once'),
        ('\n', 'is empty'),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            renumbered(source, read_names(str(file)))
    with pytest.raises(UserError, match=r'cannot read --class-names .*none\.txt'):
        read_names(str(tmp_path / 'none.txt'))


def fitted(source, names, chosen=False, count=None):
    meta = {'num_classes': count or len(names), 'class_names': names}
    return of_checkpoint(source, meta, chosen)


@pytest.mark.parametrize('names', ['bee Zebra ant', 'ant bee cow Zebra'])
def test_classes_of_a_checkpoint_by_name(make, names):
    source = fitted(make('ant', 'Zebra', 'bee'), names.split())
    wanted = {name: i for i, name in enumerate(names.split()) if name != 'cow'}
    assert labels(source) == wanted
    assert source.num_classes == len(names.split())
    source = evaluation.competing(source, False)
    if 'cow' in names:
        said = '3 of the 4 classes occur; all 4 compete (--restrict: only those 3)'
        assert source.notes[-1] == said
        assert data.competing_classes(source) is None
        source = evaluation.competing(source, True)
        assert source.notes[-1] == '3 of the 4 classes occur; only those 3 compete'
        assert data.competing_classes(source).tolist() == [0, 1, 3]
    else:
        assert 'in another order; they are found by name' in source.notes[-1]


@pytest.mark.parametrize(
    ('names', 'said'),
    [
        (['ant', 'bee', 'cow'], 'does not have: Zebra; it lacks cow'),
        (['ant', 'bee'], 'does not have: Zebra; if only'),
        (['0', '1', '2'], 'does not have: Zebra, ant, bee; it lacks 0, 1'),
    ],
)
def test_other_classes_than_those_of_a_checkpoint(make, names, said):
    with pytest.raises(UserError, match=said):
        fitted(make('ant', 'Zebra', 'bee'), names)


def test_what_is_assumed_of_a_checkpoint_is_said(make):
    named, numbers = make('ant', 'bee'), make('0', '1', root='numbers')
    assert 'ant, bee are taken for its classes 0, 1' in fitted(named, None, count=2).notes[-1]
    assert fitted(numbers, None, count=2).notes == ()
    assert fitted(numbers, ['cat', 'dog']).notes[-1] == (
        '0, 1 are taken for the classes cat, dog of the checkpoint'
    )
    chosen = fitted(named, ['Ameise', 'Biene'], chosen=True)
    assert 'ant, bee are taken for the classes Ameise, Biene' in chosen.notes[-1]
    with pytest.raises(UserError, match='--class-names: the checkpoint has these classes in anoth'):
        fitted(named, ['bee', 'ant'], chosen=True)


def test_an_accent_as_macs_write_it(make):
    names = ['caf\u00e9', 'bar']
    source = fitted(make(*(unicodedata.normalize('NFD', name) for name in names)), names)
    assert sorted(labels(source).values()) == [0, 1]
    assert source.class_names == tuple(names)


@pytest.mark.parametrize('chosen', [(3, 700, 999), (0, 1, 2, 3)])
def test_a_subset_of_imagenet(make, chosen):
    ids = [IDS[i] for i in chosen]
    source = make(*ids)
    assert source.class_names == tuple(ids)
    assert fitted(source, ids) is source
    for names in (None, list(imagenet.classes().values()), IDS):
        whole = fitted(source, names, count=1000)
        assert labels(whole) == dict(zip(ids, chosen, strict=True))
        notes = evaluation.competing(whole, False).notes
        assert notes == (
            f'{len(ids)} of the 1000 classes occur; all 1000 compete (--restrict: only those '
            f'{len(ids)})',
        )
        restricted = evaluation.competing(whole, True)
        assert data.competing_classes(restricted).tolist() == list(chosen)
    named = fitted(source, [f'class {i}' for i in range(1000)])
    assert labels(named) == labels(whole)
    assert "the classes of the checkpoint are taken for ImageNet's 1000" in named.notes


@pytest.mark.parametrize('chosen', [(700, 3, 999), (0, 1)])
def test_a_run_on_a_subset_of_imagenet(make, tmp_path, chosen):
    """It has the classes that there are, by their ids; predict.py says what they are."""
    make(*(IDS[i] for i in chosen), root='set/train')
    make(*(IDS[i] for i in chosen), root='set/val')
    recipe = Digits(dataset=str(tmp_path / 'set'), eval_split='val', batch_size=2)
    run = Experiment('tiny', recipe, Options(tmp_path / 'run'), print)
    held, described = run.held_out, run.store.describe
    names = [IDS[i] for i in sorted(chosen)]
    assert (described['num_classes'], described['class_names']) == (len(chosen), names)
    assert of_checkpoint(held, described, chosen=False) is held
    assert evaluation.competing(held, True).notes == held.notes
    options = run.task.prediction_options(run.model, described['class_names'])
    assert options['names'] == tuple(imagenet.classes()[name] for name in names)
