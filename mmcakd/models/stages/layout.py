"""From any feature layout to a map or to tokens."""

import torch

Grid = tuple[int, int]


def to_map(
    feature: torch.Tensor,
    layout: str = 'NCHW',
    grid: Grid | None = None,
    extra_tokens: int = 0,
) -> torch.Tensor:
    """View a feature as a map.

    Args:
        feature (Tensor): ``(N, C, H, W)``, ``(N, H, W, C)`` or, with ``E``
            leading class or register tokens, ``(N, E + H * W, C)``.
        layout (str): ``'NCHW'``, ``'NHWC'`` or ``'NLC'``.
        grid (tuple[int, int], optional): ``(H, W)`` of the patch tokens;
            needed for ``'NLC'``.
        extra_tokens (int): ``E``; these tokens have no place on the grid and
            are dropped.

    Returns:
        Tensor: ``(N, C, H, W)``.

    Raises:
        ValueError: The tokens do not fill the grid.

    Examples:
        >>> import torch
        >>> from mmcakd.models.stages import to_map
        >>> to_map(torch.rand(2, 197, 8), 'NLC', (14, 14), 1).shape
        torch.Size([2, 8, 14, 14])
    """
    if layout == 'NCHW':
        return feature
    if layout == 'NHWC':
        return feature.permute(0, 3, 1, 2)
    tokens = feature[:, extra_tokens:]
    if grid is None or tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f'{tokens.shape[1]} patch tokens (after {extra_tokens} extra '
            f'ones) do not fill the grid {grid}; check the layout and '
            '`extra_tokens` of this tap'
        )
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(feature: torch.Tensor) -> torch.Tensor:
    """View a map ``(N, C, H, W)`` as row-major tokens ``(N, H * W, C)``.

    Tokens are returned as they are.
    """
    return feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature
