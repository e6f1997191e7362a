"""Tiny models, runs in several processes, and tools as a user runs them."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

REPO = Path(__file__).parents[1]

CLASSES = 5
#: Channels of the last stage of each backbone below.
WIDTHS = dict(
    ResNet=32,
    ConvNeXt=32,
    SwinTransformer=64,
    VisionTransformer=16,
    MlpMixer=16,
)


def resnet(**kwargs) -> dict:
    """Stages of 4, 8, 16, 32 channels at strides 4, 8, 16, 32."""
    cfg = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)
    return cfg | kwargs


def convnext(**kwargs) -> dict:
    """A student without BatchNorm: 4, 8, 16, 32 channels."""
    arch = dict(depths=[1, 1, 1, 1], channels=[4, 8, 16, 32])
    cfg = dict(type='ConvNeXt', arch=arch, drop_path_rate=0.0)
    return cfg | dict(layer_scale_init_value=1.0) | kwargs


def swin(**kwargs) -> dict:
    """8, 16, 32, 64 channels at strides 4, 8, 16, 32."""
    arch = dict(embed_dims=8, depths=[1, 1, 2, 2], num_heads=[1, 2, 4, 4])
    cfg = dict(type='SwinTransformer', arch=arch, img_size=64, window_size=2)
    return cfg | dict(drop_path_rate=0.0) | kwargs


def vit(**kwargs) -> dict:
    """Six blocks of 16 channels at stride 16."""
    arch = dict(
        embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32
    )
    cfg = dict(type='VisionTransformer', arch=arch, img_size=64)
    return cfg | dict(patch_size=16) | kwargs


def mixer(**kwargs) -> dict:
    """Four blocks of 16 channels at stride 16."""
    arch = dict(
        embed_dims=16, num_layers=4, tokens_mlp_dims=8, channels_mlp_dims=16
    )
    return dict(type='MlpMixer', arch=arch, img_size=64) | kwargs


def classifier(backbone: dict, classes: int = CLASSES, **kwargs) -> dict:
    """An MMPretrain classifier on one of the backbones above."""
    is_vit = backbone['type'] == 'VisionTransformer'
    pooled = is_vit or backbone['type'] == 'ConvNeXt'
    pool = dict(type='GlobalAveragePooling')
    if backbone['type'] == 'MlpMixer':
        pool['dim'] = 1
    cfg = dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=None if pooled else pool,
        head=dict(
            type='VisionTransformerClsHead' if is_vit else 'LinearClsHead',
            num_classes=classes,
            in_channels=WIDTHS[backbone['type']],
        ),
    )
    return cfg | kwargs


def record(name: str, from_student: bool, stage: int | None = None) -> dict:
    """A reference to a record, or to one of its four stages."""
    reference = dict(recorder=name, from_student=from_student)
    return reference if stage is None else reference | dict(data_idx=stage)


def recorders() -> dict:
    """The same two for teacher and student."""
    return dict(
        stages=dict(type='mmcakd.StageOutputs'),
        logits=dict(type='mmcakd.Logits'),
    )


def logit_kd(**loss) -> dict:
    """A distiller with soft targets alone."""
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=dict(logits=dict(type='mmcakd.Logits')),
        teacher_recorders=dict(logits=dict(type='mmcakd.Logits')),
        distill_losses=dict(loss_kd=dict(type='mmcakd.SoftTargetLoss') | loss),
        loss_forward_mappings=dict(
            loss_kd=dict(
                student=record('logits', True), teacher=record('logits', False)
            )
        ),
    )


def scalekd(norm: str = 'BN', heads: int = 2) -> dict:
    """ScaleKD: four projectors, the teacher's tail, soft targets."""
    views = ('original', 'frequency')
    connectors, losses, mappings = {}, {}, {}
    target = record('stages', False, 3)
    for view in views:
        cap = dict(
            type='mmcakd.CAPConnector',
            num_heads=heads,
            kappa=5.0,
            norm_cfg=dict(type=norm),
        )
        replayed = dict(connector='tail', connector_idx=view)
        connectors[f's3_{view}'] = cap | dict(
            inputs=dict(feature=record('stages', True, 2)),
            shape_like=record('stages', False, 2),
        )
        connectors[f's4_{view}'] = cap | dict(
            inputs=dict(feature=record('stages', True, 3), query=replayed)
        )
        outputs = dict(s3=replayed, s4=dict(connector=f's4_{view}'))
        for stage, output in outputs.items():
            name = f'loss_{stage}_{view}'
            losses[name] = dict(
                type='mmcakd.DualViewLoss',
                view=view,
                loss_weight=dict(original=0.08, frequency=0.06)[view],
            )
            mappings[name] = dict(student=output, teacher=target)
    connectors['tail'] = dict(
        type='mmcakd.TeacherReplay',
        from_stage=3,
        inputs={view: dict(connector=f's3_{view}') for view in views},
    )
    losses['loss_kd'] = dict(type='mmcakd.SoftTargetLoss', loss_weight=0.5)
    mappings['loss_kd'] = dict(
        student=record('logits', True), teacher=record('logits', False)
    )
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=recorders(),
        teacher_recorders=recorders(),
        connectors=connectors,
        distill_losses=losses,
        loss_forward_mappings=mappings,
    )


