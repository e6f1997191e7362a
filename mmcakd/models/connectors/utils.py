"""What the connectors share."""

from collections.abc import Sequence
from typing import Any

import torch

from ..stages import StageTokens


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
