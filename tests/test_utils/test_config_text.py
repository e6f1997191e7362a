"""Configs are taken from texts by their values alone."""

import math
import sys
from types import ModuleType

import pytest
import torch
from mmengine.config import Config

from mmcakd.utils import export_student, read_config_text
from mmcakd.utils.config_text import (
    Unreadable,
    check_readable,
    check_registered,
)

VALUES = dict(
    words=["it's", 'a "b"', 'two\nlines', 'ü', r'back\slash', b'bytes'],
    numbers=[0, -3, 2.5e-8, 1 + 2j, True, None, 10**30],
    infinite=dict(max_norm=math.inf, least=-math.inf, within=(math.inf,)),
    empty=dict(a={}, b=[], c=(), d=''),
    nested=[dict(x=(1, [2, dict(y={'a b': 3})])), (('z',),)],
    names={'paths.to.things': dict(lr=0.1), 3: 'three', 'with-dash': 1},
    sets={1, 2, 3},
)


def test_what_mmengine_writes_is_read_as_it_was():
    text = Config(VALUES).pretty_text
    found = read_config_text(text, 'file').to_dict()
    assert found == VALUES
    # As MMEngine itself reads it.
    assert Config.fromstring(text, '.py').to_dict() == VALUES


@pytest.mark.parametrize(
    'text, value',
    [
        ('inf', math.inf),
        ('-inf', -math.inf),
        ("float('-inf')", -math.inf),
        ('[inf, dict(a=(-inf, 1))]', [math.inf, dict(a=(-math.inf, 1))]),
        ("{'a.b': {'c d': inf}}", {'a.b': {'c d': math.inf}}),
        ("{inf: 'never'}", {math.inf: 'never'}),
        ('+1', 1),
        ('set()', set()),
        ("'im' 'plicit'", 'implicit'),
        ('(1,)', (1,)),
    ],
)
def test_values_are_read(text, value):
    assert read_config_text(f'a = {text}', 'file').a == value


@pytest.mark.parametrize('text', ['nan', "float('nan')", '-nan'])
def test_what_is_no_number_is_read(text):
    assert math.isnan(read_config_text(f'a = {text}', 'file').a)


def test_assignments_count_as_in_python():
    text = '"""Docs."""\na = b = 1\nb = 2\n'
    assert read_config_text(text, 'file').to_dict() == dict(a=1, b=2)


#: What would leave a mark if it was run.
HOSTILE = [
    "open({mark!r}, 'w')",
    "__import__('os').system('touch {mark}')",
    "[x for x in [open({mark!r}, 'w')]]",
    "(lambda: open({mark!r}, 'w'))()",
    "dict(a=open({mark!r}, 'w'))",
    "dict(**open({mark!r}, 'w'))",
    "dict([open({mark!r}, 'w')])",
    "{{**open({mark!r}, 'w')}}",
    "{{open({mark!r}, 'w')}}",
    "{{open({mark!r}, 'w'): 1}}",
    "-open({mark!r}, 'w')",
    "1 + open({mark!r}, 'w')",
    "float(open({mark!r}, 'w'))",
    "set(open({mark!r}, 'w'))",
    'f"{{open({mark!r}, chr(119))}}"',
    "[1][open({mark!r}, 'w')]",
    "1 if open({mark!r}, 'w') else 2",
    "open({mark!r}, 'w') or 1",
    "(a := open({mark!r}, 'w'))",
]


@pytest.mark.parametrize('hostile', HOSTILE)
def test_code_in_a_value_is_not_run(hostile, tmp_path):
    mark = tmp_path / 'mark'
    code = hostile.format(mark=str(mark))
    text = f'fine = 3\nmodel = dict(type="Net", depth={code})\n'
    cfg = read_config_text(text, 'epoch_1.pth')
    assert cfg.fine == 3 and cfg.model.type == 'Net'
    with pytest.raises(ValueError, match=r'epoch_1\.pth') as caught:
        check_readable(cfg, 'epoch_1.pth')
    assert 'model.depth' in str(caught.value)
    assert 'Give the config of the run' in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    'line',
    [
        *HOSTILE,
        'import os',
        'def f(): pass',
        'class A: pass',
        'for a in [1]: pass',
        'with a: pass',
        'del a',
        'a += 1',
        'a: int = 3',
        'a.b = 3',
        "a['b'] = 3",
        'a, b = 1, 2',
        'raise SystemExit',
        'assert False',
    ],
)
def test_code_between_settings_is_refused(line, tmp_path):
    mark = tmp_path / 'mark'
    line = line.format(mark=str(mark)) if 'mark' in line else line
    with pytest.raises(ValueError, match='line 2 of it.*is not run'):
        read_config_text(f'a = 1\n{line}\n', 'file')
    assert not mark.exists()


@pytest.mark.parametrize(
    'text',
    [
        'no (python',
        'a = [' * 300,
        'a = ' + '-' * 200_000 + '1',
        'a = x' + '.a' * 100_000,
        'a = 1' + '+1' * 100_000,
        'a = 1\0',
        'a = 0777',
        'filename = 3',
        'a = ' + '9' * 5000,
    ],
)
def test_texts_that_are_no_config_are_refused(text):
    with pytest.raises(ValueError, match='recorded in file cannot be used'):
        read_config_text(text, 'file')


