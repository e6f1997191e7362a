"""Schedules for other numbers of epochs, and those that do not fit."""

import pytest
from mmengine.config import Config
from mmengine.optim import LinearLR

from mmcakd.engine import check_schedule, rescale_epochs

WARMUP = dict(type='LinearLR', start_factor=0.1, end=5)
COSINE = dict(type='CosineAnnealingLR', begin=5)


def run(max_epochs: int, *schedulers, **kwargs) -> Config:
    train_cfg = dict(by_epoch=True, max_epochs=max_epochs)
    train_cfg |= kwargs.pop('train_cfg', {})
    return Config(
        dict(train_cfg=train_cfg, param_scheduler=list(schedulers)) | kwargs
    )


# ------------------------------------------------------------------ rescaling


@pytest.mark.parametrize('epochs', [50, 20, 200])
def test_all_phases_keep_their_shares(epochs):
    cfg = run(
        100,
        WARMUP,
        COSINE | dict(end=90, T_max=85),
        dict(type='ConstantLR', factor=1.0, begin=90),
        train_cfg=dict(val_interval=20, val_begin=40),
    )
    rescale_epochs(cfg, epochs)
    scale = epochs / 100
    warmup, cosine, rest = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == epochs
    assert warmup.end == cosine.begin == round(5 * scale)
    assert cosine.end == rest.begin == round(90 * scale)
    assert cosine.T_max == cosine.end - cosine.begin
    assert cfg.train_cfg.val_interval == min(20, epochs)
    assert cfg.train_cfg.val_begin == round(40 * scale)
    check_schedule(cfg)


def test_steps_of_a_schedule_move_and_none_is_lost():
    step = dict(type='MultiStepLR', milestones=[30, 60, 90])
    cfg = run(100, dict(step))
    rescale_epochs(cfg, 40)
    assert cfg.param_scheduler[0].milestones == [12, 24, 36]
    cfg = run(100, dict(step))
    rescale_epochs(cfg, 1)
    # MMEngine multiplies as often as an epoch is named.
    assert cfg.param_scheduler[0].milestones == [1, 1, 1]


@pytest.mark.parametrize(
    ('scheduler', 'key', 'expected'),
    [
        (dict(type='StepLR', step_size=10), 'step_size', 5),
        (dict(type='OneCycleLR', total_steps=60), 'total_steps', 30),
        (dict(type='CosineRestartLR', periods=[20, 40]), 'periods', [10, 20]),
        (dict(type='CosineAnnealingLR', T_max=30), 'T_max', 15),
        (dict(type='CosineAnnealingLR', T_max=60, end=60), 'T_max', 30),
        # Steps, which are twice as few in half the epochs.
        (dict(type='LinearLR', by_epoch=False, end=500), 'end', 250),
        (dict(type='PolyLR', end=10**9), 'end', 10**9),
    ],
)
def test_lengths_of_every_scheduler(scheduler, key, expected):
    cfg = run(60, scheduler)
    rescale_epochs(cfg, 30)
    assert cfg.param_scheduler[0][key] == expected


def test_warm_up_without_an_epoch_is_dropped():
    cfg = run(100, WARMUP, COSINE)
    rescale_epochs(cfg, 3)
    (cosine,) = cfg.param_scheduler
    assert (cosine.type, cosine.begin) == ('CosineAnnealingLR', 0)


def test_schedules_of_several_optimizers():
    cfg = run(10)
    cfg.param_scheduler = dict(
        student=[dict(WARMUP), dict(COSINE)],
        discriminator=dict(type='MultiStepLR', milestones=[8]),
    )
    rescale_epochs(cfg, 20)
    student, discriminator = cfg.param_scheduler.values()
    assert [s.get('end') for s in student] == [10, None]
    assert discriminator[0].milestones == [16]


