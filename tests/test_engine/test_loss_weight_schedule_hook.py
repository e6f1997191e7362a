"""Weights of losses that depend on the epoch."""

from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn

from mmcakd.engine.hooks import LossWeightScheduleHook


def fake_runner(model, loop=EpochBasedTrainLoop):
    return SimpleNamespace(model=model, train_loop=object.__new__(loop))


def test_factor_is_linear_between_points_and_constant_outside():
    # CAKD's public code: r(e) = min(max(e - 25, 0) / 50, 0.2)
    hook = LossWeightScheduleHook(points=[(25, 0.0), (35, 0.2)])
    for epoch in range(120):
        expected = min(max(epoch - 25, 0) / 50, 0.2)
        assert hook.factor(epoch) == pytest.approx(expected)
    steps = LossWeightScheduleHook(points=[(0, 1.0), (4, 3.0), (5, 0.5)])
    assert [steps.factor(e) for e in (0, 1, 4, 5, 9)] == [1, 1.5, 3, 0.5, 0.5]


@pytest.mark.parametrize('points', [[], [(3, 0.1), (1, 0.2)], [(1, 1)] * 2])
def test_points_out_of_order_are_refused(points):
    with pytest.raises(ValueError, match='rising epochs'):
        LossWeightScheduleHook(points)


def test_only_named_losses_are_scheduled(tiny):
    model = tiny.build_distillation()
    losses = model.distiller.distill_losses
    before = {name: loss.loss_weight for name, loss in losses.items()}
    hook = LossWeightScheduleHook([(0, 0.5), (2, 1.5)], ['loss_kd'])
    runner = fake_runner(model)
    hook.before_train(runner)
    for epoch, factor in enumerate([0.5, 1.0, 1.5, 1.5]):
        runner.epoch = epoch
        hook.before_train_epoch(runner)
        for name, loss in losses.items():
            scale = factor if name == 'loss_kd' else 1
            assert loss.loss_weight == pytest.approx(before[name] * scale)


class Weights(Hook):
    """Losses of every step, and their weights."""

    def __init__(self):
        self.seen = []

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        loss = runner.model.distiller.distill_losses['loss_kd']
        value = outputs['distill.loss_kd'].item()
        self.seen.append((loss.loss_weight, value))


def test_resumed_run_goes_on_with_its_weights(short_run, tiny):
    def run(name, epochs, **kwargs):
        cfg = short_run(
            name,
            model=tiny.distillation(distiller=tiny.logit_kd(loss_weight=2.0)),
            custom_hooks=[
                dict(
                    type='mmcakd.LossWeightScheduleHook',
                    points=[(0, 0.0), (2, 1.0)],
                )
            ],
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            param_scheduler=None,
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1)
            ),
            **kwargs,
        )
        runner, weights = Runner.from_cfg(cfg), Weights()
        runner.register_hook(weights)
        runner.train()
        return weights.seen

    unbroken = run('unbroken', 3)
    assert [weight for weight, _ in unbroken] == [0.0] * 5 + [1.0] * 5 + [
        2.0
    ] * 5
    assert [value for _, value in unbroken[:5]] == [0.0] * 5
    assert all(value > 0 for _, value in unbroken[5:])
    first = run('broken', 2)
    assert first + run('broken', 3, resume=True) == unbroken


def test_model_inside_a_wrapper_is_found(tiny):
    model = tiny.build_distillation()
    wrapper = object.__new__(MMDistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    hook = LossWeightScheduleHook([(0, 0.0)])
    runner = fake_runner(wrapper)
    runner.epoch = 0
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    losses = model.distiller.distill_losses.values()
    assert [loss.loss_weight for loss in losses] == [0] * 5


def test_what_cannot_be_scheduled_is_named(tiny):
    model = tiny.build_distillation()
    hook = LossWeightScheduleHook([(0, 0.5)], ['loss_pca'])
    with pytest.raises(ValueError, match="'loss_pca'.*loss_kd"):
        hook.before_train(fake_runner(model))
    model.distiller.distill_losses['loss_kd'] = nn.Identity()
    with pytest.raises(ValueError, match="'loss_kd' with a loss_weight"):
        LossWeightScheduleHook([(0, 0.5)]).before_train(fake_runner(model))
    with pytest.raises(ValueError, match='no distill_losses'):
        LossWeightScheduleHook([(0, 1.0)]).before_train(
            fake_runner(nn.Identity())
        )


def test_loop_without_epochs_is_refused(tiny):
    runner = fake_runner(tiny.build_distillation(), IterBasedTrainLoop)
    with pytest.raises(ValueError, match='by_epoch=True'):
        LossWeightScheduleHook([(0, 0.5)]).before_train(runner)
