"""The four stages of every family of MMPretrain."""

from dataclasses import dataclass
from typing import Any

import mmpretrain.models as mm
import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

from mmcakd.models.stages import FAMILIES, find_family, find_taps, to_tokens

SIZES = [(64, 64), (96, 96), (64, 96)]
ALL = (0, 1, 2, 3)
#: The default stage ends of six blocks, a fresh list each time: MMPretrain
#: writes into it.
ENDS = (0, 1, 4, 5)

PYRAMID = (4, 8, 16, 32)
P16 = (16, 16, 16, 16)


# ------------------------------------ what the network itself hands out


def same(net, images, records):
    """All four stages."""
    for own, kept in zip(net(images), records, strict=True):
        assert torch.equal(kept, own)


def same_after_the_first(net, images, records):
    """All but the first stage, which it cannot hand out."""
    for own, kept in zip(net(images), records[1:], strict=True):
        assert torch.equal(kept, own)


def same_last(net, images, records):
    assert torch.equal(records[3], net(images)[-1])


def same_last_tokens(net, images, records):
    assert torch.equal(records[3].flatten(2), net(images)[-1])


def same_logits(net, images, records):
    _, logits = net(images)
    pooled = net.avgpool(records[3]).flatten(1)
    assert torch.equal(net.fc(pooled), logits)


def same_pooled(net, images, records):
    """The last stage pooled: alone, or beside a class token."""
    (own,) = net(images)
    own = own[0] if isinstance(own, list) else own
    assert torch.allclose(records[3].mean((2, 3)), own, atol=1e-5)


def normed(stages, norm='norm{}', step=1):
    """Stages that it hands out only behind a norm."""

    def compare(net, images, records):
        for index, (own, kept) in enumerate(
            zip(net(images), records, strict=True)
        ):
            if index in stages:
                kept = apply_norm(
                    net.get_submodule(norm.format(index * step)), kept
                )
            assert torch.equal(kept, own.view_as(kept))

    return compare


def apply_norm(norm, map_):
    on_tokens = (
        isinstance(norm, nn.LayerNorm)
        and 'LayerNorm2d' not in type(norm).__name__
    )
    if not on_tokens:
        return norm(map_)
    return norm(to_tokens(map_)).transpose(1, 2).reshape(map_.shape)


def same_class_token(net, images, records):
    (own,) = net(images)
    (normed,) = [
        outputs
        for outputs in capture(net.norm, lambda: net(images))
        if outputs.ndim == 3
    ]
    assert torch.equal(normed[:, 0], own)
    assert torch.equal(to_tokens(records[3]), normed[:, 1:])


def capture(module, run):
    outputs = []
    handle = module.register_forward_hook(lambda m, i, o: outputs.append(o))
    run()
    handle.remove()
    return outputs


# -------------------------------------------------------------- the networks


def build(type_, **arguments):
    return MODELS.build(dict(type=type_, _scope_='mmpretrain', **arguments))


