"""Write checkpoints of small runs of every method, to be read ever after.

    python tests/before_0_2/make.py FOLDER

Those beside this file were written by version 0.1, and are not written again:
a later version has to resume and to export what an earlier one wrote.
``expected.json`` says how the weights changed in the epoch that followed.
"""

import gzip
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

CONFIGS = Path(__file__).parents[2] / 'configs'
#: The file of each method under configs/.
METHODS = dict(
    kd='baselines/kd',
    dkd='baselines/dkd',
    dist='baselines/dist',
    mld='baselines/mld',
    fitnet='baselines/fitnet',
    cc='baselines/cc',
    crd='baselines/crd',
    rkd='baselines/rkd',
    scalekd='_base_/methods/scalekd_8heads',
    ofakd='_base_/methods/ofakd',
    cakd='_base_/methods/cakd',
    cakd_inverse='_base_/methods/cakd_inverse',
    tas='_base_/methods/tas',
)
CLASSES = 4
IMAGES = 8

CONVNEXT = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='ConvNeXt',
        arch=dict(depths=[1] * 4, channels=[4, 4, 4, 8]),
        drop_path_rate=0.2,
    ),
    head=dict(type='LinearClsHead', num_classes=CLASSES, in_channels=8),
)
VIT = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(
            embed_dims=8, num_layers=4, num_heads=2, feedforward_channels=8
        ),
        img_size=64,
        patch_size=16,
    ),
    head=dict(
        type='VisionTransformerClsHead', num_classes=CLASSES, in_channels=8
    ),
)
# Without Adam: the sign of a gradient that is zero but for rounding would be
# another on another processor.
SGD = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9))


def make_images(root: Path) -> None:
    """Draw noise of four classes, two images each."""
    rng = np.random.default_rng(0)
    for index in range(IMAGES):
        folder = root / f'class_{index % CLASSES}'
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{index}.png')


def make_config(method: str) -> Config:
    """Config of two epochs of two steps, with relative paths alone."""
    distiller = Config.fromfile(CONFIGS / f'{METHODS[method]}.py').distiller
    for part in distiller.get('connectors', {}).values():
        if part.type == 'mmcakd.PooledEmbedding' and part.embed_dims:
            part.embed_dims = 4
    for loss in distiller.distill_losses.values():
        if loss.type == 'mmcakd.CRDLoss':
            loss.update(embed_dims=4, num_negatives=6)
    pair = [CONVNEXT, VIT]
    if method == 'cakd_inverse':
        pair.reverse()
    model = dict(
        type='mmcakd.CrossArchDistill',
        architecture=pair[0],
        teacher=pair[1],
        teacher_ckpt=f'teacher_{pair[1]["backbone"]["type"]}.pth',
        input_size=64,
        distiller=distiller,
    )
    optim_wrapper = SGD
    if method == 'cakd':
        training = Config.fromfile(
            CONFIGS / '_base_' / 'methods' / 'cakd_training.py'
        )
        model.update(training.multi_view, discriminator_interval=1)
        optim_wrapper = dict(
            constructor='mmcakd.AdversarialOptimWrapperConstructor',
            student=SGD,
            discriminator=SGD,
        )
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', interval=1),
        seed=dict(type='mmcakd.SeedByEpochHook'),
        training_set=dict(type='mmcakd.TrainingSetHook'),
    )
    if method == 'tas':
        hooks['assistant'] = dict(type='mmcakd.AssistantAccuracyHook')
    ema = dict(type='EMAHook', momentum=0.1)
    return Config(
        dict(
            default_scope='mmpretrain',
            custom_imports=dict(
                imports=['mmcakd'], allow_failed_imports=False
            ),
            model=model,
            data_preprocessor=dict(
                num_classes=CLASSES, mean=[127.5] * 3, std=[64.0] * 3
            ),
            train_dataloader=dict(
                batch_size=4,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                collate_fn=dict(type='default_collate'),
                dataset=dict(
                    type='CustomDataset',
                    data_root='images',
                    pipeline=[
                        dict(type='LoadImageFromFile'),
                        dict(type='RandomFlip', prob=0.5),
                        dict(type='PackInputs'),
                    ],
                ),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=2),
            optim_wrapper=optim_wrapper,
            param_scheduler=dict(type='StepLR', step_size=1, gamma=0.5),
            default_hooks=hooks,
            custom_hooks=[ema] if method == 'kd' else [],
            work_dir=method,
            randomness=dict(seed=0),
        )
    )


def write_teacher(cfg: dict, path: Path) -> None:
    """Write weights of a teacher whose logits are not all the same."""
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg)
        model.init_weights()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(dict(state_dict=model.state_dict()), path)


def describe_change(before: dict, after: dict) -> dict[str, list[float]]:
    """The sum and the norm of what was added to each weight and buffer.

    Args:
        before (dict): The ``state_dict`` of a checkpoint.
        after (dict): That of a later one.

    Returns:
        dict: In the order of the names.
    """
    assert before.keys() == after.keys()
    found = dict(sum=[], norm=[])
    for name in sorted(before):
        change = after[name].double() - before[name].double()
        found['sum'].append(float(f'{change.sum().item():.7g}'))
        found['norm'].append(float(f'{change.norm().item():.7g}'))
    return found


def pack(source: Path, out: Path) -> None:
    """Write a file so that the same file gives the same bytes."""
    out.write_bytes(gzip.compress(source.read_bytes(), mtime=0))


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    expected = {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_images(Path('images'))
        for teacher in (CONVNEXT, VIT):
            name = f'teacher_{teacher["backbone"]["type"]}.pth'
            write_teacher(teacher, Path(name))
            pack(Path(name), out / f'{name}.gz')
        for method in METHODS:
            Runner.from_cfg(make_config(method)).train()
            one, two = (
                torch.load(f'{method}/epoch_{epoch}.pth', weights_only=False)
                for epoch in (1, 2)
            )
            expected[method] = describe_change(
                one['state_dict'], two['state_dict']
            )
            pack(Path(method, 'epoch_1.pth'), out / f'{method}.pth.gz')
            DefaultScope._instance_dict.clear()
        os.chdir(out)  # The other is removed.
    lines = [f'"{name}": {json.dumps(v)}' for name, v in expected.items()]
    Path(out, 'expected.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
    torch.set_num_threads(1)
    main(Path(sys.argv[1]).resolve())
