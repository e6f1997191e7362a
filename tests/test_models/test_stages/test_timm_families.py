"""The four stages of every family of timm."""

import mmpretrain.models as mm
import pytest
import timm
import torch
from timm import models as tm
from timm.layers import BatchNormAct2d, GatedMlp
from torch import nn

from mmcakd.models.stages import (
    FAMILIES,
    build_tail,
    check_blocks,
    find_family,
    find_taps,
    split_blocks,
    to_tokens,
)

#: A small model of every class that timm describes.
DESCRIBED = dict(
    ByobNet='test_byobnet',
    CPUBone='cpubone_nano',
    CSATv2='csatv2',
    ConvNeXt='test_convnext',
    CspNet='cs3darknet_focus_s',
    CspNext='cspnext_tiny',
    DLA='dla46x_c',
    DPN='dpn48b',
    DaVit='davit_tiny',
    DenseNet='densenet121',
    EdgeNeXt='edgenext_xx_small',
    EfficientFormerV2='efficientformerv2_s0',
    EfficientNet='test_efficientnet',
    EfficientVit='efficientvit_b0',
    EfficientVitMsra='efficientvit_m0',
    FastVit='fastvit_t8',
    FasterNet='fasternet_t0',
    FocalNet='focalnet_tiny_srf',
    GhostNet='ghostnet_050',
    GlobalContextVit='gcvit_xxtiny',
    HieraDet='sam2_hiera_tiny',
    HighPerfGpuNet='hgnetv2_b0',
    IFormer='iformer_t',
    InceptionResnetV2='inception_resnet_v2',
    InceptionV3='inception_v3',
    InceptionV4='inception_v4',
    LCNetV2='lcnetv2_small',
    LowFormer='lowformer_b0',
    MambaOut='test_mambaout',
    MaxxVit='maxvit_pico_rw_256',
    MetaFormer='poolformerv2_s12',
    MetaNeXt='inception_next_atto',
    MobileNetV3='mobilenetv3_small_050',
    NextViT='nextvit_small',
    NormFreeNet='test_nfnet',
    PyramidVisionTransformerV2='pvt_v2_b0',
    RDNet='rdnet_tiny',
    RegNet='regnetx_002',
    RepGhostNet='repghostnet_050',
    RepVit='repvit_m1',
    ResNet='test_resnet',
    ResNetV2='resnetv2_18',
    RexNet='rexnet_100',
    SENet='legacy_seresnet18',
    SHViT='shvit_s1',
    StarNet='starnet_s050',
    SwiftFormer='swiftformer_xs',
    SwinTransformer='swin_tiny_patch4_window7_224',
    SwinTransformerV2='swinv2_tiny_window8_256',
    SwinTransformerV2Cr='swinv2_cr_tiny_224',
    TResNet='tresnet_m',
    TinyVit='tiny_vit_5m_224',
    VovNet='ese_vovnet19b_slim',
    Xception='legacy_xception',
    XceptionAligned='xception41p',
)
SWIN = dict(
    img_size=(64, 96),
    embed_dim=8,
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 4, 4),
    window_size=2,
)
VIT = dict(
    img_size=(64, 96), patch_size=16, embed_dim=16, depth=6, num_heads=2
)
SQUARE = VIT | dict(img_size=64)
MIXER = dict(img_size=64, embed_dim=16, num_blocks=6)


def mvit(**kwargs):
    cfg = tm.mvitv2.MultiScaleVitCfg(
        depths=(1, 1, 2, 1), embed_dim=16, **kwargs
    )
    return tm.mvitv2.MultiScaleVit(cfg, img_size=(64, 64))


