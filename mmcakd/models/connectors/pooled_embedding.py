"""A linear embedding of a whole image."""

import torch
from torch import nn

from mmcakd.registry import MODELS

from .base import BaseConnector


@MODELS.register_module()
class PooledEmbedding(BaseConnector):
    """Average a map over its positions and embed it linearly.

    Puts pooled features of two networks, whatever their widths, into one
    space. Source: `Contrastive Representation Distillation
    <https://arxiv.org/abs/1910.10699>`_, section 4, where it is used for
    the student and, trained as well, for the teacher.

    Args:
        embed_dims (int): Width of the embedding. Defaults to 128.
        in_channels (int, optional): Read from the feature if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: The width is not known yet, or a feature does not fit.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import PooledEmbedding
        >>> embed = PooledEmbedding(in_channels=64)
        >>> embed(torch.rand(2, 64, 7, 5)).shape
        torch.Size([2, 128])
    """

    def __init__(
        self,
        embed_dims: int = 128,
        in_channels: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.embed_dims = embed_dims
        self.linear: nn.Linear | None = None
        if in_channels is not None:
            self.linear = nn.Linear(in_channels, embed_dims)

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Read the width that the config left open, and build."""
        if self.linear is None:
            self.linear = nn.Linear(
                inputs['feature'].shape[1], self.embed_dims
            )

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Embed features.

        Args:
            feature (Tensor): ``(N, C, H, W)``, or pooled already, ``(N, C)``.

        Returns:
            Tensor: ``(N, embed_dims)``.
        """
        if self.linear is None:
            raise ValueError(
                'this embedding has no width yet: set in_channels, or let a '
                'CrossArchDistill prepare it'
            )
        width = self.linear.in_features
        if feature.ndim not in (2, 4) or feature.shape[1] != width:
            raise ValueError(
                f'this embedding was built for features (N, {width}) or maps '
                f'(N, {width}, H, W), but got {tuple(feature.shape)}'
            )
        return self.linear(
            feature.mean((2, 3)) if feature.ndim == 4 else feature
        )
