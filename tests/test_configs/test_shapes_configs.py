"""Configs on the rendered data set: shipped teachers, one step of each."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmpretrain.structures import DataSample

from mmcakd.models import CrossArchDistill
from mmcakd.registry import MODELS

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / 'configs' / 'shapes'
CONFIGS = sorted(path.relative_to(SHAPES) for path in SHAPES.glob('*/*.py'))
RATES = dict(resnet=6e-3, vit=1e-3, mixer=1e-3)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_config_builds_and_takes_a_step(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # where the shipped weights are
    cfg = Config.fromfile(SHAPES / path)
    cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).train()
    samples = [
        DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i)
        for i in range(4)
    ]
    losses = model(torch.randn(4, 3, 64, 64), samples, mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert all(
        p.grad is not None
        for name, p in model.named_parameters()
        if 'discriminator' not in name
    )


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_methods_share_the_schedule_of_their_student(path):
    cfg = Config.fromfile(SHAPES / path)
    # The second of a pair, or the one that is trained alone.
    names = [name for name in path.stem.split('_')[:2] if name in RATES]
    student = names[-1] if names else 'resnet'
    wrapper = cfg.optim_wrapper.get('student', cfg.optim_wrapper)
    assert wrapper.optimizer == dict(
        type='AdamW', lr=RATES[student], weight_decay=0.05
    )
    assert wrapper.clip_grad == dict(max_norm=5.0)
    assert cfg.train_cfg.max_epochs == 32
    assert cfg.train_dataloader.batch_size == 24


def test_every_pair_has_a_run_of_every_method_and_of_its_student():
    runs = {folder.name: set() for folder in SHAPES.iterdir()}
    for path in CONFIGS:
        runs[path.parent.name].add(path.stem)
    assisted = {'vit_resnet', 'mixer_resnet', 'resnet_vit', 'resnet_mixer'}
    pairs = assisted | {'vit_mixer'}
    assert runs['kd'] == runs['ofakd'] == pairs
    assert runs['tas'] == {
        pair + part
        for pair in assisted
        for part in ('', '_no-nce', '_no-assistant')
    }
    assert runs['alone'] == {pair.split('_')[1] for pair in pairs}


def test_distillation_runs_are_ours(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = Config.fromfile(SHAPES / 'ofakd' / 'vit_resnet.py')
    model = MODELS.build(cfg.model)
    assert isinstance(model, CrossArchDistill)
    (heads,) = model.distiller.connectors.values()
    assert len(heads.heads) == 4
