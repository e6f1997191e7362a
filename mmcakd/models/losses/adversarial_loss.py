"""Make the student's features look like the teacher's to a discriminator."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from mmcakd.arguments import NonNegative
from mmcakd.registry import MODELS

from ..attention import Attended
from ..functional import full_precision

Feature = torch.Tensor | Attended


@MODELS.register_module()
class AdversarialLoss(nn.Module):
    r"""Let a discriminator tell the student's features from the teacher's.

    With the discriminator's probability :math:`D = sigmoid(logit)` that
    features :math:`h` are the teacher's, the student minimises

    .. math::
        L_s = -mean \log D(h_s) \qquad \text{or, saturating,} \qquad
        L_s = mean \log (1 - D(h_s))

    and the discriminator, in turns of its own,

    .. math::
        L_D = -mean \log D(h_t) - mean \log (1 - D(h_s))

    The paper writes the saturating form, whose gradient vanishes where the
    discriminator wins. Both are computed from logits. The student's term has
    no gradient for the discriminator, and the discriminator's none for the
    student. The discriminator runs in float32.

    It needs :class:`mmcakd.models.algorithms.AdversarialDistill`, which gives
    the discriminator its turns.

    Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, section 3.3 (:math:`L_{MVG}` and
    :math:`L_{MAD}`). The non-saturating form is that of `Generative
    Adversarial Networks <https://arxiv.org/abs/1406.2661>`_, section 3.

    Args:
        discriminator (dict | nn.Module, optional): A
            :class:`mmcakd.models.discriminators.BaseDiscriminator`. Defaults
            to a :class:`mmcakd.models.discriminators.TokenDiscriminator`.
        saturating (bool): Whether the student minimises the saturating form.
            Defaults to False.
        loss_weight (float): Factor on the student's term. Defaults to 1.

    Raises:
        ValueError: Features that the discriminator does not accept.
        RuntimeError: Training a student whose algorithm never trains the
            discriminator.

    Examples:
        >>> import torch
        >>> from mmcakd.models.losses import AdversarialLoss
        >>> adversarial = AdversarialLoss()
        >>> tokens = torch.rand(2, 49, 64)
        >>> adversarial(student=tokens, teacher=tokens).shape
        torch.Size([])
        >>> for p in adversarial.discriminator.parameters():
        ...     _ = p.data.zero_()  # undecided: a probability of one half
        >>> adversarial(student=tokens, teacher=tokens)
        tensor(0.6931)
    """

    #: Set by the algorithm that trains the discriminator.
    has_turns = False

    def __init__(
        self,
        discriminator: dict | nn.Module | None = None,
        saturating: bool = False,
        loss_weight: NonNegative = 1.0,
    ) -> None:
        super().__init__()
        if discriminator is None:
            discriminator = dict(type='mmcakd.TokenDiscriminator')
        if isinstance(discriminator, dict):
            discriminator = MODELS.build(discriminator)
        self.discriminator = discriminator
        self.saturating = saturating
        self.loss_weight = loss_weight

    def forward(self, student: Feature, teacher: Feature) -> torch.Tensor:
        """Compute the student's term.

        Args:
            student (Tensor | Attended): Of a shape that the discriminator
                accepts, such as tokens ``(N, L, d)``. Of what a PCA connector
                returns, the attention is taken.
            teacher (Tensor | Attended): Likewise.
        """
        student, teacher = _attention(student), _attention(teacher)
        if self.training and student.requires_grad and not self.has_turns:
            raise RuntimeError(
                'nothing trains the discriminator of this AdversarialLoss: '
                "set model.type to 'mmcakd.AdversarialDistill'"
            )
        with torch.autocast(student.device.type, enabled=False):
            real = full_precision(teacher.detach())
            fake = full_precision(student)
            self.discriminator.prepare(real)
            # Without requires_grad on the parameters themselves, which DDP
            # and autocast's cache of weights look at.
            frozen = {
                name: p.detach()
                for name, p in self.discriminator.named_parameters()
            }
            logits = functional_call(self.discriminator, frozen, fake)
            if self.saturating:
                loss = -F.softplus(logits).mean()
            else:
                loss = F.softplus(-logits).mean()
        return self.loss_weight * loss

    def discriminator_loss(
        self, student: Feature, teacher: Feature
    ) -> torch.Tensor:
        """Compute the discriminator's own loss.

        Args:
            student (Tensor | Attended): What :meth:`forward` got; it gets no
                gradient.
            teacher (Tensor | Attended): Likewise.
        """
        fake, real = (
            full_precision(_attention(side)).detach()
            for side in (student, teacher)
        )
        with torch.autocast(real.device.type, enabled=False):
            return (
                F.softplus(-self.discriminator(real)).mean()
                + F.softplus(self.discriminator(fake)).mean()
            )


def _attention(feature: Feature) -> torch.Tensor:
    """Of what a PCA connector returns, the attention."""
    return feature.attention if isinstance(feature, Attended) else feature
