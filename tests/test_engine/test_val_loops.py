"""MMRazor's validation of a student and its teacher, in a run."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.evaluation import Accuracy

BOTH = 'mmrazor.SingleTeacherDistillValLoop'
STUDENT = 'mmrazor.SelfDistillValLoop'
#: Not those of the student.
OWN = dict(
    type='mmpretrain.ClsDataPreprocessor',
    mean=[100.0, 90.0, 110.0],
    std=[40.0, 50.0, 60.0],
    to_rgb=False,
)


class Watch(Hook):
    """Count the hooks of a validation and keep its metrics."""

    def __init__(self):
        self.calls = dict(before_val_epoch=0, after_val_epoch=0, iters=0)
        self.metrics = []

    def before_val_epoch(self, runner):
        self.calls['before_val_epoch'] += 1

    def after_val_iter(self, runner, batch_idx, data_batch, outputs):
        self.calls['iters'] += 1

    def after_val_epoch(self, runner, metrics=None):
        self.calls['after_val_epoch'] += 1
        self.metrics.append(dict(metrics))


@pytest.fixture
def run(short_run, tiny):
    """Train an epoch with a validation loop; return the runner."""

    def train(name: str, loop: str | None = None, **kwargs):
        teacher = tiny.classifier(tiny.swin(), data_preprocessor=OWN)
        torch.manual_seed(0)
        cfg = short_run(
            name,
            model=tiny.distillation(
                teacher=teacher, distiller=tiny.logit_kd()
            ),
            val_cfg=dict(type=loop) if loop else dict(),
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            **kwargs,
        )
        runner = Runner.from_cfg(cfg)
        runner.watch = Watch()
        runner.register_hook(runner.watch)
        runner.train()
        return runner

    return train


def test_student_and_teacher_are_validated(run):
    runner = run('both', BOTH)
    watch = runner.watch
    # Once a validation, and once a batch of the student: 10 images by 4.
    assert watch.calls == dict(before_val_epoch=2, after_val_epoch=2, iters=6)
    assert all(
        set(metrics) == {'accuracy/top1', 'teacher.accuracy/top1'}
        for metrics in watch.metrics
    )
    # The teacher by itself, as its own config prepares the images.
    teacher = runner.model.teacher.model
    accuracy = Accuracy(topk=(1,))
    for batch in runner.val_dataloader:
        accuracy.process(
            batch, [sample.to_dict() for sample in teacher.val_step(batch)]
        )
    alone = accuracy.evaluate(10)['accuracy/top1']
    found = [metrics['teacher.accuracy/top1'] for metrics in watch.metrics]
    assert found == [alone, alone]
    assert runner.val_loop.run()['teacher.accuracy/top1'] == alone


def test_teacher_predicts_what_it_predicts_alone(run, image_folder):
    runner = run('both', BOTH)
    teacher = runner.model.teacher
    for batch in runner.val_dataloader:
        alone = [sample.pred_score for sample in teacher.model.val_step(batch)]
        found = [sample.pred_score for sample in teacher.val_step(batch)]
        assert torch.allclose(
            torch.stack(found), torch.stack(alone), atol=1e-5
        )
    assert torch.stack(alone).std(0).max() > 1e-4


def test_teacher_in_training_mode_is_validated_in_eval_mode(tiny):
    model = tiny.build_distillation(
        teacher=tiny.classifier(tiny.swin(drop_rate=0.9)),
        distiller=tiny.logit_kd(),
        teacher_mode='train',
    )
    images, samples = tiny.batch()
    data = dict(inputs=images, data_samples=samples)
    scores = [
        torch.stack([s.pred_score for s in model.teacher.val_step(data)])
        for _ in range(2)
    ]
    assert torch.equal(*scores)
    assert model.teacher.training


@pytest.mark.parametrize('loop', [BOTH, STUDENT])
def test_validation_does_not_change_what_is_trained(run, loop):
    ema = [dict(type='EMAHook', momentum=0.5)]
    plain = run('plain', custom_hooks=ema)
    other = run('other', loop, custom_hooks=ema)
    expected = plain.model.state_dict()
    for key, value in other.model.state_dict().items():
        assert torch.equal(value, expected[key]), key
    # And the same was validated: the averaged student.
    for ours, theirs in zip(
        other.watch.metrics, plain.watch.metrics, strict=True
    ):
        key = 'student.accuracy/top1' if loop == STUDENT else 'accuracy/top1'
        assert ours[key] == theirs['accuracy/top1']


@pytest.mark.parametrize('loop', ['SlimmableValLoop', 'SubnetValLoop'])
def test_loops_of_other_algorithms_are_refused(run, loop):
    hook = [dict(type='mmcakd.TrainingSetHook')]
    with pytest.raises(ValueError, match=f'val_cfg.type is {loop}.*{BOTH}'):
        run('run', f'mmrazor.{loop}', custom_hooks=hook)
