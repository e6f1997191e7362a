"""The stages of timm's models."""

from dataclasses import replace

from torch import nn

from .taps import (
    Blocks,
    Family,
    Steps,
    Tap,
    behind_norm,
    chain,
    check_blocks,
    enter,
    paths,
    split_at,
)


def _norm(net: nn.Module) -> str | None:
    # Identity where timm puts the norm behind the pooling.
    for name in ('norm', 'norm_pre'):
        if not isinstance(getattr(net, name, nn.Identity()), nn.Identity):
            return name
    return None


def _described(layout: str = 'NCHW'):
    """Networks that timm describes itself, by ``feature_info``."""

    def find(net: nn.Module) -> list[Tap]:
        ends = [info['module'] for info in list(net.feature_info)[-4:]]
        steps = _between(net, ends)
        if steps:
            return chain(steps, norm=_norm(net), layout=layout)
        return [Tap(end, layout) for end in ends]

    return find


def _between(net: nn.Module, ends: list[str]) -> Steps | None:
    parents = {end.rpartition('.')[0] for end in ends}
    if len(parents) > 1:
        return None
    return split_at(paths(net, parents.pop()), ends)


def _feature_list(net: nn.Module) -> list[Tap]:
    # What `features_only=True` makes of a convolutional network.
    return chain(split_at(paths(net, ''), list(net.return_layers))[-4:])


def _hrnet(net: nn.Module) -> list[Tap]:
    # The branch that each stage adds, which has the lowest resolution.
    added = [
        Tap(f'stage{i}', output=i - 1, has_branches=True) for i in (2, 3, 4)
    ]
    return [Tap('layer1'), *added]


def _isotropic(layout: str):
    def find(net: nn.Module, blocks: Blocks) -> list[Tap]:
        ends = check_blocks(blocks, len(net.blocks))
        return chain(split_at(paths(net, 'blocks'), ends), layout=layout)

    return find


def _vit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    ends = check_blocks(blocks, len(net.blocks))
    return chain(
        split_at(paths(net, 'blocks'), ends),
        norm=_norm(net),
        layout='NLC',
        extra_tokens=net.num_prefix_tokens,
        grid_source='patch_embed.proj',
    )


def _vit_with_positions(net: nn.Module, blocks: Blocks) -> list[Tap]:
    # Its blocks take positions besides the tokens.
    ends = check_blocks(blocks, len(net.blocks))
    taps = [
        Tap(f'blocks.{end}', 'NLC', net.num_prefix_tokens, 'patch_embed.proj')
        for end in ends
    ]
    if _norm(net):
        taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


def _cait(net: nn.Module, blocks: Blocks) -> list[Tap]:
    taps = [
        Tap(f'blocks.{end}', 'NLC', 0, 'patch_embed.proj')
        for end in check_blocks(blocks, len(net.blocks))
    ]
    # Layers of their own bring up the class token beside the patches.
    taps[-1] = behind_norm(taps[-1], 'norm', extra_tokens=1)
    return taps


def _convit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    # The class token joins where the blocks stop being local.
    taps = [
        Tap(
            f'blocks.{end}',
            'NLC',
            int(end >= net.local_up_to_layer),
            'patch_embed.proj',
        )
        for end in check_blocks(blocks, len(net.blocks))
    ]
    taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


def _xcit(net: nn.Module, blocks: Blocks) -> list[Tap]:
    ends = check_blocks(blocks, len(net.blocks))
    taps = [
        Tap(f'blocks.{end}', 'NLC', grid_source='patch_embed')
        for end in ends[:3]
    ]
    # The class token joins the patches for the last few layers.
    last = Tap(paths(net, 'cls_attn_blocks')[-1], 'NLC', 1, 'patch_embed')
    return [*taps, behind_norm(last, 'norm')]


def _mixer(net: nn.Module, blocks: Blocks) -> list[Tap]:
    ends = check_blocks(blocks, len(net.blocks))
    return chain(
        split_at(paths(net, 'blocks'), ends),
        norm=_norm(net),
        layout='NLC',
        grid_source='stem.proj',
    )


