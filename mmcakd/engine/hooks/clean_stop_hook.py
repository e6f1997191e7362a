"""A run that is told to stop leaves a checkpoint, and says how to go on."""

import inspect
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import torch
import yaml
from mmengine.dist import (
    all_gather,
    all_reduce,
    get_comm_device,
    is_distributed,
    is_main_process,
)
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from mmcakd.arguments import Positive
from mmcakd.registry import HOOKS
from mmcakd.utils.files import write_text

from .checkpoint_hook import SafeCheckpointHook

#: Reasons to stop, the most urgent last, with the exit code of the process.
REASONS = {
    'max_hours': 0,
    'SIGUSR1': 0,
    'SIGINT': 128 + signal.SIGINT,
    'SIGTERM': 128 + signal.SIGTERM,
}
STATUS = 'status.yml'


@HOOKS.register_module()
class CleanStopHook(Hook):
    """Stop a run on SIGTERM, SIGINT, SIGUSR1 or after some hours.

    The step that is under way is finished, a checkpoint is written, and the
    process ends: with code 143 after SIGTERM and 130 after SIGINT, with 0
    after SIGUSR1, by which Slurm warns of the end of a job, and after
    ``max_hours``. Several processes stop after the same step. A second signal
    of the same kind ends the process at once.

    The file ``status.yml`` in the work directory says how the run stands:
    ``running``, ``paused`` (exit code 0), ``stopped`` or ``finished``.

    Args:
        max_hours (float, optional): When to stop, in hours since the run was
            set up. Defaults to None, never.

    Examples:
        >>> # sbatch --signal=USR1@120 --requeue ...
        >>> default_hooks = dict(
        ...     stop=dict(type='mmcakd.CleanStopHook', max_hours=23.5))
    """

    # After all others have seen the step.
    priority = 'LOWEST'

    def __init__(self, max_hours: Positive | None = None) -> None:
        self.max_hours = max_hours
        self._started = time.monotonic()
        self._reason: str | None = None
        self._former: dict = {}

    def before_run(self, runner: Runner) -> None:
        """Listen to signals, if the run trains."""
        if not isinstance(runner._train_loop, BaseLoop):
            return
        self._process = os.getpid()
        self._train_code = inspect.unwrap(type(runner).train).__code__
        for name in ('SIGTERM', 'SIGINT', 'SIGUSR1'):
            try:
                former = signal.signal(getattr(signal, name), self._hear)
            except ValueError:
                return  # not in the main thread, which alone gets signals
            self._former[name] = former
        for loop in (runner._train_loop, runner._val_loop):
            if isinstance(loop, BaseLoop):
                _shield_workers(loop.dataloader)

    def before_train(self, runner: Runner) -> None:
        """Write down that the run is under way."""
        self._write_status(runner, 'running')

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Stop after a step."""
        self._stop_if_told(runner, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """See whether all processes evaluate as many batches."""
        self._is_even = True
        if is_distributed():
            lengths = all_gather(
                torch.tensor(
                    len(runner.val_dataloader), device=get_comm_device()
                )
            )
            self._is_even = len(set(map(int, lengths))) == 1

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Stop in an evaluation that is made up for when the run goes on.

        The weights may be averaged ones for its time, so that this is no
        moment to save them.
        """
        if self._is_even and self._is_saved(runner):
            self._stop_if_told(runner, runner.iter)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Stop after an evaluation."""
        if isinstance(runner._train_loop, BaseLoop):
            self._stop_if_told(runner, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Write down that the run has ended, and leave signals alone."""
        self._write_status(runner, 'finished')
        self._forget_signals()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # Whoever sends it twice does not want to wait.
        signal.signal(number, self._former[name] or signal.SIG_DFL)
        if self._is_meant(frame):
            self._reason = name
        else:
            os.kill(os.getpid(), number)

    def _is_meant(self, frame: FrameType | None) -> bool:
        """Whether the run is under way, and in this process.

        A run that failed tells no hook, and a process that was forked from it
        has its signals, too.
        """
        while frame is not None and frame.f_code is not self._train_code:
            frame = frame.f_back
        return frame is not None and os.getpid() == self._process

    def _forget_signals(self) -> None:
        while self._former:
            name, former = self._former.popitem()
            signal.signal(getattr(signal, name), former or signal.SIG_DFL)

    def _agree(self) -> str | None:
        """What any of the processes was told, known to all of them."""
        reason = self._reason
        if (
            reason is None
            and self.max_hours is not None
            and time.monotonic() - self._started > self.max_hours * 3600
        ):
            reason = 'max_hours'
        if not is_distributed():
            return reason
        reasons = [None, *REASONS]
        told = torch.tensor([reasons.index(reason)], device=get_comm_device())
        all_reduce(told, 'max')
        return reasons[told.item()]

    def _stop_if_told(self, runner: Runner, iteration: int) -> None:
        reason = self._agree()
        if reason is None:
            return
        self._forget_signals()
        hook = _checkpoint_hook(runner)
        path, saved = None, 'nothing is saved: there is no CheckpointHook'
        if hook is not None:
            path = hook.pause(runner, runner.epoch, iteration)
            saved = f'{path} goes on from there with --resume'
        state = 'stopped' if REASONS[reason] else 'paused'
        self._write_status(
            runner,
            state,
            reason=reason,
            epoch=runner.epoch,
            iteration=iteration,
            checkpoint=path and str(path),
        )
        runner.logger.warning(
            f'{state.capitalize()} by {reason} after iteration {iteration}; '
            f'{saved}'
        )
        sys.exit(REASONS[reason])

    @staticmethod
    def _is_saved(runner: Runner) -> bool:
        if not isinstance(runner._train_loop, BaseLoop):
            return False  # a validation alone
        hook = _checkpoint_hook(runner)
        return hook is not None and hook.saved_iteration == runner.iter

    def _write_status(self, runner: Runner, status: str, **more: Any) -> None:
        if is_main_process():
            content = dict(status=status, **more, process=os.getpid())
            write_text(
                Path(runner.work_dir) / STATUS,
                yaml.safe_dump(content, sort_keys=False),
            )


def _checkpoint_hook(runner: Runner) -> SafeCheckpointHook | None:
    for hook in runner.hooks:
        if isinstance(hook, SafeCheckpointHook):
            return hook
    return None


def _shield_workers(loader: DataLoader) -> None:
    """Let data workers live as long as their process wants them to.

    A terminal and Slurm send a signal to all processes of a job. A worker
    that died of it would take the step along that is to be finished.
    """
    if loader.num_workers:
        loader.worker_init_fn = partial(
            _heed_the_parent_alone, then=loader.worker_init_fn
        )
        # Those that live are of a loop that has not begun.
        loader._iterator = None


def _heed_the_parent_alone(worker_id: int, then: Callable | None) -> None:
    for name in ('SIGINT', 'SIGUSR1'):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    # By SIGTERM the process itself ends its workers. Where the system does
    # not tell who sent it (macOS), it ends them, whoever it was.
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=_wait_for_the_parent, daemon=True).start()
    if then is not None:
        then(worker_id)


def _wait_for_the_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