#: Networks of all kinds that run in no time; images of 64 x 96, or 64 x 64.
SMALL = {
    'ByobNet': lambda: timm.create_model('test_byobnet'),
    'ConvNeXt': lambda: timm.create_model('test_convnext'),
    'ConvNeXt with its norm in front of the pooling': lambda: tm.ConvNeXt(
        depths=(1,) * 4, dims=(4, 8, 16, 32), head_norm_first=True
    ),
    'EdgeNeXt': lambda: timm.create_model('edgenext_xx_small'),
    'EfficientNet': lambda: timm.create_model('test_efficientnet'),
    'MambaOut': lambda: timm.create_model('test_mambaout'),
    'MetaFormer': lambda: tm.MetaFormer(depths=(1,) * 4, dims=(4, 8, 16, 32)),
    'MobileNetV3': lambda: timm.create_model('mobilenetv3_small_050'),
    'NormFreeNet': lambda: timm.create_model('test_nfnet'),
    'RegNet': lambda: timm.create_model('regnetx_002'),
    'ResNet': lambda: timm.create_model('test_resnet'),
    'ResNetV2': lambda: tm.ResNetV2(
        (1,) * 4, (8, 16, 32, 64), norm_layer=BatchNormAct2d
    ),
    'SwinTransformer': lambda: tm.SwinTransformer(**SWIN),
    'SwinTransformerV2': lambda: tm.SwinTransformerV2(**SWIN),
    'ConvMixer': lambda: tm.ConvMixer(dim=8, depth=6, patch_size=8),
    'VisionTransformer': lambda: tm.VisionTransformer(**VIT),
    'VisionTransformer with registers': lambda: tm.VisionTransformer(
        **VIT, reg_tokens=4
    ),
    'VisionTransformer without cls': lambda: tm.VisionTransformer(
        **VIT, class_token=False, global_pool='avg'
    ),
    'VisionTransformer of any size': lambda: tm.VisionTransformer(
        **SQUARE, dynamic_img_size=True
    ),
    'VisionTransformerDistilled': lambda: tm.deit.VisionTransformerDistilled(
        **VIT
    ),
    'VisionTransformerRelPos': lambda: (
        tm.vision_transformer_relpos.VisionTransformerRelPos(**SQUARE)
    ),
    'VisionTransformerSAM': lambda: (
        tm.vision_transformer_sam.VisionTransformerSAM(
            **VIT, neck_chans=8, use_rel_pos=True, window_size=2
        )
    ),
    'Beit': lambda: tm.Beit(**SQUARE, use_rel_pos_bias=True),
    'Eva': lambda: tm.Eva(**SQUARE, use_rot_pos_emb=True),
    'Cait': lambda: tm.Cait(**SQUARE),
    'ConVit': lambda: tm.ConVit(
        **SQUARE | dict(embed_dim=8), local_up_to_layer=4
    ),
    'Xcit': lambda: tm.Xcit(**VIT, cls_attn_layers=2),
    'MlpMixer': lambda: tm.MlpMixer(**MIXER),
    'MlpMixer as ResMLP': lambda: tm.MlpMixer(
        **MIXER,
        mlp_ratio=4,
        block_layer=tm.mlp_mixer.ResBlock,
        norm_layer=tm.mlp_mixer.Affine,
    ),
    'MlpMixer as gMLP': lambda: tm.MlpMixer(
        **MIXER,
        mlp_ratio=4,
        block_layer=tm.mlp_mixer.SpatialGatingBlock,
        mlp_layer=GatedMlp,
    ),
    'MultiScaleVit': lambda: mvit(use_cls_token=False),
    'MultiScaleVit with cls': lambda: mvit(use_cls_token=True),
    'Twins': lambda: tm.Twins(
        img_size=64,
        embed_dims=(8, 16, 32, 64),
        num_heads=(1, 2, 4, 8),
        depths=(1, 2, 2, 1),
    ),
    'HighResolutionNet': lambda: timm.create_model('hrnet_w18_small'),
}
#: ``(C, H, W)`` of its stages, and extra tokens of token networks.
EXPECTED = {
    'MlpMixer': [(16, 4, 4, 0)] * 4,
    'VisionTransformer': [(16, 4, 6, 1)] * 4,
    'VisionTransformer with registers': [(16, 4, 6, 5)] * 4,
    'VisionTransformer without cls': [(16, 4, 6, 0)] * 4,
    'VisionTransformer of any size': [(16, 4, 6, 1)] * 4,
    'VisionTransformerDistilled': [(16, 4, 6, 2)] * 4,
    'VisionTransformerRelPos': [(16, 4, 4, 0)] * 4,
    'VisionTransformerSAM': [(16, 4, 6, 0)] * 4,
    'Beit': [(16, 4, 4, 1)] * 4,
    'Eva': [(16, 4, 4, 1)] * 4,
    'Cait': [(16, 4, 4, 0)] * 4,
    'ConVit': [(16, 4, 4, 0)] * 2 + [(16, 4, 4, 1)] * 2,
    'Xcit': [(16, 4, 6, 0)] * 3 + [(16, 4, 6, 1)],
    'MultiScaleVit with cls': [
        (16, 16, 16, 1), (32, 8, 8, 1), (64, 4, 4, 1), (128, 2, 2, 1),
    ],
    'SwinTransformer': [
        (8, 16, 24, 0), (16, 8, 12, 0), (32, 4, 6, 0), (64, 2, 3, 0),
    ],
    'ConvMixer': [(8, 8, 12)] * 4,
    'HighResolutionNet': [
        (128, 16, 24), (32, 8, 12), (64, 4, 6), (128, 2, 3),
    ],
}  # fmt: skip


