"""Distillation from one frozen teacher of any architecture."""

import copy
import math
from collections.abc import Sequence
from os import PathLike
from typing import Any, Literal

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmpretrain.models import BaseClassifier, TimmClassifier
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.task_modules.recorder import (
    FunctionOutputsRecorder,
    MethodOutputsRecorder,
)
from mmrazor.models.utils import add_prefix
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from mmcakd.arguments import NonNegative, Size
from mmcakd.registry import MODELS

from ..connectors import BaseConnector
from ..distillers import CrossArchDistiller
from ..stages import find_backbone
from ..teachers import Precision, Teacher, build_model, build_teacher
from ..teachers.normalisation import read_dataset, read_normalisation
from ..teachers.teacher import count_input_channels
from .student_weights import adopt_student

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

    - the teacher is a :class:`mmcakd.models.teachers.Teacher`: in eval mode,
      run once a step without head loss, with its own normalisation, input
      size and precision, and in no checkpoint, EMA copy, optimizer or DDP
      bucket;
    - connectors read channel counts and grids from the two models, and every
      loss is tried on an example before training starts;
    - the models may be classifiers, detectors or segmentors, each built in
      the scope of its own package;
    - MixUp and CutMix of the student's ``train_cfg`` are applied, once, and
      both models see the mixed batch.

    Checkpoints hold the student as ``architecture.*`` and the connectors as
    ``distiller.*``; ``tools/model_converters/export_student.py`` makes a
    plain checkpoint.

    Args:
        architecture (dict | str | BaseModel): The student; see
            :func:`mmcakd.models.teachers.build_model`.
        teacher (dict | str | BaseModel): The teacher, likewise.
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
        input_size (int | tuple[int, int], optional): Size ``(H, W)`` of the
            training images, with which the models are read. Defaults to the
            ``img_size`` of the student's backbone, else of the teacher's.
        student_loss_weight (float): Factor on the student's own losses.
            Defaults to 1.
        student_channels_last (bool): Whether the student's inputs and weights
            use the channels-last memory format, which is faster for most
            convolutional networks. Defaults to False.
        teacher_mode (str): ``'eval'`` or ``'train'``; see :class:`Teacher`.
        teacher_input_size (int | tuple[int, int], optional): See
            :class:`Teacher`. Defaults to the student's size.
        teacher_precision (str, optional): See :class:`Teacher`. Defaults to
            the student's.
        teacher_channels_last (bool): See :class:`Teacher`.
        teacher_compile (bool): See :class:`Teacher`.
        data_preprocessor (dict | nn.Module, optional): Used for the student
            unless its config has one.
        **kwargs: Other arguments of ``SingleTeacherDistill``.

    A checkpoint of the student alone may be loaded as well as one of the
    distillation: its weights become ``architecture.*``.

    Raises:
        ValueError: No teacher or student; a trainable teacher; a distiller
            whose parts do not fit the two models.
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
        architecture: BaseModel | dict | str | None = None,
        teacher: BaseModel | dict | str | None = None,
        distiller: dict | None = None,
        teacher_ckpt: str | PathLike | None = None,
        teacher_ckpt_ignore: Sequence[str] = (),
        input_size: Size | None = None,
        student_loss_weight: NonNegative = 1.0,
        student_channels_last: bool = False,
        teacher_mode: Literal['eval', 'train'] = 'eval',
        teacher_input_size: Size | None = None,
        teacher_precision: Precision | None = None,
        teacher_channels_last: bool = False,
        teacher_compile: bool = False,
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
        teacher, weights = build_teacher(
            teacher, teacher_ckpt, teacher_ckpt_ignore
        )
        architecture, data_preprocessor = _build_student(
            architecture, data_preprocessor
        )

        super().__init__(
            architecture=architecture,
            teacher=teacher,
            distiller=distiller,
            data_preprocessor=data_preprocessor,
            teacher_norm_eval=teacher_norm_eval,
            teacher_module_inplace=teacher_module_inplace,
            student_trainable=student_trainable,
            calculate_student_loss=calculate_student_loss,
            module_inplace=module_inplace,
            init_cfg=init_cfg,
        )
        if self.student_trainable:
            self.distiller.check_student_is_read()
        # MMRazor registers the teacher as a submodule; as a plain attribute
        # it stays out of everything that is saved, copied or trained.
        del self.teacher
        teacher = Teacher(
            teacher,
            teacher_mode,
            teacher_input_size,
            teacher_precision,
            teacher_channels_last,
            teacher_compile,
        )
        teacher.weights = weights
        object.__setattr__(self, 'teacher', teacher)
        self.teacher.adapt_to(self.data_preprocessor)
        self.teacher.watch(self.data_preprocessor)
        self.teacher.data_preprocessor = self.data_preprocessor
        self.student_loss_weight = student_loss_weight
        self.student_memory_format = (
            torch.channels_last
            if student_channels_last
            else torch.preserve_format
        )
        self.student.to(memory_format=self.student_memory_format)
        self.input_size = self._find_input_size(input_size)
        self._check_labels()
        self.distiller.check_heads(self.student, self.teacher.model)
        self._prepare_distiller()

    def _check_labels(self) -> None:
        self.check_mixing(
            getattr(self.data_preprocessor, 'batch_augments', None)
        )

    def check_mixing(self, batch_augments: Any) -> None:
        """Check that no image is mixed whose class or place is read.

        Args:
            batch_augments (Any): What mixes the images, if anything.

        Raises:
            ValueError: A loss or connector reads such labels.
        """
        unmixed = self.distiller.labels_read & {'hard', 'index'}
        if unmixed and batch_augments:
            raise ValueError(
                f'the distiller reads {sorted(unmixed)} labels, but the '
                "student's train_cfg, or a hook such as SwitchRecipeHook, "
                'mixes images (MixUp, CutMix): remove the augments, or let '
                "the loss read dict(label='soft') or 'auto' if it can"
            )

    def label_readers(self) -> dict[str, nn.Module]:
        """List the networks whose logits meet the labels of a batch.

        Returns:
            dict[str, nn.Module]: The student and the teacher, or one, or
            none, by ``'student'`` and ``'teacher'``.
        """
        meets = self.distiller.logits_beside_labels()
        readers = dict(student=self.student, teacher=self.teacher.model)
        return {
            whose: model
            for whose, model in readers.items()
            if meets[whose]
            or (whose == 'student' and self.calculate_student_loss)
        }

    def _prepare_distiller(self) -> None:
        """Let the distiller read both models at the training size."""
        modules = list(self.distiller.modules())
        reads_sizes = any(isinstance(m, BaseConnector) for m in modules)
        # The distiller itself is one of ours; without another, all parts are
        # MMRazor's and know their sizes.
        ours = [m for m in modules if type(m).__module__.startswith('mmcakd.')]
        if self.input_size is None:
            if reads_sizes:
                raise ValueError(
                    'the connectors read widths and grids from the models; '
                    'set model.input_size to the size of the training images'
                )
        elif reads_sizes or len(ours) > 1:
            self.distiller.prepare(
                self.student, self.teacher, self._run_example
            )

    def _find_input_size(self, given: Size | None) -> tuple[int, int] | None:
        for size in (
            given,
            _native_size(self.student),
            self.teacher.input_size,
            _native_size(self.teacher.model),
        ):
            if size is not None:
                return (size, size) if isinstance(size, int) else tuple(size)
        return None

    def _run_example(self) -> list:
        """Run both models on a few images, as in a training step.

        Returns:
            list: Their data samples, with labels if the student classifies
            images.
        """
        count = max(2, self.distiller.min_images)
        channels = count_input_channels(self.student) or 3
        inputs = example_images(count, self.input_size, channels)
        if self.teacher.own is not None:
            # Made of pixels, since the teacher will undo what was done.
            inputs = read_normalisation(self.data_preprocessor)(
                (inputs + 2) * 255 / 4
            )
        samples = describe_images(len(inputs), self.input_size)
        was_training = self.student.training
        # MMPretrain freezes stages when a network is switched to training.
        self.student.train().eval()
        for whose, model, recorders in (
            ('teacher', self.teacher, self.distiller.teacher_recorders),
            ('student', self.student, self.distiller.student_recorders),
        ):
            learns = whose == 'student' and self.student_trainable
            try:
                with recorders, torch.set_grad_enabled(learns):
                    output = model(inputs, samples, mode='tensor')
            except Exception as error:
                cure = (
                    'set teacher_input_size to a size it accepts, or take '
                    "one for images of the student's channels"
                    if whose == 'teacher'
                    else 'set img_size of its backbone or input_size of the '
                    'algorithm'
                )
                raise ValueError(
                    f'the {whose} cannot run on images of '
                    f'{self.input_size} and {channels} channels: '
                    f'{error or type(error).__name__}; {cure}'
                ) from error
        if isinstance(self.student, BaseClassifier):
            self._try_training(inputs)
        if self.student_trainable:
            self.distiller.check_student_learns(self.student)
        self.student.train(was_training)
        num_classes = count_classes(output)
        return (
            make_samples(len(inputs), num_classes) if num_classes else samples
        )

    def _try_training(self, inputs: torch.Tensor) -> None:
        """Run the student as in training, where some networks return more."""
        student = self.student.train()
        for module in student.modules():
            # Its statistics are of the training set alone.
            if isinstance(module, _BatchNorm):
                module.eval()
        cure = (
            'if its network has auxiliary classifiers, build it without '
            '(aux_logits=False)'
        )
        try:
            with torch.random.fork_rng(devices=[]):
                output = student(inputs, mode='tensor')
        except Exception as error:
            raise ValueError(
                'the student runs in evaluation, but not in training: '
                f'{error or type(error).__name__}; {cure}'
            ) from error
        # Those that wrap a network of another package give all it returns.
        if isinstance(student, TimmClassifier) and isinstance(output, tuple):
            raise ValueError(
                f'the network of the student returns {len(output)} outputs, '
                f'where {type(student).__name__} expects class scores: {cure}'
            )

    def __getattr__(self, name: str) -> Any:
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

        By then the weights of the teacher have arrived; what its config only
        names is fetched here.

        Raises:
            ValueError: The teacher has no weights, or it cannot be known how
                it normalises images.
            RuntimeError: Its weights could not be fetched, or do not fit.
        """
        self._insist_on_teacher()
        super().init_weights()

    def _insist_on_teacher(self) -> None:
        teacher, weights = self.teacher, self.teacher.weights
        if not weights.is_complete:
            weights.arrive()
            if teacher.riddle:
                # What says how it normalises may have arrived, too.
                teacher.adapt_to(self.data_preprocessor, *teacher.images)
        if teacher.riddle and not weights.is_random:
            raise ValueError(
                f'it cannot be known how the teacher normalises images: '
                f'{teacher.riddle}; give its config data_preprocessor=dict('
                'mean=[...], std=[...], to_rgb=True)'
            )

    def prepare_from_dataset(self, dataset: Dataset) -> None:
        """Learn how the training images are normalised before they get here.

        Args:
            dataset (Dataset): The training set.

        Raises:
            ValueError: Not all images are treated alike.
        """
        if self.teacher.own is not None or self.teacher.riddle:
            self.teacher.adapt_to(
                self.data_preprocessor, *read_dataset(dataset)
            )

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args, **kwargs
    ) -> None:
        # Of a distillation, or of its student alone, for `load_from`.
        adopt_student(state_dict, prefix, self.student)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def train(self, mode: bool = True) -> 'CrossArchDistill':
        """Switch student and distiller; the teacher keeps its mode."""
        nn.Module.train(self, mode)
        return self

    def _apply(self, fn, *args, **kwargs) -> 'CrossArchDistill':
        # Moves the teacher along with `.to()`, `.cuda()` and the like.
        super()._apply(fn, *args, **kwargs)
        self.teacher._apply(fn, *args, **kwargs)
        return self

    def loss(
        self, batch_inputs: torch.Tensor, data_samples: list | None = None
    ) -> dict[str, torch.Tensor]:
        """Compute the student's losses and those of the distiller.

        Args:
            batch_inputs (Tensor): ``(N, 3, H, W)``, normalised for the
                student.
            data_samples (list, optional): Their labels.

        Returns:
            dict[str, Tensor]: ``student.*`` and ``distill.*``.

        Raises:
            ValueError: Labels that a loss reads are not what it thinks.
        """
        if self.training and not self.distillation_stopped:
            # A hook may have switched mixing on since the last step.
            self._check_labels()
        if self.training and torch.is_grad_enabled():
            # In a loop that did not call `init_weights`.
            self._insist_on_teacher()
        batch_inputs = batch_inputs.to(
            memory_format=self.student_memory_format
        )
        if self.distillation_stopped:
            student = self.student(batch_inputs, data_samples, mode='loss')
            distill = self.distiller.zero_losses()
        else:
            self._run_teacher(batch_inputs, data_samples)
            student = self._run_student(batch_inputs, data_samples)
            distill = self.distiller.compute_distill_losses(data_samples)

        losses: dict[str, Any] = {}
        if self.calculate_student_loss:
            weighted = {
                key: _scale(value, self.student_loss_weight)
                if 'loss' in key
                else value
                for key, value in student.items()
            }
            losses.update(add_prefix(weighted, 'student'))
        losses.update(add_prefix(distill, 'distill'))
        return losses

    def _run_teacher(self, batch_inputs, data_samples) -> None:
        distiller = self.distiller
        distiller.set_deliveries_override(False)
        # What functions return is recorded and delivered, and some of them
        # are called only where losses are computed.
        functions = (FunctionOutputsRecorder, MethodOutputsRecorder)
        needs_loss = distiller.deliveries.deliveries or any(
            isinstance(recorder, functions)
            for recorder in distiller.teacher_recorders.recorders.values()
        )
        mode = 'loss' if needs_loss else 'tensor'
        with distiller.teacher_recorders, distiller.deliveries:
            self.teacher(batch_inputs, data_samples, mode=mode)

    def _run_student(self, batch_inputs, data_samples) -> dict:
        distiller = self.distiller
        distiller.set_deliveries_override(True)
        with (
            distiller.student_recorders,
            distiller.deliveries,
            torch.set_grad_enabled(
                torch.is_grad_enabled() and self.student_trainable
            ),
        ):
            return self.student(batch_inputs, data_samples, mode='loss')


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


def example_images(
    count: int, size: tuple[int, int], channels: int = 3
) -> torch.Tensor:
    """Make images ``(N, C, H, W)`` of which no two, and no two pixels, agree.

    On blank ones a network of zero biases gives zeros wherever it is right
    and wherever it is wrong.
    """
    shape = (count, channels, *size)
    return torch.linspace(-2, 2, math.prod(shape)).view(shape)


def make_samples(count: int, num_classes: int) -> list:
    """Make data samples of the first class, with every kind of label."""
    from mmpretrain.structures import DataSample

    score = torch.eye(num_classes)[0]
    return [
        DataSample(metainfo=dict(sample_idx=index))
        .set_gt_label(0)
        .set_gt_score(score)
        for index in range(count)
    ]


def describe_images(count: int, size: tuple[int, int]) -> list:
    """Describe unlabelled images of one size.

    Some detectors need this to make proposals, even without a loss.
    """
    sizes = ('ori_shape', 'img_shape', 'pad_shape', 'batch_input_shape')
    image = dict.fromkeys(sizes, size) | dict(scale_factor=(1.0, 1.0))
    return [
        BaseDataElement(metainfo=image | dict(img_id=index, sample_idx=index))
        for index in range(count)
    ]


def count_classes(output: Any) -> int | None:
    """Count the classes of a classifier of images by its output.

    Returns:
        int, optional: None for a model of another kind, such as a detector
        or segmentor.
    """
    output = getattr(output, 'logits', output)
    if isinstance(output, list | tuple):
        output = output[-1]
    if isinstance(output, torch.Tensor) and output.ndim == 2:
        return output.shape[1]
    return None


def _native_size(model: nn.Module) -> Size | None:
    """Size of the images that a network was made for, if it tells."""
    _, backbone = find_backbone(model)
    patch_embed = getattr(backbone, 'patch_embed', None)
    return getattr(backbone, 'img_size', None) or getattr(
        patch_embed, 'init_input_size', None
    )


def _scale(loss: Any, weight: float) -> Any:
    """Weigh a loss, or each of a list of losses."""
    if isinstance(loss, list | tuple):
        return [item * weight for item in loss]
    return loss * weight
