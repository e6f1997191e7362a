"""Several processes without an accelerator."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config

import mmcakd
from mmcakd.engine import launcher, prepare_cpu_launcher

WORKER = Path(__file__).with_name('ddp_worker.py')
ROOT = Path(mmcakd.__file__).parents[1]
STEPS = 3


def start(config: Path, out: Path, rank: int, world: int, port: str):
    """Start a process as torchrun does."""
    env = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), *sys.path])),
        'RANK': str(rank),
        'LOCAL_RANK': str(rank),
        'WORLD_SIZE': str(world),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': port,
        'OMP_NUM_THREADS': '1',
    }
    return subprocess.Popen(
        [sys.executable, '-W', 'ignore', WORKER, config, out],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
    make_cfg, tmp_path, free_port
):
    cfgs = dict(
        one=make_cfg('one', batch_size=4),
        two=make_cfg('two', batch_size=2, launcher='pytorch'),
    )
    port, processes = free_port, []
    try:
        for name, world in (('one', 1), ('two', 2)):
            cfgs[name].dump(tmp_path / f'{name}.py')
            processes += [
                start(
                    tmp_path / f'{name}.py', tmp_path / name, rank, world, port
                )
                for rank in range(world)
            ]
        for process in processes:
            said, _ = process.communicate(timeout=900)
            assert process.returncode == 0, said[-3000:]
    finally:
        for process in processes:
            process.kill()

    def read(step):
        return [
            torch.load(tmp_path / f'{name}_{step}.pth')
            for name in ('one_rank0', 'two_rank0', 'two_rank1')
        ]

    one, first, second = read('start')
    for name, weight in one['weights'].items():
        assert torch.equal(first['weights'][name], weight), name
        assert torch.equal(second['weights'][name], weight), name
    previous = one['weights']
    for index in range(STEPS):
        one, first, second = read(index)
        for rank in (first, second):
            assert rank['wrapper'] == 'MMDistributedDataParallel'
            assert rank['unused'] is False
        for name, weight in one['weights'].items():
            found = first['weights'][name]
            assert torch.equal(found, second['weights'][name]), name
            step = weight - previous[name]
            stopped = index == 2 and name.startswith('distiller')
            # The softmax ignores a bias that all keys share.
            if not name.endswith('k_proj.bias'):
                assert bool(step.any()) != stopped, name
            # Some gradients are zero but for rounding, such as those of a
            # bias before a softmax or before the frequency view.
            difference = (found - weight).norm()
            assert difference <= 0.01 * step.norm() + 1e-5, name
        # Each process logs its own half.
        for name, loss in one['losses'].items():
            mean = (first['losses'][name] + second['losses'][name]) / 2
            assert mean == pytest.approx(loss, rel=1e-2), name
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


def test_synchronised_batch_norm_is_dropped_with_a_warning(
    pretend, monkeypatch
):
    pretend('cpu')
    said = []
    monkeypatch.setattr(
        launcher, 'print_log', lambda text, *args, **kwargs: said.append(text)
    )
    cfg = Config(dict(launcher='pytorch', sync_bn='torch'))
    prepare_cpu_launcher(cfg)
    assert 'sync_bn' not in cfg
    (warning,) = said
    assert 'each process normalises by its own batch' in warning


def test_synchronised_batch_norm_of_a_layer_is_plain_without_an_accelerator(
    pretend, tiny
):
    def make() -> Config:
        student = tiny.classifier(tiny.resnet(norm_cfg=dict(type='SyncBN')))
        model = tiny.distillation(architecture=student)
        return Config(dict(launcher='pytorch', model=model))

    pretend('cpu')
    prepare_cpu_launcher(cfg := make())
    assert cfg.model.architecture.backbone.norm_cfg.type == 'BN'
    pretend('cuda')
    prepare_cpu_launcher(cfg := make())
    assert cfg.model.architecture.backbone.norm_cfg.type == 'SyncBN'
