"""A discriminator of patches of a map."""

from itertools import pairwise

import torch
from torch import nn

from mmcakd.arguments import PositiveInt
from mmcakd.registry import MODELS

from .base import BaseDiscriminator


@MODELS.register_module()
class PatchDiscriminator(BaseDiscriminator):
    """Convolutions that judge overlapping patches, one logit each.

    Made for attention maps ``(N, 1, L, L)``. Strided 4x4 convolutions double
    the width from ``base_channels`` up to eight times that; two more without
    stride follow. Between them are InstanceNorm, which unlike BatchNorm keeps
    no statistics of features that change, and LeakyReLU of slope 0.2.

    Source: PatchGAN of `Image-to-Image Translation with Conditional
    Adversarial Networks <https://arxiv.org/abs/1611.07004>`_, section 3.2.2.
    The public code of `Cross-Architecture Knowledge Distillation
    <https://arxiv.org/abs/2207.05273>`_ uses one of its kind; the
    normalisation is ours.

    Args:
        in_channels (int, optional): Read from the teacher if None.
        base_channels (int): Width after the first layer. Defaults to 64.
        num_layers (int): Number of strided convolutions. Defaults to 3.
        init_cfg (dict, optional): Initialization config.

    Raises:
        ValueError: Maps that are too small or have other channels.

    Examples:
        >>> import torch
        >>> from mmcakd.models.discriminators import PatchDiscriminator
        >>> discriminator = PatchDiscriminator(in_channels=1)
        >>> discriminator(torch.rand(2, 1, 196, 196)).shape
        torch.Size([2, 1, 22, 22])
    """

    def __init__(
        self,
        in_channels: PositiveInt | None = None,
        base_channels: PositiveInt = 64,
        num_layers: PositiveInt = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels
        self.base_channels = base_channels
        self.num_layers = num_layers
        self.layers: nn.Sequential | None = None
        if in_channels is not None:
            self._build()

    def prepare(self, feature: torch.Tensor) -> None:
        """Read the channels that the config left open, and build."""
        if self.layers is None:
            self.in_channels = _as_map(feature).shape[1]
            self._build()
            self.layers.to(feature.device)

    def _build(self) -> None:
        widths = [
            self.base_channels * min(2**i, 8)
            for i in range(self.num_layers + 1)
        ]
        layers = [_conv(self.in_channels, widths[0], 2), nn.LeakyReLU(0.2)]
        for index, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if index < self.num_layers else 1
            layers += [
                _conv(before, width, stride, bias=False),
                nn.InstanceNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(_conv(widths[-1], 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Judge maps.

        Args:
            feature (Tensor): ``(N, in_channels, H, W)``; a map of one channel
                may be ``(N, H, W)``.

        Returns:
            Tensor: Logits ``(N, 1, h, w)``.
        """
        maps = _as_map(feature)
        # InstanceNorm needs two places, and the layer before it takes one.
        least = 3 * 2**self.num_layers
        if maps.shape[1] != self.in_channels or min(maps.shape[2:]) < least:
            raise ValueError(
                f'this discriminator was built for maps (N, '
                f'{self.in_channels}, H, W) with sides of at least {least}, '
                f'but got {tuple(feature.shape)}; check what its loss reads, '
                'or set a smaller num_layers'
            )
        return self.layers(maps)


def _conv(
    in_channels: int, out_channels: int, stride: int, bias: bool = True
) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 4, stride, 1, bias=bias)


def _as_map(feature: torch.Tensor) -> torch.Tensor:
    if feature.ndim not in (3, 4):
        raise ValueError(
            'features should be maps (N, C, H, W) or (N, H, W), got '
            f'{tuple(feature.shape)}'
        )
    return feature.unsqueeze(1) if feature.ndim == 3 else feature