@dataclass
class Case:
    """A network of a family, and the stages to expect of it.

    Args:
        type (str): Its class in MMPretrain.
        arguments (dict): Of the class; ``'size'`` stands for the image size.
        widths (tuple): Channels of the stages.
        compare (Callable): Compares the records with what it hands out.
        strides (tuple): Of the stages.
        grids (Callable, optional): Side of the image to sides of the stages,
            where they are not the side over the stride.
        extra (tuple): Extra tokens of the stages before the final norm; None
            for a map.
        sizes (Sequence): Image sizes that it can be built for.
        overwritten (bool): Whether it adds positions to a stage in place.
    """

    type: str
    arguments: dict
    widths: tuple
    compare: Any = same
    strides: tuple = PYRAMID
    grids: Any = None
    extra: tuple = (None,) * 4
    sizes: Any = tuple(SIZES)
    overwritten: bool = False

    def find_maps(self, size):
        """``(C, H, W)`` of the stages."""
        sides = self.grids or (
            lambda side: [side // stride for stride in self.strides]
        )
        return list(zip(self.widths, *map(sides, size), strict=True))

    def build(self, size):
        arguments = {
            key: value(size) if callable(value) else value
            for key, value in self.arguments.items()
        }
        return build(self.type, **arguments)


def alexnet_grids(side):
    # Without padding a stride of 2 is (side - 3) // 2 + 1.
    sides = [(side + 4 - 11) // 4 + 1]
    for _ in range(3):
        sides.append((sides[-1] - 3) // 2 + 1)
    return sides


def inception_grids(side):
    side = (side - 3) // 2 + 1 - 2
    sides = [(side - 3) // 2 + 1 - 2]
    for _ in range(3):
        sides.append((sides[-1] - 3) // 2 + 1)
    return sides


def size(size):
    return size


def side(size):
    return size[0]


def ends(size):
    return list(ENDS)


SMALL = dict(stem_channels=4, base_channels=4, out_indices=ALL)
BOTTLENECKS = (16, 32, 64, 128)
META = dict(
    layers=[1] * 4,
    embed_dims=[4, 8, 16, 32],
    mlp_ratios=[2] * 4,
    layer_scale_init_value=1.0,
)
FORMER = dict(
    layers=[1, 1, 1, 2],
    embed_dims=[4, 8, 16, 32],
    downsamples=[False, True, True, True],
    vit_num=1,
)
REPVGG = dict(
    num_blocks=[1] * 4,
    width_factor=[0.25] * 4,
    group_layer_map=None,
    se_cfg=None,
)
TWINS = dict(
    embed_dims=[8, 16, 32, 64],
    depths=[1, 2, 2, 2],
    num_heads=[1, 2, 4, 8],
    patch_sizes=[4, 2, 2, 2],
    strides=[4, 2, 2, 2],
    mlp_ratios=[2] * 4,
    sr_ratios=[8, 4, 2, 1],
)
SWIN = dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 4])
VIT = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32)
CONVNEXT = dict(depths=[1] * 4, channels=[4, 8, 16, 32])
VITS = dict(arch=VIT, img_size=size, out_indices=ends, out_type='featmap')
MIXER = dict(
    embed_dims=16, num_layers=6, tokens_mlp_dims=8, channels_mlp_dims=32
)
HIGH_RESOLUTION = {
    f'stage{i}': dict(
        num_modules=1,
        num_branches=i,
        block='BASIC' if i > 1 else 'BOTTLENECK',
        num_blocks=(1,) * i,
        num_channels=(4, 8, 16, 32)[:i],
    )
    for i in (1, 2, 3, 4)
}
MOBILEVIT = [
    ['mobilenetv2', 8, 1, 1, 2],
    ['mobilenetv2', 8, 2, 1, 2],
    ['mobilevit', 12, 2, 16, 32, 1, 2],
    ['mobilevit', 16, 2, 16, 32, 1, 2],
    ['mobilevit', 20, 2, 16, 32, 1, 2],
]
W16 = (16,) * 4
NO_EXTRA, ONE_EXTRA, TWO_EXTRA = (0,) * 4, (1,) * 4, (2,) * 4
ONLY_224 = ((224, 224),)
SQUARE = ((64, 64), (96, 96))

CASES = {
    'AlexNet': Case(
        'AlexNet',
        {},
        (64, 192, 256, 256),
        same_last,
        grids=alexnet_grids,
    ),
    'VGG': Case(
        'VGG',
        dict(depth=11, norm_cfg=dict(type='BN'), out_indices=(1, 2, 3, 4)),
        (128, 256, 512, 512),
    ),
    'InceptionV3': Case(
        'InceptionV3',
        dict(num_classes=5),
        (192, 288, 768, 2048),
        same_logits,
        grids=inception_grids,
        sizes=((128, 128), (128, 192)),
    ),
    'ResNet': Case('ResNet', dict(depth=18) | SMALL, (4, 8, 16, 32)),
    'ResNetV1c': Case('ResNetV1c', dict(depth=18) | SMALL, (4, 8, 16, 32)),
    'ResNetV1d': Case('ResNetV1d', dict(depth=18) | SMALL, (4, 8, 16, 32)),
    'ResNet_CIFAR': Case(
        'ResNet_CIFAR',
        dict(depth=18) | SMALL,
        (4, 8, 16, 32),
        strides=(1, 2, 4, 8),
    ),
    'ResNeXt': Case(
        'ResNeXt',
        dict(depth=50, groups=2, width_per_group=2) | SMALL,
        BOTTLENECKS,
    ),
    'SEResNet': Case(
        'SEResNet', dict(depth=50, se_ratio=2) | SMALL, BOTTLENECKS
    ),
    'SEResNeXt': Case(
        'SEResNeXt',
        dict(depth=50, groups=2, width_per_group=2, se_ratio=2) | SMALL,
        BOTTLENECKS,
    ),
    'ResNeSt': Case('ResNeSt', dict(depth=50) | SMALL, BOTTLENECKS),
    'Res2Net': Case(
        'Res2Net',
        dict(depth=50, scales=2, base_width=2, out_indices=ALL),
        (256, 512, 1024, 2048),
    ),
    'RegNet': Case(
        'RegNet',
        dict(
            arch=dict(w0=8, wa=8.0, wm=2.2, group_w=8, depth=8, bot_mul=1.0),
            out_indices=ALL,
        ),
        (8, 16, 40, 88),
    ),
    'DenseNet': Case(
        'DenseNet',
        dict(arch=dict(growth_rate=4, depths=[1, 1, 2, 2], init_channels=8)),
        (12, 10, 13, 14),
        same_last,
    ),
    'CSPDarkNet': Case(
        'CSPDarkNet',
        dict(depth=53, out_indices=(1, 2, 3, 4)),
        (128, 256, 512, 1024),
        sizes=((64, 96),),
    ),
    'CSPResNet': Case(
        'CSPResNet',
        dict(depth=50, out_indices=ALL),
        (128, 256, 512, 1024),
        sizes=((64, 96),),
    ),
    'CSPResNeXt': Case(
        'CSPResNeXt',
        dict(depth=50, out_indices=ALL),
        (256, 512, 1024, 2048),
        sizes=((64, 96),),
    ),
    'HRNet': Case(
        'HRNet',
        dict(extra=HIGH_RESOLUTION),
        (16, 8, 16, 32),
        same_last,
    ),
    'ShuffleNetV1': Case(
        'ShuffleNetV1',
        dict(groups=2, out_indices=(0, 1, 2)),
        (24, 200, 400, 800),
        same_after_the_first,
    ),
    'ShuffleNetV2': Case(
        'ShuffleNetV2',
        dict(widen_factor=0.5, out_indices=(0, 1, 3)),
        (24, 48, 96, 1024),
        same_after_the_first,
    ),
    'MobileNetV2': Case(
        'MobileNetV2',
        dict(widen_factor=0.25, out_indices=(1, 2, 4, 7)),
        (8, 8, 24, 1280),
    ),
    'MobileNetV3': Case(
        'MobileNetV3',
        dict(arch='small_050', out_indices=(1, 3, 8, 12)),
        (8, 16, 24, 288),
    ),
    'EfficientNet': Case(
        'EfficientNet',
        dict(arch='b0', out_indices=(2, 3, 4, 6)),
        (24, 40, 112, 1280),
    ),
    'EfficientNet for edge devices': Case(
        'EfficientNet',
        dict(arch='es', out_indices=(2, 3, 4, 6)),
        (32, 48, 144, 1280),
    ),
    'EfficientNetV2': Case(
        'EfficientNetV2',
        dict(arch='s', out_indices=(2, 3, 5, 7)),
        (48, 64, 160, 1280),
        sizes=((64, 96),),
    ),
    'RepVGG': Case(
        'RepVGG',
        dict(arch=REPVGG, base_channels=16, out_indices=ALL),
        (4, 8, 16, 32),
    ),
    'RepVGG with pooled pyramid': Case(
        'RepVGG',
        dict(arch=REPVGG, base_channels=16, out_indices=ALL, add_ppf=True),
        (4, 8, 16, 32),
    ),
    'MobileOne': Case(
        'MobileOne',
        dict(
            arch=dict(
                num_blocks=[1] * 4,
                width_factor=[0.1, 0.1, 0.2, 0.2],
                num_conv_branches=[1] * 4,
                num_se_blocks=[0] * 4,
            ),
            out_indices=ALL,
        ),
        (6, 12, 51, 102),
    ),
    'RepLKNet': Case(
        'RepLKNet',
        dict(
            arch=dict(
                large_kernel_sizes=[7] * 4,
                layers=[1] * 4,
                channels=[8, 16, 32, 64],
                small_kernel=3,
                dw_ratio=1,
            ),
            out_indices=ALL,
        ),
        (8, 16, 32, 64),
        normed({0, 1, 2}, 'stages.{}.norm'),
    ),
    'ConvNeXt': Case(
        'ConvNeXt',
        dict(arch=CONVNEXT, out_indices=ALL, gap_before_final_norm=False),
        (4, 8, 16, 32),
        normed({0, 1, 2, 3}),
    ),
    'ConvNeXt V2': Case(
        'ConvNeXt',
        dict(
            arch=CONVNEXT,
            out_indices=ALL,
            gap_before_final_norm=False,
            use_grn=True,
            layer_scale_init_value=0.0,
        ),
        (4, 8, 16, 32),
        normed({0, 1, 2, 3}),
    ),
    'HorNet': Case(
        'HorNet',
        dict(
            arch=dict(
                base_dim=16,
                depths=[1] * 4,
                orders=[2] * 4,
                dw_cfg=[dict(type='DW', kernel_size=7)] * 4,
            ),
            out_indices=ALL,
            gap_before_final_norm=False,
        ),
        (16, 32, 64, 128),
        normed({0, 1, 2, 3}),
    ),
    'EdgeNeXt': Case(
        'EdgeNeXt',
        dict(
            arch=dict(
                channels=[8, 16, 24, 32],
                depths=[1, 1, 2, 1],
                num_heads=[2] * 4,
            ),
            out_indices=list(ALL),
            gap_before_final_norm=False,
        ),
        (8, 16, 24, 32),
        normed({0, 1, 2, 3}),
    ),
    'EdgeNeXt with positions': Case(
        'EdgeNeXt',
        dict(
            arch=dict(
                channels=[8, 16, 24, 32],
                depths=[1, 1, 2, 1],
                num_heads=[2] * 4,
            ),
            out_indices=list(ALL),
            gap_before_final_norm=False,
            use_pos_embd_global=True,
        ),
        (8, 16, 24, 32),
        normed({0, 1, 2, 3}),
        overwritten=True,
    ),
    'VAN': Case(
        'VAN',
        dict(
            arch=dict(
                embed_dims=[4, 8, 16, 32],
                depths=[1, 2, 1, 1],
                ffn_ratios=[2] * 4,
            ),
            out_indices=ALL,
        ),
        (4, 8, 16, 32),
        None,
    ),
    'ConvMixer': Case(
        'ConvMixer',
        dict(
            arch=dict(embed_dims=16, depth=6, patch_size=8, kernel_size=3),
            out_indices=ends,
        ),
        W16,
        strides=(8,) * 4,
    ),
    'Vig': Case(
        'Vig',
        dict(arch='tiny', out_indices=[1, 3, 9, 11]),
        (192,) * 4,
        strides=P16,
        sizes=ONLY_224,
    ),
    'PyramidVig': Case(
        'PyramidVig',
        dict(arch='tiny', out_indices=list(ALL)),
        (48, 96, 240, 384),
        sizes=ONLY_224,
    ),
    'PoolFormer': Case(
        'PoolFormer',
        dict(arch=META, out_indices=[0, 2, 4, 6]),
        (4, 8, 16, 32),
        normed({0, 1, 2}, step=2),
    ),
    'RIFormer': Case(
        'RIFormer',
        dict(arch=META, out_indices=[0, 2, 4, 6]),
        (4, 8, 16, 32),
        normed({0, 1, 2}, step=2),
    ),
    'EfficientFormer': Case(
        'EfficientFormer',
        dict(arch=FORMER),
        (4, 8, 16, 32),
        same_last_tokens,
        extra=(None, None, None, 0),
        sizes=ONLY_224,
    ),
    'EfficientFormer for downstream tasks': Case(
        'EfficientFormer',
        dict(arch=FORMER, out_indices=list(ALL), reshape_last_feat=True),
        (4, 8, 16, 32),
        normed({0, 1, 2}),
        extra=(None, None, None, 0),
        sizes=ONLY_224,
    ),
    'MobileViT': Case(
        'MobileViT',
        dict(arch=MOBILEVIT, stem_channels=8, out_indices=(1, 2, 3, 4)),
        (8, 12, 16, 80),
    ),
    'Conformer': Case(
        'Conformer',
        dict(arch=dict(embed_dims=24, channel_ratio=1, num_heads=2, depths=6)),
        (64, 128, 256, 256),
        same_pooled,
    ),
    'TinyViT': Case(
        'TinyViT',
        dict(
            arch=dict(
                channels=[8, 16, 32, 32],
                num_heads=[2] * 4,
                depths=[1, 1, 2, 1],
            ),
            img_size=size,
        ),
        (8, 16, 32, 32),
        None,
        extra=(None, 0, 0, 0),
    ),
    'SwinTransformer': Case(
        'SwinTransformer',
        dict(arch=SWIN, img_size=size, window_size=2, out_indices=ALL),
        (8, 16, 32, 64),
        # Only the last stage is recorded behind its norm.
        normed({0, 1, 2}),
        extra=NO_EXTRA,
    ),
    'SwinTransformerV2': Case(
        'SwinTransformerV2',
        dict(
            arch=SWIN | dict(extra_norm_every_n_blocks=2),
            img_size=size,
            window_size=2,
            out_indices=ALL,
        ),
        (8, 16, 32, 64),
        normed({0, 1, 2}),
        extra=NO_EXTRA,
    ),
    'SwinTransformerV2 with padded windows': Case(
        'SwinTransformerV2',
        dict(
            arch=SWIN | dict(extra_norm_every_n_blocks=0),
            img_size=size,
            window_size=3,
            pad_small_map=True,
            out_indices=ALL,
        ),
        (8, 16, 32, 64),
        normed({0, 1, 2}),
        extra=NO_EXTRA,
    ),
    'DaViT': Case(
        'DaViT',
        dict(arch=SWIN, window_size=2, out_indices=ALL),
        (8, 16, 32, 64),
        normed({0, 1, 2}),
        extra=NO_EXTRA,
    ),
    'PCPVT': Case(
        'PCPVT',
        dict(
            arch=TWINS,
            out_indices=ALL,
            norm_after_stage=[False, False, False, True],
        ),
        (8, 16, 32, 64),
        extra=NO_EXTRA,
    ),
    'PCPVT without final norm': Case(
        'PCPVT',
        dict(arch=TWINS, out_indices=ALL),
        (8, 16, 32, 64),
        extra=NO_EXTRA,
    ),
    'SVT': Case(
        'SVT',
        dict(
            arch=TWINS | dict(window_sizes=[2] * 4),
            out_indices=ALL,
            norm_after_stage=True,
        ),
        (8, 16, 32, 64),
        normed({0, 1, 2}, 'norm_after_stage{}'),
        extra=NO_EXTRA,
    ),
    'MixMIMTransformer': Case(
        'MixMIMTransformer',
        dict(arch=SWIN, img_size=size, window_size=[1] * 4),
        (8, 16, 32, 64),
        same_pooled,
        extra=NO_EXTRA,
    ),
    'MViT': Case(
        'MViT',
        dict(
            arch=dict(
                embed_dims=8,
                num_layers=6,
                num_heads=1,
                downscale_indices=[1, 2, 4],
            ),
            img_size=side,
        ),
        (8, 16, 32, 64),
        same_last,
        extra=NO_EXTRA,
        sizes=SQUARE,
    ),
    'VisionTransformer': Case(
        'VisionTransformer', VITS, W16, strides=P16, extra=ONE_EXTRA
    ),
    'VisionTransformer without cls': Case(
        'VisionTransformer',
        VITS | dict(with_cls_token=False),
        W16,
        strides=P16,
        extra=NO_EXTRA,
    ),
    'DeiT distilled': Case(
        'DistilledVisionTransformer',
        VITS,
        W16,
        strides=P16,
        extra=TWO_EXTRA,
    ),
    'DeiT3': Case('DeiT3', VITS, W16, strides=P16, extra=ONE_EXTRA),
    'BEiTViT': Case(
        'BEiTViT',
        VITS | dict(final_norm=True),
        W16,
        strides=P16,
        extra=ONE_EXTRA,
    ),
    'BEiTViT without final norm': Case(
        'BEiTViT', VITS, W16, strides=P16, extra=ONE_EXTRA
    ),
    'ViTEVA02': Case(
        'ViTEVA02',
        VITS,
        W16,
        strides=P16,
        extra=ONE_EXTRA,
        sizes=SQUARE,
    ),
    'ViTSAM': Case(
        'ViTSAM',
        dict(
            arch=VIT | dict(global_attn_indexes=[2, 5]),
            img_size=size,
            window_size=2,
            out_channels=0,
            out_indices=ends,
        ),
        W16,
        strides=P16,
        extra=NO_EXTRA,
    ),
    'T2T_ViT': Case(
        'T2T_ViT',
        dict(
            img_size=side,
            embed_dims=16,
            num_layers=6,
            layer_cfgs=dict(num_heads=2, feedforward_channels=32),
            t2t_cfg=dict(token_dims=8),
            out_indices=ends,
            out_type='featmap',
        ),
        W16,
        strides=P16,
        extra=ONE_EXTRA,
    ),
    'TNT': Case(
        'TNT',
        dict(
            arch=dict(
                embed_dims_outer=16,
                embed_dims_inner=8,
                num_layers=6,
                num_heads_outer=2,
                num_heads_inner=2,
            ),
            img_size=size,
        ),
        W16,
        same_class_token,
        strides=P16,
        extra=ONE_EXTRA,
    ),
    'XCiT': Case(
        'XCiT',
        dict(
            img_size=size,
            embed_dims=16,
            depth=6,
            cls_attn_layers=2,
            num_heads=2,
            out_indices=(0, 1, 4, 7),
            out_type='featmap',
        ),
        W16,
        strides=P16,
        extra=(0, 0, 0, 1),
    ),
    'MlpMixer': Case(
        'MlpMixer',
        dict(arch=MIXER, img_size=size),
        W16,
        same_last_tokens,
        strides=P16,
        extra=NO_EXTRA,
    ),
    'RepMLPNet': Case(
        'RepMLPNet',
        dict(
            arch=dict(
                channels=[8, 16, 32, 64],
                depths=[1] * 4,
                sharesets_nums=[1, 1, 2, 2],
            ),
            img_size=size,
            reparam_conv_kernels=(1,),
        ),
        (8, 16, 32, 64),
        same_last,
    ),
}

every_case = pytest.mark.parametrize('name', CASES)


def of(name):
    """The case, and the largest image it can be built for."""
    case = CASES[name]
    return case, case.sizes[-1]


@pytest.mark.parametrize(
    ('name', 'size'),
    [(name, size) for name, case in CASES.items() for size in case.sizes],
    ids=lambda value: str(value).replace(' ', ''),
)
def test_maps_and_extra_tokens_at_two_sizes_and_oblong(name, size, checks):
    case = CASES[name]
    net = case.build(size)
    net.eval()
    images = torch.randn(2, 3, *size)
    maps = case.find_maps(size)
    assert checks.shapes(checks.record(net, images)) == maps
    stages = checks.record(net, images, final_norm=False, extra_tokens=True)
    assert checks.shapes(stages) == [
        map_ if extra is None else (*map_, extra)
        for map_, extra in zip(maps, case.extra, strict=True)
    ]


@pytest.mark.parametrize(
    'name', [name for name, case in CASES.items() if case.compare]
)
def test_maps_are_those_that_the_backbone_hands_out(name, checks):
    case, size = of(name)
    net = checks.ready(case.build(size))
    images = torch.randn(2, 3, *size)
    records = checks.record(net, images)
    with torch.no_grad():
        case.compare(net, images, records)
    # The comparison could tell stages apart.
    for index, kept in enumerate(records):
        others = records[:index] + records[index + 1 :]
        assert not any(torch.equal(kept, other) for other in others)


def test_norm_of_each_stage_of_van_follows_its_record(checks):
    case, size = of('VAN')
    net = checks.ready(case.build(size))
    images = torch.randn(2, 3, *size)
    records = checks.record(net, images, final_norm=False)
    for index, own in enumerate(net(images)):
        norm = net.get_submodule(f'norm{index + 1}')
        assert torch.equal(apply_norm(norm, records[index]), own)


def test_stages_of_tinyvit_stand_before_the_downsampling(checks):
    case, size = of('TinyViT')
    net = checks.ready(case.build(size))
    images = torch.randn(2, 3, *size)
    records = checks.record(net, images)
    (own,) = net(images)
    pooled = to_tokens(records[3]).mean(1)
    assert torch.allclose(net.norm3(pooled), own, atol=1e-5)
    stages = capture(net.stages[1], lambda: net(images))
    tokens = net.stages[1].downsample(to_tokens(records[1]))
    assert torch.allclose(tokens, stages[0], atol=1e-5)


@pytest.mark.parametrize(
    'name', [name for name, case in CASES.items() if not case.overwritten]
)
def test_no_map_is_overwritten_by_what_follows(name, checks):
    case, size = of(name)
    net = case.build(size)
    checks.overwriting(net, torch.randn(2, 3, *size))


@every_case
def test_any_part_replayed_is_the_networks_own(name, checks):
    case, size = of(name)
    net = checks.ready(case.build(size))
    checks.replay(net, torch.randn(2, 3, *size))


def test_swin_without_outputs_at_its_last_stage_is_read_there_unnormed(
    checks,
):
    net = mm.SwinTransformer(
        SWIN, img_size=64, window_size=2, out_indices=(0,)
    )
    taps = find_taps(net)
    assert taps[3].source == 'stages.3.blocks.0'
    last = checks.record(net, torch.rand(1, 3, 64, 64))[3]
    assert last.shape == (1, 64, 2, 2)


# ---------------------------------------------------- nothing is forgotten


def registered():
    """All backbones of MMPretrain, by class name."""
    return {
        cls.__name__: cls
        for cls in MODELS.module_dict.values()
        if cls.__module__.startswith('mmpretrain.models.backbones.')
    }


def test_every_backbone_of_mmpretrain_has_an_entry():
    import mmpretrain.models.backbones  # noqa: F401

    backbones = registered()
    assert len(backbones) > 60
    # It holds another network, whose family counts.
    del backbones['TIMMBackbone']
    forgotten = [
        name
        for name, cls in backbones.items()
        if find_family(cls.__new__(cls)) is None
    ]
    assert not forgotten


def test_every_entry_with_stages_is_tested():
    tested = {
        find_family(cls.__new__(cls))[0]
        for case in CASES.values()
        for cls in [registered()[case.type]]
    }
    entries = {
        key
        for key, entry in FAMILIES.items()
        if '.' not in key and not isinstance(entry, str)
    }
    # Of other numbers of stages, with tests of their own.
    others = {'LeNet5', 'LeViT', 'HiViT', 'RevVisionTransformer'}
    assert tested | others == entries


def test_every_entry_is_a_class_of_mmpretrain():
    known = {cls for net in registered().values() for cls in net.__mro__}
    names = {cls.__name__ for cls in known}
    assert {key for key in FAMILIES if '.' not in key} <= names


@pytest.mark.parametrize(
    ('net', 'reason'),
    [
        (lambda: build('SparseResNet', depth=50), 'SparK'),
        (lambda: build('SparseConvNeXt'), 'SparK'),
    ],
    ids=['ResNet', 'ConvNeXt'],
)
def test_family_without_stages_says_why(net, reason):
    net = net()
    with pytest.raises(ValueError, match='has no stages') as caught:
        find_taps(net)
    message = str(caught.value)
    assert type(net).__name__ in message
    assert reason in message
    assert 'taps=[dict(source=' in message