def images_for(name):
    square = name.split()[0] in {
        'Beit',
        'Cait',
        'ConVit',
        'Eva',
        'MlpMixer',
        'MultiScaleVit',
        'Twins',
        'VisionTransformerRelPos',
    }
    return torch.randn(2, 3, 64, 64 if square else 96)


@pytest.mark.parametrize('name', DESCRIBED)
def test_maps_are_those_that_timm_describes(name, checks):
    with torch.device('meta'):
        net = timm.create_model(DESCRIBED[name]).eval()
        assert find_family(net)[0] == f'timm.{name}'
        images = torch.empty(1, *net.pretrained_cfg['input_size'])
        raw = checks.record(net, images, final_norm=False)
        maps = checks.record(net, images)
    assert checks.shapes(maps) == checks.shapes(raw)
    assert [map_.shape[1] for map_ in raw] == [
        info['num_chs'] for info in list(net.feature_info)[-4:]
    ]
    for map_, info in zip(raw, list(net.feature_info)[-4:], strict=True):
        # Convolutions without padding lose a little, others round up.
        side = images.shape[-1] / info['reduction']
        assert 0.85 < map_.shape[-1] / side < 1.15


@pytest.mark.parametrize('name', sorted(SMALL))
def test_maps_are_the_intermediates_that_timm_returns(name, checks):
    net = checks.ready(SMALL[name]())
    assert find_family(net)[0].startswith(f'timm.{name.split()[0][:17]}')
    images = images_for(name)
    raw = checks.record(net, images, final_norm=False)
    stages = checks.record(net, images, final_norm=False, extra_tokens=True)
    if name in EXPECTED:
        assert checks.shapes(stages) == EXPECTED[name]
    if name == 'HighResolutionNet':
        # It returns the branches of the last stage.
        return
    isotropic = FAMILIES[find_family(net)[0]].isotropic
    indices = list(check_blocks(None, len(net.blocks))) if isotropic else 4
    with torch.no_grad():
        own = net.forward_intermediates(
            images, indices=indices, intermediates_only=True, norm=False
        )
    # Those of XCiT end before the class token joins.
    last = 3 if name == 'Xcit' else 4
    for kept, map_ in list(zip(raw, own, strict=True))[:last]:
        assert torch.equal(kept, map_)


@pytest.mark.parametrize('name', sorted(SMALL))
def test_last_map_is_the_networks_final_feature(name, checks):
    net = checks.ready(SMALL[name]())
    images = images_for(name)
    taps = find_taps(net)
    if taps[3].raw is None:
        assert not taps[3].source.endswith('norm')
        return
    final = {}
    net.get_submodule(taps[3].source).register_forward_hook(
        lambda module, inputs, outputs: final.update(out=outputs)
    )
    stages = checks.record(net, images, extra_tokens=True)
    with torch.no_grad():
        features = net.forward_features(images)
    # Nothing follows the norm but pooling and the head.
    assert torch.equal(features, final['out'])
    map_ = getattr(stages[3], 'map', stages[3])
    if features.ndim == 3:
        tokens = torch.cat((stages[3].extra, to_tokens(map_)), 1)
        assert torch.equal(tokens, features)
    else:
        nhwc = map_.permute(0, 2, 3, 1)
        assert torch.equal(nhwc, features) or torch.equal(map_, features)


