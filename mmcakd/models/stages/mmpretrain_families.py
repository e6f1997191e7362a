"""The stages of MMPretrain's backbones."""

from dataclasses import replace

from torch import nn

from .taps import (
    Blocks,
    Family,
    Tap,
    alternate,
    behind_norm,
    chain,
    check_blocks,
    enter,
    last_four,
    paths,
    split_at,
    split_by_resolution,
)


def _resnet(net: nn.Module) -> list[Tap]:
    return chain(last_four(net.res_layers))


def _last_of_stages(net: nn.Module) -> list[Tap]:
    return chain(last_four(paths(net, 'stages')))


def _named_stages(net: nn.Module) -> list[Tap]:
    steps = last_four(net.stages)
    # The pooled pyramid that may end a RepVGG.
    if not isinstance(getattr(net, 'ppf', nn.Identity()), nn.Identity):
        steps[-1].append('ppf')
    return chain(steps)


def _vgg(net: nn.Module) -> list[Tap]:
    layers = paths(net, net.module_name)
    ends = [stop - 1 for _, stop in net.range_sub_modules]
    return chain(split_at(layers, ends)[-4:])


def _alexnet(net: nn.Module) -> list[Tap]:
    # In front of each pooling, and behind the last one.
    return chain(split_at(paths(net, 'features'), [1, 4, 11, 12]))


def _inception(net: nn.Module) -> list[Tap]:
    modules = [name for name, _ in net.named_children() if name != 'AuxLogits']
    ends = ['Conv2d_4a_3x3', 'Mixed_5d', 'Mixed_6e', 'Mixed_7c']
    return chain(split_at(modules, ends))


def _densenet(net: nn.Module) -> list[Tap]:
    # A transition lies behind each stage; the last one is the final norm.
    transitions = paths(net, 'transitions')
    steps = alternate(
        paths(net, 'stages')[-4:], ['stem', *transitions[:-1]][-4:]
    )
    return chain(steps, norm=transitions[-1], transition=1)


def _downsample_in_front(net: nn.Module) -> list[Tap]:
    # The norm, if there is one, works on the pooled feature.
    return chain(
        alternate(paths(net, 'stages'), paths(net, 'downsample_layers')),
        transition=1,
    )


def _replknet(net: nn.Module) -> list[Tap]:
    stages = paths(net, 'stages')
    norm = f'{stages[-1]}.norm'
    has_norm = not isinstance(net.get_submodule(norm), nn.Identity)
    return chain(
        alternate(stages, ['stem.0', *paths(net, 'transitions')]),
        norm=norm if has_norm else None,
        transition=1,
    )


def _repmlp(net: nn.Module) -> list[Tap]:
    return chain(
        alternate(
            paths(net, 'stages'),
            ['patch_embed', *paths(net, 'downsample_layers')],
        ),
        norm='final_norm' if net.final_norm else None,
        transition=1,
    )


def _mobilenet_v2(net: nn.Module) -> list[Tap]:
    # 24, 32, 96 channels at strides 4, 8, 16, then the 1x1 head at 32.
    return chain(split_by_resolution(net, ['conv1', *net.layers]))


def _mobilenet_v3(net: nn.Module) -> list[Tap]:
    return chain(split_by_resolution(net, net.layers))


def _efficientnet(net: nn.Module) -> list[Tap]:
    return chain(split_by_resolution(net, paths(net, 'layers')))


def _shufflenet(net: nn.Module) -> list[Tap]:
    # Stages 2 to 4 follow a max pooling; version 2 ends with a 1x1 head.
    modules = ['conv1', 'maxpool', *paths(net, 'layers')]
    return chain(split_by_resolution(net, modules))


def _mobilevit(net: nn.Module) -> list[Tap]:
    steps = last_four(paths(net, 'layers'))
    steps[-1].append('conv_1x1_exp')
    return chain(steps)


def _metaformer(net: nn.Module) -> list[Tap]:
    # Stages and embeddings alternate in one list.
    stages = paths(net, 'network')
    norm = f'norm{len(stages) - 1}'
    return chain(
        split_at(stages, range(0, len(stages), 2)),
        norm=norm if hasattr(net, norm) else None,
        transition=1,
    )


