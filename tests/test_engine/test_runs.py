"""Whole runs of MMEngine's Runner: what they log, keep and resume."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


class Power(Exception):
    """The power failed."""


class FailAt(Hook):
    """Stop a run in the middle of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx) == self.at:
            raise Power


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
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if 'loss' in line]


def log_text(runner) -> str:
    (path,) = Path(runner.log_dir).glob('*.log')
    return path.read_text()


LOSSES = [
    'student.loss',
    'distill.loss_s3_original',
    'distill.loss_s3_frequency',
    'distill.loss_s4_original',
    'distill.loss_s4_frequency',
    'distill.loss_kd',
]


# ---------------------------------------------------------------------- a run


def test_run_logs_every_loss_and_keeps_student_and_connectors(short_run):
    cfg = short_run(
        augment=True, custom_hooks=[dict(type='EMAHook', momentum=0.1)]
    )
    runner = run(cfg)

    steps = scalars(runner)
    assert len(steps) == 15
    for step in steps:
        assert step['loss'] == pytest.approx(
            sum(step[name] for name in LOSSES), rel=1e-4
        )
        assert all(step[name] > 0 for name in LOSSES)
    text = log_text(runner)
    assert 'eta: ' in text
    assert 'accuracy/top1' in text

    last = read(cfg.work_dir)
    (best,) = Path(cfg.work_dir).glob('best_accuracy_top1*.pth')
    for weights in (
        last['state_dict'],
        last['ema_state_dict'],
        read(cfg.work_dir, best.name)['state_dict'],
    ):
        assert not [key for key in weights if 'teacher' in key]
        # 5 classes of 32 channels
        head = next(k for k in weights if k.endswith('head.fc.weight'))
        assert weights[head].shape == (5, 32)
        assert any('connectors.s4_frequency.' in key for key in weights)
    optimised = sum(
        len(group['params']) for group in last['optimizer']['param_groups']
    )
    assert optimised == len(list(runner.model.parameters()))
    # MMEngine swaps: `state_dict` is the average of the other.
    name = 'architecture.head.fc.weight'
    assert not torch.equal(
        last['state_dict'][name], last['ema_state_dict'][f'module.{name}']
    )


def test_checkpoint_is_of_the_students_size(short_run, tmp_path, tiny):
    cfg = short_run(
        model=tiny.distillation(
            distiller=tiny.logit_kd(),
            teacher=tiny.classifier(tiny.resnet(base_channels=64)),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )
    cfg.model.teacher.head.in_channels = 512
    run(cfg)
    saved = (Path(cfg.work_dir) / 'epoch_3.pth').stat().st_size
    # The student has 50 thousand parameters, the teacher 11 million.
    assert saved < 2e6


def test_tensorboard_by_config(short_run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    cfg = short_run(
        visualizer=dict(
            type='UniversalVisualizer',
            vis_backends=[
                dict(type='LocalVisBackend'),
                dict(type='TensorboardVisBackend'),
            ],
        ),
    )
    runner = run(cfg)
    runner.visualizer.close()
    (events,) = Path(runner.log_dir).rglob('events.out.tfevents.*')
    reader = EventAccumulator(str(events))
    reader.Reload()
    logged = scalars(runner)
    for name in ('loss', *LOSSES):
        (tag,) = [
            tag
            for tag in reader.Tags()['scalars']
            if tag.split('/')[-1] == name
        ]
        values = [event.value for event in reader.Scalars(tag)]
        assert values == pytest.approx([step[name] for step in logged])


# --------------------------------------------------------------------- the end


def test_distillation_stops_at_its_epoch(short_run):
    class CountTeacher(Hook):
        def __init__(self):
            self.epochs = []

        def before_train(self, runner):
            runner.model.teacher.register_forward_hook(
                lambda *args: self.epochs.append(runner.epoch)
            )

    count = CountTeacher()
    cfg = short_run(
        custom_hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=1)],
        # no running means over the end
        log_processor=dict(window_size=1),
    )
    runner = run(cfg, count)
    assert count.epochs == [0] * 5
    for index, step in enumerate(scalars(runner)):
        distilled = [step[name] for name in LOSSES if 'distill' in name]
        if index < 5:
            assert min(distilled) > 0
        else:
            assert distilled == [0] * 5
            assert step['loss'] == pytest.approx(step['student.loss'])


# ---------------------------------------------------------------------- resume


def equal(a, b, path='') -> list[str]:
    """Paths at which two nested states differ."""
    if isinstance(a, dict):
        if set(a) != set(b):
            return [f'{path}: keys']
        return [d for key in a for d in equal(a[key], b[key], f'{path}.{key}')]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f'{path}: length']
        return [
            d
            for index, (x, y) in enumerate(zip(a, b, strict=True))
            for d in equal(x, y, f'{path}[{index}]')
        ]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [path]


