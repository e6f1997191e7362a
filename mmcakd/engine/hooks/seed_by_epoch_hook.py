"""Random numbers that depend on the epoch, not on the past."""

from functools import partial

import torch
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from mmcakd.registry import HOOKS

#: Distance between the seeds of two epochs; more than there are processes and
#: data workers in one of them.
STRIDE = 100_003


@HOOKS.register_module()
class SeedByEpochHook(Hook):
    """Seed the process and its data workers anew at every epoch.

    A checkpoint keeps no state of random generators, so that a resumed run
    draws other augmentations, dropout masks and mixing factors than the
    unbroken one. With this hook they are a function of the run's seed, the
    epoch and the rank, and a resumed run ends with the same weights, bit by
    bit, as far as the kernels are deterministic.

    Data workers are started anew at every epoch, also with
    ``persistent_workers=True``.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed random, numpy and torch, here and in the workers."""
        seed = (runner.seed + runner.epoch * STRIDE) % 2**31
        loader = runner.train_dataloader
        if loader.num_workers:
            loader.worker_init_fn = partial(
                worker_init_fn,
                num_workers=loader.num_workers,
                rank=get_rank(),
                seed=seed,
                disable_subprocess_warning=True,
            )
            loader._iterator = None
        set_random_seed(seed + get_rank())
        # `set_random_seed` leaves the seed of a loader's workers to torch.
        loader.generator = torch.Generator().manual_seed(seed)
