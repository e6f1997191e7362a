"""The frozen teacher."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcakd.arguments import Size, check_on_construction

from ..stages import Tail, build_tail, find_backbone
from .normalisation import (
    RAW,
    Normalisation,
    find_own_normalisation,
    read_normalisation,
)
from .weights import TeacherWeights

#: The input that the student gets, and a teacher unless it asks for another.
DEFAULT_INPUT = 'image'

Precision = Literal['fp32', 'bf16', 'fp16']
PRECISIONS = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@check_on_construction
class Teacher(nn.Module):
    """A frozen network that sees the student's batch.

    It is always in eval mode, so that dropout and stochastic depth never
    blur its targets, and runs without grad: nothing is saved for backward.
    The batch arrives normalised and sized for the student; the teacher
    undoes the student's normalisation and applies its own, so that it sees
    what its own preprocessor would have made of the images. A model of timm,
    torchvision or Hugging Face without a ``data_preprocessor`` knows from its
    package how it is normalised; any other without one takes batches as they
    are. One-channel images are repeated for a network of three channels.

    An algorithm keeps a teacher as a plain attribute, not as a submodule. So
    it is in no ``state_dict``, no optimizer, no DDP bucket, and a deep copy
    of the algorithm (an EMA model) shares it instead of copying it.

    Args:
        model (BaseModel): The network; its weights are frozen in place.
        mode (str): ``'eval'``, or ``'train'`` for reproducing papers whose
            code lets the runner switch the teacher's stochastic depth on
            again. BatchNorm stays in eval mode in both. Defaults to
            ``'eval'``.
        input_size (int | tuple[int, int], optional): Size ``(H, W)`` the
            batch is resized to. Defaults to the student's size.
        precision (str, optional): ``'fp32'``, ``'bf16'`` or ``'fp16'`` for
            the teacher's own forward. Defaults to the student's.
        channels_last (bool): Whether its inputs and weights use the
            channels-last memory format. Defaults to False.
        compile (bool): Whether to run its forward through
            ``torch.compile``. Defaults to False.
        inputs (str): Which of the inputs of a sample it reads, such as a
            second view or modality. Defaults to ``'image'``, the student's.

    Raises:
        ValueError: Unknown mode or precision.

    Examples:
        >>> import torch
        >>> from mmpretrain.models import ImageClassifier
        >>> from mmcakd.models.teachers import Teacher
        >>> model = ImageClassifier(
        ...     backbone=dict(type='SwinTransformer', arch='tiny',
        ...                   img_size=64, window_size=2),
        ...     neck=dict(type='GlobalAveragePooling'),
        ...     head=dict(type='LinearClsHead', num_classes=10,
        ...               in_channels=768))
        >>> teacher = Teacher(model)
        >>> tail = teacher.build_tail(from_stage=3)
        >>> teacher(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> tail(torch.rand(2, 16, 384)).shape
        torch.Size([2, 4, 768])
    """

    def __init__(
        self,
        model: BaseModel,
        mode: Literal['eval', 'train'] = 'eval',
        input_size: Size | None = None,
        precision: Precision | None = None,
        channels_last: bool = False,
        compile: bool = False,
        inputs: str = DEFAULT_INPUT,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        if isinstance(input_size, int):
            input_size = (input_size, input_size)
        self.mode = mode
        self.input_size = input_size
        self.precision = precision
        self.memory_format = (
            torch.channels_last if channels_last else torch.preserve_format
        )
        self.model = model.requires_grad_(False)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compile:
            self.model.compile()
        self.in_channels = count_input_channels(model)
        #: Where its weights come from; set by the algorithm that built it.
        self.weights: TeacherWeights | None = None
        #: How the network wants its images, if it says.
        self.own: Normalisation | None = None
        #: Why that cannot be known.
        self.riddle = ''
        # An affine map per channel from the student's normalisation to the
        # teacher's; None where they agree.
        self.register_buffer('scale', None)
        self.register_buffer('shift', None)
        self.flip_channels = False
        #: Whether padding has to be turned into that of the teacher.
        self.repads = False
        #: What the pipeline does to images, and whether it loads RGB.
        self.images = RAW, False
        self._range_is_checked = False
        self.train(mode == 'train')

    def train(self, mode: bool = True) -> 'Teacher':
        """Stay in eval mode, unless ``mode='train'`` was asked for."""
        super().train(mode and self.mode == 'train')
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        """Share the frozen weights with every copy of the algorithm."""
        return self

    def adapt_to(
        self,
        student_preprocessor: nn.Module,
        pipeline: Normalisation = RAW,
        loads_rgb: bool = False,
    ) -> None:
        """Learn how the student's batches are normalised.

        Args:
            student_preprocessor (nn.Module): The preprocessor that makes the
                batches.
            pipeline (Normalisation): What the data pipeline does to the
                images before. Defaults to nothing.
            loads_rgb (bool): Whether the data set loads RGB images. Defaults
                to False.
        """
        self.scale = self.shift = None
        self.flip_channels = self.repads = False
        self.own, self.riddle = None, ''
        self.images = pipeline, loads_rgb
        try:
            self.own = find_own_normalisation(self.model, loads_rgb)
        except LookupError as error:
            self.riddle = str(error)
        if self.own is None:
            return
        students = pipeline.then(read_normalisation(student_preprocessor))
        scale, shift, self.flip_channels = students.turn_into(self.own)
        if (scale != 1).any() or (shift != 0).any():
            weight = next(self.model.parameters(), scale)
            self.scale = scale.to(weight.device)
            self.shift = shift.to(weight.device)
        self.repads = self.scale is not None or pad_value(
            student_preprocessor
        ) != pad_value(self.model.data_preprocessor)

    def insist_on_weights(self, preprocessor: nn.Module) -> None:
        """Fetch the weights that are named, and insist on them.

        Args:
            preprocessor (nn.Module): The one that prepares its input.

        Raises:
            ValueError: There are none, or it cannot be known how the network
                normalises images.
            RuntimeError: They could not be fetched, or do not fit.
        """
        weights = self.weights
        if not weights.is_complete:
            weights.arrive()
            if self.riddle:
                # What says how it normalises may have arrived, too.
                self.adapt_to(preprocessor, *self.images)
        if self.riddle and not weights.is_random:
            raise ValueError(
                f'it cannot be known how the teacher normalises images: '
                f'{self.riddle}; give its config data_preprocessor=dict('
                'mean=[...], std=[...], to_rgb=True)'
            )

    def watch(self, preprocessor: nn.Module) -> None:
        """Look at the images that the student's preprocessor gets.

        Their sizes are noted in their data samples as ``img_shape``, so that
        padding can be told from images. The first training batch is refused
        if it is not what :meth:`adapt_to` was told.

        Args:
            preprocessor (nn.Module): The preprocessor that makes the batches.
        """
        preprocessor.register_forward_pre_hook(
            self._look_at_images, with_kwargs=True
        )

    def _look_at_images(
        self, preprocessor: nn.Module, args: tuple, kwargs: dict
    ) -> None:
        names = ('data', 'training')
        call = dict(zip(names, args, strict=False)) | kwargs
        data, training = call.get('data'), call.get('training', False)
        images = data.get('inputs') if isinstance(data, dict) else None
        if not isinstance(images, (list, tuple, torch.Tensor)) or not all(
            isinstance(image, torch.Tensor) for image in images
        ):
            return
        sizes = [tuple(image.shape[-2:]) for image in images]
        for sample, size in zip(
            data.get('data_samples') or (), sizes, strict=False
        ):
            if isinstance(sample, BaseDataElement):
                sample.set_metainfo(dict(img_shape=size))
        if training:
            # MMDetection calls so what resizes whole batches.
            augments = getattr(preprocessor, 'batch_augments', None)
            mixes = type(augments).__name__ == 'RandomBatchAugment'
            self._check_images(images, mixes and len(set(sizes)) > 1)

    def _check_images(
        self, images: Sequence[torch.Tensor], mixes_padding: bool
    ) -> None:
        if mixes_padding and self.repads:
            raise ValueError(
                'images of several sizes are padded and then mixed, so that '
                'the padding cannot be turned into that of the teacher, which '
                'normalises otherwise than the student: resize them to one '
                'size in the pipeline'
            )
        if self.own is None or self._range_is_checked:
            return
        self._range_is_checked = True
        if all(image.dtype == torch.uint8 for image in images):
            return
        low = min(float(image.min()) for image in images)
        high = max(float(image.max()) for image in images)
        before, _ = self.images
        raw = max(
            float((value * before.std + before.mean).abs().max())
            for value in (low, high)
        )
        # Pixels go up to 255; only black ones stay at 0.
        if 0 < raw < 10:
            raise ValueError(
                f'the values of the first batch, from {low:.3g} to '
                f'{high:.3g}, are not those of pixels: the images were '
                'normalised before data_preprocessor, and it is not known '
                'how, so that the teacher cannot get its own normalisation '
                f'(mean {_listed(self.own.mean)}, std '
                f'{_listed(self.own.std)}). Normalise in data_preprocessor '
                '(mean, std, to_rgb); for Normalize and ToTensor in the '
                'pipeline it is enough to have mmcakd.TrainingSetHook in '
                'default_hooks'
            )

    def adapt(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn the student's batch ``(N, C, H, W)`` into the teacher's."""
        if self.flip_channels:
            inputs = inputs.flip(1)
        if self.scale is not None:
            inputs = inputs * self.scale + self.shift
        if inputs.shape[1] == 1 and self.in_channels == 3:
            inputs = inputs.expand(-1, 3, -1, -1)
        if self.input_size not in (None, tuple(inputs.shape[-2:])):
            inputs = F.interpolate(
                inputs, self.input_size, mode='bicubic', antialias=True
            )
        return inputs.to(memory_format=self.memory_format)

    def _repad(
        self, images: torch.Tensor, data_samples: Sequence
    ) -> torch.Tensor:
        """Pad a batch with what :meth:`adapt` turns into the own padding."""
        whole = tuple(images.shape[2:])
        sizes = [
            tuple(getattr(sample, 'img_shape', whole)[:2])
            for sample in data_samples
        ]
        if all(size == whole for size in sizes):
            return images
        value = images.new_full(
            (images.shape[1], 1, 1), pad_value(self.model.data_preprocessor)
        )
        if self.scale is not None:
            value = (value - self.shift) / self.scale
        if self.flip_channels:
            value = value.flip(0)
        is_image = torch.ones_like(images[:, :1], dtype=torch.bool)
        for mask, (height, width) in zip(is_image, sizes, strict=False):
            mask[:, height:] = False
            mask[:, :, width:] = False
        return images.where(is_image, value)

    def _precision_context(self, device: str) -> AbstractContextManager:
        if self.precision is None:
            return nullcontext()
        dtype = PRECISIONS[self.precision]
        if dtype == torch.float32:
            return torch.autocast(device, enabled=False)
        return torch.autocast(device, dtype)

    @torch.no_grad()
    def forward(
        self,
        inputs: torch.Tensor,
        data_samples: list | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Run the network once on the student's batch.

        Args:
            inputs (Tensor): ``(N, 3, H, W)``, normalised for the student.
            data_samples (list, optional): Passed on to the network.
            mode (str): ``'tensor'`` computes no head loss. Defaults to
                ``'tensor'``.
        """
        if self.repads and data_samples:
            inputs = self._repad(inputs, data_samples)
        inputs = self.adapt(inputs)
        with self._precision_context(inputs.device.type):
            return self.model(inputs, data_samples, mode=mode)

    def val_step(self, data: dict) -> list:
        """Predict a validation batch, in eval mode.

        MMRazor's validation of student and teacher calls this. The batch is
        prepared as the student's, by ``data_preprocessor``, and adapted.

        Args:
            data (dict): What the data loader gives.

        Returns:
            list: Data samples with predictions.
        """
        was_training = self.training
        self.eval()
        batch = self.data_preprocessor(data, False)
        outputs = self(**batch, mode='predict')
        self.train(was_training)
        return outputs

    def build_tail(
        self, from_stage: int, to_stage: int = 4, blocks=None
    ) -> Tail:
        """Make the frozen part behind a stage callable on other features.

        See :func:`mmcakd.models.stages.build_tail`.
        """
        return build_tail(self.model, from_stage, to_stage, blocks)


def count_input_channels(model: nn.Module) -> int | None:
    """Count the channels of the images that a network takes.

    Returns:
        int, optional: Those of its first convolution; None if it has none.
    """
    _, backbone = find_backbone(model)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None


def pad_value(preprocessor: nn.Module) -> float:
    """Read what a preprocessor pads images with, after it normalised them."""
    # MMSegmentation's has another name for it.
    value = getattr(preprocessor, 'pad_val', 0)
    return getattr(preprocessor, 'pad_value', value)


def _listed(values: torch.Tensor) -> list[float]:
    return [round(value, 3) for value in values.flatten().tolist()]
