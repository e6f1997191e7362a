"""Runs of several processes each: python ddp_worker.py FOLDER NAME=COUNT ...

``FOLDER/NAME.py`` is the config of a run. The processes are forked from one
that has imported everything, which takes longer than all they do. They reckon
in float64: what two orders of the same sums differ by is then nothing beside
what a fault changes, on every processor.
"""

import os
import socket
import sys

import torch
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

import mmcakd  # noqa: F401
from mmcakd.engine import prepare_cpu_launcher


class KeepWeights(Hook):
    """Save the weights before and after every step, and the metrics."""

    def __init__(self, out: str) -> None:
        self.out = out

    def before_train(self, runner) -> None:
        self.save(runner, 'start', {})

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.save(runner, runner.iter, outputs)

    def after_val_epoch(self, runner, metrics) -> None:
        torch.save(metrics, f'{self.out}_metrics.pth')

    def save(self, runner, step, losses) -> None:
        model = getattr(runner.model, 'module', runner.model)
        state = dict(
            weights={k: p.detach() for k, p in model.named_parameters()},
            losses={k: float(v) for k, v in losses.items()},
            wrapper=type(runner.model).__name__,
            unused=getattr(runner.model, 'find_unused_parameters', None),
        )
        torch.save(state, f'{self.out}_{step}.pth')


def train(rank: int, path: str, world: int, port: int) -> None:
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port),
    )
    cfg = Config.fromfile(f'{path}.py')
    cfg.launcher = 'pytorch' if world > 1 else 'none'
    prepare_cpu_launcher(cfg)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(KeepWeights(f'{path}_rank{rank}'), priority='LOWEST')
    runner.train()


def main() -> None:
    import mmpretrain.datasets  # noqa: F401

    folder, *runs = sys.argv[1:]
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    started = []
    for run in runs:
        name, count = run.split('=')
        with socket.socket() as server:
            server.bind(('127.0.0.1', 0))
            port = server.getsockname()[1]
        started.append(
            mp.start_processes(
                train,
                (f'{folder}/{name}', int(count), port),
                nprocs=int(count),
                join=False,
                daemon=True,
                start_method='fork',
            )
        )
    for processes in started:
        while not processes.join():
            pass


if __name__ == '__main__':
    main()