def test_what_mmengine_would_write_as_code_is_not_read():
    # It writes keys between quotes as they are, and replaces what is between
    # braces by variables of the environment.
    text = """a = {"x': print(1), 'y": 1}\nb = "{{ $HOME:x }}"\nc = 1"""
    cfg = read_config_text(text, 'file')
    assert isinstance(cfg.a, Unreadable) and isinstance(cfg.b, Unreadable)
    assert cfg.c == 1


# --------------------------------------------------------------------- types


@pytest.mark.parametrize(
    'name',
    [
        'ResNet',
        'mmpretrain.ResNet',
        'mmpretrain.models.ResNet',
        'mmpretrain.models.backbones.resnet.ResNet',
        'mmengine.LoggerHook',
        'mmengine.hooks.LoggerHook',
        'torch.optim.SGD',
        'mmcv.transforms.LoadImageFromFile',
    ],
)
def test_registered_parts_may_be_named(name):
    check_registered(dict(model=[dict(type=name)]), 'file')


@pytest.mark.parametrize(
    'name',
    [
        'os.system',
        'posix.system',
        'subprocess.run',
        'torch.load',
        'torch.hub.load',
        'builtins.eval',
        'mmengine.dump',
        'mmengine.fileio.dump',
        'mmengine.Config.fromfile',
        'mmpretrain.get_model',
        'mmpretrain.no_such_thing',
        'mmcakd.utils.files.write_text',
        'nowhere.at.all',
    ],
)
def test_anything_else_is_not_built(name):
    # MMEngine would call it.
    cfg = dict(model=dict(parts=[dict(type=name)]))
    with pytest.raises(ValueError, match='is not registered') as caught:
        check_registered(cfg, 'epoch_1.pth')
    for told in (name, 'model.parts[0].type', 'epoch_1.pth'):
        assert told in str(caught.value)


def test_nothing_is_imported_to_look_for_a_type(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'unseen.py').write_text('raise SystemExit')
    with pytest.raises(ValueError, match='is not registered'):
        check_registered(dict(type='unseen.Thing'), 'file')
    assert 'unseen' not in sys.modules


# -------------------------------------------------------------------- export


@pytest.fixture
def save_run(tiny, tmp_path):
    """Write what a run leaves, with another text as its config."""

    def save(change=lambda text: text, **settings):
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                data_preprocessor=dict(num_classes=tiny.classes),
                model=dict(
                    type='mmcakd.CrossArchDistill',
                    architecture=tiny.classifier(tiny.resnet()),
                ),
            )
            | settings
        )
        student = tiny.build(cfg.model.architecture)
        weights = {
            f'architecture.{key}': value
            for key, value in student.state_dict().items()
        }
        path = tmp_path / 'epoch_1.pth'
        meta = dict(cfg=change(cfg.pretty_text))
        torch.save(dict(meta=meta, state_dict=weights), path)
        return path

    return save


def test_student_of_a_run_with_infinite_settings_is_exported(save_run):
    clip = dict(clip_grad=dict(max_norm=math.inf))
    hook = dict(logger=dict(type='LoggerHook', interval=math.inf))
    for change in (
        lambda text: text,
        # As it was written before.
        lambda text: text.replace("float('inf')", 'inf'),
    ):
        path = save_run(change, optim_wrapper=clip, default_hooks=hook)
        out = export_student(path)
        plain = Config.fromfile(out.with_suffix('.py'))
        assert plain.default_hooks.logger.interval == math.inf


def test_what_an_export_does_not_need_may_be_unreadable(save_run):
    path = save_run(lambda text: f'{text}\nhook = [lambda runner: 3]\n')
    assert export_student(path).is_file()


def test_what_an_export_needs_is_named(save_run):
    path = save_run(lambda text: text.replace('depth=18', 'depth=9 * 2'))
    with pytest.raises(ValueError, match='architecture.backbone.depth'):
        export_student(path)


def test_export_builds_nothing_but_registered_parts(save_run, tmp_path):
    mark = tmp_path / 'mark'
    path = save_run()
    checkpoint = torch.load(path)
    checkpoint['meta']['cfg'] = (
        'model = dict(type="mmcakd.CrossArchDistill", architecture=dict('
        f'type="os.system", command="touch {mark}"))'
    )
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"'os\.system'.*not registered"):
        export_student(path)
    assert not mark.exists()


def test_modules_that_a_run_imports_may_register_parts(save_run, monkeypatch):
    from mmpretrain.models import ResNet
    from mmpretrain.registry import MODELS

    module = ModuleType('own_networks')

    class OwnResNet(ResNet):
        pass

    module.OwnResNet = OwnResNet
    OwnResNet.__module__ = 'own_networks'
    monkeypatch.setitem(sys.modules, 'own_networks', module)
    monkeypatch.setitem(MODELS.module_dict, 'OwnResNet', OwnResNet)
    imports = dict(imports=['own_networks'], allow_failed_imports=False)
    path = save_run(
        lambda text: text.replace("'ResNet'", "'own_networks.OwnResNet'"),
        custom_imports=imports,
    )
    assert export_student(path).is_file()


@pytest.mark.parametrize(
    'settings',
    [
        'model = 3',
        'model = dict(architecture=7)',
        'model = []',
        'lr = 3',
        'model = dict(architecture=dict())\ndefault_hooks = 5',
        'model = dict(architecture=dict(type=3))',
    ],
)
def test_configs_of_another_form_are_refused(settings, save_run):
    with pytest.raises((ValueError, RuntimeError, TypeError, KeyError)):
        export_student(save_run(lambda text: settings))
