"""Published schedules in another number of epochs."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmcakd.engine import check_schedule, rescale_epochs

CONFIGS = Path(__file__).parents[2] / 'configs'

#: One config of each schedule that epochs are counted in.
SCHEDULES = [
    'scalekd/swin-l_mixer-s_in1k',
    'scalekd/swin-l_resnet50_in1k',
    'scalekd/swin-l_resnet50_traditional_in1k',
    'scalekd/swin-l_mobilenetv1_traditional_in1k',
    'scalekd/swin-l_vit-b_in1k',
    'ofakd/swin-t_resnet18_cifar100',
    'ofakd/mixer-b_swin-p_cifar100',
    'ofakd/swin-t_resnet18_in1k',
    'ofakd/resnet50_deit-t_in1k',
    'quickstart/kd',
]


@pytest.mark.parametrize('name', SCHEDULES)
def test_learning_rate_takes_the_same_course(name, learning_rates):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    check_schedule(cfg)
    before = sum(learning_rates(cfg, 2), [])
    rescale_epochs(cfg, cfg.train_cfg.max_epochs // 2)
    check_schedule(cfg)
    after = sum(learning_rates(cfg, 4), [])
    assert len(after) == len(before)
    # All but the steps around those at which it jumps, or is set by epoch.
    differences = sorted(
        abs(a - b) / max(before) for a, b in zip(before, after, strict=True)
    )
    assert differences[int(0.95 * len(differences))] < 0.05


@pytest.mark.parametrize('name', SCHEDULES)
def test_fewer_epochs_than_warm_up_are_refused(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.train_cfg.max_epochs = 1
    schedulers = cfg.param_scheduler
    if isinstance(schedulers, list) and schedulers[0].type == 'LinearLR':
        with pytest.raises(ValueError, match='LinearLR warms up until epoch'):
            check_schedule(cfg)
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    rescale_epochs(cfg, 1)
    check_schedule(cfg)
