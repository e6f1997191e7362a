"""What a discriminator of mmcakd is."""

import torch
from mmengine.model import BaseModule


class BaseDiscriminator(BaseModule):
    """A module that gives logits: large for a teacher's features.

    It belongs to an :class:`mmcakd.models.losses.AdversarialLoss`, which
    calls :meth:`prepare` before it asks for logits.
    """

    def prepare(self, feature: torch.Tensor) -> None:
        """Build what depends on the width of the features.

        Called again in every step, it changes nothing.

        Args:
            feature (Tensor): The teacher's.
        """
