"""Arguments of a distillation, before anything is built of them."""

import copy
import warnings
from typing import Any

from mmengine.model import BaseModel
from torch import nn

from mmcakd.registry import MODELS

from ..distillers import CrossArchDistiller
from ..teachers import build_model


def moved_options(**options: Any) -> dict[str, Any]:
    """Pick the options that are given, and say where they belong."""
    given = {
        name: value for name, value in options.items() if value is not None
    }
    if given:
        before = ', '.join(
            f'teacher_{name}={v!r}' for name, v in given.items()
        )
        now = ', '.join(f'{name}={value!r}' for name, value in given.items())
        warnings.warn(
            f'{before} will be no argument in the next release; write '
            f'teacher=dict(model=..., {now})',
            FutureWarning,
            stacklevel=3,
        )
    return given


def check_distiller(kind: str | type) -> None:
    """Check that a distiller can have connectors in a graph."""
    found = MODELS.get(kind) if isinstance(kind, str) and kind else kind
    if not (isinstance(found, type) and issubclass(found, CrossArchDistiller)):
        raise ValueError(
            f'the distiller is a {kind!r}; take '
            "type='mmcakd.CrossArchDistiller', which accepts the same "
            'arguments'
        )


def build_student(
    source: Any, data_preprocessor: dict | nn.Module | None
) -> tuple[BaseModel, dict | nn.Module | None]:
    """Build the student, with the preprocessor of its family if it may.

    MMPretrain's preprocessor carries the batch augmentations of a student's
    ``train_cfg``; MMRazor replaces it by the algorithm's and so drops them.

    Returns:
        tuple: The student, and a preprocessor that replaces the student's.
    """
    if not isinstance(data_preprocessor, dict):
        return build_model(source, 'student'), data_preprocessor
    cfg = copy.deepcopy(data_preprocessor)
    kind = cfg.setdefault('type', 'mmpretrain.ClsDataPreprocessor')
    kind = getattr(kind, '__name__', kind)
    is_for_classifiers = kind.endswith('ClsDataPreprocessor')
    if is_for_classifiers and not isinstance(source, BaseModel):
        return build_model(source, 'student', cfg), None
    student = build_model(source, 'student')
    augments = getattr(student.data_preprocessor, 'batch_augments', None)
    if augments and 'batch_augments' not in cfg:
        raise ValueError(
            'the student asks for batch augmentations (augments of its '
            'train_cfg, or batch_augments), which its own data_preprocessor '
            f'does, but {kind} would replace that one; give the config of '
            'the student a data_preprocessor instead'
        )
    return student, cfg
