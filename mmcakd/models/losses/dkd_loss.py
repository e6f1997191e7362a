"""Decoupled knowledge distillation."""

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative, Positive
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import ComparesClasses
from .utils import check_same_classes, target_classes


def dkd_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    target: torch.Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    tau: float = 1.0,
) -> torch.Tensor:
    """See :class:`DKDLoss`; ``target`` are class indices ``(N,)``."""
    log_q, log_q_others = _split(full_precision(student) / tau, target)
    log_p, log_p_others = _split(full_precision(teacher) / tau, target)
    tckd = _kl_divergence(log_p, log_q)
    nckd = _kl_divergence(log_p_others, log_q_others)
    return tau**2 * (alpha * tckd + beta * nckd).mean()


def _split(
    logits: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of target or not, and among the other classes."""
    target = target.unsqueeze(1)
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = others + (others >= target)
    logits_others = logits.gather(1, others)
    binary = torch.cat(
        [logits.gather(1, target), logits_others.logsumexp(1, keepdim=True)], 1
    )
    return F.log_softmax(binary, dim=1), F.log_softmax(logits_others, dim=1)


def _kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1)


@MODELS.register_module()
class DKDLoss(ComparesClasses, nn.Module):
    r"""KD, with the target class and the others weighed separately.

    With :math:`p = softmax(t / \tau)`, :math:`q = softmax(s / \tau)`, the
    target class :math:`y` and the distributions among the other classes,
    :math:`\hat p_c = p_c / (1 - p_y)` and :math:`\hat q_c` likewise

    .. math::
        L = \tau^2 \, mean_n [\alpha \, KL(p_y, 1 - p_y \| q_y, 1 - q_y)
            + \beta \, KL(\hat p \| \hat q)]

    :math:`\alpha = 1` and :math:`\beta = 1 - p_y` make it ordinary KD.

    Source: `Decoupled Knowledge Distillation
    <https://arxiv.org/abs/2203.08679>`_, equations 7 and 8. The weights are
    those of OFA-KD's comparison. All is computed from log-probabilities;
    ``mmrazor.DKDLoss`` takes logarithms of probabilities that may be zero.

    Args:
        alpha (float): Weight of the target class. Defaults to 1.
        beta (float): Weight of the other classes. Defaults to 2.
        tau (float): Temperature. Defaults to 1.
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Non-positive temperature, class counts that differ, a
            single class, or labels that do not fit the logits.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import DKDLoss
        >>> student, teacher = torch.zeros(1, 3), torch.tensor([[2., 1., 0.]])
        >>> DKDLoss()(student, teacher, torch.tensor([0]))
        tensor(0.4510)
        >>> DKDLoss()(student, teacher, torch.tensor([[.7, .2, .1]]))
        tensor(0.4510)
    """

    def __init__(
        self,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 2.0,
        tau: Positive = 1.0,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.tau = tau
        self.loss_weight = loss_weight

    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """Compare logits ``(N, C)`` with logits ``(N, C)``.

        Args:
            student (Tensor): ``(N, C)``.
            teacher (Tensor): ``(N, C)``.
            label (Tensor): Class indices ``(N,)``, or scores ``(N, C)`` as
                mixed by MixUp and CutMix, of which the largest is the target.
        """
        check_same_classes(student, teacher)
        target = target_classes(label, student)
        with torch.autocast(student.device.type, enabled=False):
            loss = dkd_loss(
                student,
                teacher.detach(),
                target,
                self.alpha,
                self.beta,
                self.tau,
            )
        return self.loss_weight * loss
