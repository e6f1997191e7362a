"""What a constructor takes is in its signature, and is checked by it."""

import inspect
from collections.abc import Sequence
from inspect import Parameter
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import pytest
from mmengine.config import ConfigDict
from torch import nn

from mmcakd import registry
from mmcakd.arguments import (
    ArgumentError,
    Fraction,
    Grid,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    PositiveOrInf,
    Range,
    Rate,
    Size,
    check_on_construction,
    describe,
    find_misfit,
)

REGISTRIES = [
    value
    for value in vars(registry).values()
    if isinstance(value, registry.Registry)
]
for home in REGISTRIES:
    home.import_from_location()
#: Every class that a config can name, but those that take what a class of
#: another package takes.
CLASSES = sorted(
    {
        cls
        for home in REGISTRIES
        for cls in home.module_dict.values()
        if cls.__init__.__module__.startswith('mmcakd.')
    },
    key=lambda cls: cls.__name__,
)


def named_parameters(cls: type) -> dict[str, Parameter]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind not in several
    }


def hints_of(cls: type) -> dict[str, Any]:
    return get_type_hints(cls.__init__, include_extras=True)


def test_the_registries_are_walked():
    names = {cls.__name__ for cls in CLASSES}
    assert len(REGISTRIES) >= 6
    assert len(CLASSES) > 35
    assert {'CrossArchDistill', 'SoftTargetLoss', 'QKVRecorder'} < names
    assert {'TrainingSetHook', 'CleanStopHook'} < names


# ------------------------------------------------------------------- contract


@pytest.mark.parametrize('cls', CLASSES, ids=lambda cls: cls.__name__)
def test_every_argument_is_annotated(cls):
    missing = set(named_parameters(cls)) - set(hints_of(cls))
    assert not missing, f'say in the signature what {missing} should be'


@pytest.mark.parametrize('cls', CLASSES, ids=lambda cls: cls.__name__)
def test_every_number_has_a_range(cls):
    """A bare float or int says nothing of zero and below."""
    #: Any whole number is good for these: places from the end, stages that
    #: are checked where the models are read, and what is ignored.
    free = {
        'block',
        'stages',
        'teacher_stages',
        'student_stages',
        'from_stage',
        'to_stage',
        'padding',
        'indices',
    }
    hints = hints_of(cls)
    bare = {
        name
        for name in set(named_parameters(cls)) - free
        if {int, float} & set(bare_kinds(hints[name]))
    }
    assert not bare, f'give {bare} a range of mmcakd.arguments'


def bare_kinds(kind: Any) -> list:
    """List the types in an annotation that have no range."""
    if get_origin(kind) is Annotated:
        return []
    args = get_args(kind)
    if get_origin(kind) is Literal or not args:
        return [kind]
    return [bare for arg in args for bare in bare_kinds(arg)]


def wrong_values(kind: Any) -> list:
    """Make values that an annotation does not allow."""
    candidates = [
        'no such word',
        '4',
        None,
        True,
        3,
        0,
        -1,
        2.5,
        1.5,
        float('nan'),
        float('inf'),
        [],
        ['a'],
        [True],
        [0.5, 'a'],
        {'a': 1},
        object(),
    ]
    return [value for value in candidates if not allows(kind, value)]


