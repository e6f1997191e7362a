"""Contrastive representation distillation."""

import math

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather
from torch import nn

from mmcakd.arguments import NonNegative, Positive, PositiveInt, Rate
from mmcakd.registry import MODELS

from ..functional import full_precision
from .traits import NeedsHardLabels
from .utils import check_same_shape


def nce_loss(log_scores: torch.Tensor, num_images: int) -> torch.Tensor:
    r"""Tell a pair of the joint distribution from pairs of noise.

    Args:
        log_scores (Tensor): ``(N, 1 + K)``, normalised; first the positive
            pair, then ``K`` negative ones.
        num_images (int): ``M``; noise picks each image with probability
            ``1 / M``.

    Returns:
        Tensor: The mean over the batch of :math:`-\log h(x_0) - \sum_k \log(1
        - h(x_k))` with :math:`h = e^x / (e^x + K / M)`.
    """
    num_negatives = log_scores.shape[1] - 1
    logits = log_scores - math.log(num_negatives / num_images)
    positive = F.softplus(-logits[:, 0])
    return (positive + F.softplus(logits[:, 1:]).sum(1)).mean()


@MODELS.register_module()
class CRDLoss(NeedsHardLabels, nn.Module):
    r"""Contrast an image with images of other classes, across networks.

    Two memories keep the embedding of every training image, one for the
    student and one for the teacher. The student's embedding :math:`s` of an
    image is compared with the teacher's memory of the same image and of
    :math:`K` images drawn from other classes, and the teacher's embedding
    with the student's memory. With unit vectors, :math:`M` training images
    and :math:`P_k = \exp(s \cdot m_k / T) / Z`

    .. math::
        L_s = - mean_n [\log \frac{P_0}{P_0 + K / M}
              + \sum_{k=1}^{K} \log \frac{K / M}{P_k + K / M}]

    and the loss is :math:`w (L_s + L_t)`. :math:`Z` is :math:`M` times the
    mean of the exponentials in the first step, and stays. After a step the
    memory of the images of the batch becomes :math:`\mu m + (1 - \mu) s`,
    normalised.

    The memories need the labels of the training images, which a
    :class:`mmcakd.engine.TrainingSetHook` hands over before a run starts. In
    a run of several processes each has the whole memory, and all are equal.
    What is drawn depends on a seed, the step and the image alone, so that
    neither resuming nor the number of processes changes it. Memories, steps
    and seed are in the checkpoint.

    Cost: the memories take :math:`8 M D` bytes, twice that while a step
    updates them, and as much in each checkpoint and EMA copy: 51 MB for
    CIFAR-100, 1.3 GB for ImageNet-1k at :math:`D = 128`. A comparison takes
    about :math:`4 N M + 40 N K` bytes of work space for a batch of :math:`N`.

    Both embeddings are trained, as in the paper, so that no gradient is
    stopped here; the teacher itself stays frozen. Mixed images have no place
    in a memory: no MixUp, no CutMix.

    Source: `Contrastive Representation Distillation
    <https://arxiv.org/abs/1910.10699>`_, equations 10 to 19. Negatives are
    drawn with replacement, as that derivation has them.

    Args:
        embed_dims (int): :math:`D`, width of the embeddings. Defaults to 128.
        num_negatives (int): :math:`K`. Defaults to 16384.
        temperature (float): :math:`T`. Defaults to 0.07.
        momentum (float): :math:`\mu`. Defaults to 0.5.
        loss_weight (float): :math:`w`. Defaults to 1.

    Raises:
        ValueError: Embeddings, indices or labels that do not fit; arguments
            out of range.
        RuntimeError: Training without the labels of the training images.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import CRDLoss
        >>> crd = CRDLoss(embed_dims=8, num_negatives=16)
        >>> labels = torch.arange(100) % 10
        >>> crd.prepare_from_labels(labels)
        >>> index = torch.tensor([3, 42])
        >>> crd(torch.rand(2, 8), torch.rand(2, 8), index, labels[index]).shape
        torch.Size([])
        >>> crd.student_memory.shape
        torch.Size([100, 8])
    """

    student_memory: torch.Tensor
    teacher_memory: torch.Tensor

    def __init__(
        self,
        embed_dims: PositiveInt = 128,
        num_negatives: PositiveInt = 16384,
        temperature: Positive = 0.07,
        momentum: Rate = 0.5,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.num_negatives = num_negatives
        self.temperature = temperature
        self.momentum = momentum
        self.loss_weight = loss_weight
        # DDP copies the first rank's to all others.
        self.register_buffer('seed', torch.randint(2**62, ()))
        self.register_buffer('steps', torch.zeros((), dtype=torch.long))
        #: Logarithms of the student's and the teacher's Z, from step 1 on.
        self.register_buffer('log_z', torch.zeros(2))
        self.num_images = 0

    def prepare_from_labels(self, labels: torch.Tensor) -> None:
        """Make the memories.

        Args:
            labels (Tensor): ``(M,)``, class indices of all training images.

        Raises:
            ValueError: They are not class indices, or of one class only.
        """
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                'CRD needs one class index for each training image, but the '
                f'labels are {labels.dtype} {tuple(labels.shape)}'
            )
        counts = labels.bincount()
        if (counts > 0).sum() < 2:
            raise ValueError(
                'CRD draws negatives from other classes, but all '
                f'{len(labels)} training images are of one class'
            )
        device = self.seed.device
        self.num_images = len(labels)
        # What the data set tells is not saved.
        for name, value in dict(
            labels=labels,
            # Images by class; a class is a run in it.
            by_class=labels.argsort(stable=True),
            counts=counts,
            starts=counts.cumsum(0) - counts,
        ).items():
            self.register_buffer(name, value.to(device), persistent=False)
        generator = torch.Generator().manual_seed(self.seed.item())
        bound = math.sqrt(3 / self.embed_dims)
        for name in ('student_memory', 'teacher_memory'):
            memory = torch.empty(self.num_images, self.embed_dims)
            memory.uniform_(-bound, bound, generator=generator)
            self.register_buffer(name, memory.to(device, self.log_z.dtype))

    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        index: torch.Tensor,
        label: torch.Tensor,
    ) -> torch.Tensor:
        """Contrast embeddings, and remember them when training.

        Args:
            student (Tensor): ``(N, D)``, of any length.
            teacher (Tensor): ``(N, D)``, likewise.
            index (Tensor): Places of the images in the training set,
                ``(N,)``.
            label (Tensor): Their classes, ``(N,)``.

        Returns:
            Tensor: A scalar; 0 outside of training while there is no memory.
        """
        check_same_shape(
            student,
            teacher,
            'embeddings',
            'embed both with a mmcakd.PooledEmbedding of the same width',
        )
        if student.shape[1:] != (self.embed_dims,):
            raise ValueError(
                f'embeddings are {tuple(student.shape)}, but embed_dims is '
                f'{self.embed_dims}; set the same embed_dims here and in the '
                'mmcakd.PooledEmbedding'
            )
        if not self.num_images:
            if self.training:
                raise RuntimeError(
                    'CRDLoss does not know the training images; add '
                    "dict(type='mmcakd.TrainingSetHook') to custom_hooks, or "
                    'call prepare_from_labels'
                )
            return student.new_zeros(())
        index, label = index.to(student.device), label.to(student.device)
        self._check_images(index, label)
        images = torch.cat(
            [index.unsqueeze(1), self.draw_negatives(index)], dim=1
        )
        with torch.autocast(student.device.type, enabled=False):
            student = F.normalize(full_precision(student), dim=1)
            teacher = F.normalize(full_precision(teacher), dim=1)
            scores = (
                self._compare(student, self.teacher_memory, images),
                self._compare(teacher, self.student_memory, images),
            )
            log_z = self.log_z if self.steps else self._estimate_log_z(scores)
            loss = sum(
                nce_loss(score - z, self.num_images)
                for score, z in zip(scores, log_z, strict=True)
            )
            if self.training:
                self.log_z = log_z
                self.steps += 1
                self._remember(index, student.detach(), teacher.detach())
        return self.loss_weight * loss

    def _check_images(self, index: torch.Tensor, label: torch.Tensor) -> None:
        if index.min() < 0 or index.max() >= self.num_images:
            raise ValueError(
                f'the batch has the indices {index.tolist()}, but the '
                f'training set has {self.num_images} images'
            )
        if not torch.equal(self.labels[index], label):
            raise ValueError(
                'the classes of the batch are not those that the training '
                'set has at its indices: `sample_idx` of the data samples '
                'must be the place in the data set, and images must not be '
                'mixed'
            )

    def draw_negatives(self, index: torch.Tensor) -> torch.Tensor:
        """Draw images of other classes, uniformly with replacement.

        Args:
            index (Tensor): Places of the images in the training set,
                ``(N,)``.

        Returns:
            Tensor: Places of their negatives, ``(N, K)``.
        """
        label = self.labels[index]
        counts, starts = self.counts[label].tolist(), self.starts[label]
        # A draw of its own for each image: it does not depend on which other
        # images are in the batch of this process.
        generator = torch.Generator(index.device)
        seed = self.seed.item() + self.steps.item() * self.num_images
        places = []
        for image, count in zip(index.tolist(), counts, strict=True):
            generator.manual_seed((seed + image) % 2**63)
            places.append(
                torch.randint(
                    self.num_images - count,
                    (self.num_negatives,),
                    generator=generator,
                    device=index.device,
                )
            )
        places = torch.stack(places)
        # Step over the run of the image's own class.
        own = places >= starts.unsqueeze(1)
        return self.by_class[places + own * self.counts[label].unsqueeze(1)]

    def _compare(
        self,
        embedding: torch.Tensor,
        memory: torch.Tensor,
        images: torch.Tensor,
    ) -> torch.Tensor:
        # One product with the whole memory: to gather K + 1 rows for each
        # image would take D times the space of the result.
        return (embedding @ memory.T).gather(1, images) / self.temperature

    @torch.no_grad()
    def _estimate_log_z(
        self, scores: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        # In the log-domain: the exponentials of a low temperature overflow.
        total = torch.stack([score.logsumexp((0, 1)) for score in scores])
        totals = torch.stack(all_gather(total))
        count = len(totals) * scores[0].numel()
        return totals.logsumexp(0) + math.log(self.num_images / count)

    @torch.no_grad()
    def _remember(
        self, index: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor
    ) -> None:
        index = torch.cat(all_gather(index))
        student, teacher = torch.cat(
            all_gather(torch.stack([student, teacher], dim=1))
        ).unbind(1)
        # Of an image that is there twice the last one counts, on all ranks.
        places = torch.arange(len(index), device=index.device)
        same = index.unsqueeze(1) == index
        last = torch.where(same, places, -1).amax(1)
        for name, new in (
            ('student_memory', student[last]),
            ('teacher_memory', teacher[last]),
        ):
            memory = getattr(self, name)
            old = memory[index]
            new = self.momentum * old + (1 - self.momentum) * new
            # Out of place: backward needs the memory as it was.
            setattr(
                self,
                name,
                memory.index_copy(0, index, F.normalize(new, dim=1)),
            )
