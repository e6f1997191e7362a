"""A convolutional patch embedding for transformers."""

import math

from torch import nn

from mmcakd.arguments import PositiveInt, Size
from mmcakd.registry import MODELS


@MODELS.register_module()
class ConvStem(nn.Sequential):
    """Convolutions in place of a transformer's patch projection.

    Each halving of the resolution is a 3x3 convolution of stride 2 and one of
    stride 1, with BatchNorm and ReLU; a 1x1 convolution ends the stem.
    Transformers learn from far fewer images with it. The layout is ours, the
    idea that of `Early Convolutions Help Transformers See Better
    <https://arxiv.org/abs/2106.14881>`_.

    It has the signature of a convolution, so that it can be the ``conv_type``
    of a ``PatchEmbed``.

    Args:
        in_channels (int): Channels of the image.
        out_channels (int): Width of the tokens; the convolutions before reach
            it by doubling.
        kernel_size (int): Ignored, as are padding, dilation and bias.
        stride (int): Side of a patch, a power of two.

    Raises:
        ValueError: The stride is not a power of two.

    Examples:
        >>> import torch
        >>> from mmpretrain.models import VisionTransformer
        >>> vit = VisionTransformer(
        ...     arch='deit-tiny', img_size=64, patch_size=8,
        ...     patch_cfg=dict(conv_type='mmcakd.ConvStem'),
        ...     with_cls_token=False, out_type='featmap')
        >>> vit(torch.rand(1, 3, 64, 64))[0].shape
        torch.Size([1, 192, 8, 8])
    """

    def __init__(
        self,
        in_channels: PositiveInt,
        out_channels: PositiveInt,
        kernel_size: Size,
        stride: Size = 1,
        padding: int | tuple[int, int] = 0,
        dilation: Size = 1,
        bias: bool = True,
    ) -> None:
        side = stride if isinstance(stride, int) else stride[0]
        halvings = round(math.log2(side))
        if 2**halvings != side or halvings < 1:
            raise ValueError(f'stride {stride} is not a power of two')
        layers: list[nn.Module] = []
        for halving in reversed(range(halvings)):
            width = out_channels // 2**halving
            for step in (2, 1):
                layers += [
                    nn.Conv2d(in_channels, width, 3, step, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
                in_channels = width
        super().__init__(*layers, nn.Conv2d(in_channels, out_channels, 1))
