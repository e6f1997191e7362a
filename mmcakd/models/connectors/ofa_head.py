"""Exit heads of OFA-KD: from each stage of a student to logits."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import kaiming_init
from mmengine.model.weight_init import trunc_normal_init
from mmpretrain.models.backbones.vision_transformer import (
    TransformerEncoderLayer,
)
from torch import nn

from mmcakd.arguments import PositiveInt
from mmcakd.registry import MODELS

from ..stages import StageTokens
from .base import BaseConnector
from .utils import check_stage_numbers, check_stages

Stage = torch.Tensor | StageTokens


class SeparableBlock(nn.Sequential):
    """Two depthwise separable convolutions, the first of stride 2.

    Maps ``(N, C, H, W)`` to ``(N, C', H / 2, W / 2)``, rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers = []
        for stride, width in ((2, in_channels), (1, out_channels)):
            layers += [
                nn.Conv2d(
                    in_channels,
                    in_channels,
                    3,
                    stride,
                    padding=1,
                    groups=in_channels,
                    bias=False,
                ),
                nn.Conv2d(in_channels, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class MapHead(nn.Sequential):
    """Head of a convolutional stage.

    Args:
        stage (int): 1 to 4; stages before the last are brought to its
            resolution by one :class:`SeparableBlock` a halving.
        in_channels (int): Channels of the stage.
        embed_dims (int): Width before the classifier.
        num_classes (int): Classes.
    """

    def __init__(
        self, stage: int, in_channels: int, embed_dims: int, num_classes: int
    ) -> None:
        widths = [in_channels * 2**i for i in range(4 - stage)] + [embed_dims]
        blocks = [
            SeparableBlock(*pair)
            for pair in zip(widths[:-1], widths[1:], strict=True)
        ]
        super().__init__(
            *(blocks or [nn.Conv2d(in_channels, embed_dims, 1)]),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(embed_dims, num_classes),
        )


class PatchMerging(nn.Module):
    """Join 2x2 neighbours: ``(N, H, W, C)`` to ``(N, H / 2, W / 2, C')``.

    Odd sides are padded with zeros.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class TokenHead(nn.Module):
    """Head of a stage of tokens.

    Args:
        stage (int): 1 to 4; earlier stages get more transformer blocks.
        in_channels (int): Width of the stage.
        grid (tuple[int, int]): Its patch tokens.
        embed_dims (int): Width of the blocks.
        num_classes (int): Classes.
        num_heads (int): Attention heads of the blocks.
        final_grid (int): Patches are merged until their grid is less than
            twice as wide as this.

    Raises:
        ValueError: The heads do not divide the width.
    """

    def __init__(
        self,
        stage: int,
        in_channels: int,
        grid: tuple[int, int],
        embed_dims: int,
        num_classes: int,
        num_heads: int,
        final_grid: int,
    ) -> None:
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide the student's width "
                f'{embed_dims}; take one of its divisors'
            )
        side = math.isqrt(grid[0] * grid[1])
        merges = max(math.floor(math.log2(side / final_grid)), 0)
        layers: list[nn.Module] = []
        for index in range(merges):
            layers.append(PatchMerging(in_channels, embed_dims))
            if index + 1 < merges or merges == 1:
                layers.append(nn.GELU())
            in_channels = embed_dims
        if in_channels != embed_dims:
            layers.append(nn.Linear(in_channels, embed_dims, bias=False))
        self.merge = nn.Sequential(*layers)
        self.blocks = nn.Sequential(
            *(
                TransformerEncoderLayer(
                    embed_dims, num_heads, 4 * embed_dims, qkv_bias=False
                )
                for _ in range(max(4 - stage, 1))
            )
        )
        self.classifier = nn.Linear(embed_dims, num_classes)

    def forward(self, stage: StageTokens) -> torch.Tensor:
        """Classify by the class token, or else by the mean of the patches."""
        tokens = self.merge(stage.map.permute(0, 2, 3, 1)).flatten(1, 2)
        num_extra = stage.extra.shape[1]
        if num_extra:
            tokens = torch.cat((stage.extra, tokens), 1)
        tokens = self.blocks(tokens)
        pooled = tokens[:, 0] if num_extra else tokens.mean(1)
        return self.classifier(pooled)


@MODELS.register_module()
class OFAHeadConnector(BaseConnector):
    r"""Project the stages of a student to the space of the logits.

    There, features of any two architectures can be compared: each stage gets
    a head of its own, whose logits learn from the teacher's (see
    :class:`mmcakd.models.losses.OFALoss`). The heads serve training only.

    ======================  ================================================
    student                 head of stage ``s``
    ======================  ================================================
    feature maps            ``4 - s`` separable convolution blocks of stride
                            2 (a 1x1 convolution for the last stage), to the
                            larger of the two models' widths; average pooling
    tokens                  patch merging down to a 7x7 grid at 224 px,
                            ``max(4 - s, 1)`` transformer blocks of the
                            student's width; class token, or mean
    ======================  ================================================

    and a linear classifier. Class and other extra tokens pass the merging by.

    Source: `One-for-All <https://arxiv.org/abs/2310.19444>`_, section 3.2;
    layers as in its public code. Where a stage of tokens is narrower than the
    last and has nothing to merge, as in a Swin at a small input size, a
    linear layer widens it, and odd grids are padded (both ours).

    Args:
        stages (Sequence[int]): The stages, 1 to 4, that get a head. Defaults
            to all four.
        num_heads (int): Attention heads in the heads of token students.
            Defaults to 4.
        final_grid (int): Side of the grid at which merging ends. Defaults to
            7.
        embed_dims (int, optional): Width of the heads' last features. By
            default the larger of both models' widths for maps, the student's
            for tokens.
        num_classes (int, optional): Read from ``shape_like`` if None.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Stages outside of 1 to 4, or sizes that are missing.

    Examples:
        >>> import torch
        >>> from mmcakd.models.connectors import OFAHeadConnector
        >>> heads = OFAHeadConnector()
        >>> stages = [torch.rand(2, 64 * 2**i, 56 // 2**i, 56 // 2**i)
        ...           for i in range(4)]
        >>> heads.prepare(
        ...     dict(stages=stages),
        ...     dict(feature=torch.rand(2, 192, 14, 14),
        ...          logits=torch.rand(2, 1000)))
        >>> [tuple(logits.shape) for logits in heads(stages)]
        [(2, 1000), (2, 1000), (2, 1000), (2, 1000)]
        >>> sum(p.numel() for p in heads.parameters())
        3041184
    """

    def __init__(
        self,
        stages: Sequence[int] = (1, 2, 3, 4),
        num_heads: PositiveInt = 4,
        final_grid: PositiveInt = 7,
        embed_dims: PositiveInt | None = None,
        num_classes: PositiveInt | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.stages = check_stage_numbers(stages, 'stages')
        self.num_heads = num_heads
        self.final_grid = final_grid
        self.embed_dims = embed_dims
        self.num_classes = num_classes

    def prepare(
        self,
        inputs: dict[str, Sequence[Stage]],
        like: dict[str, torch.Tensor] | None,
    ) -> None:
        """Build the heads.

        Args:
            inputs (dict): ``stages``, all stages of the student.
            like (dict[str, Tensor], optional): The teacher's last stage as
                ``feature`` and its ``logits``.
        """
        if hasattr(self, 'heads'):
            return
        stages, like = inputs['stages'], like or {}
        check_stages(stages, 'stages', self.stages, 'stages')
        if self.num_classes is None:
            if 'logits' not in like:
                raise ValueError(
                    'the number of classes is open: name the logits of the '
                    'teacher in `shape_like`, or set `num_classes`'
                )
            self.num_classes = like['logits'].shape[1]
        width = _map(stages[-1]).shape[1]
        if self.embed_dims is None and isinstance(stages[-1], StageTokens):
            self.embed_dims = width
        elif self.embed_dims is None:
            if 'feature' not in like:
                raise ValueError(
                    'the width of the heads is open: name the last stage of '
                    'the teacher as `feature` in `shape_like`, or set '
                    '`embed_dims`'
                )
            self.embed_dims = max(width, like['feature'].shape[1])
        self.heads = nn.ModuleList(
            self._build_head(index, stages[index - 1]) for index in self.stages
        )
        self._init_heads()

    def _build_head(self, index: int, stage: Stage) -> nn.Module:
        channels, *grid = _map(stage).shape[1:]
        if isinstance(stage, StageTokens):
            return TokenHead(
                index,
                channels,
                grid,
                self.embed_dims,
                self.num_classes,
                self.num_heads,
                self.final_grid,
            )
        return MapHead(index, channels, self.embed_dims, self.num_classes)

    def _init_heads(self) -> None:
        for module in self.heads.modules():
            if isinstance(module, nn.Conv2d):
                kaiming_init(module, mode='fan_out')
            elif isinstance(module, nn.Linear):
                trunc_normal_init(module, std=0.02)

    def forward(self, stages: Sequence[Stage]) -> tuple[torch.Tensor, ...]:
        """Classify by each stage.

        Args:
            stages (Sequence[Tensor | StageTokens]): The student's four
                stages.

        Returns:
            tuple[Tensor, ...]: Logits ``(N, num_classes)`` of each stage in
            ``self.stages``.
        """
        return tuple(
            head(stages[index - 1])
            for index, head in zip(self.stages, self.heads, strict=True)
        )


def _map(stage: Stage) -> torch.Tensor:
    return stage.map if isinstance(stage, StageTokens) else stage
