"""A disk that is full costs what could not be written, and no more."""

import resource
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmcakd.utils import export_student, replacing


@pytest.fixture
def limit():
    """Let no file grow beyond a size, until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def set_limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield set_limit
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Fill(Hook):
    """The disk is full in the second epoch."""

    def __init__(self, limit) -> None:
        self.limit = limit

    def before_train_epoch(self, runner) -> None:
        if runner.epoch == 1:
            self.limit(30_000)


@pytest.fixture
def cfg(tiny) -> Config:
    return Config(dict(model=tiny.distillation(distiller=tiny.logit_kd())))


@pytest.fixture
def work_dir(tmp_path, tiny, cfg, limit) -> Path:
    """A run whose disk was full when it wrote its second checkpoint."""

    def make(**kwargs) -> Runner:
        return Runner(
            model=cfg.model,
            default_scope='mmpretrain',
            train_dataloader=DataLoader(
                [tiny.batch(1) for _ in range(4)],
                batch_size=2,
                collate_fn=lambda batches: dict(
                    inputs=torch.cat([images for images, _ in batches]),
                    data_samples=[samples[0] for _, samples in batches],
                ),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            default_hooks=dict(
                checkpoint=dict(
                    type='CheckpointHook', interval=1, max_keep_ckpts=1
                )
            ),
            experiment_name=f'{tmp_path.name}{kwargs}',
            work_dir=str(tmp_path / 'run'),
            **kwargs,
        )

    runner = make()
    runner.register_hook(Fill(limit))
    with pytest.raises(OSError, match=r'epoch_2\.pth cannot be written'):
        runner.train()
    assert torch.load(tmp_path / 'run/epoch_1.pth')['meta']['epoch'] == 1
    limit(resource.RLIM_INFINITY)
    make(resume=True).train()
    return tmp_path / 'run'


def test_run_goes_on_when_there_is_room_again(work_dir):
    assert sorted(path.name for path in work_dir.glob('*.pth')) == [
        'epoch_2.pth'
    ]
    assert torch.load(work_dir / 'epoch_2.pth')['meta']['epoch'] == 2
    assert not list(work_dir.glob('.*'))


def test_export_that_does_not_fit_leaves_the_former_one(work_dir, cfg, limit):
    out = export_student(work_dir, cfg=cfg)
    before = out.read_bytes()
    limit(20_000)
    with pytest.raises(OSError, match=r'student\.pth cannot be written'):
        export_student(work_dir, cfg=cfg)
    assert out.read_bytes() == before
    assert not list(work_dir.glob('.*'))


def test_text_that_does_not_fit_leaves_the_former_one(tmp_path, limit):
    path = tmp_path / 'report.md'
    path.write_text('before')
    limit(1000)
    with (
        pytest.raises(OSError, match=r'report\.md cannot be written'),
        replacing(path) as written,
    ):
        written.write_text('after' * 1000)
    assert path.read_text() == 'before'
    assert [p.name for p in tmp_path.iterdir()] == ['report.md']
