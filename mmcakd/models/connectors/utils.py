"""What the connectors share."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..stages import StageTokens


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


def check_stages(
    stages: Any, name: str, numbers: Sequence[int], argument: str
) -> None:
    """Check that an input is the stages of a model, with those to read.

    Args:
        stages (Any): The input.
        name (str): Its name.
        numbers (Sequence[int]): The stages to read, counted from 1.
        argument (str): The argument that chooses them.

    Raises:
        ValueError: It is something else. The message names the input.
    """
    if isinstance(stages, torch.Tensor | StageTokens):
        raise ValueError(
            f'the input `{name}` should be all stages of a model: '
            "dict(recorder='stages', from_student=...) with a recorder of "
            'type mmcakd.StageOutputs, without data_idx'
        )
    if max(numbers) > len(stages):
        raise ValueError(
            f'stage {max(numbers)} is read, but the input `{name}` has '
            f'{len(stages)} stages: choose among them by `{argument}`'
        )


def check_stage_numbers(numbers: Sequence[int], name: str) -> tuple[int, ...]:
    """Check a choice of stages.

    Raises:
        ValueError: There is none, or one that is not 1 to 4.
    """
    if not numbers or not set(numbers) <= {1, 2, 3, 4}:
        raise ValueError(
            f'{name} should be some of 1, 2, 3 and 4, got {numbers}'
        )
    return tuple(numbers)


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
        >>> from mmcakd.models.connectors.utils import resize_map
        >>> resize_map(torch.rand(2, 8, 14, 7), (7, 10)).shape
        torch.Size([2, 8, 7, 10])
    """
    smaller = tuple(map(min, feature.shape[2:], grid))
    if smaller != feature.shape[2:]:
        feature = F.adaptive_avg_pool2d(feature, smaller)
    if smaller != tuple(grid):
        feature = F.interpolate(feature, grid, mode='bilinear')
    return feature
