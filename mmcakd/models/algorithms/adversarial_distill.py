"""Distillation with a discriminator and views for the student."""

import logging

import torch
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from mmcakd.arguments import PositiveInt
from mmcakd.registry import MODELS

from ..distillers import Step
from ..losses import AdversarialLoss, compares_places
from ..teachers.normalisation import read_dataset
from ..teachers.teacher import DEFAULT_INPUT
from .cross_arch_distill import CrossArchDistill


@MODELS.register_module()
class AdversarialDistill(CrossArchDistill):
    """``CrossArchDistill`` with multi-view robust training.

    The student sees another view of the batch than the teacher, and the
    discriminators of :class:`mmcakd.models.losses.AdversarialLoss` learn in
    turns of their own: in every ``discriminator_interval``-th step of the
    optimizer, on the features of that step, after the student.

    Discriminators are in checkpoints, as a part of the distiller, and have an
    optimizer of their own. In a config::

        optim_wrapper = dict(
            constructor='mmcakd.AdversarialOptimWrapperConstructor',
            student=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
            discriminator=dict(optimizer=dict(type='Adam', lr=1e-4)))

    Without an ``AdversarialLoss`` it takes an ordinary ``optim_wrapper``.

    Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, section 3.3.

    Args:
        view_generator (dict | nn.Module, optional): Makes the student's view
            in training, such as a
            :class:`mmcakd.models.views.MultiViewGenerator`. Defaults to None,
            no views.
        discriminator_interval (int): Defaults to 5.
        **kwargs: See :class:`CrossArchDistill`.

    Raises:
        ValueError: A non-positive interval, or a discriminator without
            parameters.
        RuntimeError: Training without an optimizer for the discriminators.

    Examples:
        >>> from mmcakd.models.algorithms import AdversarialDistill
        >>> stage = dict(recorder='stages', data_idx=3)
        >>> model = AdversarialDistill(
        ...     architecture='mmpretrain::resnet/resnet18_8xb32_in1k.py',
        ...     teacher='mmpretrain::vision_transformer/'
        ...             'vit-base-p16_32xb128-mae_in1k.py',
        ...     view_generator=dict(type='mmcakd.MultiViewGenerator'),
        ...     distiller=dict(
        ...         student_recorders=dict(
        ...             stages=dict(type='mmcakd.StageOutputs')),
        ...         teacher_recorders=dict(
        ...             stages=dict(type='mmcakd.StageOutputs')),
        ...         connectors=dict(project=dict(
        ...             type='mmcakd.FitNetConnector',
        ...             inputs=dict(feature=dict(stage, from_student=True)),
        ...             shape_like=dict(stage, from_student=False))),
        ...         distill_losses=dict(
        ...             loss_adv=dict(type='mmcakd.AdversarialLoss')),
        ...         loss_forward_mappings=dict(loss_adv=dict(
        ...             student=dict(connector='project'),
        ...             teacher=dict(stage, from_student=False)))))
        >>> len(model.discriminators)
        1
    """

    #: Set by the optimizer that gives the discriminators their turns.
    alternates = False

    def __init__(
        self,
        *args,
        view_generator: dict | nn.Module | None = None,
        discriminator_interval: PositiveInt = 5,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        #: What the discriminators will see of the batch, by loss, between
        #: its losses and the update of the weights.
        self.features: dict[str, dict[str, torch.Tensor]] = {}
        self.discriminator_interval = discriminator_interval
        if isinstance(view_generator, dict):
            view_generator = MODELS.build(view_generator)
        self.view_generator = view_generator
        if hasattr(view_generator, 'adapt_to'):
            view_generator.adapt_to(self.data_preprocessor)
        if self.input_size and hasattr(view_generator, 'check_image_size'):
            view_generator.check_image_size(*self.input_size)
        if getattr(view_generator, 'is_geometric', False):
            self._warn_of_moved_places()

        discriminated = set()
        for name, loss in self.adversarial_losses.items():
            loss.has_turns = True
            parameters = set(loss.discriminator.parameters())
            if not parameters:
                raise ValueError(
                    f'the discriminator of {name} has no parameters, since '
                    'it has not seen features yet; set model.input_size to '
                    'the size of the training images'
                )
            discriminated |= parameters
        # DDP expects a gradient for every parameter in every backward; those
        # of discriminators are averaged in their turns.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, p in self.named_parameters() if p in discriminated
        ]

    def prepare_from_dataset(self, dataset: Dataset) -> None:
        """See :meth:`CrossArchDistill.prepare_from_dataset`."""
        super().prepare_from_dataset(dataset)
        if hasattr(self.view_generator, 'adapt_to'):
            pipeline, _ = read_dataset(dataset)
            self.view_generator.adapt_to(self.data_preprocessor, pipeline)

    @property
    def adversarial_losses(self) -> dict[str, AdversarialLoss]:
        """The losses with a discriminator, by name."""
        return {
            name: loss
            for name, loss in self.distiller.distill_losses.items()
            if isinstance(loss, AdversarialLoss)
        }

    @property
    def discriminators(self) -> dict[str, nn.Module]:
        """The discriminators, by the name of their loss."""
        return {
            name: loss.discriminator
            for name, loss in self.adversarial_losses.items()
        }

    def discriminator_loss(self) -> torch.Tensor | None:
        """Compute the discriminators' own loss on the last step's features.

        Returns:
            Tensor, optional: None after distillation has stopped.
        """
        if self.distillation_stopped:
            return None
        if not self.features:
            raise RuntimeError(
                'no features were kept for the discriminators: compute the '
                "student's losses in training mode first"
            )
        return sum(
            self.adversarial_losses[name].discriminator_loss(**features)
            for name, features in self.features.items()
        )

    def forget_features(self) -> None:
        """Drop the features that were kept for the discriminators."""
        self.features = {}

    def train_step(
        self, data: dict | tuple | list, optim_wrapper: OptimWrapper
    ) -> dict[str, torch.Tensor]:
        """Train the student and, in their turn, the discriminators."""
        self._check_alternation()
        try:
            return super().train_step(data, optim_wrapper)
        finally:
            self.forget_features()

    def loss(
        self, batch_inputs: torch.Tensor, data_samples: list | None = None
    ) -> dict[str, torch.Tensor]:
        """See :meth:`CrossArchDistill.loss`."""
        if self.training and is_distributed():
            # MMEngine's DDP does not call `train_step`.
            self._check_alternation()
        self.forget_features()
        return super().loss(batch_inputs, data_samples)

    def _check_alternation(self) -> None:
        if self.discriminators and not self.alternates:
            raise RuntimeError(
                'the discriminators need an optimizer of their own: set '
                "optim_wrapper = dict(constructor='mmcakd."
                "AdversarialOptimWrapperConstructor', "
                'student=dict(optimizer=...), '
                'discriminator=dict(optimizer=...))'
            )

    def _images_of_student(self, step: Step) -> torch.Tensor:
        images = super()._images_of_student(step)
        if self.training and self.view_generator is not None:
            images = self.view_generator(images).to(
                memory_format=self.student_memory_format
            )
        return images

    def _distill(self, step: Step) -> dict[str, torch.Tensor]:
        losses = super()._distill(step)
        if self.training:
            inputs = self.distiller.graph.loss_inputs
            read = {n: step.gather(inputs[n]) for n in self.adversarial_losses}
            self.features = tree_map_only(
                torch.Tensor, torch.Tensor.detach, read
            )
        return losses

    def _warn_of_moved_places(self) -> None:
        graph = self.distiller.graph
        teachers = {
            name
            for name, teacher in self.live_teachers.items()
            if teacher.inputs == DEFAULT_INPUT
        }
        names = [
            name
            for name, references in graph.loss_inputs.items()
            if compares_places(graph.losses[name])
            and graph.reads_features(references.values(), teachers)
        ]
        if names:
            print_log(
                'The view generator crops or rotates the images of the '
                f'student alone, but {sorted(names)} read features of the '
                'teacher and compare them place by place: the places do not '
                'match. Set crop_scale=(1, 1) and max_rotation=0',
                'current',
                level=logging.WARNING,
            )
