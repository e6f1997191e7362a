"""Students, and configs that take their backbone."""

from collections.abc import Callable

import pytest
import torch
from mmengine.config import Config

from mmcakd.registry import MODELS
from mmcakd.utils import read_downstream_config
from mmcakd.utils.downstream import plan_run

INIT = dict(type='Pretrained', checkpoint='student.pth', prefix='backbone.')


@pytest.fixture(scope='session')
def save() -> Callable:
    """Save a classifier as it is exported; return the file."""

    def write(model: dict, path, spoil=lambda weights: None):
        weights = MODELS.build(model).state_dict()
        spoil(weights)
        meta = dict(cfg=Config(dict(model=model)).pretty_text)
        torch.save(dict(meta=meta, state_dict=weights), path)
        return path

    return write


@pytest.fixture
def student(save, tiny, tmp_path):
    return save(tiny.classifier(tiny.resnet()), tmp_path / 'student.pth')


@pytest.fixture
def read(tmp_path):
    """Write a config with this backbone, and read it."""

    def make(backbone: dict, init_cfg=INIT, **kwargs) -> Config:
        backbone = dict(backbone, type=f'mmpretrain.{backbone["type"]}')
        cfg = dict(
            default_scope='mmpretrain',
            model=dict(type='Detector', backbone=backbone),
            val_evaluator=dict(type='Accuracy'),
        )
        if init_cfg is not None:
            backbone['init_cfg'] = init_cfg
        path = tmp_path / 'detector.py'
        Config(cfg | kwargs).dump(path)
        return read_downstream_config(path)

    return make


@pytest.fixture
def run(student, tmp_path):
    return plan_run('student', str(student), 3, tmp_path / 'runs')
