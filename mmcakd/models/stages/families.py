"""Where the four stages of each model family are.

A tap is a module whose output ends a stage. One function a family lists its
four taps; :func:`find_taps` picks the function by the class of the backbone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Tap:
    """The output of a module, and how to read a map from it.

    Args:
        source (str): Path of the module in the model.
        layout (str): ``'NCHW'``, ``'NHWC'`` or ``'NLC'``.
        extra_tokens (int): Class, distillation and register tokens in front
            of the patch tokens.
        grid_source (str, optional): Path of a module that tells the grid of
            the tokens: as the second of its outputs (a patch embedding) or
            of its inputs (a window attention block).
    """

    source: str
    layout: str = 'NCHW'
    extra_tokens: int = 0
    grid_source: str | None = None

    def __post_init__(self) -> None:
        layouts = ('NCHW', 'NHWC', 'NLC')
        if self.layout not in layouts:
            raise ValueError(
                f'tap {self.source!r}: layout {self.layout!r} is not one of '
                f'{layouts}'
            )
        if self.layout == 'NLC' and self.grid_source is None:
            raise ValueError(
                f'tap {self.source!r}: tokens need `grid_source`, the module '
                "whose output tells the grid, e.g. 'backbone.patch_embed'"
            )


def split_blocks(num_blocks: int) -> tuple[int, int, int, int]:
    """Last block of each stage of an isotropic network, 0-based.

    Follows the split of Swin-T (2, 2, 6, 2) for 12 blocks and of Swin-S
    (2, 2, 18, 2) for 24, as OFA-KD does; other depths in proportion.

    Examples:
        >>> split_blocks(12), split_blocks(24), split_blocks(8)
        ((1, 3, 9, 11), (1, 3, 21, 23), (1, 3, 5, 7))
    """
    if num_blocks < 4:
        raise ValueError(
            f'{num_blocks} blocks cannot be split into four stages; name the '
            'taps with `taps`'
        )
    if num_blocks < 8:
        return 0, 1, num_blocks - 2, num_blocks - 1
    return 1, 3, num_blocks - 3, num_blocks - 1


def check_blocks(
    blocks: Sequence[int] | None, num_blocks: int
) -> tuple[int, ...]:
    """Check a choice of four stage ends, or make the default one."""
    if blocks is None:
        return split_blocks(num_blocks)
    blocks = tuple(blocks)
    if (
        len(blocks) != 4
        or list(blocks) != sorted(set(blocks))
        or blocks[0] < 0
        or blocks[-1] != num_blocks - 1
    ):
        raise ValueError(
            f'`blocks` must be four increasing block indices ending with '
            f'{num_blocks - 1}, the last block, but got {blocks}'
        )
    return blocks


def _resnet(net: nn.Module, blocks=None) -> list[Tap]:
    return [Tap(f'layer{i}') for i in (1, 2, 3, 4)]


def _convnext(net: nn.Module, blocks=None) -> list[Tap]:
    return [Tap(f'stages.{i}') for i in range(4)]


def _mobilenet_v2(net: nn.Module, blocks=None) -> list[Tap]:
    # 24, 32, 96 channels at strides 4, 8, 16, then the 1x1 head at 32.
    return [Tap('layer2'), Tap('layer3'), Tap('layer5'), Tap('conv2')]


def _swin(net: nn.Module, blocks=None) -> list[Tap]:
    # The last block of a stage stands before the next patch merging.
    ends = [
        f'stages.{i}.blocks.{len(stage.blocks) - 1}'
        for i, stage in enumerate(net.stages)
    ]
    taps = [Tap(end, 'NLC', grid_source=end) for end in ends]
    last = len(ends) - 1
    if hasattr(net, f'norm{last}'):
        taps[-1] = replace(taps[-1], source=f'norm{last}')
    return taps


def _plain_vit(net: nn.Module, blocks=None) -> list[Tap]:
    ends = [f'layers.{i}' for i in check_blocks(blocks, len(net.layers))]
    if net.final_norm:
        ends[-1] = 'ln1'
    return [
        Tap(end, 'NLC', net.num_extra_tokens, 'patch_embed') for end in ends
    ]


def _mixer(net: nn.Module, blocks=None) -> list[Tap]:
    ends = [f'layers.{i}' for i in check_blocks(blocks, len(net.layers))]
    ends[-1] = net.norm1_name
    return [Tap(end, 'NLC', grid_source='patch_embed') for end in ends]


def _timm_cnn(net: nn.Module, blocks=None) -> list[Tap]:
    # timm describes its convolutional networks itself.
    return [Tap(info['module']) for info in list(net.feature_info)[-4:]]


#: Class name -> function that lists the four taps. A subclass is found by its
#: parent's entry.
FAMILIES: dict[str, Callable[..., list[Tap]]] = {
    # MMPretrain
    'ResNet': _resnet,
    'ConvNeXt': _convnext,
    'MobileNetV2': _mobilenet_v2,
    'SwinTransformer': _swin,
    'VisionTransformer': _plain_vit,
    'BEiTViT': _plain_vit,
    'ViTEVA02': _plain_vit,
    'MlpMixer': _mixer,
}

#: The same for timm, which reuses some of these names.
TIMM_FAMILIES: dict[str, Callable[..., list[Tap]]] = {
    'ResNet': _timm_cnn,
    'EfficientNet': _timm_cnn,
    'MobileNetV3': _timm_cnn,
    'RegNet': _timm_cnn,
    'ConvNeXt': _timm_cnn,
}


def find_backbone(model: nn.Module) -> tuple[str, nn.Module]:
    """Find the network that has stages inside a classifier or detector.

    Returns:
        tuple[str, nn.Module]: Its path with a trailing dot, and itself.
    """
    prefix = ''
    for name in ('backbone', 'timm_model', 'model'):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            prefix, model = f'{prefix}{name}.', inner
    return prefix, model


def find_taps(
    model: nn.Module, blocks: Sequence[int] | None = None
) -> list[Tap]:
    """List the taps of a model's four stages.

    Args:
        model (nn.Module): A classifier, detector or bare backbone.
        blocks (Sequence[int], optional): For isotropic networks, the last
            block of each stage. Defaults to :func:`split_blocks`.

    Returns:
        list[Tap]: Four taps with paths relative to ``model``.

    Raises:
        ValueError: The family is unknown, or has no four stages.

    Examples:
        >>> from mmpretrain.models import ResNet
        >>> [tap.source for tap in find_taps(ResNet(50))]
        ['layer1', 'layer2', 'layer3', 'layer4']
    """
    prefix, net = find_backbone(model)
    from_timm = type(net).__module__.startswith('timm.')
    families = TIMM_FAMILIES if from_timm else FAMILIES
    for cls in type(net).__mro__:
        if cls.__name__ in families:
            taps = families[cls.__name__](net, blocks)
            break
    else:
        children = ', '.join(
            f'{prefix}{name}' for name, _ in net.named_children()
        )
        raise ValueError(
            f'no stages are known for {type(net).__module__}.'
            f'{type(net).__name__}. Name them in the recorder: '
            "dict(type='mmcakd.StageOutputs', taps=[dict(source='...', "
            "layout='NCHW'), ... four in all]). Its children are: "
            f'{children}'
        )
    if len(taps) != 4:
        raise ValueError(
            f'{type(net).__name__} has {len(taps)} stages, but four are '
            "needed; name them with `taps=[dict(source='...'), ...]`"
        )
    return [
        replace(
            tap,
            source=prefix + tap.source,
            grid_source=tap.grid_source and prefix + tap.grid_source,
        )
        for tap in taps
    ]
