"""Distillation from frozen teachers of any architecture."""

import copy
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmpretrain.models import BaseClassifier
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
from ..distillers import CrossArchDistiller, Step
from ..distillers.references import STUDENT
from ..distillers.trial import check_student_learns
from ..headless import has_head, predict_features
from ..labels import check_one_class
from ..losses import is_of_mmrazor
from ..teachers import (
    Precision,
    StoredTeacher,
    Teacher,
    build_model,
    build_teachers,
    read_teachers,
)
from ..teachers.normalisation import read_dataset, read_normalisation
from ..teachers.sources import TEACHER, naming_teacher
from ..teachers.teacher import DEFAULT_INPUT, count_input_channels
from .example import (
    count_classes,
    describe_images,
    example_images,
    make_samples,
    native_size,
    try_training,
)
from .student_weights import adopt_student
from .unread import freeze_unread

#: Recorders of what functions return.
OF_FUNCTIONS = (FunctionOutputsRecorder, MethodOutputsRecorder)

#: What hooks, loops and optimizer constructors of MMPretrain look for in the
#: classifier that is trained. In a distillation they find the student's.
OF_THE_STUDENT = (
    'backbone',
    'neck',
    'head',
    'with_neck',
    'with_head',
    'loss_module',
)


@MODELS.register_module()
class CrossArchDistill(SingleTeacherDistill):
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
        _check_distiller(distiller['type'])
        options = _moved_options(
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
        architecture, data_preprocessor = _build_student(
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
        self._computing_losses: set[str] = set()
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
                preprocessor = self._preprocessor_of(live)
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
        self.distiller.graph.check_heads(
            {
                STUDENT: self.student,
                **{n: t.model for n, t in self.live_teachers.items()},
            }
        )
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

    def _modules_of_teachers(self) -> list[nn.Module]:
        return [
            module
            for teacher in self.live_teachers.values()
            for module in teacher.modules()
        ]

    def _preprocessor_of(self, teacher: Teacher) -> nn.Module:
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
                teacher.insist_on_weights(self._preprocessor_of(teacher))

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
                        self._preprocessor_of(teacher),
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
        networks = {
            STUDENT: self.student,
            **{name: t.model for name, t in self.live_teachers.items()},
        }
        return {n: model for n, model in networks.items() if n in meets}

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
                self.example_inputs(),
                self._run_example,
            )
            needs_loss = self.student_loss_counts or self._needs_loss(STUDENT)
            if self.student_trainable and not needs_loss:
                freeze_unread(self.student, read)

    def example_inputs(self) -> dict[str, torch.Tensor]:
        """Make a few images of each input, normalised as in training."""
        count = max(2, self.distiller.graph.min_images)
        readers: dict[str, Teacher | None] = {DEFAULT_INPUT: None}
        for teacher in self.live_teachers.values():
            if readers.get(teacher.inputs) is None or teacher.own is not None:
                readers[teacher.inputs] = teacher
        examples = {}
        for name, teacher in readers.items():
            reads = self.student if name == DEFAULT_INPUT else teacher.model
            channels = count_input_channels(reads) or 3
            inputs = example_images(count, self.input_size, channels)
            if teacher is not None and teacher.own is not None:
                # Made of pixels, since the teacher will undo what was done.
                inputs = read_normalisation(self._preprocessor_of(teacher))(
                    (inputs + 2) * 255 / 4
                )
            examples[name] = inputs
        return examples

    def _run_example(self, step: Step) -> None:
        """Run all models on an example, as in a training step.

        Its samples have labels if the student classifies images.
        """
        images = step.inputs[DEFAULT_INPUT]
        count, size = len(images), tuple(images.shape[-2:])
        step.data_samples = describe_images(count, size)
        was_training = self.student.training
        # MMPretrain freezes stages when a network is switched to training.
        self.student.train().eval()
        for name, model in {
            **self.live_teachers,
            STUDENT: self.student,
        }.items():
            is_student = name == STUDENT
            learns = is_student and self.student_trainable
            inputs = images if is_student else step.inputs[model.inputs]
            try:
                with step.recording(name), torch.set_grad_enabled(learns):
                    output = model(inputs, step.data_samples, mode='tensor')
            except Exception as error:
                raise ValueError(
                    f'the {_called(name)} cannot run on images of '
                    f'{size} and {inputs.shape[1]} channels: '
                    f'{error or type(error).__name__}; '
                    f'{_cure_of_images(is_student)}'
                ) from error
            if self.distiller.graph.missing_records(step, name):
                self._run_with_loss(step, name, model, output)
        if isinstance(self.student, BaseClassifier):
            try_training(self.student, images)
        if self.student_trainable:
            check_student_learns(self.distiller.graph, step, self.student)
        self.student.train(was_training)
        classes = count_classes(output) if has_head(self.student) else None
        if classes:
            step.data_samples = make_samples(count, classes)

    def _run_with_loss(
        self, step: Step, name: str, model: nn.Module, output: Any
    ) -> None:
        """Record what happens only where a model computes its losses."""
        self._computing_losses.add(name)
        network = getattr(model, 'model', model)
        classes = count_classes(output)
        if not (isinstance(network, BaseClassifier) and classes):
            # Annotations of objects cannot be made up.
            step.left_out.add(name)
            return
        is_student = name == STUDENT
        images = step.inputs[DEFAULT_INPUT if is_student else model.inputs]
        learns = is_student and self.student_trainable
        with step.recording(name), torch.set_grad_enabled(learns):
            model(images, make_samples(len(images), classes), mode='loss')

    # ------------------------------------------------- what others ask for

    def __getattr__(self, name: str) -> Any:
        if name == 'teacher':
            return self._only_teacher()
        # MMDetection and MMSegmentation read, besides, the names of weights,
        # which they would misread: they begin with `architecture.` here.
        if name in OF_THE_STUDENT:
            student = self.architecture
            if isinstance(student, BaseClassifier):
                return getattr(student, name)
            raise AttributeError(
                f'CrossArchDistill has a {name} only for a classifier of '
                f'MMPretrain; that of this {type(student).__name__} is '
                f'`architecture.{name}`. Layer-wise learning rates of its '
                'package do not know these names: give '
                'paramwise_cfg=dict(custom_keys=...) instead'
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # E.g. another loss, from `mmpretrain.SwitchRecipeHook`.
        if name in OF_THE_STUDENT:
            setattr(self.architecture, name, value)
        else:
            super().__setattr__(name, value)

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

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Get how deep a parameter is, for layer-wise learning rate decay.

        What is not of the student, such as connectors, comes after its last
        layer and keeps the full learning rate.

        Args:
            param_name (str): Its name in the algorithm.

        Returns:
            tuple[int, int]: The depth of the parameter and the number of
            depths.

        Raises:
            NotImplementedError: The student does not know its depths.
        """
        student = self.architecture
        try:
            return student.get_layer_depth(
                param_name.removeprefix('architecture.')
            )
        except (AttributeError, NotImplementedError) as error:
            net = getattr(student, 'backbone', student)
            raise NotImplementedError(
                'layer-wise learning rate decay asks the student for the '
                f'depth of its layers, which this {type(net).__name__} does '
                "not know: take one that does, such as MMPretrain's ViT, "
                'Swin, BEiT, ConvNeXt or ResNet-50, or remove '
                'optim_wrapper.constructor'
            ) from error

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

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args, **kwargs
    ) -> None:
        # Of a distillation, or of its student alone, for `load_from`.
        adopt_student(state_dict, prefix, self.student)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

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
                    f'the {_called(name)} reads the input '
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
        called only there; so are some modules.
        """
        recorders = self.distiller.recorders[model].recorders.values()
        return (
            model in self._computing_losses
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


def _moved_options(**options: Any) -> dict[str, Any]:
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


def _by_name(
    inputs: torch.Tensor | dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Name the inputs of a batch; a plain tensor is the default one."""
    return (
        dict(inputs) if isinstance(inputs, dict) else {DEFAULT_INPUT: inputs}
    )


def _called(name: str) -> str:
    return name if name in (STUDENT, TEACHER) else f'teacher {name!r}'


def _cure_of_images(is_student: bool) -> str:
    if is_student:
        return 'set img_size of its backbone or input_size of the algorithm'
    return (
        'set its size, teacher=dict(model=..., input_size=...), to one it '
        "accepts, or take one for images of the student's channels"
    )


def _check_distiller(kind: str | type) -> None:
    """Check that a distiller can have connectors in a graph."""
    found = MODELS.get(kind) if isinstance(kind, str) and kind else kind
    if not (isinstance(found, type) and issubclass(found, CrossArchDistiller)):
        raise ValueError(
            f'the distiller is a {kind!r}; take '
            "type='mmcakd.CrossArchDistiller', which accepts the same "
            'arguments'
        )


def _build_student(
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


def _scale(loss: Any, weight: float) -> Any:
    """Weigh a loss, or each of a list of losses."""
    if isinstance(loss, list | tuple):
        return [item * weight for item in loss]
    return loss * weight
