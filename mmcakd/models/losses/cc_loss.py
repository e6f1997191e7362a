"""Correlation congruence."""

import torch
from torch import nn

from mmcakd.arguments import NonNegative
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import ComparesImages
from .utils import check_same_shape


@MODELS.register_module()
class CCLoss(ComparesImages, nn.Module):
    r"""Correlation congruence of embeddings, in the form that is compared.

    With :math:`\delta_n = |s_n - t_n|` of the embeddings of image :math:`n`

    .. math::
        L = w \, mean_{n<N} \sum_c \delta_{n,c} \, \delta_{n+1,c}

    The paper writes it differently: the squared distance of two Gram
    matrices of a Gaussian kernel, expanded in a Taylor series. The form here
    is that of the public comparisons of CRD and OFA-KD, which had it from the
    authors; 0.02 and 128 are its weight and width.

    Both embeddings are trained, as there, so that no gradient is stopped
    here. The teacher itself stays frozen. A batch of one has no pair.

    Source: `Correlation Congruence for Knowledge Distillation
    <https://arxiv.org/abs/1904.01802>`_.

    Args:
        loss_weight (float): :math:`w`. Defaults to 0.02.

    Raises:
        ValueError: Embeddings whose shapes differ, or a single image.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import CCLoss
        >>> student = torch.tensor([[1., 2.], [3., 4.], [5., 6.]])
        >>> CCLoss(loss_weight=1.)(student, torch.zeros(3, 2))
        tensor(25.)
    """

    def __init__(self, loss_weight: NonNegative = 0.02) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare embeddings ``(N, C)`` with embeddings ``(N, C)``."""
        check_same_shape(
            student,
            teacher,
            'embeddings',
            'embed both with a mmcakd.PooledEmbedding of the same width',
        )
        self.check_batch_size(len(student))
        with torch.autocast(student.device.type, enabled=False):
            delta = full_precision(student) - full_precision(teacher)
            delta = delta.abs()
            loss = (delta[:-1] * delta[1:]).sum() / (len(delta) - 1)
        return self.loss_weight * loss