def _efficientformer(net: nn.Module) -> list[Tap]:
    taps = chain([[path] for path in paths(net, 'network')])
    for name, module in net.network[-1].named_children():
        if type(module).__name__ == 'Flat':
            # The last blocks work on tokens.
            flat = f'{taps[-1].source}.{name}'
            taps[-1] = replace(taps[-1], layout='NLC', grid_source=flat)
    if hasattr(net, 'norm3'):
        as_map = dict(layout='NCHW', steps=None)
        as_map = as_map if net.reshape_last_feat else {}
        taps[-1] = behind_norm(taps[-1], 'norm3', **as_map)
    return taps


def _isotropic_convs(name: str):
    def find(net: nn.Module, blocks: Blocks) -> list[Tap]:
        modules = paths(net, name)
        return chain(split_at(modules, check_blocks(blocks, len(modules))))

    return find


def _hrnet(net: nn.Module) -> list[Tap]:
    # The branch that each stage adds, which has the lowest resolution.
    added = [
        Tap(f'stage{i}', output=i - 1, has_branches=True) for i in (2, 3, 4)
    ]
    return [Tap('layer1'), *added]


def _conformer(net: nn.Module) -> list[Tap]:
    # The convolutional branch, the first output of every block; the tokens
    # of the other branch stay on one grid.
    third = net.depths // 3
    ends = [third, 2 * third, 3 * third - 1, 3 * third]
    return [Tap(f'conv_trans_{end}', has_branches=True) for end in ends]


def _van(net: nn.Module) -> list[Tap]:
    taps = [
        Tap(paths(net, f'blocks{i}')[-1]) for i in range(1, net.num_stages + 1)
    ]
    last = net.num_stages
    taps = enter(taps, [Tap(f'patch_embed{i}') for i in range(2, last + 1)])
    taps[-1] = behind_norm(
        taps[-1],
        f'norm{last}',
        layout='NLC',
        grid_source=f'patch_embed{last}',
    )
    return taps


def _tokens(path: str) -> Tap:
    """Tap a module that tells the grid of the tokens that it returns."""
    return Tap(path, 'NLC', grid_source=path)


def _swin(net: nn.Module) -> list[Tap]:
    # The last block of a stage stands before the next patch merging, with
    # which a stage of version 2 begins and another one ends.
    stages = paths(net, 'stages')
    ends = [paths(net, f'{stage}.blocks')[-1] for stage in stages]
    merges = [
        f'{stage}.downsample'
        for stage, module in zip(stages, net.stages, strict=True)
        if module.downsample is not None
    ]
    taps = enter(map(_tokens, ends), map(_tokens, merges))
    norm = f'norm{len(ends) - 1}'
    if hasattr(net, norm):
        taps[-1] = behind_norm(taps[-1], norm)
    return taps


def _twins(net: nn.Module) -> list[Tap]:
    ends = []
    for index, stage in enumerate(paths(net, 'stages')):
        blocks = paths(net, stage)
        # The position encoding follows the first block.
        single = len(blocks) == 1
        ends.append(f'position_encodings.{index}' if single else blocks[-1])
    embeds = paths(net, 'patch_embeds')
    taps = enter(map(_tokens, ends), map(_tokens, embeds[1:]))
    norm = f'norm_after_stage{len(ends) - 1}'
    if not isinstance(net.get_submodule(norm), nn.Identity):
        taps[-1] = behind_norm(taps[-1], norm)
    return taps


def _mixmim(net: nn.Module) -> list[Tap]:
    stages = paths(net, 'layers')
    grids = [layer.input_resolution for layer in net.layers]
    ends = [
        Tap(paths(net, f'{stage}.blocks')[-1], 'NLC', grid=grid)
        for stage, grid in zip(stages, grids, strict=True)
    ]
    merged = [
        Tap(f'{stage}.downsample', 'NLC', grid=grid)
        for stage, grid in zip(stages[:-1], grids[1:], strict=True)
    ]
    taps = enter(ends, merged)
    taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


def _tinyvit(net: nn.Module) -> list[Tap]:
    taps, steps = [], []
    for name, stage in zip(paths(net, 'stages'), net.stages, strict=True):
        steps += paths(net, f'{name}.blocks')
        # The first stage is convolutional, the others are built for a size.
        size = getattr(stage.blocks[-1], 'img_size', None)
        kind = dict(layout='NLC', grid=size) if size else {}
        taps.append(Tap(steps[-1], steps=tuple(steps), transition=1, **kind))
        steps = [f'{name}.downsample']
    return taps


