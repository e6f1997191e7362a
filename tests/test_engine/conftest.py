"""A folder of images, and configs of short runs on it."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

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
