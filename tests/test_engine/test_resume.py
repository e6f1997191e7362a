"""A run that was killed anywhere goes on as if it never had been."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mmcakd.engine import find_newest_checkpoint


class Power(Exception):
    """The power failed."""


class FailAt(Hook):
    """Stop a run in the middle of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        self.at = (epoch, step)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if (runner.epoch, batch_idx) == self.at:
            raise Power


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
    short_run, tiny, student, workers, run, read, equal
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


def test_without_the_hook_a_resumed_run_ends_elsewhere(
    short_run, run, read, equal
):
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


# ------------------------------------------------------------- between epochs


@pytest.fixture
def cheap_run(short_run, tiny):
    """Logit distillation with a checkpoint at every step, unless told."""

    def make(name: str, **kwargs):
        hooks = dict(
            checkpoint=dict(
                type='CheckpointHook',
                interval=1,
                by_epoch=False,
                max_keep_ckpts=1,
            )
        )
        hooks |= kwargs.pop('default_hooks', {})
        model = tiny.distillation(
            architecture=tiny.classifier(tiny.vit(drop_rate=0.3)),
            distiller=tiny.logit_kd(),
        )
        no_validation = dict(
            val_cfg=None, val_dataloader=None, val_evaluator=None
        )
        return short_run(
            name,
            augment=True,
            default_hooks=hooks,
            **no_validation | dict(model=model) | kwargs,
        )

    return make


