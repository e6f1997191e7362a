"""Configs by name, from a file, and in pure Python."""

import runpy
import sys
from pathlib import Path

import cv2
import mmengine.logging
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import Runner
from mmpretrain import get_model
from mmpretrain.models import (
    GlobalAveragePooling,
    ImageClassifier,
    LinearClsHead,
    ResNet,
)
from mmrazor.models.losses import L1Loss
from mmrazor.models.task_modules import (
    FunctionOutputsDelivery,
    ModuleOutputsRecorder,
)

from mmcakd.models.algorithms import CrossArchDistill
from mmcakd.models.connectors import FitNetConnector
from mmcakd.models.distillers import CrossArchDistiller
from mmcakd.models.losses import MSELoss, SoftTargetLoss
from mmcakd.models.recorders import LogitsRecorder, StageOutputsRecorder
from mmcakd.models.teachers import build_model, find_scope
from mmcakd.registry import MODELS
from mmcakd.utils import export_student, read_config, student_config

REPO = Path(__file__).resolve().parents[2]

#: A distillation in which classes stand for names, and its data in a file of
#: its own.
LAZY_BASE = """
from mmengine.dataset import DefaultSampler, default_collate
from mmpretrain.datasets import (
    CustomDataset, LoadImageFromFile, PackInputs, Resize)
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import ClsDataPreprocessor
from torch.optim import SGD

default_scope = 'mmpretrain'
data_preprocessor = dict(
    type=ClsDataPreprocessor, num_classes=5, mean=[127.] * 3, std=[64.] * 3)
pipeline = [
    dict(type=LoadImageFromFile), dict(type=Resize, scale=(64, 64)),
    dict(type=PackInputs)]
train_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=default_collate),
    dataset=dict(type=CustomDataset, data_root='ROOT', data_prefix='train',
                 pipeline=pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=default_collate),
    dataset=dict(type=CustomDataset, data_root='ROOT', data_prefix='val',
                 pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=Accuracy)
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.01))
"""
LAZY = """
from mmengine.config import read_base

with read_base():
    from .base import *

from mmengine.hooks import CheckpointHook
from mmpretrain.models import (
    GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet)

from mmcakd.engine.hooks import ExportStudentHook, SeedByEpochHook
from mmcakd.models.algorithms import CrossArchDistill
from mmcakd.models.classifiers import TorchvisionClassifier
from mmcakd.models.connectors import FitNetConnector
from mmcakd.models.distillers import CrossArchDistiller
from mmcakd.models.losses import MSELoss, SoftTargetLoss
from mmcakd.models.recorders import LogitsRecorder, StageOutputsRecorder

plain = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, stem_channels=4, base_channels=4),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=5, in_channels=32))
recorders = dict(
    logits=dict(type=LogitsRecorder), stages=dict(type=StageOutputsRecorder))
model = dict(
    type=CrossArchDistill,
    architecture=STUDENT,
    teacher=plain,
    teacher_ckpt='TEACHER',
    input_size=64,
    distiller=dict(
        type=CrossArchDistiller,
        student_recorders=recorders,
        teacher_recorders=recorders,
        connectors=dict(
            fit=dict(
                type=FitNetConnector,
                inputs=dict(feature=dict(
                    recorder='stages', from_student=True, data_idx=3)),
                shape_like=dict(
                    recorder='stages', from_student=False, data_idx=3))),
        distill_losses=dict(
            loss_kd=dict(type=SoftTargetLoss), loss_fit=dict(type=MSELoss)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                student=dict(recorder='logits', from_student=True),
                teacher=dict(recorder='logits', from_student=False)),
            loss_fit=dict(
                student=dict(connector='fit'),
                teacher=dict(
                    recorder='stages', from_student=False, data_idx=3)))))
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, interval=1),
    seed=dict(type=SeedByEpochHook))
custom_hooks = [dict(type=ExportStudentHook)]
"""
STUDENTS = dict(
    mmpretrain='plain',
    mmcakd="dict(type=TorchvisionClassifier, model_name='resnet18', "
    'num_classes=5)',
)


