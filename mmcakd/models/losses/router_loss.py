"""A loss that learns which layer teaches which."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import nn

from mmcakd.arguments import NonNegative, PositiveInt, Rate
from mmcakd.registry import MODELS

from ..functional import full_precision
from ..stages import to_tokens
from .traits import ComparesPlaces
from .utils import check_same_shape

Pairs = Sequence[Sequence[torch.Tensor]]


def share_of_pairs(routes: torch.Tensor) -> torch.Tensor:
    """Softmax over a whole matrix of teacher and student layers."""
    return routes.flatten().softmax(0).view_as(routes)


@MODELS.register_module()
class RouterLoss(ComparesPlaces, nn.Module):
    r"""Weigh the losses of all pairs of layers by a learned matrix.

    With the mean squared error :math:`l_{ij}` of student layer ``j`` against
    teacher layer ``i``, its running mean :math:`m_{ij}` and a learned matrix
    :math:`R`

    .. math::
        L = \sum_{ij} w_{ij} \frac{l_{ij}}{m_{ij}}
        - \lambda \, a \, \frac{H(w)}{\log n}, \qquad
        w = softmax(R), \qquad a = max(0, 1 - t / T)

    over all ``n`` pairs, with the entropy :math:`H` and the training step
    :math:`t`. The weights start equal; the entropy holds them so at first and
    lets go of them in the course of ``anneal_iters`` steps.

    Softmax weights under a loss do one thing: they move to where the loss is
    smallest, at the rate :math:`\partial L / \partial R_{ij} = w_{ij} (\hat
    l_{ij} - \sum w \hat l)`. Of raw errors that would be the pair with the
    smallest scale, which says nothing of what there is to learn. Divided by
    its running mean, a pair is around 1 whatever its scale, and below 1 only
    while its error falls: the router prefers pairs that the student is still
    learning from. It may collapse on few of them once the entropy has let
    go; :attr:`weights` tells. As a by-product the gradient does not shrink
    with the error: the schedule of the learning rate has to.

    Ours, after the abstract of the IJCV extension of CAKD, which names an
    adaptive router but has no formula. Draw the matrix by
    ``tools/analysis_tools/draw_router.py``.

    Args:
        anneal_iters (int): ``T``, in training steps.
        num_teacher_layers (int): Defaults to 4.
        num_student_layers (int): Defaults to 4.
        entropy_weight (float): :math:`\lambda`. Defaults to 1.
        momentum (float): Of the running means. Defaults to 0.99.
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Non-positive ``anneal_iters``, fewer than two pairs, or
            features that are not those of
            :class:`mmcakd.models.connectors.RouterConnector`.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import RouterLoss
        >>> router = RouterLoss(100, num_teacher_layers=1,
        ...                     num_student_layers=2, entropy_weight=0.)
        >>> teacher = torch.zeros(2, 8, 4, 4)
        >>> round(router([[teacher + 1, teacher + 9]], [teacher]).item(), 4)
        1.0
        >>> router.weights
        tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        anneal_iters: PositiveInt,
        num_teacher_layers: PositiveInt = 4,
        num_student_layers: PositiveInt = 4,
        entropy_weight: NonNegative = 1.0,
        momentum: Rate = 0.99,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        shape = (num_teacher_layers, num_student_layers)
        if shape == (1, 1):
            raise ValueError(
                'a router of 1 x 1 layers has nothing to choose; compare a '
                'single pair by mmcakd.MSELoss'
            )
        self.anneal_iters = anneal_iters
        self.entropy_weight = entropy_weight
        self.momentum = momentum
        self.loss_weight = loss_weight
        self.routes = nn.Parameter(torch.zeros(shape))
        self.register_buffer('means', torch.zeros(shape))
        self.register_buffer('steps', torch.zeros(()))

    @property
    def weights(self) -> torch.Tensor:
        """Share of each pair, ``(teacher layers, student layers)``."""
        return share_of_pairs(self.routes.detach())

    def forward(
        self, student: Pairs, teacher: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Compare all pairs.

        Args:
            student (Sequence[Sequence[Tensor]]): For each teacher layer, the
                projections of all student layers to its shape, as maps or
                tokens.
            teacher (Sequence[Tensor]): The teacher's layers.
        """
        rows, columns = self.routes.shape
        pairs = [len(row) for row in student]
        if len(teacher) != rows or pairs != [columns] * rows:
            raise ValueError(
                f'this router was made for {rows} teacher and {columns} '
                f'student layers, but got {len(teacher)} teacher layers and '
                f'{pairs} student layers for them; set num_teacher_layers '
                'and num_student_layers to the stages of mmcakd.'
                'RouterConnector'
            )
        with torch.autocast(self.routes.device.type, enabled=False):
            losses = torch.stack(
                [
                    torch.stack([_mean_squared_error(s, t) for s in row])
                    for row, t in zip(student, teacher, strict=True)
                ]
            )
            log_weights = self.routes.flatten().log_softmax(0)
            weights = log_weights.exp()
            loss = (weights * self._normalise(losses).flatten()).sum()
            entropy = -(weights * log_weights).sum() / math.log(len(weights))
            left = (1 - self.steps / self.anneal_iters).clamp(min=0)
            loss = loss - self.entropy_weight * left * entropy
        if self.training:
            self.steps += 1
        return self.loss_weight * loss

    def _normalise(self, losses: torch.Tensor) -> torch.Tensor:
        """Divide each loss by its running mean over all processes."""
        now = losses.detach().to(self.means.dtype, copy=True)
        if self.training:
            all_reduce(now, 'mean')
            moved = self.means.lerp(now, 1 - self.momentum)
            self.means.copy_(torch.where(self.means > 0, moved, now))
        means = torch.where(self.means > 0, self.means, now)
        return losses / means.clamp(min=torch.finfo(means.dtype).tiny)


def _mean_squared_error(
    student: torch.Tensor, teacher: torch.Tensor
) -> torch.Tensor:
    student, teacher = to_tokens(student), to_tokens(teacher.detach())
    check_same_shape(
        student,
        teacher,
        'tokens',
        'project each student layer to the shape of each teacher layer, e.g. '
        'by mmcakd.RouterConnector',
    )
    return F.mse_loss(full_precision(student), full_precision(teacher))
