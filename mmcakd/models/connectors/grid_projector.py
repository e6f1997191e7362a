"""What projectors to the teacher's grid and width share."""

import torch

from mmcakd.arguments import Grid, PositiveInt

from ..functional import check_map, resize_map
from .base import BaseConnector


class GridProjector(BaseConnector):
    """A projector from a student's map to the teacher's grid and width.

    It knows its sizes, from the config or from the two models. A subclass
    makes its parameters in :meth:`_build`, and projects in ``forward`` what
    :meth:`bring_to_grid` returns.

    Args:
        in_channels (int, optional): Read from the student if None.
        out_channels (int, optional): Read from ``shape_like`` if None.
        grid (tuple[int, int], optional): ``(H, W)`` of the output. Read from
            ``shape_like`` if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Sizes are missing, or a map does not fit.
    """

    def __init__(
        self,
        in_channels: PositiveInt | None = None,
        out_channels: PositiveInt | None = None,
        grid: Grid | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.grid = grid and tuple(grid)
        if None not in (in_channels, out_channels, grid):
            self._build()

    @property
    def is_built(self) -> bool:
        """Whether all sizes are known and the parameters exist."""
        return next(self.parameters(), None) is not None

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Read the sizes that the config left open, and build."""
        if self.is_built:
            return
        check_map(inputs['feature'], 'feature')
        self.in_channels = self.in_channels or inputs['feature'].shape[1]
        if like is not None:
            check_map(like, 'shape_like')
            self.out_channels = self.out_channels or like.shape[1]
            self.grid = self.grid or tuple(like.shape[2:])
        if None in (self.out_channels, self.grid):
            raise ValueError(
                'the output has no size yet: name a record of the teacher in '
                '`shape_like`, or set `out_channels` and `grid`'
            )
        self._build()

    def _build(self) -> None:
        raise NotImplementedError

    def bring_to_grid(self, feature: torch.Tensor) -> torch.Tensor:
        """Check a map ``(N, in_channels, h, w)`` and resize it to the grid.

        Returns:
            Tensor: ``(N, in_channels, H, W)``.
        """
        if not self.is_built:
            raise ValueError(
                'this projector has no sizes yet: set in_channels, '
                'out_channels and grid, or let a CrossArchDistill prepare it'
            )
        check_map(feature, 'feature')
        if feature.shape[1] != self.in_channels:
            raise ValueError(
                f'this projector was built for maps of {self.in_channels} '
                f'channels, but got {tuple(feature.shape)} (N, C, H, W)'
            )
        return resize_map(feature, self.grid)
