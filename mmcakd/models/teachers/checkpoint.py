"""Loading weights so that nothing goes wrong in silence."""

import re
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import nn

from ..headless import is_bare_backbone
from .reader import read_checkpoint
from .state_dicts import (
    pick_student,
    pick_weights,
    take_backbone,
    take_inside,
)

#: Buffers that a network computes for itself from its own sizes. They may be
#: missing, and masks of attention may be infinite.
DERIVED_BUFFERS = re.compile(
    r'(relative_position_index|relative_coords_table|attn_mask'
    r'|attention_mask|causal_mask|num_batches_tracked)$'
)


def load_weights(
    model: nn.Module,
    path: str | Path,
    ignore: str | Sequence[str] = (),
    prefix: str | None = None,
) -> None:
    """Load a checkpoint and insist that it is the model's.

    Of a distillation the student is taken; see :mod:`.state_dicts`.

    Args:
        model (nn.Module): Filled in place.
        path (str | Path): See :func:`read_checkpoint`.
        ignore (str | Sequence[str]): Regular expressions of keys that may be
            missing or unexpected, e.g. ``'^neck\\.'``. Most parameters have
            to be filled nevertheless.
        prefix (str, optional): Only the weights below it are taken, without
            it. Defaults to all.

    Raises:
        RuntimeError: Keys are missing or unexpected, or shapes differ: the
            message shows some of each. Weights are not finite. Too few are
            left by ``ignore``.
        TypeError: ``ignore`` is of another type.
    """
    ignore = as_patterns(ignore)
    checkpoint = read_checkpoint(path, mmap=True)
    state_dict = pick_student(pick_weights(checkpoint))
    if prefix:
        state_dict = take_inside(state_dict, prefix)
    if not state_dict:
        below = f' below {prefix}' if prefix else ''
        raise RuntimeError(f'{path} holds no weights{below}')
    if is_bare_backbone(model):
        state_dict = take_backbone(state_dict)
    check_finite(state_dict, path)
    fit_weights(model, state_dict, path, ignore)
    print_log(f'Loaded {len(state_dict)} weights from {path}', 'current')


def fit_weights(
    model: nn.Module,
    state_dict: MutableMapping[str, torch.Tensor],
    path: str | Path,
    ignore: Sequence[re.Pattern] = (),
) -> None:
    """Load weights into a model and insist that they are its own.

    Args:
        model (nn.Module): Filled in place.
        state_dict (MutableMapping[str, Tensor]): The weights by name.
        path (str | Path): Their file, for the message.
        ignore (Sequence[re.Pattern]): See :func:`load_weights`.

    Raises:
        RuntimeError: See :func:`load_weights`.
    """
    misshapen = {}
    try:
        keys = model.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        # torch reports wrong shapes alone. Set aside, they show the rest.
        misshapen = dict(
            re.findall(r'size mismatch for (\S+): (.+)', str(error))
        )
        for key in misshapen:
            # timm's classifiers name their weights without `model.`.
            state_dict.pop(key, None)
            state_dict.pop(key.removeprefix('model.'), None)
        keys = model.load_state_dict(state_dict, strict=False)
    found = dict(
        missing=[key for key in keys.missing_keys if key not in misshapen],
        unexpected=keys.unexpected_keys,
    )
    found['of another shape'] = list(misshapen)
    found = {
        kind: [
            f'{key}: {misshapen[key]}' if key in misshapen else key
            for key in keys
            if not is_tolerated(key, ignore)
        ]
        for kind, keys in found.items()
    }
    if any(found.values()):
        details = '; '.join(
            f'{len(keys)} {kind} ({", ".join(keys[:3])}'
            f'{", ..." if len(keys) > 3 else ""})'
            for kind, keys in found.items()
            if keys
        )
        raise RuntimeError(
            f'{path} does not fit the {type(model).__name__}: weights '
            f'{details}. Is it the checkpoint of this architecture and '
            'number of classes?'
        )
    _check_bulk(model, {*keys.missing_keys, *misshapen}, path, ignore)


def check_finite(
    weights: Mapping[str, torch.Tensor], source: str | Path
) -> None:
    """Refuse weights that are infinite or not numbers.

    A buffer of :data:`DERIVED_BUFFERS` may be infinite: masks of attention
    are, where nothing is looked at.

    Args:
        weights (Mapping[str, Tensor]): By name.
        source (str | Path): Their file, for the message.

    Raises:
        RuntimeError: One is not finite. The message names the first.
    """
    for name, weight in weights.items():
        if not (weight.is_floating_point() or weight.is_complex()):
            continue
        may_be_infinite = DERIVED_BUFFERS.search(name)
        bad = weight.isnan() if may_be_infinite else ~weight.isfinite()
        if bad.any():
            raise RuntimeError(
                f'{source} holds weights that are not finite: {name} has '
                f'{int(bad.sum())} of {weight.numel()} values that are nan '
                'or inf, as a training that diverged leaves them. Take an '
                'earlier checkpoint'
            )


def as_patterns(ignore: str | Sequence[str]) -> list[re.Pattern]:
    """Compile the regular expressions of ``teacher_ckpt_ignore``."""
    if isinstance(ignore, str):
        ignore = [ignore]
    elif not isinstance(ignore, (list, tuple)) or not all(
        isinstance(pattern, str) for pattern in ignore
    ):
        raise TypeError(
            'teacher_ckpt_ignore must be a list of regular expressions, such '
            rf"as ['^head\.'], but got {ignore!r}"
        )
    try:
        return [re.compile(pattern) for pattern in ignore]
    except re.error as error:
        raise ValueError(
            f'teacher_ckpt_ignore: {error.pattern!r} is no regular '
            f'expression: {error}'
        ) from error


def _check_bulk(
    model: nn.Module,
    absent: Collection[str],
    path: str,
    ignore: Sequence[re.Pattern],
) -> None:
    wanted = [name for name, _ in model.named_parameters()]
    arrived = [name for name in wanted if name not in absent]
    if 2 * len(arrived) < len(wanted):
        patterns = [pattern.pattern for pattern in ignore]
        raise RuntimeError(
            f'{path} fills {len(arrived)} of the {len(wanted)} parameters of '
            f'the {type(model).__name__}, as teacher_ckpt_ignore={patterns} '
            'lets the others be missing: name only what is meant to be '
            r"missing, such as ['^head\.'], or take another checkpoint"
        )


def is_tolerated(key: str, ignore: Sequence[re.Pattern]) -> bool:
    """Whether a weight may be missing, or may be one too many."""
    return bool(
        DERIVED_BUFFERS.search(key)
        or any(pattern.search(key) for pattern in ignore)
    )