def allows(kind: Any, value: Any) -> bool:
    """A second reading of an annotation, by type() alone."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        bounds = args[1]
        return (
            allows(args[0], value) or (value == bounds.le == float('inf'))
        ) and not (
            (bounds.ge is not None and value < bounds.ge)
            or (bounds.gt is not None and value <= bounds.gt)
            or (bounds.le is not None and value > bounds.le)
            or (bounds.lt is not None and value >= bounds.lt)
        )
    if origin in (Union, UnionType):
        return any(allows(arg, value) for arg in args)
    if origin is Literal:
        return type(value) is str and value in args
    if kind is float:
        finite = value not in (float('inf'), float('-inf')) and value == value
        return type(value) in (int, float) and finite
    if kind in (int, str, bool):
        return type(value) is kind
    if origin in (Sequence, list):
        return type(value) is list and all(allows(args[0], v) for v in value)
    if origin is tuple:
        return (
            type(value) is list
            and len(value) == len(args)
            and all(map(allows, args, value))
        )
    if origin is dict:
        return type(value) is dict and all(
            allows(args[1], item) for item in value.values()
        )
    if kind is Sequence:
        return type(value) is list
    return isinstance(value, kind)


@pytest.mark.parametrize('cls', CLASSES, ids=lambda cls: cls.__name__)
def test_wrong_values_of_every_argument_are_refused(cls):
    """Each alone, before anything is built, in a sentence that names it."""
    hints = hints_of(cls)
    for name, parameter in named_parameters(cls).items():
        values = wrong_values(hints[name])
        assert values
        for value in values:
            if value is parameter.default:
                continue
            # What the other arguments need is not looked at yet.
            others = {
                other: needed(hints[other])
                for other, p in named_parameters(cls).items()
                if p.default is Parameter.empty and other != name
            }
            with pytest.raises(ArgumentError) as caught:
                cls(**others, **{name: value})
            message = str(caught.value)
            assert message.startswith(f'{cls.__name__}: {name}'), message
            assert ' should be ' in message and ', but got ' in message
            assert '\n' not in message and len(message) < 300


def needed(kind: Any) -> Any:
    """Make a value that an annotation allows."""
    values = [2, 'resnet18', {}, []]
    return next(value for value in values if allows(kind, value))


@pytest.mark.parametrize('cls', CLASSES, ids=lambda cls: cls.__name__)
def test_unknown_argument_is_refused(cls):
    others = {
        name: needed(hints_of(cls)[name])
        for name, p in named_parameters(cls).items()
        if p.default is Parameter.empty
    }
    with pytest.raises((ArgumentError, TypeError, ValueError)) as caught:
        cls(**others, no_such_argument=1)
    if cls.__name__ != 'TorchvisionClassifier':
        # Its network may take any; torchvision refuses it.
        assert isinstance(caught.value, ArgumentError)
        assert f"{cls.__name__} has no argument 'no_such" in str(caught.value)


# ------------------------------------------------------------- concrete cases


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(type='SoftTargetLoss', tau='4'),
            "SoftTargetLoss: tau should be a positive number, but got '4' "
            '(str)',
        ),
        (
            dict(type='SoftTargetLoss', tau=0),
            'SoftTargetLoss: tau should be a positive number, but got 0 (int)',
        ),
        (
            dict(type='SoftTargetLoss', mode='kll'),
            "SoftTargetLoss: mode should be 'ce' or 'kl', but got 'kll' (str)",
        ),
        (
            dict(type='SoftTargetLoss', loss_weigth=2.0),
            "SoftTargetLoss has no argument 'loss_weigth'; did you mean "
            "'loss_weight'?",
        ),
        (
            dict(type='MSELoss', loss_weight=-0.5),
            'MSELoss: loss_weight should be a number of at least 0, but got '
            '-0.5 (float)',
        ),
        (
            dict(type='MSELoss', loss_weight=float('nan')),
            'MSELoss: loss_weight should be a number of at least 0, but got '
            'nan (float)',
        ),
        (
            dict(type='MSELoss', loss_weight=[1.0]),
            'MSELoss: loss_weight should be a number of at least 0, but got '
            '[1.0] (list)',
        ),
        (
            dict(type='OFALoss', eps=[1.0, -2.0]),
            'OFALoss: eps[1] should be a positive number, but got -2.0 '
            '(float)',
        ),
        (
            dict(type='CRDLoss', momentum=1),
            'CRDLoss: momentum should be a number from 0 to below 1, but got '
            '1 (int)',
        ),
        (
            dict(type='RouterLoss', anneal_iters=1e4),
            'RouterLoss: anneal_iters should be a positive whole number, but '
            'got 10000.0 (float)',
        ),
        (
            dict(type='RouterLoss'),
            "RouterLoss: missing a required argument: 'anneal_iters'",
        ),
        (
            dict(type='CAPConnector', num_heads=0),
            'CAPConnector: num_heads should be a positive whole number, but '
            'got 0 (int)',
        ),
        (
            dict(type='CAPConnector', num_heads=2, in_grid=(7, 0)),
            'CAPConnector: in_grid[1] should be a positive whole number, but '
            'got 0 (int)',
        ),
        (
            dict(type='CAPConnector', num_heads=2, kappa=True),
            'CAPConnector: kappa should be a positive number, but got True '
            '(bool)',
        ),
        (
            dict(type='GLPConnector', dropout=1.0),
            'GLPConnector: dropout should be a number from 0 to below 1, but '
            'got 1.0 (float)',
        ),
        (
            dict(type='FitNetConnector', grid=7),
            'FitNetConnector: grid should be (a positive whole number, a '
            'positive whole number) or None, but got 7 (int)',
        ),
        (
            dict(type='PCAConnector', replace='elements'),
            "PCAConnector: replace should be 'element', 'token' or 'matrix', "
            "but got 'elements' (str)",
        ),
        (
            dict(type='MultiViewGenerator', mask_size=-999),
            'MultiViewGenerator: mask_size should be a positive whole '
            'number, but got -999 (int)',
        ),
        (
            dict(type='MultiViewGenerator', crop_scale=(0.5, 1.2)),
            'MultiViewGenerator: crop_scale[1] should be a number from 0 to '
            '1, but got 1.2 (float)',
        ),
        (
            dict(type='CrossArchDistill', input_size=64.5),
            'CrossArchDistill: input_size should be a positive whole number, '
            '(a positive whole number, a positive whole number) or None, but '
            'got 64.5 (float)',
        ),
        (
            dict(type='CrossArchDistill', teacher_input_size=(64, 64, 3)),
            'CrossArchDistill: teacher_input_size should be',
        ),
        (
            dict(type='CrossArchDistill', teacher_ckpt_ignore='^neck'),
            'CrossArchDistill: teacher_ckpt_ignore should be',
        ),
        (
            dict(type='CrossArchDistill', inputsize=64),
            "CrossArchDistill has no argument 'inputsize'; did you mean "
            "'input_size'?",
        ),
        (
            dict(type='AdversarialDistill', view_generater=None),
            "AdversarialDistill has no argument 'view_generater'; did you "
            "mean 'view_generator'?",
        ),
        (
            dict(type='AdversarialDistill', discriminator_interval=0),
            'AdversarialDistill: discriminator_interval should be a positive '
            'whole number, but got 0 (int)',
        ),
        (
            dict(type='AdversarialDistill', student_loss_weight='1'),
            'AdversarialDistill: student_loss_weight should be a number of '
            "at least 0, but got '1' (str)",
        ),
    ],
    ids=lambda value: value['type'] if isinstance(value, dict) else '',
)
def test_config_that_does_not_fit_is_refused_in_a_sentence(cfg, message):
    with pytest.raises(ArgumentError) as caught:
        registry.MODELS.build(dict(cfg, type=f'mmcakd.{cfg["type"]}'))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ('cfg', 'named'),
    [
        (dict(type='ExportStudentHook', which=1), 'which should be a string'),
        (dict(type='ExportStudentHook', ema='yes'), 'True, False|or None'),
        (dict(type='LossWeightScheduleHook', points=[(0, -1)]), r'\[0\]\[1\]'),
        (dict(type='LossWeightScheduleHook', points=[(0, 1, 2)]), r'\[0\] '),
        (dict(type='AssistantAccuracyHook', topk=1), 'topk should be a list'),
        (dict(type='AssistantAccuracyHook', topk=(0,)), r'topk\[0\]'),
        (dict(type='TrainingSetHook', epochs=3), "no argument 'epochs'"),
    ],
)
def test_hook_that_does_not_fit_is_refused(cfg, named):
    with pytest.raises(ArgumentError, match=named):
        registry.HOOKS.build(dict(cfg, type=f'mmcakd.{cfg["type"]}'))


def test_parent_of_a_registered_class_is_checked_once():
    from mmcakd.models.connectors import FitNetConnector, GLPConnector

    class Own(GLPConnector):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    for cls in (Own, GLPConnector, FitNetConnector):
        with pytest.raises(ArgumentError) as caught:
            cls(in_channels=0)
        assert str(caught.value).count(cls.__name__) == 1


# ----------------------------------------------------------------- vocabulary


@pytest.mark.parametrize(
    ('kind', 'good', 'bad'),
    [
        (Positive, [1, 0.5, np.float32(2), np.int64(3)], [0, -1, True, '1']),
        (NonNegative, [0, 0.0, 7], [-1e-9, float('inf'), float('nan')]),
        (Fraction, [0, 1, 0.5], [-0.1, 1.01]),
        (Rate, [0, 0.999], [1, 1.0, -0.1]),
        (PositiveInt, [1, np.int32(4)], [0, 1.0, np.float64(1), False]),
        (NonNegativeInt, [0, 5], [-1, 0.0]),
        (PositiveOrInf, [1, float('inf')], [0, -float('inf'), float('nan')]),
        (Grid, [(7, 7), [7, 9]], [7, (7,), (7, 7, 7), '77', (7, 0)]),
        (Size, [64, (64, 96), [64, 96]], [64.5, (64, 96.5), None]),
        (Literal['a', 'b'], ['a', 'b'], ['c', None, 1]),
        (bool, [True, np.True_], [0, 1, 'True', None]),
        (str, ['', 'a'], [b'a', 1]),
        (None | str, [None, 'a'], [1]),
        (float, [1, 1.5, -3], ['1', float('nan'), float('inf'), True, 1j]),
        (Sequence[int], [[1], (1, 2), [], range(3)], ['12', [1.5], 1, {1}]),
        (tuple[int, ...], [(1, 2, 3), [1]], [['a'], 1]),
        (dict[str, dict], [{}, dict(a={})], [dict(a=1), [], None]),
        (dict, [{}, ConfigDict(a=1)], [[], None, 'a']),
        (nn.Module, [nn.Identity()], [nn.Identity, dict()]),
        (Any, [None, 1, print], []),
        # Not understood.
        ('what', [None, 1], []),
    ],
    ids=str,
)
def test_what_a_word_allows(kind, good, bad):
    for value in good:
        assert find_misfit('x', value, kind) is None, value
    for value in bad:
        assert find_misfit('x', value, kind) is not None, value


def test_item_that_is_to_blame_is_named():
    kind = dict[str, dict | list[PositiveInt]] | None
    misfit = find_misfit('parts', dict(a={}, b=[1, 0]), kind)
    assert misfit.path == "parts['b'][1]"
    assert misfit.value == 0
    assert describe(misfit.kind) == 'a positive whole number'


def test_default_is_always_allowed():
    @check_on_construction
    class Part:
        def __init__(self, width: int = None) -> None:
            self.width = width

    assert Part().width is Part(width=None).width is None
    with pytest.raises(ArgumentError, match='width should be a whole number'):
        Part(width='1')


def test_signature_and_documentation_stay():
    class Part:
        def __init__(self, width: PositiveInt, *, depth: int = 2) -> None:
            """Build."""

    before = inspect.signature(Part)
    assert check_on_construction(Part) is Part
    assert inspect.signature(Part) == before
    assert Part.__init__.__doc__ == 'Build.'
    assert check_on_construction(Part).__init__ is Part.__init__


def test_long_values_are_cut():
    @check_on_construction
    class Part:
        def __init__(self, width: PositiveInt) -> None:
            pass

    with pytest.raises(ArgumentError) as caught:
        Part([list(range(50)) for _ in range(50)])
    assert len(str(caught.value)) < 160
    assert str(caught.value).endswith('... (list)')


def test_range_has_the_ends_it_says():
    assert 1 in Range('', ge=1) and 1 not in Range('', gt=1)
    assert 1 in Range('', le=1) and 1 not in Range('', lt=1)


def test_config_dicts_stay_what_they_are():
    """Lists and dicts of a config are handed on, not copied."""
    given = ConfigDict(a=ConfigDict(b=1))

    @check_on_construction
    class Part:
        def __init__(self, parts: dict[str, dict]) -> None:
            self.parts = parts

    assert Part(given).parts is given
