"""Runs with two optimizers: what they log, keep, resume and share."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain import get_model

from mmcakd.utils import export_student

LAST = 'distiller.distill_losses.loss_adv.discriminator.layers.4.weight'
STATE = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


def last_map(from_student: bool) -> dict:
    return dict(recorder='stages', from_student=from_student, data_idx=3)


def model(tiny, **kwargs) -> dict:
    """A tiny ResNet that learns maps of a tiny ViT by a discriminator."""
    cfg = tiny.distillation(
        type='mmcakd.AdversarialDistill',
        teacher=tiny.classifier(tiny.vit()),
        view_generator=dict(type='mmcakd.MultiViewGenerator'),
        discriminator_interval=3,
        distiller=dict(
            type='mmcakd.CrossArchDistiller',
            student_recorders=tiny.recorders(),
            teacher_recorders=tiny.recorders(),
            connectors=dict(
                project=dict(
                    type='mmcakd.FitNetConnector',
                    inputs=dict(feature=last_map(True)),
                    shape_like=last_map(False),
                )
            ),
            distill_losses=dict(
                loss_adv=dict(type='mmcakd.AdversarialLoss', loss_weight=0.1),
                loss_mse=dict(type='mmcakd.MSELoss'),
            ),
            loss_forward_mappings={
                name: dict(
                    student=dict(connector='project'), teacher=last_map(False)
                )
                for name in ('loss_adv', 'loss_mse')
            },
        ),
    )
    return cfg | kwargs


def optimizers(**student) -> dict:
    return dict(
        constructor='mmcakd.AdversarialOptimWrapperConstructor',
        student=dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(norm_decay_mult=0.0),
            **student,
        ),
        discriminator=dict(optimizer=dict(type='Adam', lr=1e-2)),
    )


@pytest.fixture
def adversarial_run(short_run, tiny):
    """Three epochs of five steps, with a turn in every third step."""

    def make(name='run', **kwargs) -> Config:
        unvalidated = dict(val_cfg=None, val_dataloader=None)
        return short_run(
            name,
            augment=True,
            model=model(tiny),
            optim_wrapper=kwargs.pop('optim_wrapper', optimizers()),
            val_evaluator=None,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1)
            ),
            **unvalidated,
            **kwargs,
        )

    return make


def run(cfg, *hooks: Hook) -> Runner:
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()
    return runner


def read(work_dir, name: str = 'epoch_3.pth') -> dict:
    # torch reads weights only, as it does when MMEngine resumes.
    return torch.load(Path(work_dir) / name)


def scalars(runner) -> list[dict]:
    (path,) = Path(runner.log_dir).rglob('vis_data/scalars.json')
    return [json.loads(line) for line in path.read_text().splitlines()]


class Power(Exception):
    """The power failed."""


class FailAt(Hook):
    """Stop a run before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.step:
            raise Power


class Watch(Hook):
    """Steps, counted from 1, in which the discriminator changed."""

    def __init__(self) -> None:
        self.turns = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.before = dict(runner.model.named_parameters())[LAST].clone()

    def after_train_iter(
        self, runner, batch_idx, data_batch=None, outputs=None
    ):
        after = dict(runner.model.named_parameters())[LAST]
        if not torch.equal(after, self.before):
            self.turns.append(runner.iter + 1)


def test_run_logs_both_optimizers_and_keeps_the_discriminator(adversarial_run):
    watch = Watch()
    cfg = adversarial_run(
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        log_processor=dict(window_size=1),
    )
    runner = run(cfg, watch)
    assert watch.turns == [3, 6, 9, 12, 15]

    steps = scalars(runner)
    assert len(steps) == 15
    # Ten times the student's rate, under one list of schedulers.
    for index, step in enumerate(steps):
        assert step['discriminator.lr'] == pytest.approx(
            10 * step['student.lr']
        )
        assert step['loss'] == pytest.approx(
            step['student.loss']
            + step['distill.loss_adv']
            + step['distill.loss_mse'],
            rel=1e-4,
        )
        assert ('discriminator_loss' in step) == (index >= 2)
    assert len({step['student.lr'] for step in steps}) > 5
    (log,) = Path(runner.log_dir).glob('*.log')
    assert 'student.lr: ' in log.read_text()
    assert 'discriminator.lr: ' in log.read_text()

    last = read(cfg.work_dir)
    assert set(last['optimizer']) == {'student', 'discriminator'}
    assert len(last['optimizer']['discriminator']['state']) == 6
    # MMEngine swaps: `state_dict` is the average of the other.
    averaged = last['state_dict'][LAST]
    assert not torch.equal(averaged, last['ema_state_dict'][f'module.{LAST}'])


def test_each_optimizer_may_have_its_own_schedule(adversarial_run):
    cfg = adversarial_run(
        param_scheduler=dict(
            student=[dict(type='MultiStepLR', milestones=[1, 2])],
            discriminator=[dict(type='ConstantLR', factor=0.5, end=3)],
        ),
        log_processor=dict(window_size=1),
    )
    steps = scalars(run(cfg))[::5]
    assert [step['student.lr'] for step in steps] == pytest.approx(
        [1e-3, 1e-4, 1e-5]
    )
    assert [step['discriminator.lr'] for step in steps] == pytest.approx(
        [5e-3, 5e-3, 1e-2]
    )
    kept = read(cfg.work_dir)['param_schedulers']
    assert set(kept) == {'student', 'discriminator'}


