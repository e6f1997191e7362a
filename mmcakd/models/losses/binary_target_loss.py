"""Soft targets from the teacher's logits, each class on its own."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative, Positive
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import ReadsLogits
from .utils import check_logits


def binary_target_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    tau: float = 1.0,
    mode: str = 'ce',
) -> torch.Tensor:
    """See :class:`BinaryTargetLoss`."""
    student, teacher = full_precision(student), full_precision(teacher)
    loss = 0
    # That the class is there, and that it is not.
    for sign in (1, -1):
        log_q = F.logsigmoid(sign * student / tau)
        log_p = F.logsigmoid(sign * teacher / tau)
        reference = log_p if mode == 'kl' else 0
        loss = loss + log_p.exp() * (reference - log_q)
    return tau**2 * loss.sum(1).mean()


@MODELS.register_module()
class BinaryTargetLoss(ReadsLogits, nn.Module):
    r"""Sigmoid KD: match the student's belief in each class by itself.

    For multi-label classifiers, whose images carry any number of classes, and
    for binary ones with a single logit: there a softmax over the classes says
    nothing. With :math:`p_c = \sigma(t_c / \tau)` and :math:`q_c = \sigma(s_c
    / \tau)`

    .. math::
        L_{ce} = -\tau^2 \, mean_n \sum_c
                 [p_c \log q_c + (1 - p_c) \log (1 - q_c)], \qquad
        L_{kl} = L_{ce} - \tau^2 \, mean_n \sum_c H(p_c)

    with the entropy :math:`H` of the teacher's belief. They have the same
    gradient. The sum over classes is that of the multi-label heads of
    MMPretrain, whose loss on the labels sums over classes and averages over
    images as well. All is computed from ``logsigmoid``.

    Source: `Multi-Label Knowledge Distillation
    <https://arxiv.org/abs/2308.06453>`_, multi-label logits distillation,
    which is :math:`L_{kl}` at :math:`\tau = 1`. The temperature and its
    factor are those of `Distilling the Knowledge in a Neural Network
    <https://arxiv.org/abs/1503.02531>`_, section 2.

    Args:
        tau (float): Temperature. Defaults to 1.
        mode (str): ``'ce'`` (soft binary cross-entropy) or ``'kl'``.
            Defaults to ``'ce'``.
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Logits that are not ``(N, C)`` of the same images and
            classes.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import BinaryTargetLoss
        >>> undecided = torch.zeros(2, 20)
        >>> BinaryTargetLoss()(undecided, undecided)  # 20 log 2
        tensor(13.8629)
        >>> BinaryTargetLoss(mode='kl')(undecided, undecided)
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
        check_logits(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            loss = binary_target_loss(
                student, teacher.detach(), self.tau, self.mode
            )
        return self.loss_weight * loss