@pytest.mark.parametrize('name', sorted(SMALL))
def test_no_map_is_overwritten_by_what_follows(name, checks):
    net = SMALL[name]()
    checks.overwriting(net, images_for(name))


@pytest.mark.parametrize('name', sorted(SMALL))
def test_any_part_replayed_is_the_networks_own(name, checks):
    net = checks.ready(SMALL[name]())
    checks.replay(net, images_for(name))


@pytest.mark.parametrize('name', ['Xception', 'XceptionAligned'])
def test_stages_that_end_inside_blocks_are_not_replayed(name):
    with torch.device('meta'):
        net = timm.create_model(DESCRIBED[name])
    for start in (1, 2, 3):
        with pytest.raises(ValueError, match='replayed: .* shortcuts'):
            build_tail(net, start)


def test_other_blocks_of_a_vit_may_end_the_stages(checks):
    net = SMALL['VisionTransformer']()
    taps = find_taps(net, (0, 2, 3, 5))
    assert [tap.source for tap in taps] == [
        'blocks.0',
        'blocks.2',
        'blocks.3',
        'norm',
    ]
    assert find_taps(net)[1].source == f'blocks.{split_blocks(6)[1]}'


@pytest.mark.parametrize('features_only', [True, False])
def test_stages_inside_mmpretrains_backbone(features_only, checks):
    net = mm.TIMMBackbone('test_resnet', features_only=features_only)
    images = torch.rand(2, 3, 64, 96)
    checks.ready(net)
    maps = checks.record(net, images)
    assert all(
        tap.source.startswith('timm_model.layer') for tap in find_taps(net)
    )
    own = net(images)
    for kept, map_ in zip(maps[-len(own) :], own[-4:], strict=False):
        assert torch.equal(kept, map_)
    assert torch.equal(maps[3], own[-1])
    checks.replay(net, images)


def test_every_family_of_timm_is_tested():
    tested = {find_family(SMALL[name]())[0] for name in SMALL}
    tested |= {f'timm.{name}' for name in DESCRIBED}
    entries = {
        key
        for key, entry in FAMILIES.items()
        if key.startswith('timm.') and not isinstance(entry, str)
    }
    # Tested inside MMPretrain's backbone; an LSTM that is slow to build; and
    # those of three stages, with tests of their own.
    assert entries - tested == {
        'timm.FeatureListNet',
        'timm.Sequencer2d',
        'timm.EfficientViM',
        'timm.Levit',
        'timm.Nest',
        'timm.PoolingVisionTransformer',
        'timm.Visformer',
    }


def test_family_without_stages_says_why():
    with torch.device('meta'):
        net = timm.create_model('hiera_tiny_224')
    with pytest.raises(ValueError, match='no stages: .*mask units'):
        find_taps(net)


class Lstm(nn.Module):
    """Keeps the sizes of a Sequencer2D's stage, but not its time."""

    def __init__(self, lstm) -> None:
        super().__init__()
        self.width = lstm.hidden_size * (2 if lstm.bidirectional else 1)

    def forward(self, x):
        return x.mean(-1, keepdim=True).repeat(1, 1, self.width), None


def test_stages_of_sequencer(checks):
    with torch.device('meta'):
        net = timm.create_model('sequencer2d_s')
    for module in net.modules():
        for name in ('rnn_v', 'rnn_h'):
            if isinstance(getattr(module, name, None), nn.LSTM):
                setattr(module, name, Lstm(getattr(module, name)))
    images = torch.empty(1, 3, 224, 224, device='meta')
    stages = checks.record(net, images, extra_tokens=True)
    assert checks.shapes(stages) == [
        (192, 32, 32, 0),
        *[(384, 16, 16, 0)] * 3,
    ]