def _lenet(net: nn.Module) -> list[Tap]:
    # Behind the activation of each convolution.
    return chain(split_at(paths(net, 'features'), [1, 4, 7]))


def _levit(net: nn.Module) -> list[Tap]:
    return [
        Tap(stage, 'NLC', grid=(side, side), steps=(stage,))
        for stage, side in zip(
            paths(net, 'stages'), net.resolutions, strict=True
        )
    ]


def _hivit(net: nn.Module) -> list[Tap]:
    # Patches stay windows of smaller ones up to the last stage; patch merging
    # follows each of the others.
    grid = tuple(net.patch_embed.patches_resolution)
    ends = [
        index - 1
        for index, block in enumerate(net.blocks)
        if type(block).__name__ == 'PatchMerge'
    ]
    windows = [Tap(f'blocks.{end}', 'NLHWC', grid=grid) for end in ends]
    merged = [Tap(f'blocks.{end + 1}', 'NLHWC', grid=grid) for end in ends]
    last = Tap(paths(net, 'blocks')[-1], 'NLC', grid=grid)
    return enter([*windows, last], merged)


def _rev_vit(net: nn.Module) -> list[Tap]:
    # Its blocks carry two streams, which are joined behind the last one.
    extra = net.num_extra_tokens
    return [Tap('fusion_layer', 'NLC', extra, 'patch_embed')]


def _mvit(net: nn.Module) -> list[Tap]:
    ends = sorted(net.stage_indices)
    taps = [
        Tap(f'blocks.{end}', 'NLC', grid_source=f'blocks.{end}')
        for end in ends
    ]
    last = net.stage_indices[ends[-1]]
    if last in net.out_scales:
        taps[-1] = behind_norm(taps[-1], f'norm{last}')
    return taps


def _plain_vit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    ends = [f'layers.{i}' for i in check_blocks(blocks, len(net.layers))]
    taps = [
        Tap(end, 'NLC', net.num_extra_tokens, 'patch_embed') for end in ends
    ]
    if net.final_norm:
        taps[-1] = behind_norm(taps[-1], 'ln1')
    return taps


def _vit_sam(net: nn.Module, blocks: Blocks) -> list[Tap]:
    layers = paths(net, 'layers')
    return chain(
        split_at(layers, check_blocks(blocks, len(layers))), layout='NHWC'
    )


def _t2t_vit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    layers = paths(net, 'encoder')
    return chain(
        split_at(layers, check_blocks(blocks, len(layers))),
        norm='norm' if net.final_norm else None,
        layout='NLC',
        extra_tokens=net.num_extra_tokens,
        grid_source='tokens_to_token',
    )


def _tnt(net: nn.Module, blocks: Blocks) -> list[Tap]:
    embed = net.pixel_embed
    side = embed.proj.stride[0]
    grid = tuple(
        pixels // (side * patch)
        for pixels, patch in zip(
            embed.img_size, embed.new_patch_size, strict=True
        )
    )
    # A layer returns pixel tokens, then patch tokens, to which the next layer
    # adds in place.
    taps = [
        Tap(
            f'layers.{i}',
            'NLC',
            1,
            grid=grid,
            output=1,
            copy=True,
            has_branches=True,
        )
        for i in check_blocks(blocks, len(net.layers))
    ]
    taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


def _xcit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    ends = check_blocks(blocks, len(net.xca_layers))
    taps = [
        Tap(f'xca_layers.{i}', 'NLC', grid_source='patch_embed')
        for i in ends[:3]
    ]
    # The class token joins the patches for the last few layers.
    last = Tap(paths(net, 'ca_layers')[-1], 'NLC', 1, 'patch_embed')
    return [*taps, behind_norm(last, 'norm')]


def _mixer(net: nn.Module, blocks: Blocks) -> list[Tap]:
    layers = paths(net, 'layers')
    return chain(
        split_at(layers, check_blocks(blocks, len(layers))),
        norm=net.norm1_name,
        layout='NLC',
        grid_source='patch_embed',
    )


