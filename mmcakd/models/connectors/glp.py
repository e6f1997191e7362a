"""Group-wise linear projector of CAKD."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.arguments import Grid, PositiveInt, Rate
from mmcakd.registry import MODELS

from .grid_projector import GridProjector

#: Side of a tile.
TILE = 4


@MODELS.register_module()
class GLPConnector(GridProjector):
    """Group-wise linear projector: from a map to the teacher's tokens.

    The student's map is brought to the teacher's grid. There each tile of 4x4
    neighbours shares a linear layer, with bias, to the teacher's width;
    dropout follows. A 14x14 grid has 16 tiles, those at the bottom and right
    of 2 rows or columns; a grid of ``H x W`` has
    ``ceil(H / 4) * ceil(W / 4)``.

    Source: `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_, group-wise linear projector. The
    dropout rate is not published; resizing (averaging down, interpolating
    up) is ours.

    The other direction, iGL, from the tokens of a ViT student to the channels
    of a CNN teacher on its grid, is the same connector: tokens are recorded
    as maps, too. That direction is ours, after the abstract of the IJCV
    extension.

    .. code-block:: python

        stages = dict(stages=dict(type='mmcakd.StageOutputs'))
        distiller = dict(
            student_recorders=stages,
            teacher_recorders=stages,
            connectors=dict(
                glp=dict(
                    type='mmcakd.GLPConnector',
                    inputs=dict(
                        feature=dict(
                            recorder='stages', from_student=True, data_idx=2
                        )
                    ),
                    shape_like=dict(
                        recorder='stages', from_student=False, data_idx=3
                    ),
                )
            ),
            distill_losses=dict(loss_glp=dict(type='mmcakd.MSELoss')),
            loss_forward_mappings=dict(
                loss_glp=dict(
                    student=dict(connector='glp'),
                    teacher=dict(
                        recorder='stages', from_student=False, data_idx=3
                    ),
                )
            ),
        )

    Args:
        dropout (float): Rate. Defaults to 0.1.
        in_channels (int, optional): Read from the student if None.
        out_channels (int, optional): Read from ``shape_like`` if None.
        grid (tuple[int, int], optional): ``(H, W)`` of the output. Read from
            ``shape_like`` if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Sizes are missing, or a map does not fit.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import GLPConnector
        >>> glp = GLPConnector(in_channels=64, out_channels=96, grid=(10, 14))
        >>> glp.weight.shape
        torch.Size([12, 64, 96])
        >>> glp(torch.rand(2, 64, 10, 14)).shape
        torch.Size([2, 140, 96])
    """

    def __init__(
        self,
        dropout: Rate = 0.1,
        in_channels: PositiveInt | None = None,
        out_channels: PositiveInt | None = None,
        grid: Grid | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, grid, init_cfg)
        self.dropout = nn.Dropout(dropout)

    def _build(self) -> None:
        self.tiles = tuple(math.ceil(side / TILE) for side in self.grid)
        num_tiles = self.tiles[0] * self.tiles[1]
        self.weight = nn.Parameter(
            torch.empty(num_tiles, self.in_channels, self.out_channels)
        )
        self.bias = nn.Parameter(torch.empty(num_tiles, 1, self.out_channels))
        # As nn.Linear does.
        bound = self.in_channels**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Project a map.

        Args:
            feature (Tensor): ``(N, in_channels, h, w)``.

        Returns:
            Tensor: Tokens ``(N, H * W, out_channels)``, row by row.
        """
        feature = self.bring_to_grid(feature)
        height, width = self.grid
        feature = F.pad(feature, (0, -width % TILE, 0, -height % TILE))
        tiles = feature.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE))
        # (N, C, rows, 4, columns, 4) -> (rows * columns, N * 16, C)
        tiles = tiles.permute(2, 4, 0, 3, 5, 1).flatten(2, 4).flatten(0, 1)
        tiles = torch.baddbmm(self.bias, tiles, self.weight)
        tiles = tiles.unflatten(1, (-1, TILE, TILE)).unflatten(0, self.tiles)
        # (rows, columns, N, 4, 4, C') -> (N, rows * 4, columns * 4, C')
        tokens = tiles.permute(2, 0, 3, 1, 4, 5).flatten(3, 4).flatten(1, 2)
        return self.dropout(tokens[:, :height, :width].flatten(1, 2))
