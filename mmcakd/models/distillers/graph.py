"""How recorders, connectors and losses of a distiller are wired."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from inspect import signature

from mmengine.logging import print_log
from mmrazor.models.task_modules import RecorderManager
from mmrazor.models.task_modules.recorder.base_recorder import BaseRecorder
from torch import nn

from mmcakd.arguments import check_value

from ..connectors import BaseConnector
from ..labels import CURE_SEVERAL, ONE_CLASS, heads_of, is_multi_label
from ..losses import compares_classes, is_of_mmrazor, needs_hard_labels
from ..recorders import LogitsRecorder
from .errors import check_arguments
from .references import Reference, as_references
from .step import Step

References = Mapping[str, Reference]


class Graph:
    """What reads what in a distiller: records, connectors, losses.

    Args:
        recorders (dict[str, RecorderManager]): Recorders by the name of their
            model.
        connectors (nn.ModuleDict): Connectors by name.
        losses (nn.ModuleDict): Losses by name.
        connector_inputs (dict[str, References]): What connectors with inputs
            read, argument by argument.
        shape_like (dict): What connectors take shapes from.
        attached (dict[str, str]): Connectors that get hold of the models ->
            the teacher they get.
        loss_inputs (dict[str, References]): What losses read.

    Attributes:
        references (list[Reference]): All that connectors and losses read.
        order (list[str]): Connectors with inputs, each behind those it reads.

    Raises:
        ValueError: A reference names nothing, a connector is read by no
            loss, connectors form a circle, or an argument has no source.
    """

    def __init__(
        self,
        recorders: dict[str, RecorderManager],
        connectors: nn.ModuleDict,
        losses: nn.ModuleDict,
        connector_inputs: dict[str, References],
        shape_like: dict[str, Reference | References],
        attached: dict[str, str],
        loss_inputs: dict[str, References],
    ) -> None:
        self.recorders = recorders
        self.connectors = connectors
        self.losses = losses
        self.connector_inputs = connector_inputs
        self.shape_like = shape_like
        self.attached = attached
        self.loss_inputs = loss_inputs
        self._check()
        self.references = [reference for _, reference in self._references()]
        self.order = self.sort(connector_inputs)

    # ------------------------------------------------------------ checking

    def _check(self) -> None:
        used = set()
        for owner, reference in self._references():
            self._check_reference(owner, reference)
            used.add(reference.connector)
        for name, like in self.shape_like.items():
            for reference in as_references(like):
                owner = f"'shape_like' of connector {name!r}"
                self._check_reference(owner, reference)
        _refuse_unread(
            self.losses,
            set(self.loss_inputs),
            'loss_forward_mappings has no entry for {names}',
        )
        _refuse_unread(
            self.connectors,
            used,
            'no loss or connector reads the connectors {names}; remove them '
            'or name them in loss_forward_mappings',
        )
        for name, inputs in self.connector_inputs.items():
            parameters = signature(self.connectors[name].forward).parameters
            check_arguments(f'connector {name!r}', parameters, inputs)

    def _references(self) -> Iterator[tuple[str, Reference]]:
        for kind, mappings in (
            ('connector', self.connector_inputs),
            ('loss', self.loss_inputs),
        ):
            for name, mapping in mappings.items():
                for argument, reference in mapping.items():
                    yield f'{argument!r} of {kind} {name!r}', reference

    def _check_reference(self, owner: str, reference: Reference) -> None:
        if reference.label is not None:
            return
        connector = reference.connector
        if connector is not None and connector not in self.connectors:
            raise ValueError(
                f'{owner} names the connector {connector!r}, but there are '
                f'only {list(self.connectors)}'
            )
        if reference.recorder is not None:
            recorders = self.recorders[reference.model].recorders
            if reference.recorder not in recorders:
                whose = 'student' if reference.of_student else 'teacher'
                raise ValueError(
                    f'{owner} names the recorder {reference.recorder!r}, '
                    f'but {whose}_recorders has only {list(recorders)}'
                )
            # Only logits may be of heads with names.
            if not self._is_of_logits(reference):
                index = reference.data_idx
                check_value(owner, 'data_idx', index, int | None)
            if connector in self.connector_inputs:
                raise ValueError(
                    f'{owner} sends a record through the connector '
                    f'{connector!r}, which has `inputs` of its own; name the '
                    'connector alone'
                )
        elif connector not in self.connector_inputs:
            raise ValueError(
                f'{owner} names the connector {connector!r} alone, but that '
                'connector has no `inputs`; add a recorder here or `inputs` '
                'there'
            )

    def _is_of_logits(self, record: Reference) -> bool:
        return isinstance(self._recorder_of(record), LogitsRecorder)

    def _recorder_of(self, record: Reference) -> BaseRecorder:
        return self.recorders[record.model].get_recorder(record.recorder)

    def sort(self, names: Iterable[str]) -> list[str]:
        """Order connectors, and those they read, in front of their readers.

        Raises:
            ValueError: They form a circle.
        """
        order: list[str] = []
        waiting: list[str] = []

        def visit(name: str) -> None:
            if name in order:
                return
            if name in waiting:
                circle = ' -> '.join([*waiting[waiting.index(name) :], name])
                raise ValueError(f'the connectors form a circle: {circle}')
            waiting.append(name)
            for reference in (
                *as_references(self.connector_inputs[name]),
                *as_references(self.shape_like.get(name)),
            ):
                # One without `inputs` is applied where it is named.
                if reference.connector in self.connector_inputs:
                    visit(reference.connector)
            waiting.pop()
            order.append(name)

        for name in names:
            visit(name)
        return order

    def check_heads(self, models: dict[str, nn.Module]) -> None:
        """Check that what is for one class an image reads no other heads.

        Args:
            models (dict[str, nn.Module]): The student and the teachers that
                run, by name.

        Raises:
            ValueError: A model has a multi-label head.
        """
        for kind, parts, mappings in (
            ('loss', self.losses, self.loss_inputs),
            ('connector', self.connectors, self.connector_inputs),
        ):
            for name, mapping in mappings.items():
                references = list(mapping.values())
                labels = {reference.label for reference in references}
                part = parts[name]
                if not (compares_classes(part) or labels & set(ONE_CLASS)):
                    continue
                for whose, model in models.items():
                    indices = [
                        ref.data_idx
                        for ref in references
                        if ref.model == whose
                    ]
                    heads = heads_of(model, indices)
                    for head in filter(is_multi_label, heads):
                        raise ValueError(
                            f'{kind} {name!r} ({type(part).__name__}) is for '
                            f'images of one class, but the {whose} has a '
                            f'{type(head).__name__}, for images of several '
                            f'labels: {CURE_SEVERAL}'
                        )

    def check_student_is_read(self) -> None:
        """Check that each loss can train the student.

        Raises:
            ValueError: One reads nothing of the student, or compares a record
                with itself.
        """
        for name, mapping in self.loss_inputs.items():
            references = list(mapping.values())
            # Others are logged alone. A connector that gets hold of the
            # models may bring in the student itself.
            if 'loss' not in name or any(map(self.holds_models, references)):
                continue
            records = [
                record
                for reference in references
                for record in self.records_behind(reference)
            ]
            if not any(record.of_student for record in records):
                what = 'the teacher' if records else 'labels'
                raise ValueError(
                    f'loss {name!r} reads {what} alone, so that it cannot '
                    'train the student: set from_student=True in the '
                    f'reference of one of its arguments {list(mapping)}'
                )
            features = [ref for ref in references if ref.label is None]
            first, *others = features
            if others and all(other == first for other in others):
                raise ValueError(
                    f'loss {name!r} compares the student with itself: all its '
                    f'arguments are {first}; set from_student=False in what '
                    'it should learn from'
                )

    # ------------------------------------------------------------- asking

    def records_behind(self, reference: Reference) -> Iterator[Reference]:
        """List the records that a reference comes from."""
        if reference.recorder is not None:
            yield reference
        inputs = self.connector_inputs.get(reference.connector, {})
        for behind in inputs.values():
            yield from self.records_behind(behind)

    def connectors_behind(self, reference: Reference) -> list[str]:
        """List the connectors with inputs that a reference comes from."""
        if reference.connector not in self.connector_inputs:
            return []
        return self.sort([reference.connector])

    def holds_models(self, reference: Reference) -> bool:
        """Whether a connector behind a reference gets hold of the models."""
        inputs = self.connector_inputs.get(reference.connector, {})
        return reference.connector in self.attached or any(
            map(self.holds_models, inputs.values())
        )

    def models_behind(self, connector: str) -> set[str]:
        """Names of the models that a connector with inputs comes from."""
        names = self.sort([connector])
        models = {
            reference.model
            for name in names
            for reference in self.connector_inputs[name].values()
        }
        models |= {self.attached.get(name) for name in names}
        return models - {None}

    @property
    def models_read(self) -> set[str]:
        """Names of the models that something reads in a step."""
        read = {reference.model for reference in self.references}
        return read - {None} | set(self.attached.values())

    @property
    def labels_read(self) -> set[str]:
        """Kinds of labels that losses and connectors read."""
        return {reference.label for reference in self.references} - {None}

    @property
    def needs_whole_images(self) -> set[str]:
        """Kinds of labels that are read and that mixed images have not."""
        unmixed = self.labels_read & {'hard', 'index'}
        for name, mapping in self.loss_inputs.items():
            if needs_hard_labels(self.losses[name]):
                unmixed |= {ref.label for ref in mapping.values()} - {None}
        return unmixed

    @property
    def compares_classes(self) -> bool:
        """Whether a loss is for images of one class each."""
        return any(compares_classes(self.losses[n]) for n in self.loss_inputs)

    @property
    def min_images(self) -> int:
        """Fewest images of a batch from which every loss learns."""
        losses = self.losses.values()
        return max([getattr(loss, 'min_images', 1) for loss in losses] or [1])

    def stages_read(self, model: str, recorder: str) -> set[int | None]:
        """Stages that are read of a recorder; None stands for all."""
        return {
            reference.data_idx
            for reference in self.references
            if (reference.model, reference.recorder) == (model, recorder)
        }

    def logits_beside_labels(self) -> set[str]:
        """Names of models whose logits a loss reads together with labels."""
        found = set()
        for mapping in self.loss_inputs.values():
            references = mapping.values()
            if {ref.label for ref in references} <= {None, 'index'}:
                continue
            found |= {
                record.model
                for reference in references
                for record in self.records_behind(reference)
                if self._is_of_logits(record)
            }
        return found

    def missing_records(self, step: Step, model: str) -> list[Reference]:
        """List the records of a model that are read and not there."""
        return [
            reference.record
            for reference in self.references
            if reference.model == model and not step.has(reference.record)
        ]

    def reads_logits(
        self, references: Iterable[Reference], model: str
    ) -> bool:
        """Whether references come from the logits of a model."""
        return any(
            record.model == model and self._is_of_logits(record)
            for reference in references
            for record in self.records_behind(reference)
        )

    def reads_features(
        self, references: Iterable[Reference], models: set[str]
    ) -> bool:
        """Whether references come from records, but logits, of models."""
        return any(
            record.model in models and not self._is_of_logits(record)
            for reference in references
            for record in self.records_behind(reference)
        )


def _refuse_unread(
    parts: nn.ModuleDict, read: set[str | None], problem: str
) -> None:
    """Refuse parts that nothing reads, or warn of MMRazor's.

    Some of MMRazor's configs have a part that only a config that inherits
    from them reads.
    """
    unread = sorted(set(parts) - read)
    if not unread:
        return
    problem = problem.format(names=unread)
    if not all(is_of_mmrazor(parts[name]) for name in unread):
        raise ValueError(problem)
    print_log(problem, 'current', level=logging.WARNING)


def gets_models(connector: nn.Module) -> bool:
    """Whether a connector gets hold of the models before training."""
    return (
        isinstance(connector, BaseConnector)
        and type(connector).attach is not BaseConnector.attach
    )
