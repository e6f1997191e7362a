"""Errors that name the part of a distiller and the cure."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import torch

from .references import place_of


def check_arguments(
    what: str, parameters: Mapping[str, Parameter], mapping: dict
) -> None:
    """Check that a config feeds all that a part takes, and nothing else."""
    kinds = {parameter.kind for parameter in parameters.values()}
    unknown = set(mapping) - set(parameters)
    if unknown and Parameter.VAR_KEYWORD not in kinds:
        raise ValueError(
            f'{what} takes {list(parameters)}, but the config feeds it '
            f'{sorted(unknown)}'
        )
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is Parameter.empty
        and parameter.kind
        not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        and name not in mapping
    ]
    if missing:
        raise ValueError(
            f'{what} needs {missing}, which the config leaves out'
        )


def check_parts(kind: str, parts: dict[str, Any]) -> None:
    """Check that each part of a distiller says what it is.

    Args:
        kind (str): Such as ``'distill_losses'``.
        parts (dict): Configs by name. MMRazor takes several connectors in a
            list, one after the other.

    Raises:
        ValueError: One is no config, or has no type.
    """
    for name, part in parts.items():
        for cfg in part if isinstance(part, list | tuple) else [part]:
            kind_of = cfg.get('type') if isinstance(cfg, dict) else None
            if not (kind_of and isinstance(kind_of, str | type)):
                raise ValueError(
                    f'{kind}.{name} should be a dict with a type, such as '
                    f"dict(type='mmcakd.SoftTargetLoss'), but got {cfg!r}"
                )


@contextmanager
def explain(
    what: str, inputs: dict[str, Any], kind: type = Exception
) -> Iterator[None]:
    """Name the part and its input shapes in an error."""
    try:
        yield
    except kind as error:
        shapes = ', '.join(
            f'{name} {_shape(value)}' for name, value in inputs.items()
        )
        problem = str(error) or type(error).__name__
        several = [
            name
            for name, value in inputs.items()
            if isinstance(value, list | tuple | dict)
        ]
        if several and isinstance(error, AttributeError | TypeError):
            # What it does with a tensor cannot be done with several.
            problem = (
                f'{" and ".join(several)} should be one tensor; pick a stage '
                'by data_idx, or an output of a connector by connector_idx'
            )
        raise ValueError(
            f'{what} does not accept its inputs ({shapes}): {problem}'
        ) from error


@contextmanager
def explain_place(model: str, recorder: str) -> Iterator[None]:
    """Name the recorder of a model in an error."""
    try:
        yield
    except ValueError as error:
        where = place_of(model, recorder)
        raise ValueError(f'{where}: {error}') from error


def _shape(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, list | tuple):
        return f'[{", ".join(map(_shape, value))}]'
    return type(value).__name__
