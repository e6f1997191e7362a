"""Random numbers that depend on the place in training, not on the past."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from mmcakd.datasets import ResumableBatches, make_resumable
from mmcakd.registry import HOOKS
from mmcakd.utils import seed_generators

from ..loops import VALIDATED
from ..loops import make_resumable as make_loop_resumable

#: Told apart from the seeds of samples, which begin with the run's seed, too.
STEP = 1


@HOOKS.register_module()
class SeedByEpochHook(Hook):
    """Make a resumed run end with the same weights, bit by bit.

    A checkpoint keeps no state of random generators, so that a resumed run
    draws other augmentations, dropout masks and mixing factors than the
    unbroken one. With this hook

    - the augmentations of a sample are a function of the run's seed, the
      epoch and the index of the sample, whichever process reads it. Workers
      stay alive between epochs with ``persistent_workers=True``;
    - what the process itself draws (dropout, MixUp, views, masks) is a
      function of the run's seed, the iteration and the rank;
    - the loop begins in the middle of an epoch if the checkpoint was written
      there, without reading what is done (see
      :class:`mmcakd.engine.ResumableEpochLoop`).

    The weights agree as far as the kernels are deterministic.
    """

    # Before other hooks draw, and before MMEngine loads a checkpoint.
    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        """Take over the loop and its loader, if the run trains."""
        # Asking for `runner.train_loop` would build it for a test.
        loop = runner._train_loop
        if isinstance(loop, BaseLoop) and make_resumable(
            loop.dataloader, runner.seed
        ):
            make_loop_resumable(loop)

    def before_train_epoch(self, runner: Runner) -> None:
        """Tell the loader of a loop that does not do so itself."""
        batches = runner.train_dataloader.batch_sampler
        if isinstance(batches, ResumableBatches):
            batches.begin(runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Seed random, numpy and torch."""
        seed_generators(STEP, runner.seed, runner.iter, get_rank())

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Note, before it is saved, that this place has been evaluated."""
        if isinstance(runner._train_loop, BaseLoop):
            runner.message_hub.update_info(VALIDATED, runner.iter)