def test_hooks_act_at_their_share_of_the_epochs():
    cfg = run(
        100,
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=50),
            ramp=dict(
                type='mmcakd.LossWeightScheduleHook',
                points=[(25, 0.0), (35, 0.2)],
            ),
            logger=None,
        ),
        custom_hooks=[
            dict(type='mmrazor.StopDistillHook', stop_epoch=80),
            dict(type='EMAHook', begin_epoch=2),
            dict(
                type='SwitchRecipeHook',
                schedule=[dict(action_epoch=30), dict(action_epoch=90)],
            ),
            dict(type='mmdet.YOLOXModeSwitchHook', num_last_epochs=15),
            dict(type='mmdet.PipelineSwitchHook', switch_epoch=90),
        ],
        train_cfg=dict(dynamic_intervals=[(90, 1)]),
    )
    rescale_epochs(cfg, 20)
    assert cfg.default_hooks.checkpoint.interval == 20
    assert cfg.default_hooks.ramp.points == [(5, 0.0), (7, 0.2)]
    stop, ema, switch, mode, pipeline = cfg.custom_hooks
    assert stop.stop_epoch == 16
    assert ema.begin_epoch == 0
    assert [a.action_epoch for a in switch.schedule] == [6, 18]
    assert mode.num_last_epochs == 3
    assert pipeline.switch_epoch == 18
    assert cfg.train_cfg.dynamic_intervals == [(18, 1)]


def test_same_number_of_epochs_changes_nothing():
    schedulers = (WARMUP, COSINE | dict(T_max=95))
    cfg = run(100, *map(dict, schedulers))
    rescale_epochs(cfg, 100)
    assert cfg.to_dict() == run(100, *schedulers).to_dict()


def test_runs_that_count_steps_are_not_rescaled():
    cfg = Config(dict(train_cfg=dict(by_epoch=False, max_iters=1000)))
    with pytest.raises(ValueError, match='counts steps; set train_cfg.max_it'):
        rescale_epochs(cfg, 3)
    with pytest.raises(ValueError, match='positive, got 0'):
        rescale_epochs(run(10), 0)


# ------------------------------------------------------------------- checking


@pytest.mark.parametrize(
    ('schedulers', 'problem'),
    [
        ([WARMUP, COSINE], 'LinearLR warms up until epoch 5, .* at epoch 4'),
        ([dict(WARMUP, type=LinearLR)], 'LinearLR warms up until epoch 5'),
        ([dict(type='mmengine.ConstantLR', end=6)], 'ConstantLR warms up'),
        ([dict(type='MultiStepLR', begin=4)], 'MultiStepLR begins at epoch 4'),
        (dict(student=dict(WARMUP)), 'warms up until epoch 5'),
    ],
)
def test_schedule_that_is_longer_than_training(schedulers, problem):
    cfg = run(4)
    cfg.param_scheduler = schedulers
    with pytest.raises(ValueError, match=problem) as caught:
        check_schedule(cfg)
    assert '--epochs' in str(caught.value)


@pytest.mark.parametrize(
    'schedulers',
    [
        [],
        None,
        [dict(WARMUP, end=3), dict(COSINE, begin=3)],
        # It falls, and so may be cut off.
        [dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=9)],
        [dict(type='CosineAnnealingLR', T_max=9)],
        [dict(type='MultiStepLR', milestones=[8])],
        # Whether 500 steps are too many depends on the data.
        [dict(WARMUP, by_epoch=False, end=500)],
    ],
)
def test_schedules_that_fit(schedulers):
    cfg = run(4)
    cfg.param_scheduler = schedulers
    check_schedule(cfg)


def test_steps_are_checked_where_training_is_counted_in_steps():
    cfg = Config(
        dict(
            train_cfg=dict(by_epoch=False, max_iters=400),
            param_scheduler=[dict(WARMUP, by_epoch=False, end=500)],
        )
    )
    with pytest.raises(ValueError, match='until step 500, .* at step 400'):
        check_schedule(cfg)
    check_schedule(Config(dict(model=dict(type='ResNet'))))