def distillation(**kwargs) -> dict:
    """Config of a whole algorithm: tiny Swin -> tiny ResNet by ScaleKD."""
    cfg = dict(
        type='mmcakd.CrossArchDistill',
        architecture=classifier(resnet()),
        teacher=classifier(swin()),
        teacher_ckpt='random',
        distiller=scalekd(),
        input_size=64,
        student_loss_weight=0.5,
    )
    return cfg | kwargs


def batch(size: int = 2, pixels: int | tuple = 64, soft: bool = False):
    """Random normalised images and their data samples."""
    from mmpretrain.structures import DataSample

    pixels = (pixels, pixels) if isinstance(pixels, int) else pixels
    samples = []
    for index in range(size):
        sample = DataSample().set_gt_label(index % CLASSES)
        if soft:
            sample.set_gt_score(torch.rand(CLASSES).softmax(0))
        samples.append(sample)
    return torch.randn(size, 3, *pixels), samples


@pytest.fixture(scope='session')
def tiny() -> SimpleNamespace:
    """Configs of models that run in milliseconds, and batches for them."""
    from mmcakd.registry import MODELS

    return SimpleNamespace(
        classes=CLASSES,
        resnet=resnet,
        convnext=convnext,
        swin=swin,
        vit=vit,
        mixer=mixer,
        classifier=classifier,
        record=record,
        recorders=recorders,
        logit_kd=logit_kd,
        scalekd=scalekd,
        distillation=distillation,
        batch=batch,
        build=MODELS.build,
        build_distillation=lambda **kw: MODELS.build(distillation(**kw)),
    )


@pytest.fixture(scope='session')
def run_tool():
    """Run a file of tools/ or demo/ and return what it printed."""

    def run(
        tool: str, *arguments, cwd=None, code: int = 0, **environment
    ) -> str:
        launcher = 'bash' if str(tool).endswith('.sh') else sys.executable
        done = subprocess.run(
            [launcher, REPO / tool, *map(str, arguments)],
            env=os.environ
            | dict(OMP_NUM_THREADS='1', PYTHON=sys.executable)
            | environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stdout[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope='session')
def pick_port() -> Callable[[], str]:
    """Find a port of this machine that nobody listens on."""

    def pick() -> str:
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            return str(server.getsockname()[1])

    return pick


@pytest.fixture
def free_port(pick_port) -> str:
    return pick_port()


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
                PYTHONPATH=os.pathsep.join([str(REPO), *sys.path]),
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
