"""From any feature layout to a map or to tokens."""

from typing import Any, NamedTuple

import torch

Grid = tuple[int, int]


class StageTokens(NamedTuple):
    """A stage of a network that works on tokens, with nothing left out.

    Attributes:
        map (Tensor): The patch tokens on their grid, ``(N, C, H, W)``.
        extra (Tensor): Class, distillation and register tokens in their
            order, ``(N, E, C)``; ``E`` is 0 for networks without any.

    Examples:
        >>> import torch
        >>> from mmcakd.models.stages import to_stage_tokens
        >>> stage = to_stage_tokens(torch.rand(2, 25, 8), 'NLC', (4, 6), 1)
        >>> stage.map.shape, stage.extra.shape
        (torch.Size([2, 8, 4, 6]), torch.Size([2, 1, 8]))
    """

    map: torch.Tensor
    extra: torch.Tensor


def read_grid(inputs: tuple, outputs: Any) -> Grid:
    """Read ``(H, W)`` off what went through a module.

    A module that makes a map tells it by the map's size, a patch embedding as
    the second of its outputs, a window attention block as the second of its
    inputs, and a module that flattens a map by the size of that.
    """
    if isinstance(outputs, torch.Tensor) and outputs.ndim == 4:
        height, width = outputs.shape[2:]
    elif isinstance(outputs, tuple) and _is_grid(outputs[1]):
        height, width = outputs[1]
    elif len(inputs) > 1:
        height, width = inputs[1]
    else:
        height, width = inputs[0].shape[2:]
    return int(height), int(width)


def _is_grid(value: Any) -> bool:
    # A second output may as well be another feature.
    if isinstance(value, torch.Tensor):
        return tuple(value.shape) == (2,)
    return isinstance(value, tuple | list) and len(value) == 2


def to_map(
    feature: torch.Tensor,
    layout: str = 'NCHW',
    grid: Grid | None = None,
    extra_tokens: int = 0,
) -> torch.Tensor:
    """View a feature as a map.

    Args:
        feature (Tensor): ``(N, C, H, W)``, ``(N, H, W, C)`` or, with ``E``
            leading class or register tokens, ``(N, E + H * W, C)``; or
            windows of ``h * w`` places, ``(N, H * W, h, w, C)``, for a map of
            ``(H * h, W * w)``.
        layout (str): ``'NCHW'``, ``'NHWC'``, ``'NLC'`` or ``'NLHWC'``.
        grid (tuple[int, int], optional): ``(H, W)`` of the patch tokens or
            windows; needed for ``'NLC'`` and ``'NLHWC'``.
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
    if layout == 'NLHWC':
        windows = feature.unflatten(1, grid).permute(0, 5, 1, 3, 2, 4)
        return windows.flatten(4, 5).flatten(2, 3)
    tokens = feature[:, extra_tokens:]
    if grid is None or tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f'{tokens.shape[1]} patch tokens (after {extra_tokens} extra '
            f'ones) do not fill the grid {grid}; check the layout and '
            '`extra_tokens` of this tap'
        )
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_stage_tokens(
    feature: torch.Tensor,
    layout: str,
    grid: Grid | None = None,
    extra_tokens: int = 0,
) -> StageTokens | torch.Tensor:
    """View tokens as :class:`StageTokens`; a map stays a map.

    Args:
        feature (Tensor): See :func:`to_map`.
        layout (str): ``'NHWC'``, ``'NLC'`` or ``'NLHWC'`` for tokens,
            ``'NCHW'`` for a feature map.
        grid (tuple[int, int], optional): See :func:`to_map`.
        extra_tokens (int): See :func:`to_map`.

    Returns:
        StageTokens | Tensor: A feature map is returned as it is.
    """
    map_ = to_map(feature, layout, grid, extra_tokens)
    if layout == 'NCHW':
        return map_
    tokens = feature if layout == 'NLC' else to_tokens(map_)
    return StageTokens(map_, tokens[:, :extra_tokens])


def to_tokens(feature: torch.Tensor) -> torch.Tensor:
    """View a map ``(N, C, H, W)`` as row-major tokens ``(N, H * W, C)``.

    Tokens are returned as they are.
    """
    return feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature


def to_layout(
    tokens: torch.Tensor,
    layout: str,
    grid: Grid | None = None,
    windows: Grid | None = None,
) -> torch.Tensor:
    """View tokens ``(N, L, C)`` as the map of a layout; undoes `to_map`.

    Args:
        tokens (Tensor): Row by row.
        layout (str): ``'NCHW'``, ``'NHWC'``, ``'NLHWC'``, or ``'NLC'`` for
            tokens.
        grid (tuple[int, int], optional): ``(H, W)``; needed for a map.
        windows (tuple[int, int], optional): How many windows the map has,
            from top to bottom and from left to right; needed for
            ``'NLHWC'``.
    """
    if layout == 'NLC':
        return tokens
    nhwc = tokens.unflatten(1, grid)
    if layout == 'NLHWC':
        rows, columns = windows
        nhwc = nhwc.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
        return nhwc.transpose(2, 3).flatten(1, 2)
    return nhwc if layout == 'NHWC' else nhwc.permute(0, 3, 1, 2)
