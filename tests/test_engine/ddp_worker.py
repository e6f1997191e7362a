"""One process of a distributed run: python ddp_worker.py CONFIG OUT."""

import os
import sys

import torch
from mmengine.config import Config
from mmengine.hooks import Hook

import mmcakd  # noqa: F401
from mmcakd.engine import prepare_cpu_launcher


class KeepWeights(Hook):
    """Save the weights before and after every step, and the metrics."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.rank = os.environ.get('RANK', '0')

    def before_train(self, runner) -> None:
        self.save(runner, 'start', {})

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        self.save(runner, runner.iter, outputs)

    def after_val_epoch(self, runner, metrics) -> None:
        torch.save(metrics, f'{self.out}_rank{self.rank}_metrics.pth')

    def save(self, runner, step, losses) -> None:
        model = getattr(runner.model, 'module', runner.model)
        state = dict(
            weights={k: p.detach() for k, p in model.named_parameters()},
            losses={k: float(v) for k, v in losses.items()},
            wrapper=type(runner.model).__name__,
            unused=getattr(runner.model, 'find_unused_parameters', None),
        )
        torch.save(state, f'{self.out}_rank{self.rank}_{step}.pth')


def main() -> None:
    from mmengine.runner import Runner

    torch.set_num_threads(1)
    config, out = sys.argv[1:]
    cfg = Config.fromfile(config)
    prepare_cpu_launcher(cfg)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(KeepWeights(out))
    runner.train()


if __name__ == '__main__':
    main()
