import pytest
from mmengine.config import Config

from mmcakd.utils import (
    read_downstream_config,
)
from mmcakd.utils.downstream import (
    config,
    revert_sync_bn,
)


def test_missing_packages_name_the_cure(read, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(config, 'find_spec', lambda name: None)
    cure = 'bash tools/setup_downstream.sh'
    for scope in ('mmdet', 'mmseg'):
        with pytest.raises(ImportError, match=f'{scope} is not.*{cure}'):
            read(tiny.resnet(), default_scope=scope)
    path = tmp_path / 'inherits.py'
    path.write_text("_base_ = 'mmyolo::_base_/x.py'")
    with pytest.raises(ImportError, match=f'mmyolo.*{cure}'):
        read_downstream_config(path)
    # mmcv-lite
    monkeypatch.setattr(
        config, 'find_spec', lambda name: name != 'mmcv._ext' or None
    )
    with pytest.raises(ImportError, match=f'without its operators.*{cure}'):
        read(tiny.resnet(), default_scope='mmdet')


def test_weights_that_would_replace_the_student_s_are_refused(read, tiny):
    with pytest.raises(ValueError, match='load_from'):
        read(tiny.resnet(), load_from='detector.pth')


def test_a_config_that_does_not_evaluate_is_refused(read, tiny):
    with pytest.raises(ValueError, match='val_evaluator'):
        read(tiny.resnet(), val_evaluator=None)


def test_batch_norm_is_reverted_wherever_it_is():
    cfg = Config(
        dict(
            model=dict(
                backbone=dict(norm_cfg=dict(type='SyncBN', eps=1e-3)),
                heads=[dict(norm_cfg=dict(type='SyncBN')), dict(type='X')],
            )
        )
    )
    assert revert_sync_bn(cfg)
    assert cfg.model.backbone.norm_cfg == dict(type='BN', eps=1e-3)
    assert cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model.heads[1].type == 'X'
    assert not revert_sync_bn(cfg)
