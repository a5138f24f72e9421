"""Recipes: what is filled in, what is refused, their flags and their help."""

from __future__ import annotations

import argparse
import dataclasses

import pytest

import train as train_command
from hrnet_jax.errors import UserError
from hrnet_jax.tasks import recipes
from hrnet_jax.tasks.classification import TASK
from hrnet_jax.tasks.classification_recipes import RECIPES, Digits, Official, Strong
from hrnet_jax.tasks.multilabel import Multilabel
from hrnet_jax.tasks.recipe import Recipe, SquareRecipe, evaluation_fields, setting
from hrnet_jax.tasks.recipe_flags import add_arguments, describe, from_arguments, going_on


@pytest.mark.parametrize(
    ('recipe', 'given', 'resize', 'crop'),
    [
        (Official, {}, 256, 224),
        (Official, {'image_size': 64}, 73, 64),
        (Official, {'image_size': 128, 'eval_crop': 160}, 183, 160),
        (Official, {'eval_crop': 288}, 329, 288),
        (Official, {'eval_crop': 288, 'eval_resize': 288}, 288, 288),
        (Official, {'eval_resize': 235}, 235, 224),
        (Digits, {}, 32, 32),
        (Digits, {'image_size': 64}, 64, 64),
    ],
)
def test_the_evaluation_has_the_size_of_the_training(recipe, given, resize, crop):
    made = recipe(**given)
    assert (made.transform.resize, made.transform.crop) == (resize, crop)
    held = made.to_json()
    assert (held['eval_resize'], held['eval_crop']) == (resize, crop)
    other = dataclasses.replace(recipe(), **given)
    assert other == made
    assert other.transform == made.transform


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ({'image_size': 100}, '--image-size 100 is no multiple of 32.* 96 and 128'),
        ({'eval_crop': 230}, '--eval-crop 230 is no multiple of 32.* 224 and 256'),
        ({'eval_resize': 64}, '--eval-crop 224 is larger than --eval-resize 64'),
        ({'batch_size': 1, 'mixup': 0.1}, 'need 2 images at once'),
        ({'batch_size': 8, 'accumulate': 8, 'cutmix': 1.0}, 'need 2 images at once'),
    ],
)
def test_sizes_that_do_not_fit(given, said):
    with pytest.raises(UserError, match=said) as stop:
        Official(**given)
    assert '\n' not in str(stop.value)


def test_what_may_change_in_a_run():
    expected = {'eval_split', 'eval_resize', 'eval_crop', 'eval_every', 'eval_max_corrupt'}
    for cls in (SquareRecipe, Digits, Multilabel):
        assert evaluation_fields(cls) == expected


OWN_DATA = ('multilabel', 'segment', 'pose', 'detect')  # recipes that need a data set


def parsed(cls, *flags):
    p = argparse.ArgumentParser()
    add_arguments(p.add_argument_group(), cls)
    return p.parse_args(flags)


def test_flags_of_tuples(capsys):
    @dataclasses.dataclass(frozen=True)
    class Own(Official):
        size: tuple[int, int] = setting((256, 192), 'height and width')
        widths: tuple[int, ...] = setting((), 'of layers')
        window: tuple[int, int] | None = setting(None, 'height and width', none='whole images')

    made = from_arguments(Own, parsed(Own, '--size', '64', '96', '--widths', '3'))
    assert (made.size, made.widths, made.window) == ((64, 96), (3,), None)
    assert from_arguments(Own, parsed(Own, '--window', '48', '64')).window == (48, 64)
    assert all(type(x) is int for x in (*made.size, *made.widths))
    assert from_arguments(Own, parsed(Own)) == Own()
    assert from_arguments(Own, parsed(Own, '--milestones', '1', '2.5')).milestones == (1.0, 2.5)
    for wrong in (('64',), ('64', '96', '1'), ('64', '9.6')):
        with pytest.raises(SystemExit):
            parsed(Own, '--size', *wrong)
        assert '--size' in capsys.readouterr().err


