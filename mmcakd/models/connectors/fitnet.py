"""The regressor of FitNets."""

import torch
from torch import nn

from mmcakd.registry import MODELS

from .grid_projector import GridProjector


@MODELS.register_module()
class FitNetConnector(GridProjector):
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
        feature = self.bring_to_grid(feature)
        return self.conv(feature)
