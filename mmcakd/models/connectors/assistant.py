"""A hybrid of student and teacher as a connector."""

from collections.abc import Sequence
from typing import Literal

import torch
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmengine.model import BaseModule
from mmpretrain.models.backbones.swin_transformer import SwinBlock
from torch import nn

from mmcakd.arguments import Grid, NonNegativeInt, PositiveInt
from mmcakd.registry import MODELS

from ..functional import check_map, resize_map
from ..stages import find_taps
from ..teachers import Teacher
from .base import BaseConnector
from .receiver import Receiver


class LocalToGlobalProjector(BaseModule):
    """A patch embedding and one Swin block, from a map to a later stage.

    The patch embedding is a convolution as wide as its stride, and a
    LayerNorm. The stride is what the map's grid is longer than the stage's; a
    map that is no whole multiple is resized to one.

    Args:
        in_channels (int): Width of the map.
        embed_dims (int): Width of the stage.
        stride (tuple[int, int]): Of the patch embedding, ``(H, W)``.
        num_heads (int): Heads of the Swin block.
        window_size (int): Its window.
        init_cfg (dict, optional): Initialization config.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors.assistant import (
        ...     LocalToGlobalProjector)
        >>> project = LocalToGlobalProjector(256, 768, (2, 2), 24, 7)
        >>> project(torch.rand(2, 256, 14, 14), (7, 7)).shape
        torch.Size([2, 49, 768])
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        stride: Grid,
        num_heads: int,
        window_size: int,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.stride = stride
        self.patch_embed = PatchEmbed(
            in_channels,
            embed_dims,
            kernel_size=stride,
            stride=stride,
            padding=0,
            norm_cfg=dict(type='LN'),
        )
        self.block = SwinBlock(
            embed_dims, num_heads, window_size, pad_small_map=True
        )

    def forward(self, feature: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Project a map ``(N, in_channels, h, w)`` to ``(N, H * W, C)``."""
        sides = zip(grid, self.stride, strict=True)
        feature = resize_map(feature, tuple(g * s for g, s in sides))
        tokens, grid = self.patch_embed(feature)
        return self.block(tokens, grid)


@MODELS.register_module()
class AssistantConnector(BaseConnector):
    """TAS's assistant: early stages of one model, the last of the other.

    The first three stages of one model, a projector, the last stage and the
    head of the other model. Both parts are the models' own modules: nothing
    is copied, the first three stages are those that the model computes
    anyway, and only the projector (:class:`LocalToGlobalProjector`) is new.
    A teacher's part is frozen and passes gradients on, a student's part is
    trained by the assistant as well.

    Source: `TAS <https://arxiv.org/abs/2410.12342>`_ (in its second version
    FBT, "Fuse Before Transfer"). Which model comes first, the split after the
    third stage and the projector's parts are the paper's. Ours, since its
    text and code were not at hand, are: the kernel of the patch embedding,
    heads of about 32 channels where the receiving stage has no attention, and
    what a receiving ViT gets for its class token, namely the one that enters
    its first block, with its position embedding: it knows nothing of the
    image, so that the answer has to come from the first model's features. The
    receiving stage is entered behind its patch merging, where that is a
    module of its own. BatchNorm statistics of a receiving student stay those
    of its own features.

    Args:
        first (str): Whose first three stages it has: ``'student'``,
            ``'teacher'``, or ``'auto'``: the teacher's if that one works on
            feature maps and the student on tokens (a CNN that teaches a
            transformer or MLP), or else the student's. Defaults to
            ``'auto'``.
        num_heads (int, optional): Heads of the projector's Swin block.
            Defaults to those of the receiving stage.
        window_size (int): Largest window of the Swin block. Defaults to 7.
        blocks (Sequence[int], optional): The last block of each stage, for
            isotropic receivers whose recorder has the same argument.
        init_cfg (dict | list[dict], optional): Initialization config.

    Raises:
        ValueError: An unknown ``first``; a receiving model whose last stage
            cannot be replayed or whose head is not known; heads that do not
            divide the width.

    Examples:
        >>> connectors = dict(
        ...     assistant=dict(
        ...         type='mmcakd.AssistantConnector',
        ...         inputs=dict(
        ...             student=dict(
        ...                 recorder='stages', from_student=True, data_idx=2),
        ...             teacher=dict(
        ...                 recorder='stages', from_student=False,
        ...                 data_idx=2))))
        >>> logits = dict(connector='assistant', connector_idx='logits')
        >>> feature = dict(connector='assistant', connector_idx='feature')
    """

    def __init__(
        self,
        first: Literal['auto', 'student', 'teacher'] = 'auto',
        num_heads: PositiveInt | None = None,
        window_size: PositiveInt = 7,
        blocks: Sequence[NonNegativeInt] | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.first = first
        self.num_heads = num_heads
        self.window_size = window_size
        self.blocks = blocks
        self.projector: LocalToGlobalProjector | None = None

    def attach(self, student: nn.Module, teacher: Teacher) -> None:
        """Get hold of the receiving model's last stage."""
        if self.first == 'auto':
            crosses = works_on_maps(teacher.model) and not works_on_maps(
                student
            )
            self.first = 'teacher' if crosses else 'student'
        model = teacher.model if self.first == 'student' else student
        # Not as a submodule: these weights are not the connector's.
        object.__setattr__(self, 'receiver', Receiver(model, self.blocks))

    def prepare(
        self, inputs: dict[str, torch.Tensor], like: torch.Tensor | None
    ) -> None:
        """Check that the receiver is understood, and build the projector."""
        self.receiver.check()
        if self.projector is not None:
            return
        feature = inputs[self.first]
        check_map(feature, self.first)
        sides = zip(feature.shape[2:], self.receiver.grid, strict=True)
        width = self.receiver.width
        num_heads = self.num_heads or self.receiver.num_heads
        if width % num_heads:
            raise ValueError(
                f'{num_heads} heads do not divide the {width} channels of '
                'the receiving stage; set `num_heads`'
            )
        self.projector = LocalToGlobalProjector(
            in_channels=feature.shape[1],
            embed_dims=width,
            stride=tuple(max(side // own, 1) for side, own in sides),
            num_heads=num_heads,
            window_size=min(self.window_size, *self.receiver.grid),
        )

    def forward(
        self, student: torch.Tensor, teacher: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Run the assistant.

        Args:
            student (Tensor): The student's third stage ``(N, C, H, W)``.
            teacher (Tensor): The teacher's. Only the one that comes first is
                used.

        Returns:
            dict[str, Tensor]: ``feature``, the last stage averaged over its
            positions, ``(N, C')``, and ``logits``, ``(N, K)``.
        """
        first = student if self.first == 'student' else teacher
        tokens = self.projector(first, self.receiver.grid)
        feature, logits = self.receiver(tokens)
        return dict(feature=feature, logits=logits)


def works_on_maps(model: nn.Module) -> bool:
    """Whether all stages of a model are feature maps, as a CNN's are."""
    return all(tap.layout == 'NCHW' for tap in find_taps(model))