def _efficientvim(net: nn.Module) -> list[Tap]:
    # A stage ends with the merging in front of the next one.
    stages = paths(net, 'stages')
    ends = [paths(net, f'{stage}.blocks')[-1] for stage in stages]
    merges = [f'{stage}.downsample' for stage in stages[:-1]]
    return enter(map(Tap, ends), map(Tap, merges))


def _named(net: nn.Module) -> list[Tap]:
    # The first of what the modules return; norms lie behind the pooling.
    return [Tap(info['module']) for info in net.feature_info]


def _pit(net: nn.Module) -> list[Tap]:
    # Class tokens are the second output.
    taps = [replace(tap, has_branches=True) for tap in _named(net)]
    pools = [replace(tap, source=f'{tap.source}.pool') for tap in taps[1:]]
    return enter(taps, pools)


def _visformer(net: nn.Module) -> list[Tap]:
    # Positions are added between the stages.
    taps = enter(_named(net), [Tap('patch_embed2'), Tap('patch_embed3')])
    taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


def _nest(net: nn.Module) -> list[Tap]:
    levels = paths(net, 'levels')
    pools = [f'{level}.pool' for level in levels[1:]]
    taps = enter(map(Tap, levels), map(Tap, pools))
    # The norm takes channels last, to which the network turns the map.
    taps[-1] = behind_norm(taps[-1], 'norm', layout='NHWC')
    return taps


