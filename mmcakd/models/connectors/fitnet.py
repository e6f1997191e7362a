"""The regressor of FitNets."""

import torch
from torch import nn

from mmcakd.registry import MODELS

from .base import BaseConnector
from .utils import check_map, resize_map

Grid = tuple[int, int]


@MODELS.register_module()
class FitNetConnector(BaseConnector):
    """Bring a student's map to the teacher's grid and width.

    A 1x1 convolution without bias changes the width, as in OFA-KD's
    comparison, with its initial weights (Kaiming, fan-out). That comparison
    takes maps of equal grids only. That grids may differ is ours: a side
    that is longer than the teacher's is averaged down (adaptive average
    pooling), a shorter one is interpolated (bilinear).

    Source: `FitNets <https://arxiv.org/abs/1412.6550>`_, section 2.2.

    Args:
        in_channels (int, optional): Read from the student if None.
        out_channels (int, optional): Read from ``shape_like`` if None.
        grid (tuple[int, int], optional): ``(H, W)`` of the output. Read from
            ``shape_like`` if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Sizes are missing, or a map does not fit.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import FitNetConnector
        >>> project = FitNetConnector(64, 96, grid=(14, 14))
        >>> project(torch.rand(2, 64, 56, 7)).shape
        torch.Size([2, 96, 14, 14])
    """

    def __init__(
        self,
        in_channels: int | None = None,
        out_channels: int | None = None,
        grid: Grid | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.grid = grid and tuple(grid)
        self.conv: nn.Conv2d | None = None
        if None not in (in_channels, out_channels, grid):
            self._build()

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Read the sizes that the config left open, and build."""
        if self.conv is not None:
            return
        feature = inputs['feature']
        check_map(feature, 'feature')
        self.in_channels = self.in_channels or feature.shape[1]
        if like is not None:
            self.out_channels = self.out_channels or like.shape[1]
            self.grid = self.grid or tuple(like.shape[2:])
        if None in (self.out_channels, self.grid):
            raise ValueError(
                'the output has no size yet: name a record of the teacher in '
                '`shape_like`, or set `out_channels` and `grid`'
            )
        self._build()

    def _build(self) -> None:
        self.conv = nn.Conv2d(
            self.in_channels, self.out_channels, 1, bias=False
        )
        nn.init.kaiming_normal_(self.conv.weight, mode='fan_out')

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Project a map.

        Args:
            feature (Tensor): ``(N, in_channels, h, w)``.

        Returns:
            Tensor: ``(N, out_channels, H, W)``.
        """
        if self.conv is None:
            raise ValueError(
                'this connector has no sizes yet: set in_channels, '
                'out_channels and grid, or let a CrossArchDistill prepare it'
            )
        if feature.ndim != 4 or feature.shape[1] != self.in_channels:
            raise ValueError(
                f'this connector was built for maps (N, {self.in_channels}, '
                f'H, W), but got {tuple(feature.shape)}'
            )
        return self.conv(resize_map(feature, self.grid))
