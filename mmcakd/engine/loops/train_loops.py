"""Training loops that go on in the middle of an epoch."""

import time
from collections.abc import Iterator
from typing import Any

from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import DataLoader

from mmcakd.registry import LOOPS

#: In the message hub, and so in checkpoints: the iteration at which the
#: student was last evaluated.
VALIDATED = 'last_validation'


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """MMEngine's ``EpochBasedTrainLoop`` that starts anywhere in an epoch.

    What differs from the parent in a resumed run: batches of the epoch that
    are done are passed over without being read, and an evaluation that the
    checkpoint was written before, and a kill prevented, is made up for.

    It needs a data loader of :func:`mmcakd.datasets.resumable_loader`.
    """

    #: Batches of the current epoch that are done.
    position = 0

    def run(self) -> Any:
        """Train, from the place that was restored."""
        self.runner.call_hook('before_train')
        if self._iter and not self.position:
            self._validate_if_due()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate_if_due()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Run the rest of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        start, self.position = self.position, 0
        if start < len(self.dataloader):
            self.dataloader.batch_sampler.begin(self._epoch, start)
            for index, batch in enumerate(_read(self.dataloader), start):
                self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = (
            self.runner.val_loop is not None
            and self._epoch >= self.val_begin
            and (
                self._epoch % self.val_interval == 0
                or self._epoch == self._max_epochs
            )
        )
        if due and not _is_validated(self):
            self.runner.val_loop.run()


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """MMEngine's ``IterBasedTrainLoop`` that passes over what it has seen.

    The parent reads all batches again, to throw them away. An evaluation
    that a kill prevented is made up for.

    It needs a data loader of :func:`mmcakd.datasets.resumable_loader`.
    """

    def run(self) -> Any:
        """Train, from the iteration that was restored."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter:
            self._validate_if_due()
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _batches(self) -> Iterator:
        """Go through the data, again and again."""
        sampler = self.dataloader.batch_sampler
        while True:
            epoch, start = divmod(self._iter, len(self.dataloader))
            if sampler.is_endless:
                epoch, start = 0, self._iter
            sampler.begin(epoch, start)
            yield from _read(self.dataloader)

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = (
            self.runner.val_loop is not None
            and self._iter >= self.val_begin
            and (
                self._iter % self.val_interval == 0
                or self._iter == self._max_iters
            )
        )
        if due and not _is_validated(self):
            self.runner.val_loop.run()


def _read(dataloader: DataLoader) -> Iterator:
    """Go through a data loader, whose workers may die.

    Raises:
        RuntimeError: One has.
    """
    try:
        yield from dataloader
    except (ConnectionError, EOFError) as error:
        # The system closes the socket of a process before it tells of its
        # death; then torch raises an error here that names the worker.
        time.sleep(1)
        raise RuntimeError(
            'a DataLoader worker has died; if the machine is out of memory, '
            'lower num_workers'
        ) from error


def _is_validated(loop: BaseLoop) -> bool:
    hub = loop.runner.message_hub
    return (
        VALIDATED in hub.runtime_info and hub.get_info(VALIDATED) == loop.iter
    )


def make_resumable(loop: BaseLoop) -> None:
    """Turn a loop of MMEngine's into one that starts anywhere, in place.

    Args:
        loop (BaseLoop): A loop of another class stays what it is: it is
            resumed as its class does it.
    """
    kinds = {
        EpochBasedTrainLoop: ResumableEpochLoop,
        IterBasedTrainLoop: ResumableIterLoop,
    }
    # MMEngine makes the loop without a registry where `by_epoch` is given.
    # The state of both classes is the same, and so are all who know the loop.
    loop.__class__ = kinds.get(type(loop), type(loop))
    if isinstance(loop, ResumableIterLoop):
        # Its workers have begun to read from the start.
        del loop.dataloader_iterator
