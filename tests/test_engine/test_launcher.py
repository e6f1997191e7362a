"""Several processes without an accelerator."""

import copy
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import mmengine.device
import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.runner import Runner

import mmcakd
from mmcakd.engine import launcher, prepare_cpu_launcher

WORKER = Path(__file__).with_name('ddp_worker.py')
ROOT = Path(mmcakd.__file__).parents[1]
STEPS = 3


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


def launch(config: Path, out: Path, world: int = 2) -> None:
    """Start the processes as torchrun does, and wait for them."""
    port = free_port()
    processes = []
    for rank in range(world):
        env = {
            **os.environ,
            'PYTHONPATH': os.pathsep.join(
                filter(None, [str(ROOT), *sys.path])
            ),
            'RANK': str(rank),
            'LOCAL_RANK': str(rank),
            'WORLD_SIZE': str(world),
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port),
            'OMP_NUM_THREADS': '1',
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, '-W', 'ignore', WORKER, config, out],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for process in processes:
            said, _ = process.communicate(timeout=900)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def make_cfg(short_run, tiny):
    """A step an epoch, of four images; the end of distillation after two."""

    def make(name: str, batch_size: int, **kwargs) -> Config:
        cfg = short_run(
            name,
            model=tiny.distillation(
                architecture=tiny.classifier(tiny.convnext()),
                distiller=tiny.scalekd('LN2d'),
            ),
            train=dict(
                batch_size=batch_size,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=STEPS),
            val_cfg=None,
            val_dataloader=None,
            val_evaluator=None,
            default_hooks=dict(checkpoint=None),
            optim_wrapper=dict(
                optimizer=dict(type='SGD', lr=0.1),
                clip_grad=dict(max_norm=100.0),
            ),
            param_scheduler=None,
            custom_hooks=[dict(type='mmrazor.StopDistillHook', stop_epoch=2)],
            **kwargs,
        )
        cfg.train_dataloader.dataset.indices = [0, 5, 10, 15]
        return cfg

    return make


def test_two_processes_learn_what_one_learns_from_the_joint_batch(
    make_cfg, tmp_path, monkeypatch
):
    cfg = make_cfg('two', batch_size=2, launcher='pytorch')
    cfg.dump(tmp_path / 'two.py')
    launch(tmp_path / 'two.py', tmp_path / 'two')

    keep = runpy.run_path(str(WORKER))['KeepWeights']
    runner = Runner.from_cfg(make_cfg('one', batch_size=4))
    start = copy.deepcopy(dict(runner.model.named_parameters()))
    monkeypatch.setenv('RANK', '0')
    runner.register_hook(keep(str(tmp_path / 'one')))
    runner.train()

    previous = start
    for index in range(STEPS):
        one = torch.load(tmp_path / f'one_rank0_{index}.pth')
        ranks = [
            torch.load(tmp_path / f'two_rank{rank}_{index}.pth')
            for rank in range(2)
        ]
        for rank in ranks:
            assert rank['wrapped'] == 'MMDistributedDataParallel'
            assert rank['unused'] is False
        for name, weight in one['weights'].items():
            assert torch.equal(
                ranks[0]['weights'][name], ranks[1]['weights'][name]
            ), name
            step = weight - previous[name]
            stopped = index == 2 and name.startswith('distiller')
            assert bool(step.any()) != stopped, name
            difference = ranks[0]['weights'][name] - weight
            assert difference.norm() <= 0.01 * step.norm() + 1e-6, name
        # Each process logs its own half.
        for name, loss in one['losses'].items():
            halves = [rank['losses'][name] for rank in ranks]
            assert sum(halves) / 2 == pytest.approx(loss, rel=1e-2), name
        assert (one['losses']['distill.loss_kd'] == 0) == (index == 2)
        previous = one['weights']


# -------------------------------------------------------------- its decisions


@pytest.fixture
def pretend(monkeypatch):
    """Pretend a kind of machine, and count the groups that are started."""
    started = []
    monkeypatch.setattr(
        dist, 'init_process_group', lambda *args: started.append(args)
    )

    def use(device: str) -> list:
        monkeypatch.setattr(launcher, 'get_device', lambda: device)
        return started

    return use


@pytest.mark.parametrize(
    ('device', 'name'), [('cpu', 'none'), ('cuda', 'pytorch')]
)
def test_nothing_is_done_where_nothing_is_needed(pretend, device, name):
    started = pretend(device)
    cfg = Config(dict(launcher=name, sync_bn='torch'))
    before = copy.deepcopy(cfg.to_dict())
    prepare_cpu_launcher(cfg)
    assert cfg.to_dict() == before
    assert started == []


def test_config_without_launcher_is_left_alone(pretend):
    started = pretend('cpu')
    cfg = Config(dict(model=dict()))
    prepare_cpu_launcher(cfg)
    assert cfg.to_dict() == dict(model=dict())
    assert started == []


def test_model_is_wrapped_without_a_device(pretend):
    started = pretend('cpu')
    cfg = Config(dict(launcher='pytorch'))
    prepare_cpu_launcher(cfg)
    assert started == [('gloo',)]
    wrapper = cfg.model_wrapper_cfg
    assert wrapper.type == 'MMDistributedDataParallel'
    assert wrapper.device_ids is None
    assert wrapper.find_unused_parameters is False


def test_settings_of_the_wrapper_are_kept(pretend):
    pretend('cpu')
    cfg = Config(
        dict(
            launcher='pytorch',
            find_unused_parameters=True,
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', broadcast_buffers=True
            ),
        )
    )
    prepare_cpu_launcher(cfg)
    assert cfg.model_wrapper_cfg.broadcast_buffers is True
    assert cfg.model_wrapper_cfg.find_unused_parameters is True
    assert cfg.model_wrapper_cfg.device_ids is None


def test_synchronised_batch_norm_is_dropped_with_a_warning(pretend, caplog):
    pretend('cpu')
    cfg = Config(dict(launcher='pytorch', sync_bn='torch'))
    with caplog.at_level('WARNING'):
        prepare_cpu_launcher(cfg)
    assert 'sync_bn' not in cfg
    assert mmengine.device.get_device is not None
