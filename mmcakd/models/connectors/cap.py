"""Cross attention projector of ScaleKD."""

import torch
import torch.nn.functional as F
from mmengine.model.weight_init import trunc_normal_
from mmpretrain.models.utils import build_norm_layer
from torch import nn

from mmcakd.arguments import Grid, Positive, PositiveInt
from mmcakd.registry import MODELS

from .base import BaseConnector


@MODELS.register_module()
class CAPConnector(BaseConnector):
    r"""Cross attention projector: read a map with the teacher's queries.

    A convolutional map becomes tokens of the teacher's width on the teacher's
    grid, each gathered by attention from the whole map, as a ViT gathers its
    own features:

    .. code-block:: none

        feature -> Conv3x3 -> norm -> ReLU -> + position embedding -> K, V
        query   -> Linear -> ReLU                                   -> Q
        y = LayerNorm(Linear(softmax(kappa Q K^T / sqrt(t / heads)) V))
        out = y + Linear(ReLU(Linear(y)))          hidden width 4 t

    With ``s`` student channels on ``P`` positions and width ``t`` it has
    :math:`9s^2 + 3s + sP + 2st + 11t^2 + 12t` parameters, and :math:`Qt` more
    with a learnable query of ``Q`` tokens.

    Source: `ScaleKD <https://arxiv.org/abs/2411.06786>`_, cross attention
    projector.

    Args:
        num_heads (int): Attention heads; divides the teacher's width.
        kappa (float): Factor on the attention scores; above 1 it sharpens
            the attention. Defaults to 1.
        norm_cfg (dict): Norm of the stem; ``dict(type='LN2d')`` for students
            without BatchNorm. Defaults to ``dict(type='BN')``.
        in_channels (int, optional): ``s``. Read from the student if None.
        in_grid (tuple[int, int], optional): Grid of the student's map. Read
            from the student if None.
        embed_dims (int, optional): ``t``. Read from ``shape_like`` or from
            the query's tokens if None.
        query_grid (tuple[int, int], optional): Grid of the learnable query.
            Read from ``shape_like`` if None; a projector without either takes
            its query from outside.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: The heads do not divide the width, sizes are missing, or
            a map or query does not fit those it was built for.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import CAPConnector
        >>> cap = CAPConnector(num_heads=4, kappa=5., in_channels=64,
        ...                    in_grid=(14, 14), embed_dims=96,
        ...                    query_grid=(7, 7))
        >>> cap(torch.rand(2, 64, 14, 14)).shape
        torch.Size([2, 49, 96])
        >>> follower = CAPConnector(num_heads=4, in_channels=128,
        ...                         in_grid=(7, 7), embed_dims=96)
        >>> follower(torch.rand(2, 128, 7, 7), torch.rand(2, 49, 96)).shape
        torch.Size([2, 49, 96])
    """

    def __init__(
        self,
        num_heads: PositiveInt,
        kappa: Positive = 1.0,
        norm_cfg: dict | None = None,
        in_channels: PositiveInt | None = None,
        in_grid: Grid | None = None,
        embed_dims: PositiveInt | None = None,
        query_grid: Grid | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_heads = num_heads
        self.kappa = kappa
        self.norm_cfg = norm_cfg or dict(type='BN')
        self.in_channels = in_channels
        self.in_grid = in_grid and tuple(in_grid)
        self.embed_dims = embed_dims
        self.query_grid = query_grid and tuple(query_grid)
        if None not in (in_channels, in_grid, embed_dims):
            self._build()

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Read the sizes that the config left open, and build."""
        if self.is_built:
            return
        feature, query = inputs['feature'], inputs.get('query')
        if feature.ndim != 4:
            raise ValueError(
                'the input `feature` must be a map (N, C, H, W), got shape '
                f'{tuple(feature.shape)}'
            )
        self.in_channels = self.in_channels or feature.shape[1]
        self.in_grid = self.in_grid or tuple(feature.shape[2:])
        if query is not None:
            self.embed_dims = self.embed_dims or query.shape[-1]
        elif like is not None:
            self.embed_dims = self.embed_dims or like.shape[1]
            self.query_grid = self.query_grid or tuple(like.shape[2:])
        if self.embed_dims is None:
            raise ValueError(
                'the width of the tokens is open: name a record of the '
                'teacher in `shape_like`, feed the input `query`, or set '
                '`embed_dims`'
            )
        self._build()

    @property
    def is_built(self) -> bool:
        """Whether all sizes are known and the parameters exist."""
        return hasattr(self, 'stem')

    def _build(self) -> None:
        channels, dims = self.in_channels, self.embed_dims
        if dims % self.num_heads:
            raise ValueError(
                f'num_heads={self.num_heads} does not divide the width '
                f"{dims} of the teacher's tokens; take one of its divisors"
            )
        self.stem = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            build_norm_layer(self.norm_cfg, channels),
            nn.ReLU(),
        )
        self.pos_embed = nn.Parameter(torch.empty(1, channels, *self.in_grid))
        trunc_normal_(self.pos_embed, std=0.02)
        if self.query_grid:
            num_queries = self.query_grid[0] * self.query_grid[1]
            self.query = nn.Parameter(torch.randn(num_queries, dims))
        self.query_embed = nn.Linear(dims, dims)
        self.q_proj = nn.Linear(dims, dims)
        self.k_proj = nn.Linear(channels, dims)
        self.v_proj = nn.Linear(channels, dims)
        self.out_proj = nn.Linear(dims, dims)
        self.norm = nn.LayerNorm(dims)
        self.ffn = nn.Sequential(
            nn.Linear(dims, 4 * dims), nn.ReLU(), nn.Linear(4 * dims, dims)
        )

    def forward(
        self, feature: torch.Tensor, query: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Project a map.

        Args:
            feature (Tensor): ``(N, s, h, w)``.
            query (Tensor, optional): ``(N, Q, t)``; takes the place of the
                learnable query.

        Returns:
            Tensor: ``(N, Q, t)``.
        """
        self._check(feature, query)
        context = self.stem(feature) + self.pos_embed
        context = context.flatten(2).transpose(1, 2)
        if query is None:
            # The query is the same for all images: embed it once.
            query = self.query.unsqueeze(0)
        q = self.q_proj(F.relu(self.query_embed(query)))
        q = q.expand(len(feature), -1, -1)
        k, v = self.k_proj(context), self.v_proj(context)
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (q, k, v)
        )
        scale = self.kappa * q.shape[-1] ** -0.5
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        out = self.norm(self.out_proj(out.transpose(1, 2).flatten(2)))
        return out + self.ffn(out)

    def _check(self, feature, query) -> None:
        if not self.is_built:
            raise ValueError(
                'this projector has no sizes yet: set in_channels, in_grid '
                'and embed_dims, or let a CrossArchDistill prepare it'
            )
        if tuple(feature.shape[1:]) != (self.in_channels, *self.in_grid):
            raise ValueError(
                f'this projector was built for student maps of '
                f'{(self.in_channels, *self.in_grid)} (C, H, W), but got '
                f'{tuple(feature.shape[1:])}; set `input_size` of the '
                'algorithm to the size of the training images'
            )
        if query is None and not self.query_grid:
            raise ValueError(
                'this projector has no learnable query: feed its input '
                '`query`, or set `query_grid` or `shape_like`'
            )
        if query is not None and query.shape[-1] != self.embed_dims:
            raise ValueError(
                f'this projector was built for tokens of width '
                f'{self.embed_dims}, but got a query of {tuple(query.shape)}'
            )
