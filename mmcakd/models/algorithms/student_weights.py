"""Weights of a plain student in a distillation."""

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..stages import find_backbone
from ..teachers.checkpoint import DERIVED_BUFFERS
from ..teachers.state_dicts import DISTILLER, STUDENT, pick_weights


def adopt_student(
    state_dict: dict[str, Any], prefix: str, student: nn.Module
) -> None:
    """Let a distillation take the weights of a plain student.

    In a checkpoint of a distillation they are called ``architecture.*``; in
    one of the student alone, of MMPretrain, timm or an official code, they
    are not, and MMEngine would load nothing of it and go on.

    Args:
        state_dict (dict): What is about to be loaded; changed in place.
        prefix (str): What the names of the distillation's weights begin with.
        student (nn.Module): The student.

    Raises:
        RuntimeError: Nothing in it fits the student, or its head alone.
    """
    given = {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }
    if not given:
        return
    if not _is_distillation(given):
        weights = pick_weights(given)
        if not _is_distillation(weights):
            print_log(
                f'{len(weights)} weights of a plain model are loaded into the '
                'student; connectors keep theirs',
                'current',
            )
            weights = {STUDENT + key: value for key, value in weights.items()}
        for key in given:
            del state_dict[prefix + key]
        given = weights
        for key, value in weights.items():
            state_dict[prefix + key] = value
    _refuse_another(given, student)


def _is_distillation(weights: Mapping[str, Any]) -> bool:
    return any(key.startswith((STUDENT, DISTILLER)) for key in weights)


def _refuse_another(weights: Mapping[str, Any], student: nn.Module) -> None:
    found = {
        key.removeprefix(STUDENT): value
        for key, value in weights.items()
        if not key.startswith(DISTILLER)
    }
    if not found:
        # Weights of connectors alone.
        return
    own = student.state_dict()
    fitting = [
        key
        for key, value in found.items()
        if isinstance(value, torch.Tensor)
        and key in own
        and own[key].shape == value.shape
        and not DERIVED_BUFFERS.search(key)
    ]
    body = [key for key in fitting if not _is_of_head(key, student)]
    if not body:
        what = 'only the head' if fitting else 'nothing'
        raise RuntimeError(
            f'{what} in the checkpoint fits the student: it has '
            f'{_some(found)}, the {type(student).__name__} has {_some(own)}. '
            'Is it the checkpoint of this architecture?'
        )


def _is_of_head(key: str, student: nn.Module) -> bool:
    path, backbone = find_backbone(student)
    # Wrapped networks are saved without the wrapper's `model.`.
    path = path.removeprefix('model.')
    if path:
        return not key.startswith(path)
    linear = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
    ]
    return bool(linear) and key.startswith(f'{linear[-1]}.')


def _some(weights: Mapping[str, Any]) -> str:
    shown = [
        f'{key} {tuple(value.shape)}'
        if isinstance(value, torch.Tensor)
        else key
        for key, value in list(weights.items())[:2]
    ]
    return f'{len(weights)} weights ({", ".join(shown)}, ...)'
