"""What one batch holds, from the first forward to the last loss."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmrazor.models.task_modules import (
    DistillDeliveryManager,
    RecorderManager,
)
from torch import nn
from torch.utils._pytree import tree_map_only

from ..labels import read_labels
from ..teachers import StoredTeacher
from .references import Reference, place_of


class Step:
    """One batch: its inputs, labels, records and what connectors make of it.

    It is made for a batch, filled by the forwards of the models, read by
    connectors and losses, and dropped, also when something raises::

        with distiller.step(inputs, data_samples) as step:
            with step.recording('student'):
                student(step.inputs['image'], mode='tensor')
            losses = distiller.compute_distill_losses(step)

    Args:
        inputs (dict[str, Tensor]): Images ``(N, C, H, W)`` by name.
        data_samples (list, optional): The batch's samples. Labels are read
            where a reference asks for them, not before.
        recorders (Mapping[str, RecorderManager]): Recorders by the name of
            their model.
        stored (Mapping[str, StoredTeacher]): Teachers whose records are read
            from a store.
        connectors (Mapping[str, nn.Module]): Connectors by name.
        deliveries (DistillDeliveryManager): What MMRazor hands on from a
            teacher's forward to the student's.
    """

    def __init__(
        self,
        inputs: dict[str, torch.Tensor],
        data_samples: list | None,
        recorders: Mapping[str, RecorderManager],
        stored: Mapping[str, StoredTeacher],
        connectors: Mapping[str, nn.Module],
        deliveries: DistillDeliveryManager,
    ) -> None:
        self.inputs = inputs
        self.data_samples = data_samples
        self.outputs: dict[Any, Any] = {}
        self._recorders = recorders
        self._stored = stored
        self._connectors = connectors
        self._deliveries = deliveries

    def __enter__(self) -> 'Step':
        return self

    def __exit__(self, *error: Any) -> None:
        self.drop()

    def drop(self) -> None:
        """Drop records, outputs and what was delivered."""
        self.outputs.clear()
        # MMRazor's recorders keep what they recorded until they record again:
        # memory, and a graph that makes the model impossible to copy.
        for manager in self._recorders.values():
            for recorder in manager.recorders.values():
                recorder.reset_data_buffer()
        for delivery in self._deliveries.deliveries.values():
            delivery.data_queue.clear()

    @contextmanager
    def recording(self, model: str) -> Iterator[None]:
        """Record a forward of a model.

        Args:
            model (str): ``'student'``, or the name of a teacher.
        """
        with self._recorders[model]:
            yield

    def __getitem__(self, reference: Reference) -> Any:
        """Read what a reference names.

        Raises:
            RuntimeError: Nothing was recorded, or there are no such labels.
            ValueError: The record or output has no such part; or labels are
                not what was asked for.
        """
        if reference.label is not None:
            return read_labels(self.data_samples, reference.label)
        if reference.recorder is None:
            return _pick(reference, self.outputs[reference.connector])
        if reference.connector is None:
            return self._read_record(reference)
        key = reference.connector, reference.record
        if key not in self.outputs:
            connector = self._connectors[reference.connector]
            self.outputs[key] = connector(self._read_record(reference))
        return _pick(reference, self.outputs[key])

    def has(self, record: Reference) -> bool:
        """Whether a record is there, be it of a form that cannot be read."""
        try:
            self[record]
        except RuntimeError:
            return False
        except ValueError:
            pass  # it is there, and says so when it is read
        return True

    def gather(self, references: Mapping[str, Reference]) -> dict[str, Any]:
        """Read several references by name."""
        return {name: self[ref] for name, ref in references.items()}

    def run(self, names: Sequence[str], inputs: Mapping[str, Mapping]) -> None:
        """Run connectors that have inputs, in the order given."""
        for name in names:
            arguments = self.gather(inputs[name])
            self.outputs[name] = self._connectors[name](**arguments)

    def _read_record(self, reference: Reference) -> Any:
        model = reference.model
        if model in self._stored:
            record = self._read_stored(reference)
            return tree_map_only(torch.Tensor, self._to_device, record)
        recorder = self._recorders[model].get_recorder(reference.recorder)
        where = place_of(model, reference.recorder)
        try:
            return recorder.get_record_data(
                reference.record_idx, reference.data_idx
            )
        except ValueError as error:
            raise ValueError(f'{where}: {error}') from error
        except (AssertionError, IndexError) as error:
            raise RuntimeError(
                f'{where} ({recorder.source}) recorded nothing at '
                f"record_idx={reference.record_idx} in the {model}'s forward; "
                'is that module, function or method called there?'
            ) from error

    def _read_stored(self, reference: Reference) -> Any:
        key = reference.record
        if key not in self.outputs:
            teacher = self._stored[reference.model]
            self.outputs[key] = teacher.read(
                reference.recorder, reference.data_idx, self.data_samples
            )
        return self.outputs[key]

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        device = next(iter(self.inputs.values())).device
        return tensor.to(device, non_blocking=True)


class ExampleStep(Step):
    """A step on a made-up batch, for which no store has records.

    Attributes:
        left_out (set[str]): Models whose losses could not be computed on it,
            nor recorded what happens there alone.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.left_out: set[str] = set()

    def _read_stored(self, reference: Reference) -> Any:
        return self._stored[reference.model].example(
            reference.recorder,
            reference.data_idx,
            len(next(iter(self.inputs.values()))),
        )


def _pick(reference: Reference, output: Any) -> Any:
    """Pick one of a connector's outputs."""
    index = reference.connector_idx
    if index is None:
        return output
    try:
        return output[index]
    except (KeyError, IndexError) as error:
        known = list(output) if isinstance(output, dict) else len(output)
        raise ValueError(
            f'connector {reference.connector!r} has no output {index!r}; it '
            f'has {known}'
        ) from error
