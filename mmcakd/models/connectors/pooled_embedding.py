"""A linear embedding of a whole image."""

import torch
from torch import nn

from mmcakd.arguments import PositiveInt
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
        embed_dims (int, optional): Width of the embedding; None takes that of
            ``shape_like``, and a feature that has it already is pooled only.
            Defaults to 128.
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
        embed_dims: PositiveInt | None = 128,
        in_channels: PositiveInt | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.embed_dims = embed_dims
        self.linear: nn.Module | None = None
        if None not in (in_channels, embed_dims):
            self.linear = nn.Linear(in_channels, embed_dims)

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Read the widths that the config left open, and build."""
        if self.linear is not None:
            return
        self.in_channels = self.in_channels or inputs['feature'].shape[1]
        if self.embed_dims is not None:
            self.linear = nn.Linear(self.in_channels, self.embed_dims)
            return
        if like is None:
            raise ValueError(
                'the embedding has no width yet: name a feature in '
                '`shape_like`, or set `embed_dims`'
            )
        self.embed_dims = like.shape[1]
        self.linear = (
            nn.Identity()
            if self.in_channels == self.embed_dims
            else nn.Linear(self.in_channels, self.embed_dims)
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
        width = self.in_channels
        if feature.ndim not in (2, 4) or feature.shape[1] != width:
            raise ValueError(
                f'this embedding was built for features (N, {width}) or maps '
                f'(N, {width}, H, W), but got {tuple(feature.shape)}'
            )
        return self.linear(
            feature.mean((2, 3)) if feature.ndim == 4 else feature
        )
