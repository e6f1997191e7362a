"""The weights in a checkpoint are found, whoever wrote it."""

from collections import OrderedDict

import pytest
import torch

from mmcakd.models.teachers.state_dicts import (
    has_average,
    pick_student,
    pick_weights,
)


def weights(value: float, prefix: str = '') -> dict:
    names = ('backbone.conv.weight', 'head.fc.bias')
    return {f'{prefix}{name}': torch.full((2,), value) for name in names}


@pytest.mark.parametrize(
    'prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.']
)
@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: w,
        lambda w: dict(state_dict=w, meta=dict(epoch=1)),
        lambda w: dict(model=w, optimizer=dict(state={0: torch.ones(1)})),
        lambda w: dict(model=dict(state_dict=w)),
        lambda w: dict(module=w),
        lambda w: dict(state_dict_ema=w),
        lambda w: dict(model_ema={**w, 'n_averaged': torch.tensor(3)}),
    ],
    ids=['plain', 'mmengine', 'deit', 'twice', 'module', 'ema', 'swa'],
)
def test_weights_are_found_in_every_wrapping(wrap, prefix):
    found = pick_weights(wrap(weights(3.0, prefix)))
    expected = weights(3.0)
    assert {k: found[k].tolist() for k in expected} == {
        k: v.tolist() for k, v in expected.items()
    }
    assert set(found) - set(expected) <= {'n_averaged'}


#: Average 2, trained 1, in the form of each code.
BOTH = dict(
    mmengine=dict(
        state_dict=weights(2.0),
        ema_state_dict={**weights(1.0, 'module.'), 'steps': torch.tensor(7)},
    ),
    timm=dict(state_dict=weights(1.0), state_dict_ema=weights(2.0)),
    deit=dict(model=weights(1.0), model_ema=weights(2.0, 'module.')),
)


@pytest.mark.parametrize('code', BOTH)
@pytest.mark.parametrize('ema, expected', [(None, 2), (True, 2), (False, 1)])
def test_average_is_taken_unless_the_trained_are_asked_for(
    code, ema, expected
):
    found = pick_weights(BOTH[code], ema)
    assert set(found) == set(weights(0))
    assert all((value == expected).all() for value in found.values())


@pytest.mark.parametrize(
    'code, named',
    [
        ('mmengine', ['state_dict', 'ema_state_dict']),
        ('timm', ['state_dict_ema', 'state_dict']),
        ('deit', ['model_ema', 'model']),
    ],
)
def test_which_are_taken_is_said(code, named, monkeypatch):
    said = []
    monkeypatch.setattr(
        'mmcakd.models.teachers.state_dicts.print_log',
        lambda text, logger: said.append(text),
    )
    pick_weights(BOTH[code])
    (line,) = said
    assert line.endswith(f'taken are the averaged ones, {named[0]}')
    assert named[1] in line
    pick_weights(dict(state_dict=weights(1.0)))
    assert len(said) == 1


def test_only_two_sets_of_weights_are_an_average_and_its_source():
    assert all(map(has_average, BOTH.values()))
    assert not has_average(dict(state_dict=weights(1.0)))
    assert not has_average(weights(1.0))


def test_student_of_a_distillation_is_taken_out():
    whole = {
        **weights(1.0, 'architecture.'),
        'distiller.connectors.fit.weight': torch.ones(1),
    }
    found = pick_student(pick_weights(dict(state_dict=whole)))
    assert set(found) == set(weights(0))
    plain = pick_weights(weights(1.0))
    assert pick_student(plain) is plain


def test_versions_of_modules_move_with_their_names():
    state = OrderedDict(weights(1.0, 'module.architecture.'))
    state._metadata = OrderedDict(
        {
            '': dict(version=1),
            'module.architecture.backbone': dict(version=5),
        }
    )
    found = pick_student(pick_weights(dict(state_dict=state)))
    assert found._metadata == {'backbone': dict(version=5)}


def test_what_is_no_weight_is_left_out():
    state = {**weights(1.0), 'head.classes': ['cat'], 'epoch': 3}
    assert set(pick_weights(state)) == set(weights(0))
