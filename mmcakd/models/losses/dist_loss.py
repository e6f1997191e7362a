"""Correlations of the teacher's and the student's predictions."""

import torch
from torch import nn

from mmcakd.arguments import NonNegative, Positive
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import ComparesClasses, ComparesImages
from .utils import check_same_classes

#: Added to the product of two norms, as in the paper's code: correlations of
#: columns that are next to zero everywhere count for less.
EPS = 1e-8
#: Deviations below this part of a vector's length are rounding errors.
ROUNDING = 1e-6


def pearson_correlation(
    x: torch.Tensor, y: torch.Tensor, dim: int
) -> torch.Tensor:
    """Correlate two tensors along a dimension.

    Where one of them is constant, the correlation is undefined: it is 0 then
    and has no gradient.
    """
    product, norms, constant = 1, 1, False
    for vector in (x, y):
        deviation = vector - vector.mean(dim, keepdim=True)
        norm = torch.linalg.vector_norm(deviation, dim=dim)
        length = torch.linalg.vector_norm(vector, dim=dim)
        constant = constant | (norm <= ROUNDING * length)
        product, norms = product * deviation, norms * norm
    correlation = product.sum(dim) / (norms + EPS)
    return correlation.masked_fill(constant, 0)


def dist_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    beta: NonNegative = 1.0,
    gamma: NonNegative = 1.0,
    tau: float = 1.0,
) -> torch.Tensor:
    """See :class:`DISTLoss`."""
    q = (full_precision(student) / tau).softmax(1)
    p = (full_precision(teacher) / tau).softmax(1)
    inter = 1 - pearson_correlation(q, p, dim=1).mean()
    intra = 1 - pearson_correlation(q, p, dim=0).mean()
    return tau**2 * (beta * inter + gamma * intra)


@MODELS.register_module()
class DISTLoss(ComparesClasses, ComparesImages, nn.Module):
    r"""Match relations of predictions instead of their values.

    With the probabilities :math:`P = softmax(t / \tau)` and :math:`Q =
    softmax(s / \tau)`, both ``(N, C)``, and Pearson's correlation
    :math:`\rho`

    .. math::
        L = \tau^2 [\beta (1 - mean_n \, \rho(Q_{n:}, P_{n:}))
            + \gamma (1 - mean_c \, \rho(Q_{:c}, P_{:c}))]

    The first term compares the classes of an image, the second the images of
    the batch in a class. A row or column that is constant correlates with
    nothing and has no gradient. So does every column of a single image, which
    is refused unless :math:`\gamma` is 0. Of two images the correlation is 1
    or -1 and has no gradient either: without the first term it takes three.

    As in the public code, :math:`10^{-8}` is added to the product of the two
    norms that a correlation is divided by. A column of probabilities that
    are next to zero in all images, as most of 1000 classes have, so counts
    for less than its correlation: where both norms are :math:`10^{-4}`, for
    one half of it.

    Source: `Knowledge Distillation from A Stronger Teacher
    <https://arxiv.org/abs/2205.10536>`_, equations 8 to 10. The public code
    and ``mmrazor.DISTLoss`` divide by about :math:`10^{-8}` in the gradient
    at a student whose classes are equally likely, as those are whose head
    starts at zero.

    Args:
        beta (float): Weight of the relations among classes. Defaults to 1.
        gamma (float): Weight of the relations among images. Defaults to 1.
        tau (float): Temperature. Defaults to 1.
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Non-positive temperature, class counts that differ or are
            1, or too few images.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import DISTLoss
        >>> logits = torch.tensor([[1., 2., 3.], [3., 1., 0.]])
        >>> f'{DISTLoss()(logits, logits):.4f}'
        '0.0000'
        >>> f'{DISTLoss(gamma=0)(logits[:1], 2 * logits[:1]):.4f}'
        '0.0118'
    """

    def __init__(
        self,
        beta: NonNegative = 1.0,
        gamma: NonNegative = 1.0,
        tau: Positive = 1.0,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        self.tau = tau
        self.loss_weight = loss_weight

    @property
    def min_images(self) -> int:
        """Fewest images of a batch, by what is compared."""
        if not self.gamma:
            return 1
        return 2 if self.beta else 3

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare logits ``(N, C)`` with logits ``(N, C)``."""
        check_same_classes(student, teacher)
        self.check_batch_size(len(student))
        with torch.autocast(student.device.type, enabled=False):
            loss = dist_loss(
                student, teacher.detach(), self.beta, self.gamma, self.tau
            )
        return self.loss_weight * loss
