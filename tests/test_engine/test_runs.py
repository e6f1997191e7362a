"""Whole runs of MMEngine's Runner: what they log, keep and resume."""

import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


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


def test_run_logs_every_loss_and_keeps_student_and_connectors(
    short_run, run, read
):
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


def test_checkpoint_is_of_the_students_size(short_run, tmp_path, tiny, run):
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


def test_tensorboard_by_config(short_run, tmp_path, run):
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


def test_distillation_stops_at_its_epoch(short_run, run):
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


# ----------------------------------------------------------------------- seeds


def test_another_seed_gives_another_run(short_run, run, read, equal):
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


def test_epochs_draw_different_numbers(short_run, run):
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
def test_unreadable_image_is_named(
    short_run, image_folder, workers, content, run
):
    (image_folder / 'train' / 'class_3' / '1.png').write_bytes(content)
    cfg = short_run(train=dict(num_workers=workers))
    with pytest.raises(Exception, match=r'class_3.1\.png'):
        run(cfg)
