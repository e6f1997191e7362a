"""Distillation from frozen teachers of any architecture."""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.task_modules.recorder import (
    FunctionOutputsRecorder,
    MethodOutputsRecorder,
)
from mmrazor.models.utils import add_prefix
from torch import nn
from torch.utils.data import Dataset

from mmcakd.arguments import NonNegative, Size
from mmcakd.registry import MODELS

from ..connectors import BaseConnector
from ..distillers import Step
from ..distillers.references import STUDENT
from ..headless import has_head, predict_features
from ..labels import check_one_class
from ..losses import is_of_mmrazor
from ..teachers import (
    Precision,
    StoredTeacher,
    Teacher,
    build_teachers,
    read_teachers,
)
from ..teachers.normalisation import read_dataset
from ..teachers.sources import called, naming_teacher
from ..teachers.teacher import DEFAULT_INPUT
from .arguments import build_student, check_distiller, moved_options
from .example import native_size
from .of_the_student import OfTheStudent
from .trial import example_inputs, run_example
from .unread import freeze_unread

#: Recorders of what functions return.
OF_FUNCTIONS = (FunctionOutputsRecorder, MethodOutputsRecorder)


@MODELS.register_module()
class CrossArchDistill(OfTheStudent, SingleTeacherDistill):
    """MMRazor's ``SingleTeacherDistill`` for teachers of any architecture.

    What differs from MMRazor's:

    - there may be several teachers, or none, and a teacher may be read from a
      store instead of run;
    - a teacher is a :class:`mmcakd.models.teachers.Teacher`: in eval mode,
      run once a step without head loss, and only if something reads it, with
      its own normalisation, input size, precision, view or modality, and in
      no checkpoint, EMA copy, optimizer or DDP bucket;
    - connectors read channel counts and grids from the models, and every
      loss is tried on an example before training starts;
    - the models may be classifiers, detectors, segmentors or bare backbones,
      each built in the scope of its own package;
    - where the student's own losses do not count, no label is touched, and
      parts of the student that nothing reads are frozen;
    - MixUp and CutMix of the student's ``train_cfg`` are applied, once, and
      all models see the mixed batch.

    Checkpoints hold the student as ``architecture.*`` and the connectors as
    ``distiller.*``; ``tools/model_converters/export_student.py`` makes a
    plain checkpoint.

    Args:
        architecture (dict | str | nn.Module): The student; see
            :func:`mmcakd.models.teachers.build_model`.
        teacher (dict | str | nn.Module): The only teacher, likewise; or a
            dict with the model and options in it, ``dict(model=...,
            precision='bf16')``, see
            :class:`mmcakd.models.teachers.LiveTeacher`; or a
            :class:`mmcakd.models.teachers.StoredTeacher`.
        distiller (dict): Config of a
            :class:`mmcakd.models.distillers.CrossArchDistiller`.
        teacher_ckpt (str, optional): File or URL of the teacher's weights;
            they have to fit without a missing or unexpected key. ``'random'``
            is for a teacher without any, on purpose. Defaults to what
            ``teacher`` names: a built model has its weights, a config may
            name them in ``init_cfg``, ``pretrained`` or ``checkpoint_path``,
            and those of a zoo's model are fetched when training starts. A
            file that is there is loaded at once, a URL when training starts;
            training does not start without.
        teacher_ckpt_ignore (Sequence[str]): Regular expressions of keys that
            may not fit. Defaults to none.
        teachers (dict, optional): Instead of ``teacher``, several by name:
            ``dict(dino=dict(model=..., ckpt=..., input_size=...), ...)``; an
            empty one for a distillation without a teacher.
        input_size (int | tuple[int, int], optional): Size ``(H, W)`` of the
            training images, with which the models are read. Defaults to the
            ``img_size`` of the student's backbone, else of a teacher's.
        student_loss_weight (float): Factor on the student's own losses; 0
            leaves them out for good. Defaults to 1.
        student_channels_last (bool): Whether the student's inputs and weights
            use the channels-last memory format, which is faster for most
            convolutional networks. Defaults to False.
        teacher_mode (str, optional): Belongs into the teacher's dict, as
            ``mode``, from the next release on; so do ``teacher_input_size``,
            ``teacher_precision``, ``teacher_channels_last`` and
            ``teacher_compile``.
        data_preprocessor (dict | nn.Module, optional): Used for the student
            unless its config has one.
        **kwargs: Other arguments of ``SingleTeacherDistill``.

    A checkpoint of the student alone may be loaded as well as one of the
    distillation: its weights become ``architecture.*``.

    Raises:
        ValueError: No teacher or student; a trainable teacher; a distiller
            whose parts do not fit the models.
        RuntimeError: A checkpoint that does not load or does not fit.

    Examples:
        >>> import torch
        >>> from mmcakd.models.algorithms import CrossArchDistill
        >>> logits = dict(logits=dict(type='mmcakd.Logits'))
        >>> model = CrossArchDistill(
        ...     architecture='mmpretrain::resnet/resnet18_8xb32_in1k.py',
        ...     teacher='mmpretrain::vision_transformer/'
        ...             'vit-base-p16_32xb128-mae_in1k.py',
        ...     distiller=dict(
        ...         type='mmcakd.CrossArchDistiller',
        ...         student_recorders=logits,
        ...         teacher_recorders=logits,
        ...         distill_losses=dict(
        ...             loss_kd=dict(type='mmcakd.SoftTargetLoss')),
        ...         loss_forward_mappings=dict(loss_kd=dict(
        ...             student=dict(recorder='logits', from_student=True),
        ...             teacher=dict(recorder='logits', from_student=False))))
        ... )
        >>> any('teacher' in key for key in model.state_dict())
        False
    """

    def __init__(
        self,
        architecture: nn.Module | dict | str | None = None,
        teacher: nn.Module | StoredTeacher | dict | str | None = None,
        distiller: dict | None = None,
        teacher_ckpt: str | PathLike | None = None,
        teacher_ckpt_ignore: Sequence[str] = (),
        teachers: dict | None = None,
        input_size: Size | None = None,
        student_loss_weight: NonNegative = 1.0,
        student_channels_last: bool = False,
        teacher_mode: Literal['eval', 'train'] | None = None,
        teacher_input_size: Size | None = None,
        teacher_precision: Precision | None = None,
        teacher_channels_last: bool | None = None,
        teacher_compile: bool | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        teacher_trainable: bool = False,
        teacher_norm_eval: bool = True,
        teacher_module_inplace: bool = False,
        student_trainable: bool = True,
        calculate_student_loss: bool = True,
        module_inplace: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        if teacher_trainable:
            raise ValueError(
                'the teacher of CrossArchDistill is frozen; to train it too, '
                'use mmrazor.SingleTeacherDistill'
            )
        if not distiller:
            raise ValueError('no distiller is given; set model.distiller')
        distiller = {'type': 'mmcakd.CrossArchDistiller', **distiller}
        check_distiller(distiller['type'])
        options = moved_options(
            mode=teacher_mode,
            input_size=teacher_input_size,
            precision=teacher_precision,
            channels_last=teacher_channels_last,
            compile=teacher_compile,
        )
        built = build_teachers(
            read_teachers(
                teacher, teacher_ckpt, teacher_ckpt_ignore, teachers, options
            )
        )
        architecture, data_preprocessor = build_student(
            architecture, data_preprocessor
        )
        # MMRazor's constructor would build a single teacher and register it
        # as a submodule. In a plain dict they stay out of everything that is
        # saved, copied or trained.
        super(SingleTeacherDistill, self).__init__(
            architecture, data_preprocessor, init_cfg, module_inplace
        )
        self.teachers: dict[str, Teacher | StoredTeacher] = built
        self.teacher_norm_eval = teacher_norm_eval
        self.student_trainable = student_trainable
        self.calculate_student_loss = calculate_student_loss
        self.distillation_stopped = False
        #: Models that were found to record something there alone.
        self.computing_losses: set[str] = set()
        self.student_loss_weight = student_loss_weight
        #: Whether the student's own losses are part of the sum, now or later.
        self.student_loss_counts = bool(
            calculate_student_loss
            and student_loss_weight
            and has_head(self.student)
        )
        if not teacher_module_inplace:
            for module in self._modules_of_teachers():
                # A record taken in front of it would be overwritten.
                if hasattr(module, 'inplace'):
                    module.inplace = False
        self.distiller = MODELS.build({**distiller, 'teachers': list(built)})
        self.distiller.prepare_from_student(self.student)
        for name, source in built.items():
            network = getattr(source, 'model', source)
            self.distiller.prepare_from_teacher(network, name)
        if self.student_trainable:
            self.distiller.graph.check_student_is_read()
        for name, live in self.live_teachers.items():
            with naming_teacher(name):
                preprocessor = self.preprocessor_of(live)
                live.adapt_to(preprocessor)
                live.watch(preprocessor)
                live.data_preprocessor = self.data_preprocessor
        self.student_memory_format = (
            torch.channels_last
            if student_channels_last
            else torch.preserve_format
        )
        self.student.to(memory_format=self.student_memory_format)
        self.input_size = self._find_input_size(input_size)
        self._check_labels()
        self.distiller.graph.check_heads(self._networks())
        self._prepare_distiller()

    # ------------------------------------------------------------- teachers

    @property
    def live_teachers(self) -> dict[str, Teacher]:
        """The teachers that run, by name."""
        return {
            name: teacher
            for name, teacher in self.teachers.items()
            if isinstance(teacher, Teacher)
        }

    def _networks(self) -> dict[str, nn.Module]:
        """The student and the teachers that run, by name."""
        teachers = {n: t.model for n, t in self.live_teachers.items()}
        return {STUDENT: self.student, **teachers}

    def _modules_of_teachers(self) -> list[nn.Module]:
        return [
            module
            for teacher in self.live_teachers.values()
            for module in teacher.modules()
        ]

    def preprocessor_of(self, teacher: Teacher) -> nn.Module:
        """Find what prepares the input that a teacher reads."""
        preprocessor = self.data_preprocessor
        if hasattr(preprocessor, 'of'):
            return preprocessor.of(teacher.inputs)
        if teacher.inputs != DEFAULT_INPUT:
            raise ValueError(
                f'the teacher reads the input {teacher.inputs!r}, but '
                f'{type(preprocessor).__name__} prepares '
                f'{DEFAULT_INPUT!r} alone: take data_preprocessor=dict('
                f"type='mmcakd.NamedInputsPreprocessor', {DEFAULT_INPUT}="
                f'dict(...), {teacher.inputs}=dict(...))'
            )
        return preprocessor

    def _insist_on_teachers(self) -> None:
        for name, teacher in self.live_teachers.items():
            with naming_teacher(name):
                teacher.insist_on_weights(self.preprocessor_of(teacher))

    def prepare_from_dataset(self, dataset: Dataset) -> None:
        """Learn how the training images are normalised before they get here.

        Args:
            dataset (Dataset): The training set.

        Raises:
            ValueError: Not all images are treated alike; or stored targets
                are of another training set.
        """
        for name, teacher in self.teachers.items():
            with naming_teacher(name):
                if isinstance(teacher, StoredTeacher):
                    teacher.check_dataset(dataset)
                elif teacher.own is not None or teacher.riddle:
                    teacher.adapt_to(
                        self.preprocessor_of(teacher),
                        *read_dataset(dataset, teacher.inputs),
                    )

    # --------------------------------------------------------------- labels

    def _check_labels(self) -> None:
        self.check_mixing(
            getattr(self.data_preprocessor, 'batch_augments', None)
        )

    def check_mixing(self, batch_augments: Any) -> None:
        """Check that no image is mixed whose class or place is read.

        Args:
            batch_augments (Any): What mixes the images, if anything.

        Raises:
            ValueError: A loss or connector reads such labels, or a teacher's
                answers for whole images are stored.
        """
        if not batch_augments:
            return
        graph = self.distiller.graph
        mixes = (
            "the student's train_cfg, or a hook such as SwitchRecipeHook, "
            'mixes images (MixUp, CutMix)'
        )
        if graph.needs_whole_images:
            raise ValueError(
                f'the distiller reads {sorted(graph.needs_whole_images)} '
                f'labels, but {mixes}: remove the augments, or let the loss '
                "read dict(label='soft') or 'auto' if it can"
            )
        stored = graph.models_read & self.distiller.stored.keys()
        if stored:
            raise ValueError(
                f'the answers of {", ".join(sorted(stored))} are stored for '
                f'whole images, but {mixes}: remove the augments'
            )

    def label_readers(self) -> dict[str, nn.Module]:
        """List the networks whose logits meet the labels of a batch.

        Returns:
            dict[str, nn.Module]: The student and teachers, or some, or none,
            by name.
        """
        meets = self.distiller.graph.logits_beside_labels()
        if self.student_loss_counts:
            meets.add(STUDENT)
        networks = self._networks().items()
        return {name: model for name, model in networks if name in meets}

    # -------------------------------------------------------------- example

    def _find_input_size(self, given: Size | None) -> tuple[int, int] | None:
        sizes = [given, native_size(self.student)]
        for teacher in self.live_teachers.values():
            sizes += [teacher.input_size, native_size(teacher.model)]
        for size in sizes:
            if size is not None:
                return (size, size) if isinstance(size, int) else tuple(size)
        return None

    def _prepare_distiller(self) -> None:
        """Let the distiller read the models at the training size."""
        reads_sizes = any(
            isinstance(part, BaseConnector)
            for part in self.distiller.connectors.modules()
        )
        losses = self.distiller.distill_losses.values()
        is_tried = reads_sizes or not all(map(is_of_mmrazor, losses))
        if self.input_size is None:
            if reads_sizes:
                raise ValueError(
                    'the connectors read widths and grids from the models; '
                    'set model.input_size to the size of the training images'
                )
            if not self.student_loss_counts:
                print_log(
                    'It cannot be known which parts of the student are read; '
                    'set model.input_size to the size of the training images',
                    'current',
                )
        elif is_tried or not self.student_loss_counts:
            read = self.distiller.prepare(
                self.student,
                self.teachers,
                example_inputs(self, self.input_size),
                partial(run_example, self),
            )
            if self.student_trainable and not self.student_loss_counts:
                freeze_unread(self.student, read)

    # ------------------------------------------------- what others ask for

    def __getattr__(self, name: str) -> Any:
        if name == 'teacher':
            return self._only_teacher()
        return super().__getattr__(name)

    def _only_teacher(self) -> Teacher | StoredTeacher:
        """The teacher, by the name that MMRazor has for it."""
        if len(self.teachers) != 1:
            names = ', '.join(self.teachers) or 'none'
            raise AttributeError(
                f'this distillation has no single teacher, but {names}; '
                '`teachers` has them by name'
            )
        (teacher,) = self.teachers.values()
        return teacher

    def init_weights(self) -> None:
        """Initialise what is trained, as a Runner does before training.

        By then the weights of the teachers have arrived; what their configs
        only name is fetched here.

        Raises:
            ValueError: A teacher has no weights, or it cannot be known how
                it normalises images.
            RuntimeError: Its weights could not be fetched, or do not fit.
        """
        self._insist_on_teachers()
        super().init_weights()

    def train(self, mode: bool = True) -> 'CrossArchDistill':
        """Switch student and distiller; teachers keep their mode."""
        nn.Module.train(self, mode)
        return self

    def _apply(self, fn, *args, **kwargs) -> 'CrossArchDistill':
        # Moves the teachers along with `.to()`, `.cuda()` and the like.
        super()._apply(fn, *args, **kwargs)
        for teacher in self.live_teachers.values():
            teacher._apply(fn, *args, **kwargs)
        return self

    # -------------------------------------------------------------- running

    def loss(
        self,
        batch_inputs: torch.Tensor | dict[str, torch.Tensor],
        data_samples: list | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the student's losses and those of the distiller.

        Args:
            batch_inputs (Tensor | dict[str, Tensor]): Images ``(N, 3, H,
                W)``, normalised for the student; or several inputs by name,
                of which the student gets ``'image'``.
            data_samples (list, optional): Their labels.

        Returns:
            dict[str, Tensor]: ``student.*`` and ``distill.*``.

        Raises:
            ValueError: Labels that a loss reads are not what it thinks; an
                input that a teacher reads is not there.
        """
        if self.training and not self.distillation_stopped:
            # A hook may have switched mixing on since the last step.
            self._check_labels()
        if self.training and torch.is_grad_enabled():
            # In a loop that did not call `init_weights`.
            self._insist_on_teachers()
        inputs = _by_name(batch_inputs)
        inputs[DEFAULT_INPUT] = inputs[DEFAULT_INPUT].to(
            memory_format=self.student_memory_format
        )
        if self.distillation_stopped:
            student = self._run_student_alone(inputs, data_samples)
            distill = self.distiller.zero_losses()
        else:
            with self.distiller.step(inputs, data_samples) as step:
                self.run_teachers(step)
                student = self.run_student(step)
                distill = self._distill(step)
        losses: dict[str, Any] = {}
        if self.student_loss_counts:
            weighted = {
                key: _scale(value, self.student_loss_weight)
                if 'loss' in key
                else value
                for key, value in student.items()
            }
            losses.update(add_prefix(weighted, 'student'))
        losses.update(add_prefix(distill, 'distill'))
        return losses

    def run_teachers(self, step: Step) -> None:
        """Run each live teacher that is read, once."""
        distiller = self.distiller
        distiller.set_deliveries_override(False)
        read = distiller.graph.models_read
        for name, teacher in self.live_teachers.items():
            if name not in read and not distiller.deliveries.deliveries:
                continue
            if teacher.inputs not in step.inputs:
                raise ValueError(
                    f'the {called(name)} reads the input '
                    f'{teacher.inputs!r}, but the batch has '
                    f'{", ".join(step.inputs)} alone: pack it by '
                    'mmcakd.PackNamedInputs'
                )
            mode = 'loss' if self._needs_loss(name) else 'tensor'
            with step.recording(name), distiller.deliveries:
                teacher(
                    step.inputs[teacher.inputs], step.data_samples, mode=mode
                )

    def run_student(self, step: Step) -> dict | None:
        """Run the student; return its losses, unless they do not count."""
        distiller = self.distiller
        distiller.set_deliveries_override(True)
        needs_loss = self.student_loss_counts or self._needs_loss(STUDENT)
        learns = torch.is_grad_enabled() and self.student_trainable
        with (
            step.recording(STUDENT),
            distiller.deliveries,
            torch.set_grad_enabled(learns),
        ):
            return self.student(
                self._images_of_student(step),
                step.data_samples,
                mode='loss' if needs_loss else 'tensor',
            )

    def _images_of_student(self, step: Step) -> torch.Tensor:
        """The images that the student sees, ``(N, C, H, W)``."""
        return step.inputs[DEFAULT_INPUT]

    def _needs_loss(self, model: str) -> bool:
        """Whether something happens only where a model computes its losses.

        What functions return is recorded and delivered, and some of them are
        called only there; so are some modules. A model without a head
        computes none.
        """
        is_student = model == STUDENT
        network = self.student if is_student else self.teachers[model].model
        if not has_head(network):
            return False
        recorders = self.distiller.recorders[model].recorders.values()
        return (
            model in self.computing_losses
            or bool(self.distiller.deliveries.deliveries)
            or any(isinstance(each, OF_FUNCTIONS) for each in recorders)
        )

    def _distill(self, step: Step) -> dict[str, torch.Tensor]:
        """Compute the losses of the distiller."""
        graph = self.distiller.graph
        touches_labels = self.student_loss_counts or graph.labels_read
        if touches_labels and graph.compares_classes:
            check_one_class(step.data_samples)
        return self.distiller.compute_distill_losses(step)

    def _run_student_alone(
        self, inputs: dict[str, torch.Tensor], data_samples: list | None
    ) -> dict:
        if not self.student_loss_counts:
            raise RuntimeError(
                'distillation was stopped, and the losses of the student '
                'itself do not count, so that nothing is left to learn: '
                'remove the StopDistillHook, or end training there'
            )
        return self.student(inputs[DEFAULT_INPUT], data_samples, mode='loss')

    def _forward(
        self,
        inputs: torch.Tensor | dict[str, torch.Tensor],
        data_samples: list | None = None,
    ) -> Any:
        """Run the student as a plain network."""
        return super()._forward(_by_name(inputs)[DEFAULT_INPUT], data_samples)

    def _predict(
        self,
        inputs: torch.Tensor | dict[str, torch.Tensor],
        data_samples: list | None = None,
    ) -> list[BaseDataElement]:
        """Let the student predict; one without a head gives its features."""
        images = _by_name(inputs)[DEFAULT_INPUT]
        if not has_head(self.student):
            return predict_features(self.student, images, data_samples)
        return super()._predict(images, data_samples)


def _by_name(
    inputs: torch.Tensor | dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Name the inputs of a batch; a plain tensor is the default one."""
    return (
        dict(inputs) if isinstance(inputs, dict) else {DEFAULT_INPUT: inputs}
    )


def _scale(loss: Any, weight: float) -> Any:
    """Weigh a loss, or each of a list of losses."""
    if isinstance(loss, list | tuple):
        return [item * weight for item in loss]
    return loss * weight
