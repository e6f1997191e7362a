"""The student is exported, or what would prevent it is said before."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmcakd.engine.hooks import ExportStudentHook

TWO = ['accuracy/top1', 'single-label/f1-score']


def test_hook_without_checkpoints_is_refused_before_training():
    with pytest.raises(ValueError, match='CheckpointHook'):
        ExportStudentHook().before_train(SimpleNamespace(hooks=[]))


def runner_with(*hooks: CheckpointHook, **loop) -> SimpleNamespace:
    """What the hook reads of a Runner that validates."""
    train_loop = SimpleNamespace(**dict(max_iters=9, val_begin=1) | loop)
    return SimpleNamespace(
        hooks=[*hooks], train_loop=train_loop, val_loop=object()
    )


@pytest.mark.parametrize(
    ('which', 'save_best', 'cure'),
    [
        ('best', None, 'needs default_hooks.checkpoint.save_best'),
        ('accuracy/top1', None, 'needs default_hooks.checkpoint.save_best'),
        ('best', TWO, "top1, single.*f1-score; say .*which='accuracy/top1'"),
        ('accuracy/top5', TWO, "accuracy/top5.*take one of them, 'best'"),
        ('accuracy/top1', 'auto', 'auto alone'),
    ],
)
def test_best_that_nobody_can_tell_is_refused(which, save_best, cure):
    checkpoints = CheckpointHook(save_best=save_best, rule='greater')
    with pytest.raises(ValueError, match=cure):
        ExportStudentHook(which).before_train(runner_with(checkpoints))


@pytest.mark.parametrize(
    ('which', 'save_best'),
    [
        ('last', None),
        ('last', TWO),
        ('best', 'auto'),
        ('best', 'accuracy/top1'),
        ('single-label/f1-score', TWO),
    ],
)
def test_best_that_is_clear_is_accepted(which, save_best):
    checkpoints = CheckpointHook(save_best=save_best, rule='greater')
    ExportStudentHook(which).before_train(runner_with(checkpoints))


def test_two_hooks_with_a_best_are_refused():
    hooks = [CheckpointHook(save_best='auto') for _ in range(2)]
    with pytest.raises(ValueError, match='no other CheckpointHook'):
        ExportStudentHook('best').before_train(runner_with(*hooks))
    ExportStudentHook().before_train(runner_with(*hooks))


def test_best_without_validation_is_refused():
    runner = runner_with(CheckpointHook(save_best='auto'), val_begin=10)
    with pytest.raises(ValueError, match='val_begin within the training'):
        ExportStudentHook('best').before_train(runner)
    runner.train_loop.val_begin, runner.val_loop = 1, None
    with pytest.raises(ValueError, match='set val_cfg'):
        ExportStudentHook('best').before_train(runner)


def test_checkpoints_of_another_machine_are_refused():
    runner = runner_with(CheckpointHook(out_dir='s3://bucket/runs'))
    with pytest.raises(ValueError, match=r's3://bucket/runs: remove'):
        ExportStudentHook().before_train(runner)


# -------------------------------------------------------------- in a run


@pytest.fixture
def exported(short_run, tiny):
    """Train, and read the student and the model it was taken from."""

    def run(which: str = 'last', **kwargs) -> tuple[dict, Runner]:
        checkpoint = kwargs.pop('checkpoint', {})
        hooks = dict(
            checkpoint=dict(type='CheckpointHook', interval=1) | checkpoint,
            export=dict(type='mmcakd.ExportStudentHook', which=which),
        )
        cfg = short_run(
            model=tiny.distillation(distiller=tiny.logit_kd()),
            default_hooks=hooks,
            **kwargs,
        )
        runner = Runner.from_cfg(cfg)
        runner.train()
        student = torch.load(f'{cfg.work_dir}/student.pth', weights_only=False)
        return student, runner

    return run


def assert_is_of_now(student: dict, runner: Runner) -> None:
    weights = runner.model.architecture.state_dict()
    assert student['state_dict'].keys() == weights.keys()
    for key, value in weights.items():
        assert torch.equal(student['state_dict'][key], value), key


def test_run_that_stops_early_between_checkpoints(exported):
    stop = dict(type='EarlyStoppingHook', monitor='accuracy/top1')
    student, runner = exported(
        checkpoint=dict(interval=10),
        custom_hooks=[stop | dict(patience=1, min_delta=200.0)],
        train_cfg=dict(by_epoch=True, max_epochs=9),
    )
    assert runner.epoch == student['meta']['epoch'] == 2
    assert_is_of_now(student, runner)
    # It can be gone on with, too.
    assert 'optimizer' in torch.load(
        f'{runner.work_dir}/epoch_2.pth', weights_only=False
    )


def test_run_by_iterations_whose_last_is_not_saved(exported, short_run):
    student, runner = exported(
        checkpoint=dict(by_epoch=False, interval=4, save_last=False),
        train_cfg=dict(by_epoch=False, max_iters=7, val_interval=7),
        param_scheduler=None,
    )
    assert student['meta']['iter'] == 7
    assert_is_of_now(student, runner)


def test_checkpoints_in_another_folder(exported, tmp_path):
    student, runner = exported(
        which='best',
        checkpoint=dict(out_dir=str(tmp_path / 'out'), save_best='auto'),
        train_cfg=dict(by_epoch=True, max_epochs=1),
    )
    assert_is_of_now(student, runner)
    (best,) = (tmp_path / 'out' / 'run').glob('best_*.pth')
    assert 'last_checkpoint' not in str(best)


@pytest.mark.parametrize(('which', 'epoch'), [(TWO[0], 2), (TWO[1], 1)])
def test_best_by_the_metric_that_is_named(exported, monkeypatch, which, epoch):
    from mmpretrain.evaluation import Accuracy, SingleLabelMetric

    def follow(metric: type, name: str, values: list[float]) -> None:
        values = iter(values)
        monkeypatch.setattr(
            metric,
            'compute_metrics',
            lambda self, results: {name: next(values)},
        )

    follow(Accuracy, 'top1', [10.0, 50.0, 20.0])
    follow(SingleLabelMetric, 'f1-score', [80.0, 10.0, 30.0])
    student, _ = exported(
        which=which,
        checkpoint=dict(save_best=TWO, rule='greater'),
        val_evaluator=[dict(type='Accuracy'), dict(type='SingleLabelMetric')],
        train_cfg=dict(by_epoch=True, max_epochs=3),
    )
    assert student['meta']['epoch'] == epoch
