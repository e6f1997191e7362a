"""Two optimizers, of a student and of its discriminators, in turns."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.dist import all_reduce_params
from mmengine.logging import MessageHub
from mmengine.model import is_model_wrapper
from mmengine.optim import (
    OptimWrapper,
    OptimWrapperDict,
    build_optim_wrapper,
)
from torch import nn

from mmcakd.registry import OPTIM_WRAPPER_CONSTRUCTORS

PARTS = ('student', 'discriminator')


class AdversarialOptimWrapper(OptimWrapperDict):
    """Train the student, and in some steps the discriminators after it.

    To a training loop and to DDP it looks like a single wrapper: the loss it
    is given is the student's. Every ``discriminator_interval``-th step of the
    student's optimizer is followed by one of the discriminators' optimizer.
    Where the student accumulates gradients over several batches, the
    discriminators do so over the same ones.

    The discriminators' loss is logged as ``discriminator_loss`` and the norm
    of their gradient, if it is clipped, as ``discriminator.grad_norm``.

    Args:
        model (AdversarialDistill): The model.
        student (OptimWrapper): Of all parameters but the discriminators'.
        discriminator (OptimWrapper): Of the discriminators' parameters.

    Raises:
        ValueError: ``discriminator`` accumulates gradients by itself.
    """

    def __init__(
        self,
        model: nn.Module,
        student: OptimWrapper,
        discriminator: OptimWrapper,
    ) -> None:
        super().__init__(student=student, discriminator=discriminator)
        if discriminator._accumulative_counts != 1:
            raise ValueError(
                'the discriminator accumulates gradients over the same '
                'batches as the student; set accumulative_counts in '
                'optim_wrapper.student alone'
            )
        if discriminator.clip_grad_kwargs:
            discriminator.grad_name = (
                f'discriminator.{discriminator.grad_name}'
            )
        self.model = model
        self.message_hub = MessageHub.get_current_instance()
        model.alternates = True

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter the student's context: its precision, and DDP's."""
        with self['student'].optim_context(model):
            yield

    def initialize_count_status(
        self, model: nn.Module, init_counts: int, max_counts: int
    ) -> None:
        """Tell the student's wrapper where training begins and ends."""
        self['student'].initialize_count_status(model, init_counts, max_counts)

    def update_params(
        self,
        loss: torch.Tensor,
        step_kwargs: dict | None = None,
        zero_kwargs: dict | None = None,
    ) -> None:
        """Train on the batch that was last run.

        Args:
            loss (Tensor): The student's.
            step_kwargs (dict, optional): For the student's optimizer.
            zero_kwargs (dict, optional): Likewise.
        """
        try:
            self._update_in_turns(loss, step_kwargs, zero_kwargs)
        finally:
            self.model.forget_features()

    def _update_in_turns(
        self,
        loss: torch.Tensor,
        step_kwargs: dict | None,
        zero_kwargs: dict | None,
    ) -> None:
        student, discriminator = (self[part] for part in PARTS)
        own = self.model.discriminator_loss() if self._is_turn() else None
        if own is not None:
            discriminator.backward(student.scale_loss(own))
            self.message_hub.update_scalar(
                'train/discriminator_loss', own.item()
            )
        # Before the discriminators change: the student's loss was computed
        # with their weights.
        student.update_params(loss, step_kwargs, zero_kwargs)
        if own is not None and student.should_update():
            all_reduce_params(
                [
                    p.grad
                    for group in discriminator.optimizer.param_groups
                    for p in group['params']
                    if p.grad is not None
                ],
                op='mean',
            )
            discriminator.step()
            discriminator.zero_grad()

    def _is_turn(self) -> bool:
        student = self['student']
        step = student.inner_count // student._accumulative_counts + 1
        return step % self.model.discriminator_interval == 0


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class AdversarialOptimWrapperConstructor:
    """Build the optimizers of an :class:`mmcakd.AdversarialDistill`.

    The parameters of the discriminators go to one, all others to the other.
    ``student`` and ``discriminator`` are configs as ``optim_wrapper`` itself
    usually is, with ``type``, ``paramwise_cfg`` and ``clip_grad`` if wanted,
    the student's with ``accumulative_counts`` too. A list of
    ``param_scheduler`` is applied to both, ``dict(student=[...],
    discriminator=[...])`` to one each.

    Args:
        optim_wrapper_cfg (dict): With ``student`` and ``discriminator``.
        paramwise_cfg (dict, optional): Belongs into ``student``.

    Raises:
        ValueError: Other keys, or a model without discriminators.

    Examples:
        >>> optim_wrapper = dict(
        ...     constructor='mmcakd.AdversarialOptimWrapperConstructor',
        ...     student=dict(
        ...         type='AmpOptimWrapper',
        ...         optimizer=dict(type='SGD', lr=0.1, momentum=0.9),
        ...         paramwise_cfg=dict(norm_decay_mult=0.)),
        ...     discriminator=dict(optimizer=dict(type='Adam', lr=1e-4)))
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        keys = set(optim_wrapper_cfg)
        if paramwise_cfg is not None:
            keys.add('paramwise_cfg')
        missing, unknown = set(PARTS) - keys, keys - set(PARTS)
        if missing:
            raise ValueError(
                f'optim_wrapper needs {sorted(missing)}, each a dict with an '
                'optimizer'
            )
        if unknown:
            raise ValueError(
                f'write {sorted(unknown)} of optim_wrapper into '
                'optim_wrapper.student'
            )
        self.cfg = optim_wrapper_cfg

    def __call__(self, model: nn.Module) -> AdversarialOptimWrapper:
        """Build both wrappers for a model, inside of DDP or not."""
        model = model.module if is_model_wrapper(model) else model
        losses = getattr(model, 'adversarial_losses', None)
        if not losses:
            raise ValueError(
                f'{type(model).__name__} has no discriminators: take an '
                'mmcakd.AdversarialDistill with an mmcakd.AdversarialLoss, '
                'or an ordinary optim_wrapper'
            )
        discriminators = nn.ModuleDict(model.discriminators)
        for loss in losses.values():
            loss.discriminator = nn.Identity()
        try:
            student = build_optim_wrapper(model, self.cfg['student'])
        finally:
            for name, loss in losses.items():
                loss.discriminator = discriminators[name]
        return AdversarialOptimWrapper(
            model,
            student,
            build_optim_wrapper(discriminators, self.cfg['discriminator']),
        )
