"""Find the teacher's image among those of a batch."""

import math

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce, get_rank, get_world_size
from torch import nn

from mmcakd.arguments import NonNegative, Positive, PositiveOrInf
from mmcakd.registry import MODELS

from ..functional import full_precision, pooled
from .traits import ComparesImages
from .utils import check_same_shape


class _GatherRows(torch.autograd.Function):
    """Rows of all processes, by rank; a gradient goes back to its rows.

    The gathers of :mod:`torch.distributed.nn` are deprecated, and what takes
    their place is not in every version of PyTorch.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat(all_gather(rows.contiguous()))

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        all_reduce(grad, 'sum')
        return grad.chunk(get_world_size())[get_rank()]


@MODELS.register_module()
class InfoNCELoss(ComparesImages, nn.Module):
    r"""Find the teacher's feature of an image among those of the batch.

    With features :math:`s_n` and :math:`t_n` of unit length, of one image
    where the index is the same, and a trained scale :math:`\alpha`

    .. math::
        L = -mean_n \log \frac{\exp(\alpha \, s_n \cdot t_n)}
                              {\sum_m \exp(\alpha \, s_n \cdot t_m)}

    A map is averaged over its positions first, the spatial smoothing of TAS.
    Features that tell nothing give :math:`\log N` for :math:`N` images.
    ``symmetric`` takes the mean with the other direction, in which a teacher
    image has to find its student image.

    With ``gather`` the candidates are the images of all processes. Gradients
    pass through the gather, so that the mean over processes of the losses and
    of their gradients, which is what DDP takes, is that of one process with
    the whole batch. Outside of training nothing is gathered.

    The scale is the parameter ``logit_scale``, its logarithm. Weight decay
    would draw it to :math:`\alpha = 1`: exclude it by ``custom_keys`` of
    ``paramwise_cfg``.

    Source: `TAS <https://arxiv.org/abs/2410.12342>`_, which compares the
    pooled features of teacher, student and assistant by InfoNCE with a
    learnable temperature. InfoNCE is that of `Contrastive Predictive Coding
    <https://arxiv.org/abs/1807.03748>`_, equation 4. Features of unit length,
    :math:`\alpha = \exp(\theta)`, its start, its limit and the symmetric form
    are those of `CLIP <https://arxiv.org/abs/2103.00020>`_, section 2; that
    they are put to use here is ours, as are negatives from the batch and the
    gather: of TAS, this follows secondary sources.

    Args:
        tau (float): Temperature at the start, :math:`1 / \alpha`. Defaults to
            0.07.
        max_scale (float): Largest :math:`\alpha`. Defaults to 100.
        symmetric (bool): Whether to search in both directions. Defaults to
            False.
        gather (bool): Whether to search among the images of all processes.
            Defaults to False.
        detach_teacher (bool): Whether to stop the gradient to the teacher's
            side. False is for a teacher that is trained itself, such as an
            assistant. Defaults to True.
        loss_weight (float): Defaults to 1.

    Raises:
        ValueError: Features that do not fit each other, a single image,
            processes with unequal batches, a non-positive ``tau``, or a
            ``max_scale`` below ``1 / tau``.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import InfoNCELoss
        >>> different, equal = torch.eye(4), torch.ones(4, 8, 7, 5)
        >>> round(InfoNCELoss(tau=1.)(different, different).item(), 4)
        0.7437
        >>> round(InfoNCELoss()(equal, equal).item(), 4)  # log 4
        1.3863
    """

    def __init__(
        self,
        tau: Positive = 0.07,
        max_scale: PositiveOrInf = 100.0,
        symmetric: bool = False,
        gather: bool = False,
        detach_teacher: bool = True,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        if max_scale < 1 / tau:
            raise ValueError(
                f'max_scale {max_scale} is below the scale at the start, '
                f'1 / tau = {1 / tau:g}; raise max_scale or tau'
            )
        self.max_scale = max_scale
        self.symmetric = symmetric
        self.gather = gather
        self.detach_teacher = detach_teacher
        self.loss_weight = loss_weight
        # Of one dimension, which `flat_decay_mult` of MMEngine can exclude
        # from weight decay.
        self.logit_scale = nn.Parameter(torch.tensor([-math.log(tau)]))

    def check_batch_size(self, smallest: int) -> None:
        """Refuse batches of a single image before training starts.

        The :class:`mmcakd.engine.TrainingSetHook` calls this.

        Args:
            smallest (int): Images of a process in the smallest batch.

        Raises:
            ValueError: They have no others to be told from.
        """
        _check_candidates(smallest * (get_world_size() if self.gather else 1))

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> torch.Tensor:
        """Compare features, each ``(N, C)`` or ``(N, C, H, W)``."""
        if self.detach_teacher:
            teacher = teacher.detach()
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = pooled(student), pooled(teacher)
            check_same_shape(
                student,
                teacher,
                'pooled features',
                'they must be of the same images and of one width: send the '
                'wider or the narrower one through a mmcakd.PooledEmbedding '
                'with embed_dims=None and the other one in shape_like',
            )
            student = F.normalize(student, dim=1)
            teacher = F.normalize(teacher, dim=1)
            scale = self._scale()
            gather = self.gather and self.training and get_world_size() > 1
            if gather:
                _check_equal_batches(student)
            loss = _search(student, teacher, scale, gather)
            if self.symmetric:
                loss = (loss + _search(teacher, student, scale, gather)) / 2
        return self.loss_weight * loss

    def _scale(self) -> torch.Tensor:
        # The parameter itself is limited: a limit on the exponential would
        # have no gradient above, from where there were no way back, and one
        # that lets the gradient pass would let the parameter run away.
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(self.max_scale))
        return full_precision(self.logit_scale).exp()


def _search(
    anchors: torch.Tensor,
    candidates: torch.Tensor,
    scale: torch.Tensor,
    gather: bool,
) -> torch.Tensor:
    """Let each anchor find the candidate of its own image."""
    targets = torch.arange(len(anchors), device=anchors.device)
    if gather:
        candidates = _GatherRows.apply(candidates)
        targets = targets + get_rank() * len(anchors)
    _check_candidates(len(candidates))
    return F.cross_entropy(scale * anchors @ candidates.T, targets)


def _check_candidates(count: int) -> None:
    if count == 1:
        raise ValueError(
            'a single image has no others to be told from: use a larger '
            'batch, drop_last=True in the data loader if it is the rest of '
            'an epoch, or, in several processes, gather=True'
        )


def _check_equal_batches(rows: torch.Tensor) -> None:
    sizes = torch.cat(
        all_gather(torch.tensor([len(rows)], device=rows.device))
    ).tolist()
    if len(set(sizes)) > 1:
        raise ValueError(
            f'the processes have batches of {sizes} images, which cannot be '
            'gathered: set drop_last=True in the data loader'
        )
