"""A folder of images, and short runs on it, in one process or in several."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmcakd

PREPROCESSOR = dict(
    num_classes=5,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
FIXED = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]
AUGMENTED = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='RandomFlip', prob=0.5),
    dict(type='ColorJitter', brightness=0.4),
    dict(type='PackInputs'),
]


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Noise of five classes: 20 images to train on, 10 to validate."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for label in range(5):
            folder = tmp_path / 'images' / split / f'class_{label}'
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (72, 80, 3), dtype=np.uint8)
                cv2.imwrite(str(folder / f'{index}.png'), pixels)
    return tmp_path / 'images'


def loader(root: Path, split: str, pipeline: list, **kwargs) -> dict:
    cfg = dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='CustomDataset',
            data_root=str(root),
            data_prefix=split,
            pipeline=pipeline,
        ),
    )
    return cfg | kwargs


@pytest.fixture
def short_run(tiny, image_folder, tmp_path):
    """Make the config of a run of three epochs of five steps."""

    def make(name: str = 'run', augment: bool = False, **kwargs) -> Config:
        train = kwargs.pop('train', {})
        hooks = kwargs.pop('default_hooks', {})
        pipeline = AUGMENTED if augment else FIXED
        cfg = dict(
            default_scope='mmpretrain',
            custom_imports=dict(
                imports=['mmcakd'], allow_failed_imports=False
            ),
            model=tiny.distillation(),
            data_preprocessor=PREPROCESSOR,
            train_dataloader=loader(image_folder, 'train', pipeline, **train),
            val_dataloader=loader(image_folder, 'val', FIXED),
            val_evaluator=dict(type='Accuracy', topk=(1,)),
            train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=1),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
            param_scheduler=[
                dict(
                    type='LinearLR',
                    start_factor=0.1,
                    end=1,
                    convert_to_iter_based=True,
                ),
                dict(type='CosineAnnealingLR', begin=1, end=3),
            ],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='CheckpointHook', interval=1, save_best='auto'
                ),
                seed=dict(type='mmcakd.SeedByEpochHook'),
            )
            | hooks,
            randomness=dict(seed=0),
            experiment_name=f'{tmp_path.name}_{name}',
            work_dir=str(tmp_path / name),
        )
        return Config(cfg | kwargs)

    return make


@pytest.fixture
def train_in_processes(tmp_path) -> Callable[..., None]:
    """Train by configs in a number of processes each, in float64.

    :class:`ddp_worker.KeepWeights` leaves what they did for ``read_states``.
    """

    def train(**runs: tuple[Config, int]) -> None:
        for name, (cfg, _) in runs.items():
            cfg.dump(tmp_path / f'{name}.py')
        done = subprocess.run(
            [sys.executable, '-W', 'ignore']
            + [Path(__file__).with_name('ddp_worker.py'), tmp_path]
            + [f'{name}={count}' for name, (_, count) in runs.items()],
            env=os.environ
            | dict(
                OMP_NUM_THREADS='1',
                PYTHONPATH=os.pathsep.join(
                    [str(Path(mmcakd.__file__).parents[1]), *sys.path]
                ),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-5000:]

    return train


@pytest.fixture
def read_states(tmp_path) -> Callable[..., list[dict]]:
    """Read what each process of a run kept of a step, from the first on."""

    def read(name: str, count: int, step: int | str) -> list[dict]:
        return [
            torch.load(tmp_path / f'{name}_rank{rank}_{step}.pth')
            for rank in range(count)
        ]

    return read


@pytest.fixture
def assert_same_way(read_states) -> Callable[..., None]:
    """Check that processes did together what one did, in every step.

    In float64 two orders of the same sums differ by about 1e-12 of the way
    that the weights have gone. Each process logs the losses of its own part
    of the batch.
    """

    def check(alone: str, together: str, count: int, steps: int) -> None:
        (start,) = read_states(alone, 1, 'start')
        for step in ('start', *range(steps)):
            (one,) = read_states(alone, 1, step)
            ranks = read_states(together, count, step)
            for rank in ranks:
                assert rank['wrapper'] == 'MMDistributedDataParallel'
                assert rank['unused'] is False
            for name, weight in one['weights'].items():
                found = ranks[0]['weights'][name]
                assert found.dtype == torch.float64
                for other in ranks[1:]:
                    assert torch.equal(other['weights'][name], found), name
                way = (weight - start['weights'][name]).norm()
                # Some gradients are zero but for rounding, such as those of a
                # bias before a softmax or before the frequency view.
                bound = 1e-9 * way + 1e-13
                assert (found - weight).norm() <= bound, (step, name)
            for name, loss in one['losses'].items():
                mean = sum(rank['losses'][name] for rank in ranks) / count
                assert mean == pytest.approx(loss, rel=1e-9, abs=1e-12), name

    return check
