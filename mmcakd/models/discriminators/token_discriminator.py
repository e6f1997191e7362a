"""A discriminator of pooled tokens."""

import torch
from torch import nn

from mmcakd.arguments import PositiveInt
from mmcakd.registry import MODELS

from .base import BaseDiscriminator


@MODELS.register_module()
class TokenDiscriminator(BaseDiscriminator):
    """Three linear layers on the mean of the tokens.

    The widths are ``d``, ``d / 2``, ``d / 4``, 1, with LeakyReLU of slope 0.2
    in between. Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, section 3.3, which says that there
    are three fully connected layers. Their widths, the mean over tokens and
    the slope are ours.

    Args:
        embed_dims (int, optional): ``d``. Read from the teacher if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Features of another width, or that are neither tokens,
            maps nor vectors.

    Examples:
        >>> import torch
        >>> from mmcakd.models.discriminators import TokenDiscriminator
        >>> discriminator = TokenDiscriminator(768)
        >>> discriminator(torch.rand(2, 196, 768)).shape
        torch.Size([2, 1])
        >>> discriminator(torch.rand(2, 768, 14, 14)).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        embed_dims: PositiveInt | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.layers: nn.Sequential | None = None
        if embed_dims is not None:
            self._build()

    def prepare(self, feature: torch.Tensor) -> None:
        """Read the width that the config left open, and build."""
        if self.layers is None:
            self.embed_dims = pool(feature).shape[1]
            self._build()
            self.layers.to(feature.device)

    def _build(self) -> None:
        half, quarter = (max(self.embed_dims // n, 1) for n in (2, 4))
        self.layers = nn.Sequential(
            nn.Linear(self.embed_dims, half),
            nn.LeakyReLU(0.2),
            nn.Linear(half, quarter),
            nn.LeakyReLU(0.2),
            nn.Linear(quarter, 1),
        )

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Judge features.

        Args:
            feature (Tensor): Tokens ``(N, L, d)``, a map ``(N, d, H, W)`` or
                vectors ``(N, d)``.

        Returns:
            Tensor: Logits ``(N, 1)``.
        """
        pooled = pool(feature)
        if pooled.shape[1] != self.embed_dims:
            raise ValueError(
                f'this discriminator was built for width {self.embed_dims}, '
                f'but got features {tuple(feature.shape)}; project the '
                "student's to the teacher's width"
            )
        return self.layers(pooled)


def pool(feature: torch.Tensor) -> torch.Tensor:
    """Average tokens, or the places of a map: ``(N, d)``."""
    if feature.ndim not in (2, 3, 4):
        raise ValueError(
            'features should be tokens (N, L, d), maps (N, d, H, W) or '
            f'vectors (N, d), got {tuple(feature.shape)}'
        )
    places = {2: (), 3: (1,), 4: (2, 3)}[feature.ndim]
    return feature.mean(places) if places else feature