def _levit(net: nn.Module) -> list[Tap]:
    stages = paths(net, 'stages')
    if net.use_conv:
        return chain([[stage] for stage in stages])
    # Each stage but the first begins with taking every second token.
    grids = [
        tuple(stage.downsample.attn_downsample.resolution)
        for stage in net.stages[1:]
    ]
    grids.append(tuple((side + 1) // 2 for side in grids[-1]))
    return [
        Tap(stage, 'NLC', grid=grid, steps=(stage,))
        for stage, grid in zip(stages, grids, strict=True)
    ]


def _mvit(net: nn.Module) -> list[Tap]:
    extra_tokens = int(net.cls_token is not None)
    taps = [
        Tap(stage, 'NLC', extra_tokens, grid_source=stage)
        for stage in paths(net, 'stages')
    ]
    taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


def _twins(net: nn.Module) -> list[Tap]:
    ends = []
    for index, stage in enumerate(paths(net, 'blocks')):
        blocks = paths(net, stage)
        # The position encoding follows the first block.
        single = len(blocks) == 1
        ends.append(f'pos_block.{index}' if single else blocks[-1])
    taps, embeds = (
        [Tap(path, 'NLC', grid_source=path) for path in modules]
        for modules in (ends, paths(net, 'patch_embeds'))
    )
    taps = enter(taps, embeds[1:])
    taps[-1] = behind_norm(taps[-1], 'norm')
    return taps


#: Classes whose ``feature_info`` names the maps, with a model of each.
DESCRIBED = dict(
    ByobNet='RepVGG, MobileOne, ResNeXt-GC',
    CPUBone='CPUBone',
    CSATv2='CSATv2',
    ConvNeXt='ConvNeXt, ConvNeXt V2',
    CspNet='CSPNet, DarkNet',
    CspNext='CSPNeXt',
    DLA='DLA',
    DPN='DPN',
    DaVit='DaViT',
    DenseNet='DenseNet',
    EdgeNeXt='EdgeNeXt',
    EfficientFormerV2='EfficientFormer V2',
    EfficientNet='EfficientNet, MobileNet V1 and V2, MNASNet',
    EfficientVit='EfficientViT of MIT',
    EfficientVitMsra='EfficientViT of MSRA',
    FastVit='FastViT',
    FasterNet='FasterNet',
    FocalNet='FocalNet',
    GhostNet='GhostNet',
    GlobalContextVit='GC ViT',
    HighPerfGpuNet='HGNet',
    IFormer='iFormer',
    InceptionResnetV2='Inception-ResNet V2',
    InceptionV3='Inception V3',
    InceptionV4='Inception V4',
    LCNetV2='LCNet V2',
    LowFormer='LowFormer',
    MaxxVit='MaxViT, CoAtNet',
    MetaFormer='PoolFormer, CAFormer, ConvFormer',
    MetaNeXt='InceptionNeXt',
    MobileNetV3='MobileNet V3 and V4, LCNet',
    NextViT='Next-ViT',
    NormFreeNet='NFNet',
    PyramidVisionTransformerV2='PVT V2',
    RDNet='RDNet',
    RegNet='RegNet-X, -Y, -Z',
    RepGhostNet='RepGhostNet',
    RepVit='RepViT',
    ResNet='ResNet, ResNeXt, SE-ResNet, ResNeSt, Res2Net',
    ResNetV2='ResNet V2, BiT',
    RexNet='ReXNet',
    SENet='SENet',
    SHViT='SHViT',
    StarNet='StarNet',
    SwiftFormer='SwiftFormer',
    SwinTransformerV2Cr='Swin V2-CR',
    TResNet='TResNet',
    TinyVit='TinyViT',
    VovNet='VoVNet',
)
#: The same of networks whose maps lie inside blocks.
INSIDE_BLOCKS = dict(Xception='Xception', XceptionAligned='Xception-41 to -71')
#: The same with channels last.
DESCRIBED_NHWC = dict(
    HieraDet='Hiera of SAM 2',
    MambaOut='MambaOut',
    Sequencer2d='Sequencer2D',
    SwinTransformer='Swin',
    SwinTransformerV2='Swin V2',
)
#: ``timm.`` and class name -> its family, or why it has none.
TIMM: dict[str, Family | str] = {
    f'timm.{name}': entry
    for name, entry in {
        **{
            name: Family(_described(), examples)
            for name, examples in DESCRIBED.items()
        },
        **{
            name: Family(
                _described(),
                examples,
                no_tail='they end inside blocks, whose shortcuts pass them by',
            )
            for name, examples in INSIDE_BLOCKS.items()
        },
        'FeatureListNet': Family(
            _feature_list, 'the above with `features_only=True`'
        ),
        'ConvMixer': Family(_isotropic('NCHW'), 'ConvMixer', isotropic=True),
        'HighResolutionNet': Family(_hrnet, 'HRNet'),
        **{
            name: Family(_described('NHWC'), examples)
            for name, examples in DESCRIBED_NHWC.items()
        },
        'MultiScaleVit': Family(_mvit, 'MViT V2'),
        'Twins': Family(_twins, 'Twins'),
        'VisionTransformer': Family(
            _vit,
            'ViT with or without registers, DeiT, DINOv2, CLIP',
            isotropic=True,
        ),
        'VisionTransformerRelPos': Family(
            _vit_with_positions, 'ViT with relative positions', isotropic=True
        ),
        'VisionTransformerSAM': Family(
            _isotropic('NHWC'), 'SAM image encoder', isotropic=True
        ),
        'Beit': Family(_vit_with_positions, 'BEiT, BEiT V2', isotropic=True),
        'Eva': Family(
            _vit_with_positions, 'EVA, EVA-02, DINOv3', isotropic=True
        ),
        'Cait': Family(_cait, 'CaiT', isotropic=True),
        'ConVit': Family(_convit, 'ConViT', isotropic=True),
        'Xcit': Family(_xcit, 'XCiT', isotropic=True),
        'MlpMixer': Family(_mixer, 'MLP-Mixer, ResMLP, gMLP', isotropic=True),
        'EfficientViM': Family(_efficientvim, 'EfficientViM'),
        'PoolingVisionTransformer': Family(_pit, 'PiT'),
        'Visformer': Family(_visformer, 'Visformer'),
        'Nest': Family(_nest, 'NesT'),
        'Levit': Family(_levit, 'LeViT'),
        'Hiera': 'its tokens are ordered by mask units and not by rows',
    }.items()
}