@pytest.fixture
def write_lazy(tmp_path, tiny):
    """Write the config above, its images, and the weights of its teacher."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 1)):
        for label in range(5):
            folder = tmp_path / 'images' / split / f'class_{label}'
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{index}.png'), pixels)

    def write(student: str = 'mmpretrain') -> Path:
        net = tiny.build(tiny.classifier(tiny.resnet()))
        teacher = tmp_path / 'teacher.pth'
        torch.save(net.state_dict(), teacher)
        base = LAZY_BASE.replace('ROOT', str(tmp_path / 'images'))
        (tmp_path / 'base.py').write_text(base)
        text = LAZY.replace('STUDENT', STUDENTS[student])
        path = tmp_path / 'lazy.py'
        path.write_text(text.replace('TEACHER', str(teacher)))
        return path

    return write


# ------------------------------------------------------------ reading


def test_config_of_a_package_and_its_file_are_the_same():
    name = 'scalekd/in1k/swin-t_mixer-s16.py'
    file = next((REPO / 'configs').glob('scalekd/**/*.py'))
    name = file.relative_to(REPO / 'configs').as_posix()
    assert read_config(f'mmcakd::{name}').model == read_config(file).model


def test_config_in_pure_python_has_names(write_lazy):
    path = write_lazy()
    cfg = read_config(path)
    assert cfg.model.type == 'mmcakd.models.algorithms.CrossArchDistill'
    assert cfg.optim_wrapper.optimizer.type == 'torch.optim.SGD'
    assert cfg.filename == str(path)
    assert 'SGD' not in cfg
    # As in a checkpoint.
    assert cfg.pretty_text == Config.fromfile(path).pretty_text


def test_config_in_text_is_left_alone(tmp_path):
    path = tmp_path / 'text.py'
    path.write_text("model = dict(type='ImageClassifier')  # a remark\n")
    assert read_config(path).text == Config.fromfile(path).text


def test_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.py'):
        read_config(tmp_path / 'nowhere.py')
    with pytest.raises(FileNotFoundError, match='nowhere.py'):
        read_config('mmcakd::scalekd/nowhere.py')


@pytest.mark.parametrize(
    ('kind', 'scope'),
    [
        (ImageClassifier, 'mmpretrain'),
        (CrossArchDistill, 'mmcakd'),
        ('mmpretrain.models.ImageClassifier', 'mmpretrain'),
        ('mmdet.RetinaNet', 'mmdet'),
        ('ImageClassifier', None),
        ('my_package.models.Net', None),
        (Path, None),
        (None, None),
    ],
)
def test_scope_of_a_type(kind, scope):
    assert find_scope(kind) == scope


# --------------------------------------------- classes instead of names


def net() -> dict:
    return dict(
        type=ImageClassifier,
        backbone=dict(type=ResNet, depth=18, stem_channels=4, base_channels=4),
        neck=dict(type=GlobalAveragePooling),
        head=dict(type=LinearClsHead, num_classes=5, in_channels=32),
    )


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mmrazor'])
def test_classes_stand_for_names_everywhere(tiny, monkeypatch, scope):
    last = [tiny.record('stages', whose, 3) for whose in (True, False)]
    recorders = dict(
        stages=dict(type=StageOutputsRecorder),
        logits=dict(type=LogitsRecorder),
        fc=dict(type=ModuleOutputsRecorder, source='head.fc'),
    )
    one_hot = 'mmpretrain.models.losses.label_smooth_loss.convert_to_one_hot'
    distiller = dict(
        type=CrossArchDistiller,
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_deliveries=dict(
            labels=dict(
                type=FunctionOutputsDelivery,
                max_keep_data=1,
                func_path=one_hot,
            )
        ),
        connectors=dict(
            fit=dict(
                type=FitNetConnector,
                inputs=dict(feature=last[0]),
                shape_like=last[1],
            )
        ),
        distill_losses=dict(
            loss_kd=dict(type=SoftTargetLoss),
            loss_fc=dict(type=L1Loss),
            loss_fit=dict(type=MSELoss),
        ),
        loss_forward_mappings=dict(
            loss_kd=dict(
                student=tiny.record('logits', True),
                teacher=tiny.record('logits', False),
            ),
            loss_fc=dict(
                s_feature=tiny.record('fc', True),
                t_feature=tiny.record('fc', False),
            ),
            loss_fit=dict(student=dict(connector='fit'), teacher=last[1]),
        ),
    )
    said = []
    monkeypatch.setattr(
        mmengine.logging,
        'print_log',
        lambda text, **kwargs: said.append(text),
    )
    with DefaultScope.overwrite_default_scope(scope):
        teacher = build_model(net(), 'teacher')
        model = MODELS.build(
            dict(
                type=CrossArchDistill,
                architecture=net(),
                teacher=teacher,
                distiller=distiller,
                input_size=64,
            )
        )
    assert not [text for text in said if 'Failed to search' in text]
    recorder = model.distiller.student_recorders.get_recorder('logits')
    assert isinstance(recorder, LogitsRecorder)
    assert model.distiller.deliveries.deliveries['labels'].max_keep_data == 1


@pytest.mark.parametrize(
    'name',
    [
        'ModuleOutputs',
        'ModuleOutputsRecorder',
        'mmrazor.ModuleOutputs',
        'mmrazor.models.task_modules.ModuleOutputsRecorder',
    ],
)
def test_recorders_have_many_names(name):
    recorders = dict(fc=dict(type=name, source='head.fc'))
    distiller = CrossArchDistiller(
        student_recorders=recorders, teacher_recorders=recorders
    )
    found = distiller.teacher_recorders.get_recorder('fc')
    assert isinstance(found, ModuleOutputsRecorder)


# ------------------------------------------------------------- whole runs


@pytest.mark.parametrize('student', STUDENTS)
def test_run_in_pure_python_and_its_student(write_lazy, tmp_path, student):
    cfg = Config.fromfile(write_lazy(student))
    cfg.work_dir = str(tmp_path / 'run')
    cfg.experiment_name = f'{tmp_path.name}_{student}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    plain = tmp_path / 'run' / 'student.py'
    text = plain.read_text()
    # What is needed is imported, and nothing else.
    assert ('custom_imports' in text) == (student == 'mmcakd')
    assert 'SeedByEpochHook' not in text
    init_default_scope('mmpretrain')
    model = get_model(str(plain), pretrained=str(plain.with_suffix('.pth')))
    for key, value in runner.model.architecture.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    # Given instead of the recorded one, it is the same.
    out = export_student(
        tmp_path / 'run' / 'epoch_1.pth',
        tmp_path / 'again.pth',
        cfg=read_config(tmp_path / 'lazy.py'),
    )
    again = Config.fromfile(out.with_suffix('.py'))
    assert again.model == Config.fromfile(plain).model


def test_student_of_mmrazor_imports_what_it_needs(tiny):
    student = tiny.classifier(tiny.vit())
    student['head'] = dict(
        type='mmrazor.DeiTClsHead', num_classes=5, in_channels=16
    )
    cfg = Config(dict(model=tiny.distillation(architecture=student)))
    assert student_config(cfg).custom_imports['imports'] == ['mmcakd']


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Run a tool in this process."""

    def run(tool: str, *arguments) -> str:
        path = str(REPO / 'tools' / tool)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        try:
            runpy.run_path(path, run_name='__main__')
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_tools_read_configs_in_pure_python(write_lazy, run_main, tmp_path):
    path = write_lazy()
    out = run_main('analysis_tools/dry_run.py', path)
    assert '20 images' in out and 'PROBLEM' not in out
    run_main('train.py', path, '--work-dir', tmp_path / 'run')
    checkpoint = tmp_path / 'run' / 'epoch_1.pth'
    out = tmp_path / 'metrics.json'
    run_main(
        'test.py', path, checkpoint, '--out', out, '--work-dir', tmp_path / 't'
    )
    assert 'accuracy/top1' in out.read_text()
