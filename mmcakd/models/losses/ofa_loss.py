"""One-for-all distillation: soft targets with an enhanced target class."""

from collections.abc import Sequence
from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative, Positive
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import ComparesClasses
from .utils import check_same_classes, target_classes


def enhanced_targets(
    teacher: torch.Tensor,
    label: torch.Tensor,
    eps: float,
    tau: float = 1.0,
    exponent_on: str = 'all',
) -> torch.Tensor:
    """The weights ``w`` of :class:`OFALoss`.

    Args:
        teacher (Tensor): Logits ``(N, C)``.
        label (Tensor): Class indices ``(N,)``, or ``(N, C)``.
        eps (float): Exponent.
        tau (float): Temperature.
        exponent_on (str): ``'all'`` or ``'target'``.

    Returns:
        Tensor: ``(N, C)``.
    """
    log_p = F.log_softmax(full_precision(teacher) / tau, dim=-1)
    p = log_p.exp()
    # The same as (1 + p) ** eps - 1, without losing a small p in the 1.
    target = torch.expm1(eps * torch.log1p(p))
    others = (eps * log_p).exp() if exponent_on == 'all' else p
    is_target = F.one_hot(target_classes(label, p), p.shape[1]).bool()
    return torch.where(is_target, target, others)


@MODELS.register_module()
class OFALoss(ComparesClasses, nn.Module):
    r"""Soft cross-entropy that raises the teacher's belief in the label.

    With :math:`p = softmax(t / \tau)`, :math:`q = softmax(s / \tau)` and the
    label :math:`y`

    .. math::
        L = -mean_n \sum_c w_c \log q_c, \qquad
        w_y = (1 + p_y)^\epsilon - 1, \qquad
        w_c = p_c^\epsilon \; (c \ne y)

    and there is no factor :math:`\tau^2`. For :math:`\epsilon = 1` it is the
    soft cross-entropy; above, a confident teacher counts more and its
    remaining classes count less. The minimum is at :math:`q = w / \sum w`.
    Of mixed labels the largest score is the label.

    Several student logits, one for each intermediate stage, are compared with
    the same teacher and their losses are summed.

    Source: `One-for-All <https://arxiv.org/abs/2310.19444>`_, adaptive target
    enhancement, in the form of its public code. The exponent on the label's
    class alone (``exponent_on='target'``) is how others quote the paper.

    Args:
        eps (float | Sequence[float]): :math:`\epsilon`, one for all student
            logits or one for each. Defaults to 1.
        tau (float): Temperature. Defaults to 1.
        exponent_on (str): ``'all'`` classes, or ``'target'`` for
            :math:`w_c = p_c`. Defaults to ``'all'``.
        loss_weight (float): Defaults to 1.
        detach_teacher (bool): Whether to stop the gradient to the teacher's
            logits, and so to the weights :math:`w`. False is for a teacher
            that is trained itself, such as an assistant. Defaults to True.

    Raises:
        ValueError: Non-positive ``eps`` or ``tau``, an unknown
            ``exponent_on``, as many exponents as there are not student
            logits, or class counts that differ or are 1.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import OFALoss
        >>> uniform, label = torch.zeros(2, 100), torch.tensor([3, 5])
        >>> OFALoss()(uniform, uniform, label)
        tensor(4.6052)
        >>> OFALoss(eps=[1., 2.])([uniform, uniform], uniform, label)
        tensor(4.7433)
    """

    def __init__(
        self,
        eps: Positive | Sequence[Positive] = 1.0,
        tau: Positive = 1.0,
        exponent_on: Literal['all', 'target'] = 'all',
        loss_weight: NonNegative = 1.0,
        detach_teacher: bool = True,
    ) -> None:
        super().__init__()
        exponents = [eps] if isinstance(eps, Real) else list(eps)
        if not exponents:
            raise ValueError('eps has no exponent: give one for all logits')
        self.eps = exponents
        self.tau = tau
        self.exponent_on = exponent_on
        self.loss_weight = loss_weight
        self.detach_teacher = detach_teacher

    def forward(
        self,
        student: torch.Tensor | Sequence[torch.Tensor],
        teacher: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """Compare logits.

        Args:
            student (Tensor | Sequence[Tensor]): ``(N, C)``, or several.
            teacher (Tensor): ``(N, C)``.
            label (Tensor): Class indices ``(N,)``, or scores ``(N, C)``.
        """
        if isinstance(student, torch.Tensor):
            student = [student]
        exponents = self.eps * (len(student) if len(self.eps) == 1 else 1)
        if len(exponents) != len(student):
            raise ValueError(
                f'eps has {len(exponents)} values for {len(student)} student '
                'logits; give one for each, or a single one for all'
            )
        for logits in student:
            check_same_classes(logits, teacher)
        if self.detach_teacher:
            teacher = teacher.detach()
        with torch.autocast(teacher.device.type, enabled=False):
            # Once for each exponent, of which there is often only one.
            targets = {
                eps: enhanced_targets(
                    teacher, label, eps, self.tau, self.exponent_on
                )
                for eps in set(exponents)
            }
            losses = []
            for logits, eps in zip(student, exponents, strict=True):
                log_q = F.log_softmax(full_precision(logits) / self.tau, -1)
                losses.append(-(targets[eps] * log_q).sum(-1).mean())
        return self.loss_weight * sum(losses)
