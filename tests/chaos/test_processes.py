"""Runs of which a process dies, or whose images cannot be shared evenly."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmcakd

ROOT = Path(mmcakd.__file__).parents[1]


@pytest.fixture
def make_cfg(tiny, tmp_path):
    """A run on eight images of noise."""

    def make(max_epochs: int, **loader) -> Config:
        folder = tmp_path / 'images' / 'class_0'
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for index in range(8):
            pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / f'{index}.png'), pixels)
        return Config(
            dict(
                default_scope='mmpretrain',
                custom_imports=dict(
                    imports=['mmcakd'], allow_failed_imports=False
                ),
                model=tiny.distillation(
                    architecture=tiny.classifier(tiny.convnext()),
                    distiller=tiny.logit_kd(),
                ),
                data_preprocessor=dict(
                    num_classes=5, mean=[127.0] * 3, std=[64.0] * 3
                ),
                train_dataloader=dict(
                    batch_size=2,
                    num_workers=0,
                    sampler=dict(type='DefaultSampler', shuffle=False),
                    dataset=dict(
                        type='CustomDataset',
                        data_root=str(tmp_path / 'images'),
                        pipeline=[
                            dict(type='LoadImageFromFile'),
                            dict(type='PackInputs'),
                        ],
                    ),
                )
                | loader,
                train_cfg=dict(by_epoch=True, max_epochs=max_epochs),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
                default_hooks=dict(
                    logger=dict(type='LoggerHook', interval=1),
                    checkpoint=dict(
                        type='CheckpointHook', interval=1, max_keep_ckpts=2
                    ),
                ),
                randomness=dict(seed=0),
                work_dir=str(tmp_path / 'run'),
            )
        )

    return make


@pytest.fixture
def start(tmp_path):
    """Start tools/train.py; whatever still runs at the end is killed."""
    started = []

    def start(cfg: Config, *arguments: str, **environment: str):
        cfg.dump(config := tmp_path / 'config.py')
        said = tmp_path / f'said_{len(started)}.txt'
        with said.open('w') as file:
            process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', ROOT / 'tools' / 'train.py']
                + [config, *arguments],
                env=os.environ | dict(OMP_NUM_THREADS='1') | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process, said

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_until_under_way(process, said: Path, folder: Path) -> None:
    """Wait until there are checkpoints."""
    until = time.monotonic() + 120
    while not (folder / 'epoch_3.pth').exists():
        assert process.poll() is None, said.read_text()[-3000:]
        assert time.monotonic() < until, said.read_text()[-3000:]
        time.sleep(0.05)


def assert_last_checkpoint_loads(folder: Path) -> None:
    last = Path((folder / 'last_checkpoint').read_text())
    assert torch.load(last)['state_dict']


@pytest.mark.parametrize('dies', [0, 1])
def test_run_ends_when_one_of_its_processes_dies(
    make_cfg, start, free_port, tmp_path, dies
):
    cfg = make_cfg(max_epochs=10_000)
    ranks = [
        start(
            cfg,
            '--launcher=pytorch',
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE='2',
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=free_port,
        )
        for rank in range(2)
    ]
    wait_until_under_way(*ranks[0], tmp_path / 'run')
    ranks[dies][0].kill()
    process, said = ranks[1 - dies]
    assert process.wait(timeout=120) > 0
    assert 'by peer' in said.read_text()
    if dies == 1:
        assert_last_checkpoint_loads(tmp_path / 'run')


@pytest.mark.skipif(
    sys.platform != 'linux', reason='/proc tells who the workers are'
)
def test_run_ends_when_a_data_worker_dies(make_cfg, start, tmp_path):
    cfg = make_cfg(max_epochs=10_000, num_workers=1, persistent_workers=True)
    process, said = start(cfg)
    wait_until_under_way(process, said, tmp_path / 'run')
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children')
    for worker in children.read_text().split():
        os.kill(int(worker), signal.SIGKILL)
    assert process.wait(timeout=120) > 0
    # Torch notices it in one of two ways, and says so in other words.
    assert 'DataLoader worker' in said.read_text()
    assert_last_checkpoint_loads(tmp_path / 'run')


def test_images_that_cannot_be_shared_evenly_are_repeated(
    make_cfg, train_in_processes, assert_same_way
):
    """The last batch of each process is smaller, but as large as others'."""

    def share(indices: list[int], batch_size: int) -> Config:
        cfg = make_cfg(max_epochs=2, batch_size=batch_size)
        cfg.train_dataloader.dataset.indices = indices
        cfg.default_hooks.checkpoint = None
        return cfg

    train_in_processes(
        six=(share([0, 1, 2, 3, 4, 5], 4), 1),
        six_of_two=(share([0, 1, 2, 3, 4, 5], 2), 2),
        # Fewer images than processes.
        three=(share([0, 1, 2, 0], 4), 1),
        three_of_four=(share([0, 1, 2], 2), 4),
    )
    assert_same_way('six', 'six_of_two', 2, 4)
    assert_same_way('three', 'three_of_four', 4, 2)


def test_unequal_shares_are_refused_at_once(
    make_cfg, tmp_path, monkeypatch, capsys
):
    cfg = make_cfg(max_epochs=1)
    cfg.train_dataloader.sampler.round_up = False
    cfg.dump(config := tmp_path / 'config.py')
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.setattr(
        sys, 'argv', ['train.py', str(config), '--launcher=pytorch']
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / 'tools' / 'train.py'), run_name='__main__')
    assert stop.value.code == 1
    assert 'sampler.round_up=False lets some' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
