"""Every distillation config that comes with MMRazor.

They are read as a user would change them: `mmcls` is `mmpretrain` now, the
algorithm is `mmcakd.CrossArchDistill`, and no weights are downloaded.
"""

import ast
import os
import shutil
from contextlib import suppress
from pathlib import Path

import mmrazor
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmpretrain.structures import DataSample

from mmcakd.models.distillers import CrossArchDistiller
from mmcakd.models.teachers import build_model
from mmcakd.registry import MODELS

CONFIGS = Path(mmrazor.__file__).parent / '.mim' / 'configs' / 'distill'
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob('*.py')
    if path.parent.name != 'datasets'
)
GUIDE = (Path(__file__).parents[3] / 'docs' / 'guide.md').read_text()

#: Algorithms of which mmcakd's is another form; and those that are no
#: distillation from one teacher, which stay MMRazor's.
REPLACED = ('SingleTeacherDistill', 'FpnTeacherDistill')
OTHERS = (
    'SelfDistill',
    'DataFreeDistillation',
    'DAFLDataFreeDistillation',
    'OverhaulFeatureDistillation',
)


def is_named(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == 'model'


def own_model(path: Path) -> dict:
    """Read type and distiller of a config without those it inherits."""
    scope: dict = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and is_named(node.targets[0]):
            node.value.keywords = [
                keyword
                for keyword in node.value.keywords
                if keyword.arg in ('type', 'distiller')
            ]
        code = compile(ast.Module([node], []), str(path), 'exec')
        # Some lines need what they inherit.
        with suppress(NameError, AttributeError):
            exec(code, scope)
    return scope.get('model', {})


MODELS_OF = {name: own_model(CONFIGS / name) for name in NAMES}


@pytest.mark.parametrize(
    'name',
    # The others change one that they inherit.
    [name for name, own in MODELS_OF.items() if own.get('type') in REPLACED],
)
def test_distiller_is_read(name):
    distiller = dict(MODELS_OF[name]['distiller'])
    assert distiller.pop('type') == 'ConfigurableDistiller'
    distiller = MODELS.build(
        dict(type='mmcakd.CrossArchDistiller', **distiller)
    )
    assert isinstance(distiller, CrossArchDistiller)
    assert len(distiller.distill_losses) > 0


def test_nothing_is_left_out():
    assert len(NAMES) > 25
    read = {own.get('type') for own in MODELS_OF.values()}
    assert read - {None} == {*REPLACED, *OTHERS}
    for name in (*REPLACED, *OTHERS):
        assert f'`{name}`' in GUIDE


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The configs for classifiers, with the name that MMPretrain has now."""
    folder = tmp_path_factory.mktemp('configs')
    shutil.copytree(CONFIGS / 'mmcls', folder, dirs_exist_ok=True)
    for path in folder.rglob('*.py'):
        path.write_text(path.read_text().replace('mmcls', 'mmpretrain'))
    return folder


CLASSIFIERS = [
    name.removeprefix(f'mmcls{os.sep}')
    for name in NAMES
    if name.startswith('mmcls')
    # The base of one was renamed: its parts are in tests/test_compat.py.
    and not name.partition(os.sep)[2].startswith('deit')
    and MODELS_OF[name].get('type') not in OTHERS
]


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_classifiers_learn_a_step(name, folder):
    init_default_scope('mmpretrain')
    model = ConfigDict(Config.fromfile(folder / name).model)
    assert model.pop('type') == 'SingleTeacherDistill'
    for key in ('_scope_', 'teacher_ckpt', 'init_cfg'):
        model.pop(key, None)
    model.teacher.pretrained = False
    model.teacher = build_model(model.teacher, 'teacher')
    model.distiller.type = 'mmcakd.CrossArchDistiller'
    model = MODELS.build(dict(type='mmcakd.CrossArchDistill', **model)).train()
    samples = [DataSample().set_gt_label(index) for index in range(4)]
    for index, sample in enumerate(samples):
        # What the data set of CRD adds.
        others = torch.arange(index, index + 16385)
        sample.set_data(
            dict(sample_idx=torch.tensor(index), contrast_sample_idxs=others)
        )
    losses = model(torch.rand(4, 3, 32, 32), samples, mode='loss')
    total, _ = model.parse_losses(losses)
    assert [key for key in losses if key.startswith('distill.')]
    total.backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    assert any(p.grad.abs().sum() > 0 for p in trained)