def power_cut(after: int) -> Hook:
    """Fail before the step that follows so many steps."""

    class Cut(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == after:
                raise Power

    return Cut()


def accumulate(counts: int) -> dict:
    return dict(
        optimizer=dict(type='AdamW', lr=1e-2), accumulative_counts=counts
    )


@pytest.mark.parametrize(
    ('kwargs', 'after'),
    [
        (dict(), 2),
        # the last step of an epoch, whose end is still to come
        (dict(), 5),
        (dict(train=dict(num_workers=2, persistent_workers=True)), 8),
        (dict(train=dict(num_workers=1)), 7),
        # three does not divide the five steps of an epoch
        (dict(optim_wrapper=accumulate(3)), 4),
        (dict(optim_wrapper=accumulate(2)), 5),
    ],
)
def test_run_goes_on_in_the_middle_of_an_epoch(
    cheap_run, run, read, equal, kwargs, after
):
    run(cheap_run('unbroken', **kwargs))
    broken = cheap_run('broken', **kwargs)
    with pytest.raises(Power):
        run(broken, power_cut(after))
    seen = Steps()
    run(cheap_run('broken', resume=True, **kwargs), seen)
    # No batch twice, none left out, and each with its number in the epoch.
    assert seen.steps == [(i, i % 5) for i in range(after, 15)]
    expected, found = (
        read(Path(broken.work_dir).with_name(name), 'iter_15.pth')
        for name in ('unbroken', 'broken')
    )
    for state in ('state_dict', 'optimizer', 'param_schedulers'):
        assert equal(found[state], expected[state]) == []


class Steps(Hook):
    def __init__(self) -> None:
        self.steps = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.steps.append((runner.iter, batch_idx))


def test_end_of_an_epoch_within_an_accumulation(cheap_run, run, read, equal):
    kwargs = dict(
        optim_wrapper=accumulate(3),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
    )
    run(cheap_run('unbroken', **kwargs))
    broken = cheap_run('broken', **kwargs)
    with pytest.raises(Power):
        run(broken, power_cut(7))
    saved = read(broken.work_dir, 'epoch_1.pth')
    # Five steps: one of the optimizer, and two that wait.
    (waiting,) = saved['accumulated_gradients']
    assert any(gradient.any() for gradient in waiting.values())
    run(cheap_run('broken', resume=True, **kwargs))
    expected, found = (
        read(Path(broken.work_dir).with_name(name))
        for name in ('unbroken', 'broken')
    )
    for state in ('state_dict', 'optimizer'):
        assert equal(found[state], expected[state]) == []
    assert 'accumulated_gradients' not in found


@pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
def test_loop_of_iterations_reads_nothing_twice(
    cheap_run, run, read, equal, sampler
):
    kwargs = dict(
        train_cfg=dict(by_epoch=False, max_iters=12),
        param_scheduler=None,
        train=dict(
            sampler=dict(type=sampler, shuffle=True),
            num_workers=1,
            persistent_workers=True,
        ),
    )
    run(cheap_run('unbroken', **kwargs))
    broken = cheap_run('broken', **kwargs)
    with pytest.raises(Power):
        run(broken, power_cut(7))
    runner = run(cheap_run('broken', resume=True, **kwargs))
    assert runner.iter == 12
    expected, found = (
        read(Path(broken.work_dir).with_name(name), 'iter_12.pth')
        for name in ('unbroken', 'broken')
    )
    for state in ('state_dict', 'optimizer'):
        assert equal(found[state], expected[state]) == []


def test_batches_that_are_done_are_not_read(cheap_run, run, monkeypatch):
    from mmpretrain.datasets import CustomDataset

    broken = cheap_run('broken')
    with pytest.raises(Power):
        run(broken, power_cut(8))
    read = []
    original = CustomDataset.__getitem__
    monkeypatch.setattr(
        CustomDataset,
        '__getitem__',
        lambda self, index: read.append(index) or original(self, index),
    )
    run(cheap_run('broken', resume=True))
    # Seven of fifteen steps, of four images each.
    assert len(read) == 7 * 4


def test_other_batches_in_the_middle_of_an_epoch_are_refused(cheap_run, run):
    with pytest.raises(Power):
        run(cheap_run('broken'), power_cut(7))
    other = cheap_run('broken', resume=True, train=dict(batch_size=10))
    with pytest.raises(ValueError, match='5 batches.*has 2.*batch size'):
        run(other)


def test_evaluation_that_a_kill_prevented_is_made_up_for(short_run, run, tiny):
    class Cut(Hook):
        def before_val(self, runner):
            if runner.epoch == 2:
                raise Power

    class Count(Hook):
        def __init__(self):
            self.epochs = []

        def after_val_epoch(self, runner, metrics=None):
            self.epochs.append(runner.epoch)

    model = tiny.distillation(distiller=tiny.logit_kd())
    before, after = Count(), Count()
    with pytest.raises(Power):
        run(short_run('broken', model=model), before, Cut())
    run(short_run('broken', model=model, resume=True), after)
    assert (before.epochs, after.epochs) == ([1], [2, 3])


# ------------------------------------------------------------ which checkpoint


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory) -> Path:
    """What a run of nine iterations leaves behind, but for the weights."""
    folder = tmp_path_factory.mktemp('run')
    for done in (3, 6, 9):
        torch.save(
            dict(
                meta=dict(iter=done, epoch=0),
                state_dict=dict(weight=torch.full((8,), float(done))),
                optimizer=dict(),
            ),
            folder / f'iter_{done}.pth',
        )
    torch.save(
        dict(meta=dict(iter=99), state_dict=dict(weight=torch.ones(2))),
        folder / 'student.pth',
    )
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_9.pth'))
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ('damage', 'expected', 'named'),
    [
        (lambda run: None, 'iter_9.pth', None),
        (lambda run: cut(run / 'iter_9.pth'), 'iter_6.pth', 'iter_9.pth'),
        (lambda run: blank(run / 'iter_9.pth'), 'iter_6.pth', 'iter_9.pth'),
        (lambda run: (run / 'iter_9.pth').unlink(), 'iter_6.pth', None),
        (lambda run: (run / 'last_checkpoint').unlink(), 'iter_9.pth', None),
        (lambda run: blank(run / 'last_checkpoint'), 'iter_9.pth', None),
        (
            lambda run: (run / 'last_checkpoint').write_bytes(b'\xff\xfe\x00'),
            'iter_9.pth',
            None,
        ),
        (
            lambda run: [cut(path) for path in run.glob('iter_*.pth')],
            None,
            'iter_3.pth',
        ),
        (
            # A kill between a checkpoint and the pointer to it.
            lambda run: (run / 'last_checkpoint').write_text('iter_6.pth'),
            'iter_9.pth',
            None,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_newest_checkpoint_that_loads_is_found(
    work_dir, tmp_path, monkeypatch, damage, expected, named
):
    # Copied, so that the pointer names a folder that it is not in.
    run = tmp_path / 'copy'
    shutil.copytree(work_dir, run)
    for second, name in enumerate(('iter_3.pth', 'iter_6.pth', 'iter_9.pth')):
        os.utime(run / name, (1e9 + second, 1e9 + second))
    damage(run)
    said = []
    monkeypatch.setattr(
        'mmcakd.utils.checkpoints.print_log',
        lambda text, *_: said.append(text),
    )
    found = find_newest_checkpoint(run)
    assert found == (expected and str(run / expected))
    if named:
        assert any(str(run / named) in text for text in said)


def test_files_of_a_former_run_are_passed_over(work_dir, tmp_path):
    run = tmp_path / 'copy'
    shutil.copytree(work_dir, run)
    # Begun again in the same folder, it has come to iteration three.
    (run / 'last_checkpoint').write_text('iter_3.pth')
    for second, name in enumerate(('iter_6.pth', 'iter_9.pth', 'iter_3.pth')):
        os.utime(run / name, (1e9 + second, 1e9 + second))
    assert find_newest_checkpoint(run) == str(run / 'iter_3.pth')


def test_moved_run_goes_on(cheap_run, run, read, equal):
    run(cheap_run('unbroken'))
    broken = cheap_run('broken')
    with pytest.raises(Power):
        run(broken, power_cut(6))
    moved = cheap_run('moved', resume=True)
    shutil.move(broken.work_dir, moved.work_dir)
    run(moved)
    expected, found = (
        read(Path(moved.work_dir).with_name(name), 'iter_15.pth')
        for name in ('unbroken', 'moved')
    )
    assert equal(found['state_dict'], expected['state_dict']) == []
    assert not Path(broken.work_dir).exists()


def test_named_checkpoint_is_the_one_or_none(cheap_run, run):
    broken = cheap_run('broken')
    with pytest.raises(Power):
        run(broken, power_cut(6))
    named = Path(broken.work_dir, 'named.pth')
    named.write_bytes(Path(broken.work_dir, 'iter_6.pth').read_bytes())
    cut(named)
    with pytest.raises(RuntimeError, match=r'named\.pth.*truncated'):
        run(cheap_run('broken', resume=True, load_from=str(named)))
