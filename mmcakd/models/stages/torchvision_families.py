"""The four stages of torchvision's classifiers."""

from torch import nn

from .taps import (
    Blocks,
    Family,
    Tap,
    chain,
    check_blocks,
    last_four,
    paths,
    split_at,
    split_by_resolution,
)


def _resnet(net: nn.Module) -> list[Tap]:
    return chain(last_four(['layer1', 'layer2', 'layer3', 'layer4']))


def _regnet(net: nn.Module) -> list[Tap]:
    return chain(last_four(paths(net, 'trunk_output')))


def _by_resolution(net: nn.Module) -> list[Tap]:
    return chain(split_by_resolution(net, paths(net, 'features')))


def _stem_and_stages(net: nn.Module) -> list[Tap]:
    # A stem or patch merging and a stage in turn.
    return chain(split_at(paths(net, 'features'), [1, 3, 5, 7]))


def _swin(net: nn.Module) -> list[Tap]:
    steps = split_at(paths(net, 'features'), [1, 3, 5, 7])
    return chain(steps, norm='norm', layout='NHWC')


def _vit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    layers = paths(net, 'encoder.layers')
    return chain(
        split_at(layers, check_blocks(blocks, len(layers))),
        norm='encoder.ln',
        layout='NLC',
        extra_tokens=1,
        grid_source='conv_proj',
    )


#: ``torchvision.`` and class name -> its family.
TORCHVISION: dict[str, Family | str] = {
    'torchvision.ResNet': Family(_resnet, 'ResNet, ResNeXt, Wide ResNet'),
    'torchvision.RegNet': Family(_regnet, 'RegNet-X, -Y'),
    'torchvision.MobileNetV2': Family(_by_resolution, 'MobileNet V2'),
    'torchvision.MobileNetV3': Family(_by_resolution, 'MobileNet V3'),
    'torchvision.EfficientNet': Family(
        _by_resolution, 'EfficientNet, EfficientNetV2'
    ),
    'torchvision.ConvNeXt': Family(_stem_and_stages, 'ConvNeXt-T to -L'),
    'torchvision.SwinTransformer': Family(_swin, 'Swin, Swin V2'),
    'torchvision.VisionTransformer': Family(_vit, 'ViT', isotropic=True),
}
