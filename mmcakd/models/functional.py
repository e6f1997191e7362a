"""What losses and connectors do with tensors: precision, pooling, resizing."""

import torch
import torch.nn.functional as F


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Lift half precisions to float32; leave float32 and float64 alone."""
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor


def pooled(feature: torch.Tensor) -> torch.Tensor:
    """Average a map over its positions, in full precision.

    Args:
        feature (Tensor): ``(N, C, H, W)``, or pooled already, ``(N, C)``.

    Returns:
        Tensor: ``(N, C)``.

    Raises:
        ValueError: It is neither.
    """
    if feature.ndim not in (2, 4):
        raise ValueError(
            'features should be (N, C) or maps (N, C, H, W), got '
            f'{tuple(feature.shape)}'
        )
    feature = full_precision(feature)
    return feature.mean((2, 3)) if feature.ndim == 4 else feature


def resize_map(feature: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bring a map to a grid.

    A side that is longer is averaged down (adaptive average pooling), a
    shorter one is interpolated (bilinear).

    Args:
        feature (Tensor): ``(N, C, h, w)``.
        grid (tuple[int, int]): ``(H, W)``.

    Returns:
        Tensor: ``(N, C, H, W)``.

    Examples:
        >>> import torch
        >>> from mmcakd.models.functional import resize_map
        >>> resize_map(torch.rand(2, 8, 14, 7), (7, 10)).shape
        torch.Size([2, 8, 7, 10])
    """
    smaller = tuple(map(min, feature.shape[2:], grid))
    if smaller != feature.shape[2:]:
        feature = F.adaptive_avg_pool2d(feature, smaller)
    if smaller != tuple(grid):
        feature = F.interpolate(feature, grid, mode='bilinear')
    return feature


def check_map(feature: torch.Tensor, name: str) -> None:
    """Check that an input is a map ``(N, C, H, W)``.

    Raises:
        ValueError: It is something else. The message names the input.
    """
    if not isinstance(feature, torch.Tensor) or feature.ndim != 4:
        got = getattr(feature, 'shape', None)
        raise ValueError(
            f'the input `{name}` must be a map (N, C, H, W), got '
            f'{type(feature).__name__ if got is None else tuple(got)}'
        )
