"""Dual-view feature mimicking of ScaleKD."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative
from mmcakd.registry import MODELS

from ..functional import full_precision
from ..stages import to_tokens
from .traits import ComparesPlaces
from .utils import check_same_shape

#: Positions of a 7 x 7 grid, for which most published weights are meant.
PUBLISHED_POSITIONS = 49


def frequency_view(tokens: torch.Tensor) -> torch.Tensor:
    """Remove the direct component of every channel.

    Zeroing the [0, 0] coefficient of a 2-D DCT-II and transforming back
    subtracts the mean over positions: the first basis function is constant.

    Args:
        tokens (Tensor): ``(N, L, C)``.

    Returns:
        Tensor: ``(N, L, C)``, with zero mean over ``L``.
    """
    return tokens - tokens.mean(1, keepdim=True)


def mimic_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance of channel-normalised tokens ``(N, L, C)``.

    Summed over tokens and channels, averaged over the batch.
    """
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return difference.square().sum() / len(student)


@MODELS.register_module()
class DualViewLoss(ComparesPlaces, nn.Module):
    r"""One view of ScaleKD's dual-view feature mimicking.

    .. math::
        L = \frac{\alpha}{N} \sum_{n,c,h,w}
            (normalise(\phi(s)) - normalise(\phi(t)))^2

    normalises over channels at each position. The original view takes
    features as they are (:math:`\phi` is the identity); the frequency view
    drops the direct component, the DCT coefficient that dominates a ViT's
    spectrum. Equal features give 0, opposite ones :math:`4 H W \alpha`.

    The published loss is this sum, so that it grows with the grid; its
    weights of 0.08 and 0.06 are those of 7 x 7 positions. With
    ``per_position=True`` it is multiplied by :math:`49 / (H W)`: the same
    weights have the same effect on every grid, and on 7 x 7 nothing changes.

    Source: `ScaleKD <https://arxiv.org/abs/2411.06786>`_, dual-view feature
    mimicking.

    Args:
        view (str): ``'original'`` or ``'frequency'``.
        loss_weight (float): :math:`\alpha`. Defaults to 1.
        per_position (bool): Whether ``loss_weight`` is that of a 7 x 7 grid,
            whatever the grid is. Defaults to False.

    Raises:
        ValueError: Unknown view, or features whose shapes differ.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import DualViewLoss
        >>> x = torch.rand(2, 8, 7, 7)
        >>> loss = DualViewLoss('original', loss_weight=0.08)
        >>> f'{loss(x, -x):.2f}'
        '15.68'
        >>> x = torch.rand(2, 8, 14, 14)
        >>> f'{loss(x, -x):.2f}'
        '62.72'
        >>> loss = DualViewLoss(loss_weight=0.08, per_position=True)
        >>> f'{loss(x, -x):.2f}'
        '15.68'
    """

    def __init__(
        self,
        view: Literal['original', 'frequency'] = 'original',
        loss_weight: NonNegative = 1.0,
        per_position: bool = False,
    ) -> None:
        super().__init__()
        self.view = view
        self.loss_weight = loss_weight
        self.per_position = per_position

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare features, each ``(N, C, H, W)`` or ``(N, H * W, C)``."""
        student, teacher = to_tokens(student), to_tokens(teacher)
        check_same_shape(
            student,
            teacher,
            'features (N, tokens, channels)',
            "project the student's to the teacher's grid and width, e.g. with "
            'mmcakd.CAPConnector',
        )
        with torch.autocast(student.device.type, enabled=False):
            student = full_precision(student)
            teacher = full_precision(teacher.detach())
            if self.view == 'frequency':
                student, teacher = map(frequency_view, (student, teacher))
            loss = mimic_loss(student, teacher)
        if self.per_position:
            loss = loss * (PUBLISHED_POSITIONS / student.shape[1])
        return self.loss_weight * loss