def test_the_evaluation_stays_as_the_run_was_begun():
    """A run of the first release had 256 and 224 for images of any size."""
    before = Official(image_size=64, eval_resize=256, eval_crop=224, eval_split='val').to_json()
    recipe, kept = going_on(Official, parsed(Official, '--image-size', '64'), before)
    assert recipe.to_json() == before
    assert kept == ['--eval-crop 224', '--eval-resize 256', '--eval-split val']
    given = ('--image-size', '64', '--eval-crop', '32', '--eval-resize', '40')
    recipe, kept = going_on(Official, parsed(Official, *given), before)
    assert (recipe.transform.resize, recipe.transform.crop) == (40, 32)
    assert kept == ['--eval-split val']
    recipe, kept = going_on(Official, parsed(Official, '--image-size', '96'), {})
    assert (recipe, kept) == (Official(image_size=96), [])
    assert going_on(Official, parsed(Official, '--image-size', '96'), recipe.to_json())[1] == []
    assert going_on(Official, parsed(Official), before | {'seed': 5})[0].seed == 0


def test_fields_without_effect_have_no_flag(refused, tmp_path):
    run = ('--recipe', 'multilabel', '--dataset', 'folder:x', '--workdir', tmp_path / 'run')
    for flags in (('--temperature', '2'), ('--distill-loss', 'kl')):
        assert 'unrecognized arguments' in refused(train_command.main, *run, *flags)
    with pytest.raises(UserError, match='temperature 2.0 has no effect'):
        Multilabel(dataset='x', temperature=2.0)
    assert Strong(temperature=2.0).temperature == 2.0


def test_statistics_are_over_what_there_is():
    assert Official(batch_size=16).bn_images == 16
    assert Official(batch_size=64).bn_images == 32
    assert Official(batch_size=64, accumulate=4, bn_group_size=None).bn_images == 16


def test_help_of_all_recipes_is_a_line_each(command):
    code, out, _ = command(train_command.main, '--help')
    assert code == 0
    for name in recipes():
        [line] = [x for x in out.splitlines() if x.startswith(f'  {name} ')]
        assert line.endswith('.')
    assert 'Expect' not in out


def test_what_none_means(command):
    shown = {
        'official': (
            '--clip-norm FLOAT largest norm of the whole gradient (default: any)',
            'BatchNorm statistics (default: 32; none: the whole batch)',
            'shorter edge in pixels (default: eval_crop * 256 / 224)',
            'a random crop, as a part of the image (default: (0.08, 1.0))',
        ),
        'strong': ('whole gradient (default: 5.0; none: any)',),
        'digits': ('shorter edge in pixels (default: eval_crop)', 'split to evaluate on'),
    }
    for name, texts in shown.items():
        _, out, _ = command(train_command.main, '--recipe', name, '--help')
        out = ' '.join(out.split())
        assert 'None' not in out
        for text in texts:
            assert text in out


@pytest.mark.parametrize('name', list(recipes()))
def test_help_of_one_recipe_is_whole(command, name):
    code, out, _ = command(train_command.main, '--recipe', name, '--help')
    assert code == 0
    text = ' '.join(out.split())
    assert f'{name}: ' in text
    assert 'yet run to the end by us' in text or 'Run by us' in text
    assert ('PATH/SPLIT.csv' in text) == (name == 'multilabel')
    assert ('of class folders' in text) == (name in RECIPES)
    own = {'distill': '--teacher'}
    needed = own.get(name, '--dataset' if name in OWN_DATA else None)
    assert text.count('(needed)') == (needed is not None)
    if needed:
        options = text.partition('what the result depends on')[2]
        assert '(needed)' in options.partition(f'{needed} STR')[2].partition(' --')[0]


def test_a_recipe_without_a_docstring():
    @dataclasses.dataclass(frozen=True)
    class Own(Recipe):
        pass

    assert describe({'own': Own}).splitlines()[1:] == ['  own  no description.']


def test_figures_that_can_say_something():
    class Model:
        num_classes = 5

    assert [figure.name for figure in TASK.figures_of(Model, None)] == ['top1']
    Model.num_classes = 6
    assert [figure.name for figure in TASK.figures_of(Model, None)] == ['top1', 'top5']
