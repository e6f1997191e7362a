"""A distiller whose connectors form a graph."""

import logging
from collections.abc import Callable, Iterable, Iterator
from inspect import signature
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmrazor.models.distillers import ConfigurableDistiller
from mmrazor.models.task_modules import RecorderManager
from mmrazor.registry import TASK_UTILS
from torch import nn

from mmcakd.arguments import check_value
from mmcakd.registry import MODELS

from ..connectors import BaseConnector
from ..losses import compares_classes
from ..losses.utils import check_several_classes
from ..recorders import LogitsRecorder, StageOutputsRecorder, unknown_tap
from ..stages import find_backbone
from ..teachers import Teacher
from .errors import check_arguments, check_parts, explain
from .labels import (
    CURE_SEVERAL,
    ONE_CLASS,
    check_one_class,
    heads_of,
    is_multi_label,
    read_labels,
)
from .references import check_reference

Mapping = dict[str, dict]

UNTRAINED = (
    'what it reads of the student is frozen (frozen_stages, requires_grad), '
    'then train that or read a later stage; or it lies inside a block with '
    'activation checkpointing (with_cp), where a record has no gradient, then '
    'record whole blocks or stages'
)


@MODELS.register_module()
class CrossArchDistiller(ConfigurableDistiller):
    """MMRazor's ``ConfigurableDistiller`` with a graph of connectors.

    Every config of ``ConfigurableDistiller`` works. In addition

    - a connector may name its ``inputs``, keyword by keyword: records or
      other connectors. It runs once a step, however many losses read it;
    - a connector may read widths and grids from the two models (see
      :meth:`mmcakd.models.connectors.BaseConnector.prepare`), with a record
      or connector named in ``shape_like`` as a model of its output, or
      several by name;
    - a loss may read labels.

    A reference, in ``inputs`` and in ``loss_forward_mappings``, is one of

    ============================================  ========================
    ``dict(recorder=..., from_student=True,       a record; ``data_idx``
    data_idx=3)``                                 picks a stage, -1 the last,
                                                  or the logits of one of
                                                  several heads
    ``dict(recorder=..., from_student=True,       MMRazor's form: the record
    connector='name')``                           through a connector
                                                  without ``inputs``
    ``dict(connector='name',                      a connector with
    connector_idx='view')``                       ``inputs``, and which of its
                                                  outputs if there are several
    ``dict(label='hard')``                        class indices ``(N,)``
    ``dict(label='soft')``                        ``(N, C)``, mixed by MixUp
                                                  or CutMix
    ``dict(label='auto')``                        soft if the batch has such
                                                  labels, or else hard
    ``dict(label='several')``                     ``(N, C)`` of images with
                                                  any number of labels
    ``dict(label='index')``                       places of the images in the
                                                  data set, ``(N,)``
    ============================================  ========================

    Inside a distiller, plain type names are MMRazor's; those of mmcakd carry
    its prefix.

    Raises:
        ValueError: A reference names nothing, a connector is read by no
            loss, connectors form a circle, or a loss lacks an argument.

    Examples:
        >>> distiller = dict(
        ...     type='mmcakd.CrossArchDistiller',
        ...     student_recorders=dict(logits=dict(type='mmcakd.Logits')),
        ...     teacher_recorders=dict(logits=dict(type='mmcakd.Logits')),
        ...     distill_losses=dict(
        ...         loss_kd=dict(type='mmcakd.SoftTargetLoss', tau=4.)),
        ...     loss_forward_mappings=dict(
        ...         loss_kd=dict(
        ...             student=dict(recorder='logits', from_student=True),
        ...             teacher=dict(recorder='logits', from_student=False))))
    """

    def __init__(
        self,
        student_recorders: dict[str, dict] | None = None,
        teacher_recorders: dict[str, dict] | None = None,
        distill_deliveries: dict[str, dict] | None = None,
        connectors: dict[str, dict | list] | None = None,
        distill_losses: dict[str, dict] | None = None,
        loss_forward_mappings: dict[str, dict] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        for kind, parts in dict(
            student_recorders=student_recorders,
            teacher_recorders=teacher_recorders,
            connectors=connectors,
            distill_losses=distill_losses,
        ).items():
            check_parts(kind, parts or {})
        # MMRazor builds recorders and deliveries by plain names, which a
        # default scope of another package would hide.
        with DefaultScope.overwrite_default_scope('mmrazor'):
            super().__init__(
                distill_deliveries=_name_deliveries(distill_deliveries),
                connectors=connectors,
                distill_losses=distill_losses,
                loss_forward_mappings=loss_forward_mappings,
                init_cfg=init_cfg,
            )
            self.student_recorders = _build_recorders(student_recorders)
            self.teacher_recorders = _build_recorders(teacher_recorders)
        self._check_graph()
        self._keep_only_stages_read()

    def build_connectors(
        self, connectors: dict[str, dict | list] | None = None
    ) -> nn.ModuleDict:
        """Build the connectors and keep how they are wired."""
        self.connector_inputs: dict[str, Mapping] = {}
        self.connector_shape_like: dict[str, dict] = {}
        plain = {}
        # By name: MMEngine sorts the keys of a config that it dumps, and the
        # order decides over initial weights and over what an optimizer
        # resumes with which state.
        for name, cfg in sorted((connectors or {}).items()):
            if isinstance(cfg, dict):
                cfg = dict(cfg)
                for key, kept in (
                    ('inputs', self.connector_inputs),
                    ('shape_like', self.connector_shape_like),
                ):
                    if key in cfg:
                        kept[name] = cfg.pop(key)
                        owner = f'connector {name!r}'
                        check_value(owner, key, kept[name], dict)
            plain[name] = cfg
        return super().build_connectors(plain)

    def build_distill_losses(
        self, losses: dict[str, dict] | None = None
    ) -> nn.ModuleDict:
        """Build the losses, for the same reason in the order of names."""
        return super().build_distill_losses(
            dict(sorted((losses or {}).items()))
        )

    # ------------------------------------------------------------ checking

    def _check_loss_forward_mappings(
        self,
        losses: nn.ModuleDict,
        loss_forward_mappings: dict[str, Mapping],
        student_recorders: RecorderManager,
        teacher_recorders: RecorderManager,
    ) -> None:
        """Check that every argument of every loss has a source."""
        for loss, mapping in loss_forward_mappings.items():
            if loss not in losses:
                raise ValueError(
                    f'loss_forward_mappings names {loss!r}, which is not in '
                    f'distill_losses ({", ".join(losses)})'
                )
            parameters = signature(losses[loss].forward).parameters
            check_arguments(f'loss {loss!r}', parameters, mapping)

    def _check_graph(self) -> None:
        used = set()
        for owner, reference in self._references():
            self._check_reference(owner, reference)
            used.add(reference.get('connector'))
        for name, like in self.connector_shape_like.items():
            for reference in _as_references(like):
                self._check_reference(
                    f"'shape_like' of connector {name!r}", reference
                )
        _refuse_unread(
            self.distill_losses,
            set(self.loss_forward_mappings),
            'loss_forward_mappings has no entry for {names}',
        )
        _refuse_unread(
            self.connectors,
            used,
            'no loss or connector reads the connectors {names}; remove them '
            'or name them in loss_forward_mappings',
        )
        for name, mapping in self.connector_inputs.items():
            parameters = signature(self.connectors[name].forward).parameters
            check_arguments(f'connector {name!r}', parameters, mapping)
        self.connector_order = self._sort_connectors(self.connector_inputs)

    def _references(self) -> Iterator[tuple[str, dict]]:
        for kind, mappings in (
            ('connector', self.connector_inputs),
            ('loss', self.loss_forward_mappings),
        ):
            for name, mapping in mappings.items():
                for argument, reference in mapping.items():
                    yield f'{argument!r} of {kind} {name!r}', reference

    @property
    def labels_read(self) -> set[str]:
        """Kinds of labels that losses and connectors read."""
        return {
            reference['label']
            for _, reference in self._references()
            if 'label' in reference
        }

    def _check_reference(self, owner: str, reference: dict) -> None:
        check_reference(owner, reference)
        if 'label' in reference:
            return
        connector = reference.get('connector')
        if connector is not None and connector not in self.connectors:
            raise ValueError(
                f'{owner} names the connector {connector!r}, but there are '
                f'only {list(self.connectors)}'
            )
        if 'recorder' in reference:
            recorders = self._recorders(reference['from_student']).recorders
            if reference['recorder'] not in recorders:
                whose = 'student' if reference['from_student'] else 'teacher'
                raise ValueError(
                    f'{owner} names the recorder {reference["recorder"]!r}, '
                    f'but {whose}_recorders has only {list(recorders)}'
                )
            # Only logits may be of heads with names.
            if not isinstance(
                recorders[reference['recorder']], LogitsRecorder
            ):
                index = reference.get('data_idx')
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

    def _sort_connectors(self, names: Iterable[str]) -> list[str]:
        """Order connectors, and those they read, in front of their readers."""
        order: list[str] = []
        waiting: list[str] = []

        def visit(name: str) -> None:
            if name in order:
                return
            if name in waiting:
                circle = ' -> '.join([*waiting[waiting.index(name) :], name])
                raise ValueError(f'the connectors form a circle: {circle}')
            waiting.append(name)
            inputs = self.connector_inputs[name]
            like = self.connector_shape_like.get(name, {})
            for reference in (
                *(inputs[key] for key in sorted(inputs)),
                *_as_references(like),
            ):
                # One without `inputs` is applied where it is named.
                if reference.get('connector') in self.connector_inputs:
                    visit(reference['connector'])
            waiting.pop()
            order.append(name)

        for name in names:
            visit(name)
        return order

    def check_heads(self, student: nn.Module, teacher: nn.Module) -> None:
        """Check that what is for one class an image reads no other heads.

        Raises:
            ValueError: A model has a multi-label head.
        """
        models = dict(student=student, teacher=teacher)
        losses = [
            (f'loss {name!r}', self.distill_losses[name], mapping)
            for name, mapping in self.loss_forward_mappings.items()
        ]
        connectors = [
            (f'connector {name!r}', self.connectors[name], mapping)
            for name, mapping in self.connector_inputs.items()
        ]
        for name, part, mapping in (*losses, *connectors):
            references = list(mapping.values())
            labels = {reference.get('label') for reference in references}
            if not (compares_classes(part) or labels & set(ONE_CLASS)):
                continue
            for whose, model in models.items():
                records = [
                    reference
                    for reference in references
                    if reference.get('from_student') == (whose == 'student')
                ]
                for head in filter(is_multi_label, heads_of(model, records)):
                    raise ValueError(
                        f'{name} ({type(part).__name__}) '
                        f'is for images of one class, but the {whose} has a '
                        f'{type(head).__name__}, for images of several '
                        f'labels: {CURE_SEVERAL}'
                    )

    @property
    def min_images(self) -> int:
        """Fewest images of a batch from which every loss learns."""
        losses = self.distill_losses.values()
        return max([getattr(loss, 'min_images', 1) for loss in losses] or [1])

    def _keep_only_stages_read(self) -> None:
        """Let the stage recorders drop the stages that nothing reads."""
        for from_student in (True, False):
            for name, recorder in self._recorders(
                from_student
            ).recorders.items():
                if not isinstance(recorder, StageOutputsRecorder):
                    continue
                indices = {
                    reference.get('data_idx')
                    for _, reference in self._references()
                    if reference.get('recorder') == name
                    and reference['from_student'] == from_student
                }
                if None not in indices:
                    recorder.stages_to_keep = indices

    def records_behind(self, reference: dict) -> Iterator[dict]:
        """List the references to records that a reference comes from."""
        if 'recorder' in reference:
            yield reference
        for behind in self._inputs_of(reference).values():
            yield from self.records_behind(behind)

    def _inputs_of(self, reference: dict) -> Mapping:
        return self.connector_inputs.get(reference.get('connector'), {})

    def logits_beside_labels(self) -> dict[str, bool]:
        """Whether a loss reads labels and logits of student and teacher."""
        found = dict(student=False, teacher=False)
        for mapping in self.loss_forward_mappings.values():
            references = mapping.values()
            if not any(
                ref.get('label', 'index') != 'index' for ref in references
            ):
                continue
            for reference in references:
                for record in self.records_behind(reference):
                    recorder = self._recorders(
                        record['from_student']
                    ).get_recorder(record['recorder'])
                    whose = 'student' if record['from_student'] else 'teacher'
                    found[whose] |= isinstance(recorder, LogitsRecorder)
        return found

    def check_student_is_read(self) -> None:
        """Check that each loss can train the student.

        Raises:
            ValueError: One reads nothing of the student, or compares a record
                with itself.
        """
        for name, mapping in self.loss_forward_mappings.items():
            references = list(mapping.values())
            # Others are logged alone. A connector that gets hold of the
            # models may bring in the student itself.
            if 'loss' not in name or any(map(self._holds_models, references)):
                continue
            records = [
                record
                for reference in references
                for record in self.records_behind(reference)
            ]
            if not any(record['from_student'] for record in records):
                what = 'the teacher' if records else 'labels'
                raise ValueError(
                    f'loss {name!r} reads {what} alone, so that it cannot '
                    'train the student: set from_student=True in the '
                    f'reference of one of its arguments {list(mapping)}'
                )
            features = [ref for ref in references if 'label' not in ref]
            first, *others = features
            if others and all(other == first for other in others):
                raise ValueError(
                    f'loss {name!r} compares the student with itself: all its '
                    f'arguments are {dict(first)}; set from_student=False in '
                    'what it should learn from'
                )

    def _holds_models(self, reference: dict) -> bool:
        name = reference.get('connector')
        kind = type(self.connectors[name]) if name else BaseConnector
        attaches = (
            issubclass(kind, BaseConnector)
            and kind.attach is not BaseConnector.attach
        )
        return attaches or any(
            map(self._holds_models, self._inputs_of(reference).values())
        )

    # ----------------------------------------------------------- preparing

    def prepare_from_student(self, model: BaseModel) -> None:
        """Attach the student's recorders."""
        self._attach(self.student_recorders, model, 'student')

    def prepare_from_teacher(self, model: nn.Module) -> None:
        """Attach the teacher's recorders."""
        self._attach(self.teacher_recorders, model, 'teacher')

    def _attach(self, recorders: RecorderManager, model, whose: str) -> None:
        modules = dict(model.named_modules())
        for name, recorder in recorders.recorders.items():
            where = f'{whose}_recorders.{name}'
            # MMRazor's module recorders assert, without a hint.
            if hasattr(recorder, 'forward_hook') and (
                type(recorder).__module__.startswith('mmrazor.')
                and recorder.source not in modules
            ):
                raise ValueError(
                    f'{where}: {unknown_tap(recorder.source, modules)}'
                )
            try:
                recorder.initialize(model)
            except ValueError as error:
                raise ValueError(f'{where}: {error}') from error

    @torch.no_grad()
    def prepare(self, student: nn.Module, teacher: Teacher, run) -> None:
        """Let the connectors read the models, and try the whole graph.

        Args:
            student (nn.Module): The student.
            teacher (Teacher): The teacher.
            run (Callable): Runs both models on an example batch, inside the
                recorders, and returns the batch's data samples.

        Raises:
            ValueError: A connector or loss does not accept its inputs; the
                message names it and their shapes.
        """
        kept = [
            (recorder, recorder.stages_to_keep)
            for manager in (self.student_recorders, self.teacher_recorders)
            for recorder in manager.recorders.values()
            if isinstance(recorder, StageOutputsRecorder)
        ]
        for recorder, _ in kept:
            recorder.stages_to_keep = None
        for name, connector in self.connectors.items():
            if isinstance(connector, BaseConnector):
                with explain(f'connector {name!r}', {}):
                    connector.attach(student, teacher)
        data_samples = run()
        was_training = self.training
        self.eval()
        self._start_step(data_samples)

        def prepare(name: str, inputs: dict) -> None:
            connector = self.connectors[name]
            if isinstance(connector, BaseConnector):
                like = self.connector_shape_like.get(name)
                with explain(f'connector {name!r}', inputs):
                    if like is not None:
                        # Of several, what the connector asks for.
                        like = (
                            self._resolve(like)
                            if _is_reference(like)
                            else _OnDemand(like, self._resolve)
                        )
                    connector.prepare(inputs, like)
                connector.eval()

        for _, reference in self._references():
            if 'recorder' in reference and 'connector' in reference:
                name = reference['connector']
                first = next(
                    iter(signature(self.connectors[name].forward).parameters)
                )
                record = {
                    **reference,
                    'connector': None,
                    'connector_idx': None,
                }
                prepare(name, {first: self._resolve(record)})
        for name in self.connector_order:
            inputs = self._gather(self.connector_inputs[name])
            prepare(name, inputs)
            with explain(f'connector {name!r}', inputs):
                self._outputs[name] = self.connectors[name](**inputs)
        # By name, for the same reason as in `build_connectors`.
        for name, mapping in sorted(self.loss_forward_mappings.items()):
            loss = self.distill_losses[name]
            # Others may need more from a batch than an example has, such as
            # the sample indices of MMRazor's CRDLoss.
            if type(loss).__module__.startswith('mmcakd.'):
                inputs = self._gather(mapping)
                with explain(f'loss {name!r}', inputs):
                    loss(**inputs)
        self.train(was_training)
        for recorder, stages in kept:
            recorder.stages_to_keep = stages
        self._end_step()

    def check_student_learns(self, student: nn.Module) -> None:
        """Check that the last records of the student are of trained weights.

        Args:
            student (nn.Module): It, run with gradient.

        Raises:
            ValueError: All that a loss reads of the student is frozen.
        """
        for name, mapping in self.loss_forward_mappings.items():
            references = list(mapping.values())
            # A connector that gets hold of the models may bring in the
            # student itself.
            if any(map(self._holds_models, references)):
                continue
            records = [
                record
                for reference in references
                for record in self.records_behind(reference)
                if record['from_student']
            ]
            plain = dict(connector=None, connector_idx=None)
            try:
                read = [self.get_record(**{**r, **plain}) for r in records]
            except RuntimeError:
                continue  # it is recorded where losses are computed
            tensors = list(_tensors(read))
            if tensors and not any(t.requires_grad for t in tensors):
                raise ValueError(
                    f'loss {name!r} cannot train the student: '
                    f'{_find_cause(student)}'
                )

    # ------------------------------------------------------------- running

    def compute_distill_losses(
        self, data_samples: list | None = None
    ) -> dict[str, torch.Tensor]:
        """Run the graph on the records of this step.

        Args:
            data_samples (list, optional): The batch's samples, for losses
                that read labels.

        Returns:
            dict[str, Tensor]: Loss by name.

        Raises:
            RuntimeError: A record is missing, or a loss has no gradient.
            ValueError: A loss asserts something of its inputs that they are
                not, or is for images of one class and some have several.
        """
        if any(
            compares_classes(self.distill_losses[name])
            for name in self.loss_forward_mappings
        ):
            check_one_class(data_samples)
        self._start_step(data_samples)
        self._run_connectors(self.connector_order)
        losses = {}
        for name, mapping in self.loss_forward_mappings.items():
            inputs = self._gather(mapping)
            loss = self.distill_losses[name]
            if compares_classes(loss):
                with explain(f'loss {name!r}', inputs, ValueError):
                    check_several_classes(*inputs.values())
            # MMRazor's losses assert without a word.
            with explain(f'loss {name!r}', inputs, AssertionError):
                losses[name] = loss(**inputs)
        self._end_step()
        if self.training and torch.is_grad_enabled():
            for name, loss in losses.items():
                if 'loss' in name and not _has_grad(loss):
                    raise RuntimeError(
                        f'{name} depends on nothing that is trained: '
                        f'{UNTRAINED}'
                    )
        return losses

    def run_connector(self, name: str) -> Any:
        """Run one connector, and what it reads, on the last records.

        Args:
            name (str): A connector with ``inputs``, none of which is a label.

        Raises:
            ValueError: There is no such connector.
        """
        if name not in self.connector_inputs:
            raise ValueError(
                f'there is no connector {name!r} with inputs of its own; '
                f'there are {self.connector_order}'
            )
        self._start_step(None)
        try:
            self._run_connectors(self._sort_connectors([name]))
            return self._outputs[name]
        finally:
            self._end_step()

    def _run_connectors(self, names: Iterable[str]) -> None:
        for name in names:
            inputs = self._gather(self.connector_inputs[name])
            self._outputs[name] = self.connectors[name](**inputs)

    def zero_losses(self) -> dict[str, torch.Tensor]:
        """Zero for every loss, in contact with every parameter.

        After distillation has stopped, the log should say so, and DDP should
        still find a gradient for the connectors.
        """
        zero = sum(p.sum() * 0 for p in self.parameters())
        zero = zero if isinstance(zero, torch.Tensor) else torch.zeros(())
        return {name: zero for name in self.loss_forward_mappings}

    def _start_step(self, data_samples: list | None) -> None:
        self._data_samples = data_samples
        self._outputs: dict[Any, Any] = {}

    def _end_step(self) -> None:
        # Records outlive the step in MMRazor, which keeps the features in
        # memory and makes the model impossible to copy.
        self._start_step(None)
        for manager in (self.student_recorders, self.teacher_recorders):
            for recorder in manager.recorders.values():
                recorder.reset_data_buffer()

    def _recorders(self, from_student: bool) -> RecorderManager:
        return (
            self.student_recorders if from_student else self.teacher_recorders
        )

    def _gather(self, mapping: Mapping) -> dict[str, Any]:
        return {key: self._resolve(ref) for key, ref in mapping.items()}

    def _resolve(self, reference: dict) -> Any:
        if 'label' in reference:
            return read_labels(self._data_samples, reference['label'])
        if 'recorder' in reference:
            return self.get_record(**reference)
        output = self._outputs[reference['connector']]
        index = reference.get('connector_idx')
        if index is None:
            return output
        try:
            return output[index]
        except (KeyError, IndexError) as error:
            known = list(output) if isinstance(output, dict) else len(output)
            raise ValueError(
                f'connector {reference["connector"]!r} has no output '
                f'{index!r}; it has {known}'
            ) from error

    def get_record(
        self,
        recorder: str,
        from_student: bool,
        record_idx: int = 0,
        data_idx: int | str | None = None,
        connector: str | None = None,
        connector_idx: int | str | None = None,
    ) -> Any:
        """Get a record, through a connector if one is named.

        Raises:
            RuntimeError: Nothing was recorded.
            ValueError: The record has no such part.
        """
        source = self._recorders(from_student).get_recorder(recorder)
        whose = 'student' if from_student else 'teacher'
        try:
            data = source.get_record_data(record_idx, data_idx)
        except ValueError as error:
            where = f'{whose}_recorders.{recorder}'
            raise ValueError(f'{where}: {error}') from error
        except (AssertionError, IndexError) as error:
            raise RuntimeError(
                f'{whose}_recorders.{recorder} ({source.source}) recorded '
                f"nothing at record_idx={record_idx} in the {whose}'s "
                'forward; is that module, function or method called there?'
            ) from error
        if connector:
            key = (connector, recorder, from_student, record_idx, data_idx)
            if key not in self._outputs:
                self._outputs[key] = self.connectors[connector](data)
            data = self._outputs[key]
        return data if connector_idx is None else data[connector_idx]


def _build_recorders(cfgs: dict[str, dict] | None) -> RecorderManager:
    """Build recorders by the names that MMRazor gives them, or by classes."""
    manager = RecorderManager()
    for name, cfg in (cfgs or {}).items():
        cfg = {**cfg}
        if isinstance(cfg['type'], str):
            cfg['type'] = cfg['type'].removesuffix('Recorder') + 'Recorder'
        manager.recorders[name] = TASK_UTILS.build(cfg)
    return manager


def _name_deliveries(cfgs: dict[str, dict] | None) -> dict[str, dict]:
    """Name deliveries as MMRazor does, which takes no classes."""
    named = {}
    for name, cfg in (cfgs or {}).items():
        kind = getattr(cfg['type'], '__name__', cfg['type'])
        kind = kind.rpartition('.')[2].removesuffix('Delivery')
        named[name] = {**cfg, 'type': kind}
    return named


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
    if any(
        not type(parts[name]).__module__.startswith('mmrazor.')
        for name in unread
    ):
        raise ValueError(problem)
    print_log(problem, 'current', level=logging.WARNING)


class _OnDemand(dict):
    """References by name that are resolved when they are asked for."""

    def __init__(self, references: Mapping, resolve: Callable) -> None:
        super().__init__(references)
        self.resolve = resolve

    def __getitem__(self, name: str) -> Any:
        return self.resolve(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        return self[name]

    def values(self) -> Iterator[Any]:
        return (self[name] for name in self)

    def items(self) -> Iterator[tuple[str, Any]]:
        return ((name, self[name]) for name in self)


def _is_reference(like: dict) -> bool:
    """Whether `shape_like` is one reference rather than several by name."""
    return 'recorder' in like or isinstance(like.get('connector'), str)


def _as_references(like: dict) -> list[dict]:
    if _is_reference(like):
        return [like]
    return [like[key] for key in sorted(like)]


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
    elif isinstance(record, list | tuple):
        for item in record:
            yield from _tensors(item)


def _has_grad(loss: Any) -> bool:
    losses = loss if isinstance(loss, list | tuple) else [loss]
    return any(item.requires_grad for item in losses)
