"""A distiller whose connectors form a graph."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmrazor.models.distillers import ConfigurableDistiller
from mmrazor.models.task_modules import RecorderManager
from mmrazor.registry import TASK_UTILS
from torch import nn

from mmcakd.arguments import check_value, raise_unknown
from mmcakd.registry import MODELS

from ..losses import compares_classes
from ..losses.utils import check_several_classes
from ..recorders import StageOutputsRecorder, unknown_tap
from ..teachers import StoredTeacher, Teacher
from .errors import check_arguments, check_parts, explain, explain_place
from .graph import Graph, gets_models
from .references import (
    STUDENT,
    Reference,
    only_teacher,
    parse_mapping,
    parse_shape_like,
)
from .step import ExampleStep, Step
from .trial import UNTRAINED, try_graph


@MODELS.register_module()
class CrossArchDistiller(ConfigurableDistiller):
    """MMRazor's ``ConfigurableDistiller`` with a graph of connectors.

    Every config of ``ConfigurableDistiller`` works. In addition

    - there may be several teachers, or none;
    - a connector may name its ``inputs``, keyword by keyword: records or
      other connectors. It runs once a step, however many losses read it;
    - a connector may read widths and grids from the models (see
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
    ``dict(recorder=..., teacher='dino')``        a record of a teacher;
                                                  ``from_student=False`` means
                                                  the only one
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

    Of several teachers, ``teacher_recorders`` has those of each by its name:
    ``dict(dino=dict(tokens=dict(type=...)), clip=...)``; and a connector that
    gets hold of a teacher, such as ``mmcakd.TeacherReplay``, says of which by
    ``teacher='dino'``.

    Inside a distiller, plain type names are MMRazor's; those of mmcakd carry
    its prefix.

    Args:
        student_recorders (dict, optional): Recorders of the student by name.
        teacher_recorders (dict, optional): Recorders of the only teacher by
            name; or those of each teacher by its name.
        distill_deliveries (dict, optional): See MMRazor; they go from the
            only teacher to the student.
        connectors (dict, optional): Connectors by name.
        distill_losses (dict, optional): Losses by name.
        loss_forward_mappings (dict, optional): References by argument, of
            each loss.
        teachers (Sequence[str]): Names of the teachers; the algorithm sets
            them. Defaults to one, ``('teacher',)``.

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
        teachers: Sequence[str] = ('teacher',),
        init_cfg: dict | None = None,
    ) -> None:
        by_teacher = _split_by_teacher(teacher_recorders or {}, teachers)
        for kind, parts in dict(
            student_recorders=student_recorders,
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
                init_cfg=init_cfg,
            )
            self.teachers = tuple(teachers)
            #: Recorders by the name of their model.
            self.recorders = {
                STUDENT: _build_recorders(RecorderManager(), student_recorders)
            }
            for name, cfgs in by_teacher.items():
                self.recorders[name] = _build_recorders(_Shared(), cfgs)
        self.student_recorders = self.recorders[STUDENT]
        #: Teachers that are read from a store; set by the algorithm.
        self.stored: dict[str, StoredTeacher] = {}
        if self.deliveries.deliveries:
            self._insist_on_one_teacher('distill_deliveries')
        self.loss_forward_mappings = loss_forward_mappings or {}
        self.graph = Graph(
            self.recorders,
            self.connectors,
            self.distill_losses,
            *self._parse_connectors(),
            self._parse_losses(),
        )
        self._keep_only_stages_read()

    @property
    def teacher_recorders(self) -> RecorderManager:
        """Recorders of the only teacher, as MMRazor calls them."""
        return self.recorders[self._insist_on_one_teacher('teacher_recorders')]

    @teacher_recorders.setter
    def teacher_recorders(self, recorders: RecorderManager) -> None:
        # MMRazor's constructor sets an empty one.
        return

    def _insist_on_one_teacher(self, what: str) -> str:
        if not self.teachers:
            raise ValueError(f'{what} needs a teacher, but there is none')
        return only_teacher(what, self.teachers)

    def build_connectors(
        self, connectors: dict[str, dict | list] | None = None
    ) -> nn.ModuleDict:
        """Build the connectors and keep how they are wired."""
        self._wiring: dict[str, dict] = {}
        plain = {}
        # By name: MMEngine sorts the keys of a config that it dumps, and the
        # order decides over initial weights and over what an optimizer
        # resumes with which state.
        for name, cfg in sorted((connectors or {}).items()):
            if isinstance(cfg, dict):
                cfg = dict(cfg)
                self._wiring[name] = {
                    key: cfg.pop(key)
                    for key in ('inputs', 'shape_like', 'teacher')
                    if key in cfg
                }
            plain[name] = cfg
        return super().build_connectors(plain)

    def build_distill_losses(
        self, losses: dict[str, dict] | None = None
    ) -> nn.ModuleDict:
        """Build the losses, for the same reason in the order of names."""
        return super().build_distill_losses(
            dict(sorted((losses or {}).items()))
        )

    def _parse_connectors(self) -> tuple[dict, dict, dict]:
        inputs, shape_like, attached = {}, {}, {}
        for name, wiring in self._wiring.items():
            what = f'connector {name!r}'
            for key, kind in (
                ('inputs', dict),
                ('shape_like', dict),
                ('teacher', str),
            ):
                if key in wiring:
                    check_value(what, key, wiring[key], kind)
            if 'inputs' in wiring:
                inputs[name] = parse_mapping(
                    what, wiring['inputs'], self.teachers
                )
            if 'shape_like' in wiring:
                shape_like[name] = parse_shape_like(
                    what, wiring['shape_like'], self.teachers
                )
            if gets_models(self.connectors[name]):
                teacher = wiring.get('teacher')
                if teacher is None:
                    teacher = self._insist_on_one_teacher(what)
                elif teacher not in self.teachers:
                    known = list(self.teachers)
                    raise_unknown(
                        f'{what}: there is no teacher', teacher, known
                    )
                attached[name] = teacher
            elif 'teacher' in wiring:
                raise ValueError(
                    f'{what} gets hold of no teacher, so that teacher='
                    f'{wiring["teacher"]!r} says nothing; name the teacher in '
                    'the references of its inputs'
                )
        return inputs, shape_like, attached

    def _parse_losses(self) -> dict[str, dict[str, Reference]]:
        mappings = self.loss_forward_mappings
        check_value('the distiller', 'loss_forward_mappings', mappings, dict)
        inputs = {}
        for name, mapping in mappings.items():
            if name not in self.distill_losses:
                raise ValueError(
                    f'loss_forward_mappings names {name!r}, which is not in '
                    f'distill_losses ({", ".join(self.distill_losses)})'
                )
            what = f'loss {name!r}'
            inputs[name] = parse_mapping(what, mapping, self.teachers)
            forward = signature(self.distill_losses[name].forward)
            check_arguments(what, forward.parameters, mapping)
        return inputs

    # ----------------------------------------------------------- preparing

    def _stage_recorders(
        self,
    ) -> Iterator[tuple[str, str, StageOutputsRecorder]]:
        for model, manager in self.recorders.items():
            for name, recorder in manager.recorders.items():
                if isinstance(recorder, StageOutputsRecorder):
                    yield model, name, recorder

    def _keep_only_stages_read(self) -> None:
        """Let the stage recorders drop the stages that nothing reads."""
        for model, name, recorder in self._stage_recorders():
            stages = self.graph.stages_read(model, name)
            if None not in stages:
                recorder.stages_to_keep = stages

    def prepare_from_student(self, model: BaseModel) -> None:
        """Attach the student's recorders."""
        self._attach(STUDENT, model)

    def prepare_from_teacher(
        self, model: nn.Module | StoredTeacher, name: str | None = None
    ) -> None:
        """Attach the recorders of a teacher, or ask a stored one for them.

        Args:
            model (nn.Module | StoredTeacher): The teacher.
            name (str, optional): Its name. Defaults to that of the only one.

        Raises:
            ValueError: The teacher has not what a recorder or connector
                wants.
        """
        name = name or self._insist_on_one_teacher('prepare_from_teacher')
        if not isinstance(model, StoredTeacher):
            self._attach(name, model)
            return
        for connector, teacher in self.graph.attached.items():
            if teacher == name:
                raise ValueError(
                    f'connector {connector!r} runs a part of the teacher, but '
                    f'the {name} is read from a store and has none: take a '
                    'method that reads its answers alone, or a live teacher'
                )
        for record in self.graph.references:
            if record.model == name:
                with explain_place(name, record.recorder):
                    model.check_record(record.recorder, record.data_idx)
        self.stored[name] = model

    def _attach(self, model: str, network: nn.Module) -> None:
        modules = dict(network.named_modules())
        for name, recorder in self.recorders[model].recorders.items():
            with explain_place(model, name):
                # MMRazor's module recorders assert, without a hint.
                if hasattr(recorder, 'forward_hook') and (
                    type(recorder).__module__.startswith('mmrazor.')
                    and recorder.source not in modules
                ):
                    raise ValueError(unknown_tap(recorder.source, modules))
                recorder.initialize(network)

    @torch.no_grad()
    def prepare(
        self,
        student: nn.Module,
        teachers: Mapping[str, Teacher | StoredTeacher],
        inputs: dict[str, torch.Tensor],
        run: Callable[[Step], None],
    ) -> list[torch.Tensor]:
        """Let the connectors read the models, and try the whole graph.

        Args:
            student (nn.Module): The student.
            teachers (Mapping[str, Teacher | StoredTeacher]): The teachers.
            inputs (dict[str, Tensor]): An example batch.
            run (Callable): Runs the models on it, and sets ``data_samples``
                of the step that it gets.

        Returns:
            list[Tensor]: What trains the student, see :func:`try_graph`.

        Raises:
            ValueError: A connector or loss does not accept its inputs; the
                message names it and their shapes.
        """
        recorders = [recorder for *_, recorder in self._stage_recorders()]
        kept = [recorder.stages_to_keep for recorder in recorders]
        was_training = self.training
        for name, connector in self.connectors.items():
            if name in self.graph.attached:
                with explain(f'connector {name!r}', {}):
                    connector.attach(
                        student, teachers[self.graph.attached[name]]
                    )
        step = self._open(ExampleStep, inputs, None)
        try:
            for recorder in recorders:
                recorder.stages_to_keep = None
            with step:
                run(step)
                self.eval()
                return try_graph(self.graph, step)
        finally:
            self.train(was_training)
            for recorder, stages in zip(recorders, kept, strict=True):
                recorder.stages_to_keep = stages

    # ------------------------------------------------------------- running

    def step(
        self, inputs: dict[str, torch.Tensor], data_samples: list | None
    ) -> Step:
        """Open the step of a batch; see :class:`Step`."""
        return self._open(Step, inputs, data_samples)

    def _open(self, kind: type[Step], inputs, data_samples) -> Step:
        return kind(
            inputs,
            data_samples,
            self.recorders,
            self.stored,
            self.connectors,
            self.deliveries,
        )

    def compute_distill_losses(self, step: Step) -> dict[str, torch.Tensor]:
        """Run the graph on the records of a step.

        Args:
            step (Step): The batch, with the records of the models.

        Returns:
            dict[str, Tensor]: Loss by name.

        Raises:
            RuntimeError: A record is missing, or a loss has no gradient.
            ValueError: A loss asserts something of its inputs that they are
                not.
        """
        step.run(self.graph.order, self.graph.connector_inputs)
        losses = {}
        for name, references in self.graph.loss_inputs.items():
            inputs = step.gather(references)
            loss = self.distill_losses[name]
            if compares_classes(loss):
                with explain(f'loss {name!r}', inputs, ValueError):
                    check_several_classes(*inputs.values())
            # MMRazor's losses assert without a word.
            with explain(f'loss {name!r}', inputs, AssertionError):
                losses[name] = loss(**inputs)
        if self.training and torch.is_grad_enabled():
            for name, loss in losses.items():
                if 'loss' in name and not _has_grad(loss):
                    raise RuntimeError(
                        f'{name} depends on nothing that is trained: '
                        f'{UNTRAINED}'
                    )
        return losses

    def run_connector(self, name: str, step: Step) -> Any:
        """Run one connector, and what it reads, in a step.

        Args:
            name (str): A connector with ``inputs``, none of which is a label.
            step (Step): The batch, with the records that it reads.

        Raises:
            ValueError: There is no such connector.
        """
        graph = self.graph
        if name not in graph.connector_inputs:
            raise ValueError(
                f'there is no connector {name!r} with inputs of its own; '
                f'there are {graph.order}'
            )
        step.run(graph.sort([name]), graph.connector_inputs)
        return step.outputs[name]

    def zero_losses(self) -> dict[str, torch.Tensor]:
        """Zero for every loss, in contact with every parameter.

        After distillation has stopped, the log should say so, and DDP should
        still find a gradient for the connectors.
        """
        zero = sum(p.sum() * 0 for p in self.parameters())
        zero = zero if isinstance(zero, torch.Tensor) else torch.zeros(())
        return dict.fromkeys(self.graph.loss_inputs, zero)


