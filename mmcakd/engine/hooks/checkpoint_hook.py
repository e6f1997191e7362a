"""Checkpoints that survive a kill at any instruction."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import (
    all_gather_object,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmcakd.registry import HOOKS
from mmcakd.utils.files import remove_leftovers, write_text

from .utils import optim_wrappers, unwrap

#: Where a run that was told to stop leaves its state.
PAUSED = 'paused.pth'


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, without a moment at which all is lost.

    It takes the place of MMEngine's in every run once ``mmcakd`` is
    imported (see :func:`mmcakd.compat.keep_the_last_checkpoint`), and takes
    the same arguments. What differs:

    - outdated checkpoints are removed after the new one has been written,
      not before; the same holds for the best one;
    - the file ``last_checkpoint`` is written whole or not at all;
    - a checkpoint holds what a run needs to go on in the middle of an epoch
      or of a gradient accumulation as if it had never stopped;
    - a work directory that was moved is still understood.
    """

    #: What was read of a checkpoint, until training starts.
    _loaded: dict | None = None
    #: The iteration after which the last checkpoint was written, and its file.
    saved_iteration: int | None = None
    _saved: str | None = None
    #: Accumulated gradients of all processes, while they are saved.
    _gradients: list | None = None

    def before_train(self, runner: Runner) -> None:
        """See the parent; and restore what an optimizer was gathering."""
        super().before_train(runner)
        if is_main_process() and isinstance(self.file_backend, LocalBackend):
            # What writers that were killed had begun.
            remove_leftovers(Path(self.out_dir), r'\.(\d+)\..+\.pth')
        self.file_backend = _RemovingLater(self.file_backend)
        self._find_best_again(runner)
        loaded, self._loaded = self._loaded, None
        # A checkpoint may also be loaded to begin with its weights.
        if loaded is not None and runner.iter:
            _restore_position(runner, **loaded['place'])
            _restore_gradients(runner, loaded['gradients'])

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what :meth:`before_train` needs of a resumed checkpoint."""
        meta = checkpoint.get('meta') or {}
        place = {
            key: meta[key]
            for key in ('epoch', 'iter', 'batches_per_epoch')
            if key in meta
        }
        self._loaded = dict(
            place=place,
            gradients=checkpoint.pop('accumulated_gradients', None),
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the place in the epoch, and gradients not yet applied."""
        checkpoint['meta']['batches_per_epoch'] = len(runner.train_dataloader)
        if self._gradients is not None:
            checkpoint['accumulated_gradients'] = self._gradients

    def pause(self, runner: Runner, epoch: int, iteration: int) -> Path:
        """Write a checkpoint to go on from, unless there is one of this step.

        All processes have to call it. The next ordinary checkpoint takes the
        place of the file.

        Args:
            runner (Runner): Of the training.
            epoch (int): Epochs that are done.
            iteration (int): Iterations that are done.

        Returns:
            Path: The file.
        """
        if self.saved_iteration != iteration:
            self._save(runner, PAUSED, dict(epoch=epoch, iter=iteration))
        return Path(self._saved)

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        name = self.filename_tmpl.format(step)
        outdated = [PAUSED]
        # The same step comes twice where the best score changed in it.
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                oldest = self.keep_ckpt_ids.popleft()
                outdated.append(self.filename_tmpl.format(oldest))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info(
                'keep_ckpt_ids', list(self.keep_ckpt_ids)
            )
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        with self.file_backend.after_all():
            self._save(
                runner,
                name,
                meta,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                **self.args,
            )
            for name in outdated:
                self._remove(name)

    def _save(self, runner: Runner, name: str, meta: dict, **kwargs) -> None:
        """Write a checkpoint and say that it is the last."""
        self._gradients = _gather_gradients(runner)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **kwargs,
        )
        self._gradients = None
        self.saved_iteration = meta['iter']
        self._saved = self.file_backend.join_path(self.out_dir, name)
        if is_main_process():
            # A pointer that is always whole.
            write_text(Path(runner.work_dir) / 'last_checkpoint', self._saved)

    def _remove(self, name: str) -> None:
        path = self.file_backend.join_path(self.out_dir, name)
        if not is_main_process():
            return
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            # DeepSpeed saves folders.
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        with self.file_backend.after_all():
            super()._save_best_checkpoint(runner, metrics)

    def _find_best_again(self, runner: Runner) -> None:
        """Look for the best checkpoint where the work directory is now."""
        if self.save_best is None:
            return
        for key, path in list(runner.message_hub.runtime_info.items()):
            if key.startswith('best_ckpt') and path:
                here = self.file_backend.join_path(
                    self.out_dir, Path(path).name
                )
                runner.message_hub.update_info(key, here)
                if len(self.key_indicators) == 1:
                    self.best_ckpt_path = here
                else:
                    name = key.removeprefix('best_ckpt_')
                    self.best_ckpt_path_dict[name] = here


class _RemovingLater:
    """A file backend that removes files when what replaces them is there."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._waiting: list = []
        self._depth = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._waiting.append((self._backend.remove, str(path)))

    def rmtree(self, path: str) -> None:
        self._waiting.append((self._backend.rmtree, str(path)))

    @contextmanager
    def after_all(self) -> Iterator[None]:
        """Remove what was asked for once the outermost block has ended."""
        self._depth += 1
        try:
            yield
        except BaseException:
            self._waiting.clear()
            raise
        finally:
            self._depth -= 1
        if self._depth == 0:
            waiting, self._waiting = self._waiting, []
            for remove, path in waiting:
                remove(path)


def _gather_gradients(runner: Runner) -> list | None:
    """Gather gradients that were accumulated and not yet applied.

    Returns:
        list[dict[str, Tensor]], optional: By process, since each has its own
        until the step. None where nothing waits.
    """
    # Two optimizers in turns accumulate as the first of them does.
    if next(optim_wrappers(runner.optim_wrapper)).should_update():
        return None
    own = {
        name: parameter.grad.detach().cpu()
        for name, parameter in unwrap(runner.model).named_parameters()
        if parameter.grad is not None
    }
    return all_gather_object(own)


def _restore_gradients(runner: Runner, gradients: list | None) -> None:
    if gradients is None:
        return
    if len(gradients) == get_world_size():
        own = gradients[get_rank()]
    else:
        # On another number of processes their mean is what a step would see.
        own = {
            name: torch.stack([part[name] for part in gradients]).mean(0)
            for name in gradients[0]
        }
    for name, parameter in unwrap(runner.model).named_parameters():
        if name in own:
            parameter.grad = own[name].to(parameter)
    runner.logger.info(
        f'The gradients of {len(own)} parameters, accumulated before the run '
        'was stopped, are back'
    )


def _restore_position(
    runner: Runner,
    epoch: int,
    iter: int,
    batches_per_epoch: int | None = None,
) -> None:
    """Tell the loop how many batches of the epoch are done."""
    loop = runner.train_loop
    if not hasattr(loop, 'position'):
        return
    length = len(loop.dataloader)
    done = iter - epoch * (batches_per_epoch or length)
    if batches_per_epoch not in (None, length) and done:
        raise ValueError(
            f'the checkpoint was saved in the middle of an epoch of '
            f'{batches_per_epoch} batches, and an epoch of this run has '
            f'{length}: resume with the same data, batch size and number of '
            'processes, or from a checkpoint of the end of an epoch'
        )
    # One of an older release, or of another package, may count otherwise.
    loop.position = done if 0 <= done <= length else 0
