"""The frozen teacher."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcakd.arguments import Size, check_on_construction

from ..stages import Tail, build_tail
from .normalisation import is_rgb, read_normalisation

Precision = Literal['fp32', 'bf16', 'fp16']
PRECISIONS = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)


@check_on_construction
class Teacher(nn.Module):
    """A frozen network that sees the student's batch.

    It is always in eval mode, so that dropout and stochastic depth never
    blur its targets, and runs without grad: nothing is saved for backward.
    The batch arrives normalised and sized for the student; the teacher
    undoes the student's normalisation and applies its own.

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
    ) -> None:
        super().__init__()
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
        # An affine map per channel from the student's normalisation to the
        # teacher's; None where they agree.
        self.register_buffer('scale', None)
        self.register_buffer('shift', None)
        self.flip_channels = False
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

    def adapt_to(self, student_preprocessor: nn.Module) -> None:
        """Learn how the student's batches are normalised.

        A teacher without a normalisation of its own takes batches as they
        are.

        Args:
            student_preprocessor (nn.Module): The preprocessor that makes the
                batches.
        """
        own = self.model.data_preprocessor
        if not getattr(own, '_enable_normalize', False):
            return
        self.flip_channels = is_rgb(own) != is_rgb(student_preprocessor)
        mean, std = read_normalisation(student_preprocessor, own)
        if self.flip_channels:
            mean, std = mean.flip(0), std.flip(0)
        self.scale = std / own.std
        self.shift = (mean - own.mean) / own.std
        if (self.scale == 1).all() and (self.shift == 0).all():
            self.scale = self.shift = None

    def adapt(self, inputs: torch.Tensor) -> torch.Tensor:
        """Turn the student's batch ``(N, 3, H, W)`` into the teacher's."""
        if self.flip_channels:
            inputs = inputs.flip(1)
        if self.scale is not None:
            inputs = inputs * self.scale + self.shift
        if self.input_size not in (None, tuple(inputs.shape[-2:])):
            inputs = F.interpolate(
                inputs, self.input_size, mode='bicubic', antialias=True
            )
        return inputs.to(memory_format=self.memory_format)

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
