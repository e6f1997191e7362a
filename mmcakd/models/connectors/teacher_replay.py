"""The teacher's frozen last stages as a connector."""

from collections.abc import Sequence

import torch
from torch import nn

from mmcakd.arguments import NonNegativeInt
from mmcakd.registry import MODELS

from ..teachers import Teacher
from .base import BaseConnector


@MODELS.register_module()
class TeacherReplay(BaseConnector):
    """Run projected student features through the teacher's own tail.

    ScaleKD's teacher parameter perception: what the student's features would
    become inside the teacher. The tail's parameters are frozen and gradients
    pass through it. Several inputs, e.g. two views, run as one batch.

    A ViT's tail needs class and register tokens, which a student lacks;
    those of the teacher's forward on the same images take their place (ours;
    the official code supports no such teacher).

    Source: `ScaleKD <https://arxiv.org/abs/2411.06786>`_, teacher parameter
    perception.

    Args:
        from_stage (int): Stage, 1 to 3, whose output the inputs stand for.
        to_stage (int): Stage whose output is returned, with the final norm
            if it is the last. Defaults to 4.
        blocks (Sequence[int], optional): The last block of each stage, for
            isotropic teachers whose recorder has the same argument.

    Raises:
        ValueError: The teacher has no tail that can be replayed, or the
            tokens do not fit its grid.

    Examples:
        >>> connectors = dict(
        ...     tail=dict(
        ...         type='mmcakd.TeacherReplay',
        ...         from_stage=3,
        ...         inputs=dict(
        ...             original=dict(connector='s3_original'),
        ...             frequency=dict(connector='s3_frequency'))))
    """

    def __init__(
        self,
        from_stage: int,
        to_stage: int = 4,
        blocks: Sequence[NonNegativeInt] | None = None,
    ) -> None:
        super().__init__()
        self.from_stage = from_stage
        self.to_stage = to_stage
        self.blocks = blocks

    def attach(self, student: nn.Module, teacher: Teacher) -> None:
        """Get hold of the teacher's tail."""
        tail = teacher.build_tail(self.from_stage, self.to_stage, self.blocks)
        # Not as a submodule: the teacher's weights are not this connector's.
        object.__setattr__(self, 'tail', tail)

    def forward(
        self, tokens: torch.Tensor | None = None, **views: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Replay tokens ``(N, L, C)``, or several views by name.

        Returns:
            Tensor | dict[str, Tensor]: ``(N, L', C')``, for each view if they
            are named; ``connector_idx`` of a reference is then the name.
        """
        if not views:
            return self.tail(tokens)
        out = self.tail(torch.cat(tuple(views.values())))
        return dict(zip(views, out.chunk(len(views)), strict=True))
