"""Distillation of attention: its result, and the affinity of values."""

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative
from mmcakd.registry import MODELS

from ..attention import Attended
from ..functional import full_precision
from .traits import ComparesPlaces
from .utils import check_same_shape


@MODELS.register_module()
class PCALoss(ComparesPlaces, nn.Module):
    r"""Match attention and the Gram matrix of the values.

    .. math::
        L = w_a \, mean (A_T - A_S)^2 + w_g \, mean \Big( \frac{V_T V_T^T}
        {\sqrt d} - \frac{V_S V_S^T}{\sqrt d} \Big)^2

    The Gram matrices are those of each head.

    Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, the loss of the partially cross
    attention projector, with means in place of sums of squares. Its public
    code has the weights .2 and .05, one matrix for all heads
    (``average_heads=True``; that its value is their mean is ours), and
    divides the student's alone by :math:`\sqrt d`
    (``scale_teacher_gram=False``). That mismatch, 8 times for heads of 64
    channels, asks of the student values :math:`d^{1/4}` times as long.

    Args:
        attn_weight (float): :math:`w_a`. Defaults to 1.
        gram_weight (float): :math:`w_g`. Defaults to 1.
        average_heads (bool): Whether to compare the mean of the heads' Gram
            matrices, for models with different heads. Defaults to False.
        scale_teacher_gram (bool): Whether the teacher's Gram matrix is
            divided by :math:`\sqrt d`. Defaults to True.
        loss_weight (float): Factor on both. Defaults to 1.

    Raises:
        ValueError: Inputs that are not those of a connector like
            :class:`mmcakd.models.connectors.PCAConnector`, or whose shapes
            differ.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import Attended, PCALoss
        >>> zeros, ones = torch.zeros(2, 3, 16, 4), torch.ones(2, 3, 16, 4)
        >>> PCALoss(gram_weight=0.5)(
        ...     Attended(zeros, zeros), Attended(ones, ones))
        tensor(3.)
    """

    def __init__(
        self,
        attn_weight: NonNegative = 1.0,
        gram_weight: NonNegative = 1.0,
        average_heads: bool = False,
        scale_teacher_gram: bool = True,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.attn_weight = attn_weight
        self.gram_weight = gram_weight
        self.average_heads = average_heads
        self.scale_teacher_gram = scale_teacher_gram
        self.loss_weight = loss_weight

    def forward(self, student: Attended, teacher: Attended) -> torch.Tensor:
        """Compare what attention made on both sides."""
        for name, side in dict(student=student, teacher=teacher).items():
            if not isinstance(side, Attended):
                raise ValueError(
                    f'`{name}` should be one of the two outputs of a '
                    "connector like mmcakd.PCAConnector: dict(connector='pca'"
                    f', connector_idx={name!r})'
                )
        check_same_shape(
            student.attention,
            teacher.attention,
            'attentions',
            "give the connector the teacher's heads, or average_heads=True",
        )
        with torch.autocast(student.value.device.type, enabled=False):
            attention = F.mse_loss(
                full_precision(student.attention),
                full_precision(teacher.attention.detach()),
            )
            gram_s = self._gram(student.value)
            gram_t = self._gram(
                teacher.value.detach(), self.scale_teacher_gram
            )
            check_same_shape(
                gram_s,
                gram_t,
                'Gram matrices of the values',
                'set average_heads=True, here too, if the heads differ',
            )
            gram = F.mse_loss(gram_s, gram_t)
        loss = self.attn_weight * attention + self.gram_weight * gram
        return self.loss_weight * loss

    def _gram(self, value: torch.Tensor, scale: bool = True) -> torch.Tensor:
        value = full_precision(value)
        gram = value @ value.transpose(2, 3)
        if scale:
            gram = gram * value.shape[3] ** -0.5
        return gram.mean(1) if self.average_heads else gram