# ---------------------------------------------------------------------- resume


def differences(a, b, path='') -> list[str]:
    """Paths at which two nested states differ."""
    if isinstance(a, dict | list | tuple):
        if len(a) != len(b) or isinstance(a, dict) and set(a) != set(b):
            return [path]
        keys = a if isinstance(a, dict) else range(len(a))
        return [
            d for k in keys for d in differences(a[k], b[k], f'{path}.{k}')
        ]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


@pytest.mark.parametrize(
    'student',
    [
        dict(),
        dict(
            accumulative_counts=2,
            clip_grad=dict(max_norm=1.0),
            type='mmcakd.BF16OptimWrapper',
        ),
    ],
    ids=['plain', 'accumulated, clipped, in bfloat16'],
)
def test_killed_and_resumed_run_ends_like_the_unbroken_one(
    adversarial_run, student
):
    def make(name, **kwargs):
        return adversarial_run(
            name,
            optim_wrapper=optimizers(**student),
            train=dict(num_workers=0),
            custom_hooks=[
                dict(type='EMAHook', momentum=0.1),
                dict(
                    type='mmcakd.LossWeightScheduleHook',
                    points=[(0, 0.1), (2, 1.0)],
                ),
            ],
            train_cfg=dict(by_epoch=True, max_epochs=4),
            **kwargs,
        )

    turns = []
    for name, fail in (('unbroken', None), ('broken', 13)):
        watch = Watch()
        turns.append(watch.turns)
        cfg = make(name)
        if fail is None:
            run(cfg, watch)
        else:
            with pytest.raises(Power):
                run(cfg, watch, FailAt(fail))
    assert not (Path(cfg.work_dir) / 'epoch_3.pth').exists()
    watch = Watch()
    run(make('broken', resume=True), watch)
    seen = [step for step in turns[1] if step <= 10] + watch.turns
    assert turns[0] == seen

    counts = student.get('accumulative_counts', 1)
    assert turns[0] == list(range(3 * counts, 21, 3 * counts))
    expected, found = (
        read(make(name).work_dir, 'epoch_4.pth')
        for name in ('unbroken', 'broken')
    )
    for state in STATE:
        assert differences(found[state], expected[state]) == []
    first = read(make('unbroken').work_dir, 'epoch_1.pth')
    for state in STATE:
        assert differences(first[state], expected[state])


# ---------------------------------------------------------------------- export


def test_exported_student_knows_of_no_discriminator(adversarial_run):
    cfg = adversarial_run(
        train_cfg=dict(by_epoch=True, max_epochs=1),
        default_scope='mmpretrain',
    )
    run(cfg)
    out = export_student(cfg.work_dir)
    saved = torch.load(out)
    network = get_model(str(out.with_suffix('.py')), pretrained=str(out))
    assert set(saved['state_dict']) == set(network.state_dict())
    text = out.with_suffix('.py').read_text() + str(saved['meta'])
    for word in ('discriminator', 'distill', 'Adversarial', 'view_generator'):
        assert word not in text
    kept = read(cfg.work_dir, 'epoch_1.pth')['state_dict']
    for name, value in saved['state_dict'].items():
        assert torch.equal(value, kept[f'architecture.{name}']), name


# ------------------------------------------------------------------- processes


@pytest.fixture
def make_cfg(short_run, tiny, tmp_path):
    """A step an epoch, of four images, of a student without BatchNorm."""
    teacher = tiny.classifier(tiny.vit())
    torch.save(
        dict(state_dict=tiny.build(teacher).state_dict()), tmp_path / 't.pth'
    )

    def make(name: str, batch_size: int) -> Config:
        cfg = short_run(
            name,
            model=model(
                tiny,
                architecture=tiny.classifier(tiny.convnext()),
                teacher_ckpt=str(tmp_path / 't.pth'),
                view_generator=None,
                discriminator_interval=2,
            ),
            train=dict(
                batch_size=batch_size,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=6),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            default_hooks=dict(checkpoint=None),
            param_scheduler=None,
            # The processes begin with different discriminators.
            randomness=dict(seed=0, diff_rank_seed=True),
            optim_wrapper=dict(
                constructor='mmcakd.AdversarialOptimWrapperConstructor',
                student=dict(
                    optimizer=dict(type='SGD', lr=0.1),
                    clip_grad=dict(max_norm=100.0),
                ),
                discriminator=dict(optimizer=dict(type='SGD', lr=0.5)),
            ),
        )
        cfg.train_dataloader.dataset.indices = [0, 5, 10, 15]
        return cfg

    return make


def test_processes_learn_what_one_learns_from_the_joint_batch(
    make_cfg, train_in_processes, read_states, assert_same_way
):
    train_in_processes(
        one=(make_cfg('one', 4), 1), two=(make_cfg('two', 2), 2)
    )
    assert_same_way('one', 'two', 2, 6)
    previous, other = (
        state['weights'] for state in read_states('two', 2, 'start')
    )
    # Runner and DDP have made them equal before the first step.
    for name, weight in previous.items():
        assert torch.equal(other[name], weight), name
    for index in range(6):
        weights = read_states('two', 2, index)[0]['weights']
        for name, weight in weights.items():
            waits = 'discriminator' in name and index % 2 == 0
            assert torch.equal(weight, previous[name]) == waits, name
        previous = weights
