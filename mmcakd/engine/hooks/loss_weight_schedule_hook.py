"""Weights of losses that depend on the epoch."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmcakd.arguments import NonNegative
from mmcakd.registry import HOOKS

from .utils import unwrap


@HOOKS.register_module()
class LossWeightScheduleHook(Hook):
    """Multiply weights of distillation losses by a function of the epoch.

    The factor is given at some epochs, linear in between and constant before
    and after them. Epochs count from 0. Nothing has to be saved: a resumed
    run finds the weight in its config and the factor in the epoch.

    Args:
        points (Sequence[tuple[float, float]]): Pairs of an epoch and a
            factor, in order.
        losses (Sequence[str], optional): Names of losses in the distiller.
            Defaults to all of them.

    Raises:
        ValueError: Points out of order, a model without such losses, a loss
            without a ``loss_weight``, or a loop that does not count epochs.

    Examples:
        >>> from mmcakd.engine.hooks import LossWeightScheduleHook
        >>> # min(max(epoch - 25, 0) / 50, 0.2)
        >>> hook = LossWeightScheduleHook(points=[(25, 0.), (35, 0.2)])
        >>> [round(hook.factor(epoch), 2) for epoch in (0, 25, 30, 35, 119)]
        [0.0, 0.0, 0.1, 0.2, 0.2]
    """

    def __init__(
        self,
        points: Sequence[tuple[NonNegative, NonNegative]],
        losses: Sequence[str] | None = None,
    ) -> None:
        epochs = [epoch for epoch, _ in points]
        if not epochs or any(a >= b for a, b in pairwise(epochs)):
            raise ValueError(
                'points must be pairs (epoch, factor) with rising epochs, '
                f'got {points}'
            )
        self.points = points
        self.losses = losses
        self._weights: dict[str, float] = {}

    def factor(self, epoch: int) -> float:
        """The factor in an epoch."""
        return float(np.interp(epoch, *zip(*self.points, strict=True)))

    def before_train(self, runner: Runner) -> None:
        """Read the weights of the config."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise ValueError(
                'LossWeightScheduleHook counts epochs: set '
                'train_cfg.by_epoch=True'
            )
        known = self._distill_losses(runner)
        if not known:
            raise ValueError(
                'LossWeightScheduleHook finds no distill_losses in the model'
            )
        for name in known if self.losses is None else self.losses:
            if not hasattr(known.get(name), 'loss_weight'):
                raise ValueError(
                    f'LossWeightScheduleHook finds no loss {name!r} with a '
                    f'loss_weight in distill_losses ({", ".join(known)})'
                )
            self._weights.setdefault(name, known[name].loss_weight)

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the weights of the epoch."""
        losses = self._distill_losses(runner)
        for name, weight in self._weights.items():
            losses[name].loss_weight = weight * self.factor(runner.epoch)

    @staticmethod
    def _distill_losses(runner: Runner) -> dict:
        model = unwrap(runner.model)
        distiller = getattr(model, 'distiller', None)
        return dict(getattr(distiller, 'distill_losses', {}).items())
