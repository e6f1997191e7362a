"""Mean squared error of features."""

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative
from mmcakd.registry import MODELS

from ..functional import full_precision
from ..stages import to_tokens
from .traits import ComparesPlaces
from .utils import check_same_shape


@MODELS.register_module()
class MSELoss(ComparesPlaces, nn.Module):
    """Mean over all elements of the squared difference.

    Source: `FitNets <https://arxiv.org/abs/1412.6550>`_, equation 3, with
    the mean in place of half the sum, as in OFA-KD's comparison.

    Args:
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Features whose shapes differ. Nothing is broadcast.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import MSELoss
        >>> MSELoss()(torch.zeros(2, 3, 4, 4), 2 * torch.ones(2, 3, 4, 4))
        tensor(4.)
    """

    def __init__(self, loss_weight: NonNegative = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare features of the same shape; or tokens with a map."""
        if {student.ndim, teacher.ndim} == {3, 4}:
            student, teacher = to_tokens(student), to_tokens(teacher)
        check_same_shape(
            student,
            teacher,
            'features',
            "bring the student's to the teacher's grid and width, e.g. with "
            'mmcakd.FitNetConnector',
        )
        with torch.autocast(student.device.type, enabled=False):
            loss = F.mse_loss(
                full_precision(student), full_precision(teacher.detach())
            )
        return self.loss_weight * loss
