"""What is said of recipes that do not fit."""

import re
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from mmengine.runner import Runner

HOOK = dict(type='mmcakd.RecipeCheckHook')


@pytest.fixture
def train(short_run, tmp_path):
    """Train for 15 steps; what was warned of, and the run."""

    def run(name='run', hook=HOOK, keep=None, **kwargs):
        val = dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator'))
        cfg = short_run(name, custom_hooks=[hook], **val | kwargs)
        runner = Runner.from_cfg(cfg)
        if keep is not None:
            runner.register_hook(keep)
        runner.train()
        (log,) = Path(runner.log_dir).glob('*.log')
        warnings = [
            line.partition('WARNING - ')[2]
            for line in log.read_text().splitlines()
            if 'WARNING - The' in line
        ]
        return runner, warnings

    return run


def weighted(tiny, **weights):
    distiller = tiny.scalekd()
    for name, weight in weights.items():
        distiller['distill_losses'][name]['loss_weight'] = weight
    return tiny.distillation(distiller=distiller)


class Keep(Hook):
    """Keep the losses of every step."""

    def before_train(self, runner):
        self.steps = []

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.steps.append({key: float(v) for key, v in outputs.items()})

    def mean(self, name: str) -> float:
        return sum(step[name] for step in self.steps) / len(self.steps)


def test_losses_that_outweigh_the_labels_are_named_once(train, tiny):
    model = weighted(tiny, loss_s3_original=80.0, loss_s4_frequency=60.0)
    keep = Keep()
    _, (losses, _) = train(model=model, keep=keep)
    assert losses.startswith('The label loss, ')
    named = re.findall(r'distill\.(\w+) ([\d.e+]+) \((\d+) times\)', losses)
    assert [name for name, *_ in named] == [
        'loss_s3_original',
        'loss_s4_frequency',
    ]
    # The means of all steps, of which there are fewer than 20.
    assert len(keep.steps) == 15
    label = keep.mean('student.loss')
    for name, value, times in named:
        loss = keep.mean(f'distill.{name}')
        assert float(value) == pytest.approx(loss, rel=0.01)
        assert int(times) == pytest.approx(loss / label, rel=0.02)
    assert 'per_position' in losses


@pytest.mark.parametrize(
    ('hook', 'model'),
    [
        (HOOK, dict()),
        (dict(HOOK, ratio=1e5), dict(loss_s3_original=80.0)),
    ],
)
def test_nothing_is_said_of_losses_in_balance(train, tiny, hook, model):
    _, warnings = train(hook=hook, model=weighted(tiny, **model))
    assert not [line for line in warnings if 'label loss' in line]


def test_nothing_is_said_where_no_label_is_learnt(train, tiny):
    model = weighted(tiny, loss_s3_original=80.0)
    model['student_loss_weight'] = 0.0
    _, warnings = train(model=model)
    assert not [line for line in warnings if 'label loss' in line]


@pytest.mark.parametrize('average', [False, True])
def test_projectors_larger_than_the_student_are_counted(
    train, tiny, average, tmp_path
):
    kwargs = dict(
        model=tiny.distillation(
            teacher=tiny.classifier(
                tiny.swin(
                    arch=dict(
                        embed_dims=24,
                        depths=[1, 1, 1, 1],
                        num_heads=[1, 2, 4, 4],
                    )
                )
            )
            | dict(
                head=dict(type='LinearClsHead', num_classes=5, in_channels=192)
            ),
        ),
    )
    if average:
        hooks = dict(ema=dict(type='EMAHook', momentum=0.1))
        kwargs['default_hooks'] = hooks
    runner, warnings = train(**kwargs)
    (line,) = [line for line in warnings if 'parameters beside' in line]
    extra, student, size = map(float, re.findall(r'([\d.]+) M', line))
    model = runner.model
    for found, part in ((extra, model.distiller), (student, model.student)):
        count = sum(p.numel() for p in part.parameters())
        assert found == pytest.approx(count / 1e6, abs=0.05)
    saved = tmp_path / 'run' / 'epoch_3.pth'
    assert size == pytest.approx(saved.stat().st_size / 1e6, rel=0.1)


def test_nothing_is_said_of_a_student_without_projectors(train, tiny):
    _, warnings = train(model=tiny.distillation(distiller=tiny.logit_kd()))
    assert warnings == []
    _, warnings = train('plain', model=tiny.classifier(tiny.resnet()))
    assert warnings == []


@pytest.mark.parametrize(
    ('scheduler', 'problem'),
    [
        (dict(type='LinearLR', end=4), 'until epoch 4, .* at epoch 3'),
        (
            dict(type='LinearLR', end=4, convert_to_iter_based=True),
            'until step 20, .* at step 15',
        ),
        (
            dict(type='LinearLR', by_epoch=False, end=16),
            'until step 16, .* at step 15',
        ),
        (
            dict(type='MultiStepLR', begin=3, end=9, milestones=[9]),
            'begins at epoch',
        ),
    ],
)
def test_warm_up_longer_than_training_stops_it(
    short_run, tiny, scheduler, problem
):
    cfg = short_run(
        custom_hooks=[HOOK],
        model=tiny.distillation(distiller=tiny.logit_kd()),
        param_scheduler=[scheduler],
    )
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match=problem):
        runner.train()
    assert runner.iter == 0