#: Class name -> its family, or why it has none.
MMPRETRAIN: dict[str, Family | str] = {
    # Convolutional networks
    'AlexNet': Family(_alexnet, 'AlexNet'),
    'LeNet5': Family(_lenet, 'LeNet-5'),
    'VGG': Family(_vgg, 'VGG-11 to VGG-19, with and without BN'),
    'InceptionV3': Family(_inception, 'Inception V3'),
    'ResNet': Family(
        _resnet,
        'ResNet, -V1c, -V1d, -CIFAR, ResNeXt, SE-ResNet, SE-ResNeXt, '
        'ResNeSt, Res2Net, RegNet',
    ),
    'DenseNet': Family(_densenet, 'DenseNet-121 to -201'),
    'CSPNet': Family(_last_of_stages, 'CSPDarkNet, CSPResNet, CSPResNeXt'),
    'HRNet': Family(_hrnet, 'HRNet-W18 to -W64'),
    'ShuffleNetV1': Family(_shufflenet, 'ShuffleNet V1'),
    'ShuffleNetV2': Family(_shufflenet, 'ShuffleNet V2'),
    'MobileNetV2': Family(_mobilenet_v2, 'MobileNet V2'),
    'MobileNetV3': Family(_mobilenet_v3, 'MobileNet V3'),
    'EfficientNet': Family(_efficientnet, 'EfficientNet-B0 to -B8, -ES'),
    'EfficientNetV2': Family(_efficientnet, 'EfficientNetV2-S to -XL'),
    'RepVGG': Family(_named_stages, 'RepVGG-A0 to -D2'),
    'MobileOne': Family(_named_stages, 'MobileOne-S0 to -S4'),
    'RepLKNet': Family(_replknet, 'RepLKNet-31B to -XL'),
    'ConvNeXt': Family(_downsample_in_front, 'ConvNeXt, ConvNeXt V2'),
    'HorNet': Family(_downsample_in_front, 'HorNet-T to -L'),
    'EdgeNeXt': Family(_downsample_in_front, 'EdgeNeXt-XXS to -B'),
    'VAN': Family(_van, 'VAN-T to -L'),
    'ConvMixer': Family(
        _isotropic_convs('stages'), 'ConvMixer', isotropic=True
    ),
    'Vig': Family(_isotropic_convs('blocks'), 'ViG', isotropic=True),
    'PyramidVig': Family(_last_of_stages, 'Pyramid ViG'),
    # Between the two
    'PoolFormer': Family(_metaformer, 'PoolFormer-S12 to -M48'),
    'RIFormer': Family(_metaformer, 'RIFormer-S12 to -M48'),
    'EfficientFormer': Family(_efficientformer, 'EfficientFormer-L1 to -L7'),
    'MobileViT': Family(_mobilevit, 'MobileViT-XXS to -S'),
    'Conformer': Family(_conformer, 'Conformer-T to -B'),
    'TinyViT': Family(_tinyvit, 'TinyViT-5M to -21M'),
    # Transformers with stages
    'SwinTransformer': Family(_swin, 'Swin-T to -L'),
    'SwinTransformerV2': Family(_swin, 'Swin V2-T to -G'),
    'DaViT': Family(_swin, 'DaViT-T to -B'),
    'PCPVT': Family(_twins, 'Twins-PCPVT, Twins-SVT'),
    'MixMIMTransformer': Family(_mixmim, 'MixMIM-B'),
    'LeViT': Family(_levit, 'LeViT-128S to -384'),
    'HiViT': Family(_hivit, 'HiViT-T to -B'),
    'MViT': Family(_mvit, 'MViT V2-T to -L'),
    # Transformers without
    'VisionTransformer': Family(
        _plain_vit, 'ViT, DeiT, DeiT distilled, DeiT III', isotropic=True
    ),
    'RevVisionTransformer': Family(_rev_vit, 'RevViT-S, -B'),
    'BEiTViT': Family(_plain_vit, 'BEiT, BEiT V2, EVA', isotropic=True),
    'ViTEVA02': Family(_plain_vit, 'EVA-02', isotropic=True),
    'ViTSAM': Family(_vit_sam, 'SAM image encoder', isotropic=True),
    'T2T_ViT': Family(_t2t_vit, 'T2T-ViT', isotropic=True),
    'TNT': Family(_tnt, 'TNT-S', isotropic=True),
    'XCiT': Family(_xcit, 'XCiT', isotropic=True),
    # Networks of MLPs
    'MlpMixer': Family(_mixer, 'MLP-Mixer', isotropic=True),
    'RepMLPNet': Family(_repmlp, 'RepMLP-B'),
    # Without stages
    'SparseResNet': 'a ResNet inside SparK pre-training; use ResNet',
    'SparseConvNeXt': 'a ConvNeXt inside SparK pre-training; use ConvNeXt',
}
