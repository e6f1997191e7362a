"""One process of a distributed run: python ddp_worker.py CONFIG OUT."""

import os
import sys

import torch
from mmengine.config import Config
from mmengine.hooks import Hook

import mmcakd  # noqa: F401
from mmcakd.engine import prepare_cpu_launcher


class KeepWeights(Hook):
    """Save the weights after every step."""

    def __init__(self, out: str) -> None:
        self.out = out

    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        model = getattr(runner.model, 'module', runner.model)
        torch.save(
            dict(
                weights=dict(model.named_parameters()),
                losses={k: float(v) for k, v in outputs.items()},
                wrapped=type(runner.model).__name__,
                unused=getattr(runner.model, 'find_unused_parameters', None),
            ),
            f'{self.out}_rank{os.environ.get("RANK", 0)}_{runner.iter}.pth',
        )


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
