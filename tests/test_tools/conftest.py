from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

REPO = Path(__file__).resolve().parents[2]

TINY_CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmcakd'], allow_failed_imports=False)

data_preprocessor = dict(
    num_classes=4, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True)


def dataloader(split):
    return dict(
        batch_size=4,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=split == 'train'),
        dataset=dict(
            type='CustomDataset',
            data_root=data_root,
            data_prefix=split,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='PackInputs'),
            ],
        ),
    )


train_dataloader = dataloader('train')
val_dataloader = test_dataloader = dataloader('val')
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1),
    checkpoint=dict(type='CheckpointHook', interval=1),
    seed=dict(type='mmcakd.SeedByEpochHook'),
)
custom_hooks = [dict(type='mmcakd.ExportStudentHook')]
visualizer = dict(
    type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
randomness = dict(seed=0)
del dataloader

teacher = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=16,
            num_layers=4,
            num_heads=2,
            feedforward_channels=32),
        img_size=32,
        patch_size=8,
        out_type='avg_featmap',
        with_cls_token=False),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=16))
student = dict(
    type='ImageClassifier',
    _scope_='mmpretrain',
    backbone=dict(
        type='ResNet', depth=18, stem_channels=8, base_channels=8,
        norm_cfg=dict(type='BN')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=4, in_channels=64,
        loss=dict(type='CrossEntropyLoss')))
logits = dict(logits=dict(type='mmcakd.Logits'))
model = dict(
    type='mmcakd.CrossArchDistill',
    architecture=student,
    teacher=teacher,
    teacher_ckpt='random',
    input_size=32,
    distiller=dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=logits,
        teacher_recorders=logits,
        distill_losses=dict(loss_kd=dict(type='mmcakd.SoftTargetLoss')),
        loss_forward_mappings=dict(
            loss_kd=dict(
                student=dict(recorder='logits', from_student=True),
                teacher=dict(recorder='logits', from_student=False)))))
"""


@pytest.fixture(scope='session')
def main_of():
    """Run a tool that was imported as its command line does.

    Returns:
        Callable: Takes the module, and returns the exit status.
    """
    from mmcakd.utils import Command

    def run(tool: ModuleType) -> int:
        try:
            with Command():
                return tool.main()
        except SystemExit as error:
            if error.code != 1:
                raise
            return 1

    return run


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory) -> Path:
    """Four classes of noise, 8 images to train on and 8 to test."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for label in range(4):
            folder = root / split / f'class_{label}'
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{index}.png')
    return root


@pytest.fixture(scope='session')
def tiny_config(tiny_data) -> Path:
    """A distillation of a tiny ViT into a tiny ResNet: two iterations."""
    path = tiny_data / 'tiny.py'
    path.write_text(f'data_root = {str(tiny_data)!r}\n{TINY_CONFIG}')
    return path


@pytest.fixture(scope='session')
def trained(tiny_config, run_tool, tmp_path_factory) -> Path:
    """Work directory of one epoch of the tiny distillation."""
    work_dir = tmp_path_factory.mktemp('trained')
    run_tool('tools/train.py', tiny_config, '--work-dir', work_dir)
    return work_dir