def _split_by_teacher(
    cfgs: dict[str, dict], teachers: Sequence[str]
) -> dict[str, dict]:
    """Read `teacher_recorders` in either form: by teacher, or of the one.

    Returns:
        dict[str, dict]: Configs of recorders, by name, of each teacher.
    """
    check_value('the distiller', 'teacher_recorders', cfgs, dict)
    # An entry with a type is a recorder; what holds those is of a teacher.
    is_recorder = {
        name: not isinstance(cfg, dict)
        or 'type' in cfg
        or not all(isinstance(part, dict) for part in cfg.values())
        for name, cfg in cfgs.items()
    }
    if not cfgs or not any(is_recorder.values()):
        for name in cfgs:
            if name not in teachers:
                what = 'teacher_recorders: there is no teacher'
                raise_unknown(what, name, list(teachers))
        split = {name: cfgs.get(name, {}) for name in teachers}
    elif not all(is_recorder.values()):
        recorders = [name for name, is_one in is_recorder.items() if is_one]
        others = [name for name, is_one in is_recorder.items() if not is_one]
        raise ValueError(
            f'teacher_recorders has recorders ({", ".join(recorders)}) beside '
            f'recorders by teacher ({", ".join(others)}); write all of them '
            'by teacher: dict(NAME=dict(recorder=dict(type=...)))'
        )
    elif not teachers:
        raise ValueError(
            f'teacher_recorders has {", ".join(cfgs)}, but there is no teacher'
        )
    else:
        what = f'teacher_recorders ({", ".join(cfgs)})'
        if len(teachers) > 1:
            raise ValueError(
                f'{what} leaves open whose they are; write them by teacher: '
                f'dict({teachers[0]}=dict({next(iter(cfgs))}=dict(type=...)))'
            )
        split = {teachers[0]: cfgs}
    for name, parts in split.items():
        by_name = len(teachers) > 1 or name != 'teacher'
        check_parts(
            f'teacher_recorders.{name}' if by_name else 'teacher_recorders',
            parts,
        )
    return split


class _Shared(RecorderManager):
    """Recorders of a teacher, which copies of the algorithm share."""

    def __deepcopy__(self, memo: dict) -> '_Shared':
        return self


def _build_recorders(
    manager: RecorderManager, cfgs: dict[str, dict] | None
) -> RecorderManager:
    """Build recorders by the names that MMRazor gives them, or by classes."""
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


def _has_grad(loss: Any) -> bool:
    losses = loss if isinstance(loss, list | tuple) else [loss]
    return any(item.requires_grad for item in losses)
