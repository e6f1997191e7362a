"""Distances and angles between the images of a batch."""

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import NonNegative
from mmcakd.registry import MODELS

from ..functional import pooled
from .traits import ComparesImages


def relations(feature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of pairs and angles of triples of features.

    Args:
        feature (Tensor): ``(N, C)``.

    Returns:
        tuple[Tensor, Tensor]: Distances ``(N, N)`` in units of the mean over
        pairs of different images, and ``(N, N, N)`` the cosine of the angle
        at the first image between the other two; 0 where two coincide.
    """
    # Differences, not a Gram matrix: features have a large common part, and
    # the difference of large squares would lose the small distances.
    difference = feature.unsqueeze(0) - feature.unsqueeze(1)
    distance = torch.linalg.vector_norm(difference, dim=-1)
    coincides = distance == 0
    direction = difference / distance.masked_fill(coincides, 1).unsqueeze(-1)
    num_pairs = len(feature) * (len(feature) - 1)
    mean = distance.sum() / num_pairs
    return distance / mean.clamp_min(1e-12), direction @ direction.mT


@MODELS.register_module()
class RKDLoss(ComparesImages, nn.Module):
    r"""Match how the images of a batch lie to each other.

    With :math:`\ell` the Huber loss, :math:`d_{ij} = |x_i - x_j| / \mu` in
    units of the mean distance :math:`\mu` of a batch, and :math:`a_{ijk}`
    the cosine of the angle at :math:`x_i` between :math:`x_j` and
    :math:`x_k`

    .. math::
        L = w_d \, mean_{ij} \, \ell(d^s_{ij}, d^t_{ij})
            + w_a \, mean_{ijk} \, \ell(a^s_{ijk}, a^t_{ijk})

    Features are not normalised, and the two networks may have different
    widths. Maps are averaged over positions first: the pooled features of the
    last stage, as in OFA-KD's comparison. As in the paper's code, the means
    run over all indices, equal ones included, whose terms are zero.

    Two images have one distance, which is the mean, and no angle: the loss is
    0 for ever on them, so that a batch has to have three.

    The differences take :math:`4 N^2 C` bytes for each network.

    Source: `Relational Knowledge Distillation
    <https://arxiv.org/abs/1904.05068>`_, equations 3 to 6.

    Args:
        distance_weight (float): :math:`w_d`. Defaults to 25.
        angle_weight (float): :math:`w_a`. Defaults to 50.
        loss_weight (float): Factor on both. Defaults to 1.

    Raises:
        ValueError: Features of other than two or four dimensions, batches
            that differ, or fewer than three images.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import RKDLoss
        >>> line = torch.tensor([[0.], [1.], [2.]])
        >>> corner = torch.tensor([[0., 1.], [0., 0.], [1., 0.]])
        >>> RKDLoss(angle_weight=0)(line, 7 * line + 5)
        tensor(0.)
        >>> RKDLoss()(line, corner)
        tensor(2.4456)
    """

    min_images = 3

    def __init__(
        self,
        distance_weight: NonNegative = 25.0,
        angle_weight: NonNegative = 50.0,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.loss_weight = loss_weight

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare features, each ``(N, C)`` or ``(N, C, H, W)``."""
        if len(student) != len(teacher):
            raise ValueError(
                f'{len(student)} images of the student cannot be compared '
                f'with {len(teacher)} of the teacher'
            )
        student, teacher = pooled(student), pooled(teacher.detach())
        self.check_batch_size(len(student))
        with torch.autocast(student.device.type, enabled=False):
            student_distance, student_angle = relations(student)
            teacher_distance, teacher_angle = relations(teacher)
            distance = F.smooth_l1_loss(student_distance, teacher_distance)
            angle = F.smooth_l1_loss(student_angle, teacher_angle)
        return self.loss_weight * (
            self.distance_weight * distance + self.angle_weight * angle
        )