def students(tiny) -> dict:
    mixup = dict(augments=dict(type='Mixup', alpha=1.0))
    return {
        'resnet with mixup': dict(
            architecture=tiny.classifier(tiny.resnet(), train_cfg=mixup)
        ),
        'convnext with drop path': dict(
            architecture=tiny.classifier(tiny.convnext(drop_path_rate=0.5)),
            distiller=tiny.scalekd('LN2d'),
        ),
        'vit with dropout': dict(
            architecture=tiny.classifier(tiny.vit(drop_rate=0.3)),
            distiller=tiny.logit_kd(),
        ),
    }


STATE = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')


@pytest.mark.parametrize(
    ('student', 'workers'),
    [
        ('resnet with mixup', dict(num_workers=2)),
        (
            'resnet with mixup',
            dict(num_workers=2, persistent_workers=True),
        ),
        ('convnext with drop path', dict(num_workers=2)),
        ('vit with dropout', dict(num_workers=0)),
    ],
)
def test_killed_and_resumed_run_ends_like_the_unbroken_one(
    short_run, tiny, student, workers
):
    def make(name, **kwargs):
        return short_run(
            name,
            augment=True,
            model=tiny.distillation(**students(tiny)[student]),
            train=workers,
            custom_hooks=[dict(type='EMAHook', momentum=0.1)],
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1)
            ),
            **kwargs,
        )

    unbroken = make('unbroken')
    run(unbroken)
    broken = make('broken')
    with pytest.raises(Power):
        run(broken, FailAt(epoch=1, step=2))
    assert (Path(broken.work_dir) / 'last_checkpoint').exists()
    assert not (Path(broken.work_dir) / 'epoch_2.pth').exists()
    resumed = run(make('broken', resume=True))
    assert resumed.iter == 15

    expected, found = read(unbroken.work_dir), read(broken.work_dir)
    for state in STATE:
        assert equal(found[state], expected[state]) == []
    # The run moved at all, and so did its average.
    first = read(unbroken.work_dir, 'epoch_1.pth')
    for state in STATE[:2]:
        assert equal(first[state], expected[state])


def test_without_the_hook_a_resumed_run_ends_elsewhere(short_run):
    def make(name, **kwargs):
        cfg = short_run(
            name,
            augment=True,
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            **kwargs,
        )
        del cfg.default_hooks.seed
        del cfg.default_hooks.checkpoint.save_best
        return cfg

    unbroken, broken = make('unbroken'), make('broken')
    run(unbroken)
    with pytest.raises(Power):
        run(broken, FailAt(epoch=1, step=2))
    run(make('broken', resume=True))
    assert equal(
        read(broken.work_dir)['state_dict'],
        read(unbroken.work_dir)['state_dict'],
    )


def test_another_seed_gives_another_run(short_run):
    ends = []
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        cfg = short_run(
            name,
            augment=True,
            randomness=dict(seed=seed),
            train_cfg=dict(by_epoch=True, max_epochs=1),
        )
        run(cfg)
        ends.append(read(cfg.work_dir, 'epoch_1.pth')['state_dict'])
    assert equal(ends[0], ends[1]) == []
    assert equal(ends[0], ends[2])


def test_epochs_draw_different_numbers(short_run):
    class Draw(Hook):
        def __init__(self):
            self.drawn, self.seen = [], []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if batch_idx == 0:
                self.drawn.append(torch.rand(1).item())
                self.seen.append(data_batch['inputs'])

    draw = Draw()
    run(short_run(augment=True, train=dict(num_workers=2)), draw)
    assert len(set(draw.drawn)) == 3
    assert not torch.equal(draw.seen[0], draw.seen[1])
    assert not torch.equal(draw.seen[1], draw.seen[2])


# ------------------------------------------------------------------ bad images


def test_missing_image_is_named(short_run, image_folder):
    runner = Runner.from_cfg(short_run())
    # The list of files is read before the file vanishes.
    assert len(runner.train_loop.dataloader.dataset) == 20
    (image_folder / 'train' / 'class_3' / '1.png').unlink()
    with pytest.raises(FileNotFoundError, match=r'class_3.1\.png'):
        runner.train()


@pytest.mark.parametrize(
    ('content', 'workers'),
    [(b'no image', 0), (b'', 0), (b'', 1)],
    ids=['text', 'empty', 'empty, read by a worker'],
)
def test_unreadable_image_is_named(short_run, image_folder, workers, content):
    (image_folder / 'train' / 'class_3' / '1.png').write_bytes(content)
    cfg = short_run(train=dict(num_workers=workers))
    with pytest.raises(Exception, match=r'class_3.1\.png'):
        run(cfg)
