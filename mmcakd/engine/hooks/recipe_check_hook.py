"""What does not fit in a recipe: its schedule, its weights, its projectors."""

from collections.abc import Iterator
from itertools import chain

import torch
from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import BaseLoop, Runner

from mmcakd.arguments import Positive
from mmcakd.registry import HOOKS

from ..schedule import check_scheduler, is_warmup
from .utils import unwrap

#: Steps over which losses are averaged.
STEPS = 20


@HOOKS.register_module()
class RecipeCheckHook(Hook):
    """Say what does not fit in the recipe of a distillation.

    - A warm-up that is longer than training is an error before the first
      step.
    - After 20 steps, a warning names the terms of the distillation loss whose
      mean outweighs the label loss by more than ``ratio``. So it is with
      weights for one grid that are used on another.
    - With it, another one names the parameters that are trained beside the
      student and thrown away in the end, if they are more than the student's,
      and the size of a checkpoint.

    Nothing is computed for it: the losses are those that MMEngine has read for
    the log. In several processes the first looks at its own.

    Args:
        ratio (float): Defaults to 30, which no published recipe reaches.

    Raises:
        ValueError: See :func:`mmcakd.engine.check_schedule`.

    Examples:
        >>> default_hooks = dict(recipe=dict(type='mmcakd.RecipeCheckHook'))
    """

    # Behind the hook that gives the losses to the message hub.
    priority = 'LOW'

    def __init__(self, ratio: Positive = 30.0) -> None:
        self.ratio = ratio

    def before_run(self, runner: Runner) -> None:
        """Look at the schedule, if the run trains."""
        # Asking for `runner.train_loop` would build it for a test.
        if not isinstance(runner._train_loop, BaseLoop):
            return
        for scheduler in _all_schedulers(runner.param_schedulers):
            in_epochs = scheduler.by_epoch
            check_scheduler(
                type(scheduler).__name__,
                is_warmup(dict(vars(scheduler), type=type(scheduler))),
                scheduler.begin,
                scheduler.end,
                runner.max_epochs if in_epochs else runner.max_iters,
                'epoch' if in_epochs else 'step',
            )

    @master_only
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Look at the losses and the parameters, once."""
        if runner.iter + 1 != min(STEPS, runner.max_iters):
            return
        self._weigh_losses(runner)
        self._count_parameters(runner)

    def _weigh_losses(self, runner: Runner) -> None:
        means = {
            key.removeprefix('train/'): buffer.mean(STEPS)
            for key, buffer in runner.message_hub.log_scalars.items()
            if key.startswith('train/') and 'loss' in key
        }
        label = sum(
            mean for key, mean in means.items() if key.startswith('student.')
        )
        if not label > 0:
            return
        heavy = [
            f'{key} {mean:.3g} ({mean / label:.0f} times)'
            for key, mean in means.items()
            if key.startswith('distill.') and mean > self.ratio * label
        ]
        if heavy:
            runner.logger.warning(
                f'The label loss, {label:.3g} in the first steps, is '
                f'outweighed by {", ".join(heavy)}: look at the loss_weight, '
                'which may be meant for another grid (per_position=True of '
                'mmcakd.DualViewLoss) or another pair'
            )

    def _count_parameters(self, runner: Runner) -> None:
        model = unwrap(runner.model)
        if not hasattr(model, 'distiller'):
            return
        extra, student = (
            sum(p.numel() for p in part.parameters()) / 1e6
            for part in (model.distiller, model.student)
        )
        if extra > student:
            size = _checkpoint_size(runner) / 1e6
            runner.logger.warning(
                f'The connectors and losses have {extra:.1f} M parameters '
                f"beside the student's {student:.1f} M, and a checkpoint of "
                f'all takes {size:.1f} MB; '
                'they are dropped after training. Narrower ones, or a method '
                'without, save memory and time'
            )


def _all_schedulers(schedulers: list | dict | None) -> Iterator:
    """The schedulers of one optimizer, or of several by name."""
    by_name = schedulers if isinstance(schedulers, dict) else {'': schedulers}
    return chain.from_iterable(filter(None, by_name.values()))


def _checkpoint_size(runner: Runner) -> int:
    """Bytes of weights, averaged weights and the optimizer's values."""
    model, wrapper = unwrap(runner.model), runner.optim_wrapper
    weights = _size(chain(model.parameters(), model.buffers()))
    averages = sum(isinstance(hook, EMAHook) for hook in runner.hooks)
    wrappers = (
        wrapper.values()
        if isinstance(wrapper, OptimWrapperDict)
        else [wrapper]
    )
    states = sum(
        _size(state.values())
        for one in wrappers
        for state in one.optimizer.state.values()
    )
    return weights * (1 + averages) + states


def _size(values: Iterator) -> int:
    return sum(v.nbytes for v in values if isinstance(v, torch.Tensor))
