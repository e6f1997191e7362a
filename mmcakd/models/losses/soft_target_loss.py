"""Soft targets from the teacher's logits."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative, Positive
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import ComparesClasses
from .utils import check_same_classes


def soft_target_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    tau: float = 1.0,
    mode: str = 'ce',
) -> torch.Tensor:
    """See :class:`SoftTargetLoss`."""
    log_q = F.log_softmax(full_precision(student) / tau, dim=-1)
    log_p = F.log_softmax(full_precision(teacher) / tau, dim=-1)
    reference = log_p if mode == 'kl' else 0
    return tau**2 * (log_p.exp() * (reference - log_q)).sum(-1).mean()


@MODELS.register_module()
class SoftTargetLoss(ComparesClasses, nn.Module):
    r"""Match the student's class distribution to the teacher's.

    With :math:`p = softmax(t / \tau)` and :math:`q = softmax(s / \tau)`

    .. math::
        L_{ce} = -\tau^2 \, mean_n \sum_c p_c \log q_c, \qquad
        L_{kl} = \tau^2 \, mean_n \sum_c p_c (\log p_c - \log q_c)

    They have the same gradient and differ by the teacher's entropy. Source:
    `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, section 2; ScaleKD uses the
    cross-entropy form.

    Args:
        tau (float): Temperature. Defaults to 1.
        mode (str): ``'ce'`` (soft cross-entropy) or ``'kl'``. Defaults to
            ``'ce'``.
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Unknown mode, non-positive temperature, or class counts
            that differ or are 1.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import SoftTargetLoss
        >>> uniform = torch.zeros(2, 100)
        >>> SoftTargetLoss()(uniform, uniform)
        tensor(4.6052)
        >>> SoftTargetLoss(mode='kl')(uniform, uniform)
        tensor(0.)
    """

    def __init__(
        self,
        tau: Positive = 1.0,
        mode: Literal['ce', 'kl'] = 'ce',
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.tau = tau
        self.mode = mode
        self.loss_weight = loss_weight

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare logits ``(N, C)`` with logits ``(N, C)``."""
        check_same_classes(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            loss = soft_target_loss(
                student, teacher.detach(), self.tau, self.mode
            )
        return self.loss_weight * loss
