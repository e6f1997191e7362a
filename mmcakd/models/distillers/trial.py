"""Trying a distiller on an example, before training."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import nn

from ..connectors import BaseConnector
from ..losses import is_of_mmrazor
from ..stages import find_backbone
from .errors import explain
from .graph import Graph
from .references import STUDENT, Reference
from .step import ExampleStep, Step

UNTRAINED = (
    'what it reads of the student is frozen (frozen_stages, requires_grad), '
    'then train that or read a later stage; or it lies inside a block with '
    'activation checkpointing (with_cp), where a record has no gradient, then '
    'record whole blocks or stages'
)


def try_graph(graph: Graph, step: ExampleStep) -> list[torch.Tensor]:
    """Let the connectors read their inputs, and compute every loss once.

    Args:
        graph (Graph): Connectors and losses, in evaluation.
        step (Step): An example batch, with its records.

    Returns:
        list[Tensor]: What trains the student, with its graph: records, and
        the outputs of connectors that hold the models; none if an example
        cannot tell.

    Raises:
        ValueError: A connector or loss does not accept its inputs.
    """
    for reference in graph.references:
        if reference.recorder and reference.connector:
            name = reference.connector
            forward = signature(graph.connectors[name].forward)
            first = next(iter(forward.parameters))
            _prepare(graph, step, name, {first: step[reference.record]})
    for name in graph.order:
        inputs = step.gather(graph.connector_inputs[name])
        _prepare(graph, step, name, inputs)
        with explain(f'connector {name!r}', inputs), torch.enable_grad():
            step.outputs[name] = graph.connectors[name](**inputs)
    # By name, since MMEngine sorts the keys of a config that it dumps, and
    # some losses have weights that are made here.
    for name, references in sorted(graph.loss_inputs.items()):
        loss = graph.losses[name]
        # MMRazor's may need more from a batch than an example has, such as
        # the sample indices of its CRDLoss.
        if not (is_of_mmrazor(loss) or _is_left_out(graph, step, references)):
            inputs = step.gather(references)
            with explain(f'loss {name!r}', inputs):
                _try_loss(loss, inputs)
    return list(_tensors(_of_student(graph, step)))


def _is_left_out(
    graph: Graph, step: ExampleStep, references: Mapping[str, Reference]
) -> bool:
    """Whether a loss reads what an example without objects has not."""
    return any(
        record.model in step.left_out and not step.has(record.record)
        for reference in references.values()
        for record in graph.records_behind(reference)
    )


def _prepare(graph: Graph, step: Step, name: str, inputs: dict) -> None:
    connector = graph.connectors[name]
    if not isinstance(connector, BaseConnector):
        return
    like = graph.shape_like.get(name)
    with explain(f'connector {name!r}', inputs):
        if isinstance(like, Reference):
            like = step[like]
        elif like is not None:
            # Of several, what the connector asks for.
            like = _OnDemand(like, step)
        connector.prepare(inputs, like)
    connector.eval()


def _try_loss(loss: nn.Module, inputs: dict[str, Any]) -> None:
    """Compute a loss, of which nothing but weights made here may stay."""
    before = {name: b.clone() for name, b in loss.named_buffers()}
    loss(**inputs)
    for name, buffer in loss.named_buffers():
        if name in before and before[name].shape == buffer.shape:
            buffer.copy_(before[name])


def _of_student(graph: Graph, step: ExampleStep) -> Iterator[Any]:
    """List what trains the student; nothing if not all of it is known."""
    # One that holds the models and has no inputs runs where it is named.
    is_held = any(
        reference.recorder and reference.connector in graph.attached
        for reference in graph.references
    )
    if is_held or STUDENT in step.left_out:
        return
    for name, mapping in graph.loss_inputs.items():
        # Others are logged alone.
        if 'loss' not in name:
            continue
        for reference in mapping.values():
            for record in graph.records_behind(reference):
                if record.of_student and step.has(record.record):
                    yield step[record.record]
            for connector in graph.connectors_behind(reference):
                if connector in graph.attached:
                    yield step.outputs.get(connector)


def check_student_learns(graph: Graph, step: Step, student: nn.Module) -> None:
    """Check that what losses read of the student is of trained weights.

    Args:
        graph (Graph): Connectors and losses.
        step (Step): An example batch that the student ran with gradient.
        student (nn.Module): The student.

    Raises:
        ValueError: All that a loss reads of the student is frozen.
    """
    for name, mapping in graph.loss_inputs.items():
        references = list(mapping.values())
        # A connector that gets hold of the models may bring in the student
        # itself.
        if any(map(graph.holds_models, references)):
            continue
        records = {
            record.record
            for reference in references
            for record in graph.records_behind(reference)
            if record.of_student
        }
        try:
            tensors = list(_tensors([step[record] for record in records]))
        except RuntimeError:
            continue  # it is recorded where losses are computed
        if tensors and not any(t.requires_grad for t in tensors):
            raise ValueError(
                f'loss {name!r} cannot train the student: '
                f'{_find_cause(student)}'
            )


class _OnDemand(dict):
    """References by name that are read when they are asked for."""

    def __init__(
        self, references: Mapping[str, Reference], step: Step
    ) -> None:
        super().__init__(references)
        self.step = step

    def __getitem__(self, name: str) -> Any:
        return self.step[super().__getitem__(name)]

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def values(self) -> Iterator[Any]:
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, self[name]) for name in self)


def _find_cause(student: nn.Module) -> str:
    """Say why a record of a student has no gradient, as far as it is known."""
    _, net = find_backbone(student)
    stages = getattr(net, 'frozen_stages', -1)
    if stages >= 0 and not all(p.requires_grad for p in net.parameters()):
        return (
            f'its {type(net).__name__} has frozen_stages={stages}, and what '
            'is read lies in these; lower it, or read a later stage'
        )
    return UNTRAINED


def _tensors(record: Any) -> Iterator[torch.Tensor]:
    """List the floating-point tensors in a record."""
    if isinstance(record, torch.Tensor):
        if record.is_floating_point():
            yield record
    elif isinstance(record, dict):
        yield from _tensors(list(record.values()))
    elif isinstance(record, list | tuple | Iterator):
        for item in record:
            yield from _tensors(item)
