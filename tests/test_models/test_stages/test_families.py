"""Where the stages of each family are, and what the recorder makes of them."""

from types import SimpleNamespace

import mmpretrain.models as mm
import pytest
import timm
import torch
from torch import nn

from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.stages import (
    FAMILIES,
    TIMM_FAMILIES,
    Tap,
    check_blocks,
    find_backbone,
    find_taps,
    split_blocks,
    to_tokens,
)

SIZES = [(64, 64), (96, 96)]
ARCH = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32)
SWIN = dict(embed_dims=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 4])
CONVNEXT = dict(depths=[1, 1, 1, 1], channels=[4, 8, 16, 32])
#: The default stage ends of six blocks.
ENDS = [0, 1, 4, 5]


def own_maps(net, images):
    return net(images)


def normed(norms, own=own_maps):
    """Stages that the backbone hands out only behind a norm."""

    def compare(net, images, records):
        for index, (map_, record) in enumerate(
            zip(own(net, images), records, strict=True)
        ):
            if index in norms:
                norm = getattr(net, f'norm{index}')
                if isinstance(norm, nn.LayerNorm) and (
                    'LayerNorm2d' not in type(norm).__name__
                ):
                    tokens = norm(to_tokens(record))
                    record = tokens.transpose(1, 2).view_as(map_)
                else:
                    record = norm(record)
            assert torch.equal(record, map_)

    return compare


def same(net, images, records):
    for map_, record in zip(net(images), records, strict=True):
        assert torch.equal(record, map_)


def same_last_tokens(net, images, records):
    (tokens,) = net(images)
    assert torch.equal(records[3].flatten(2), tokens)


def same_intermediates(net, images, records):
    maps = net.forward_intermediates(
        images, indices=4, intermediates_only=True, norm=False
    )
    for map_, record in zip(maps, records, strict=True):
        assert torch.equal(record, map_)


def family(build, widths, strides, compare):
    return SimpleNamespace(
        build=build, widths=widths, strides=strides, compare=compare
    )


PYRAMID = (4, 8, 16, 32)
PLAIN = (16, 16, 16, 16)

#: Each family built for an image size, and the maps to expect. A ViT that has
#: to hand out its maps needs `featmap`, with its final norm on them.
CASES = {
    'ResNet': family(
        lambda size: mm.ResNet(
            18, stem_channels=4, base_channels=4, out_indices=(0, 1, 2, 3)
        ),
        (4, 8, 16, 32),
        PYRAMID,
        same,
    ),
    'ConvNeXt': family(
        lambda size: mm.ConvNeXt(
            CONVNEXT, out_indices=(0, 1, 2, 3), gap_before_final_norm=False
        ),
        (4, 8, 16, 32),
        PYRAMID,
        normed({0, 1, 2, 3}),
    ),
    'MobileNetV2': family(
        lambda size: mm.MobileNetV2(0.25, out_indices=(1, 2, 4, 7)),
        (8, 8, 24, 1280),
        PYRAMID,
        same,
    ),
    'SwinTransformer': family(
        lambda size: mm.SwinTransformer(
            SWIN, img_size=size, window_size=2, out_indices=(0, 1, 2, 3)
        ),
        (8, 16, 32, 64),
        PYRAMID,
        # Only the last stage is recorded behind its norm.
        normed({0, 1, 2}),
    ),
    'VisionTransformer': family(
        lambda size: mm.VisionTransformer(
            ARCH, size, out_indices=ENDS[:], out_type='featmap'
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'VisionTransformer without cls': family(
        lambda size: mm.VisionTransformer(
            ARCH,
            size,
            out_indices=ENDS[:],
            out_type='featmap',
            with_cls_token=False,
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'VisionTransformer distilled': family(
        lambda size: mm.DistilledVisionTransformer(
            ARCH, img_size=size, out_indices=ENDS[:], out_type='featmap'
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'VisionTransformer deit3': family(
        lambda size: mm.DeiT3(
            ARCH, img_size=size, out_indices=ENDS[:], out_type='featmap'
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'BEiTViT': family(
        lambda size: mm.BEiTViT(
            ARCH,
            size,
            out_indices=ENDS[:],
            out_type='featmap',
            final_norm=True,
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'BEiTViT without final norm': family(
        lambda size: mm.BEiTViT(
            ARCH, size, out_indices=ENDS[:], out_type='featmap'
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'ViTEVA02': family(
        lambda size: mm.ViTEVA02(
            ARCH, img_size=size, out_indices=ENDS[:], out_type='featmap'
        ),
        (16,) * 4,
        PLAIN,
        same,
    ),
    'MlpMixer': family(
        lambda size: mm.MlpMixer(
            dict(
                embed_dims=16,
                num_layers=6,
                tokens_mlp_dims=8,
                channels_mlp_dims=32,
            ),
            size,
        ),
        (16,) * 4,
        PLAIN,
        same_last_tokens,
    ),
}
TIMM_CASES = {
    'ResNet': ('test_resnet', (32, 48, 192, 96)),
    'EfficientNet': ('test_efficientnet', (24, 32, 48, 64)),
    'MobileNetV3': ('mobilenetv3_small_050', (8, 16, 24, 288)),
    'RegNet': ('regnetx_002', (24, 56, 152, 368)),
    'ConvNeXt': ('test_convnext', (24, 32, 48, 64)),
}
CASES |= {
    f'timm {name}': family(
        lambda size, model=model: timm.create_model(model),
        widths,
        PYRAMID,
        same_intermediates,
    )
    for name, (model, widths) in TIMM_CASES.items()
}

every_family = pytest.mark.parametrize('name', CASES)


def build(name, size=(64, 64), training=False):
    net = CASES[name].build(size)
    net.train(training)  # returns None in MMPretrain
    return net


def record_stages(model, images, **kwargs):
    recorder = StageOutputsRecorder(**kwargs)
    recorder.initialize(model)
    with recorder, torch.no_grad():
        model(images)
    return recorder.get_record_data()


def test_every_known_family_is_tested():
    assert {case.split()[0] for case in CASES if 'timm' not in case} == set(
        FAMILIES
    )
    assert set(TIMM_CASES) == set(TIMM_FAMILIES)
    for name, (model, _) in TIMM_CASES.items():
        assert type(timm.create_model(model)).__name__ == name


@pytest.mark.parametrize('size', SIZES, ids=str)
@every_family
def test_four_maps_at_two_sizes(name, size):
    case = CASES[name]
    net = build(name, size)
    maps = record_stages(net, torch.randn(2, 3, *size))
    expected = [
        (2, width, size[0] // stride, size[1] // stride)
        for width, stride in zip(case.widths, case.strides, strict=True)
    ]
    assert [tuple(map_.shape) for map_ in maps] == expected


@pytest.mark.parametrize(
    'name', [name for name in CASES if 'Mixer' not in name]
)
def test_map_of_an_oblong_image_is_not_turned(name):
    size = (64, 96)
    case = CASES[name]
    net = build(name, size)
    maps = record_stages(net, torch.randn(1, 3, *size))
    assert [tuple(map_.shape[2:]) for map_ in maps] == [
        (64 // stride, 96 // stride) for stride in case.strides
    ]


@every_family
def test_maps_are_those_that_the_backbone_hands_out(name):
    net = build(name)
    images = torch.randn(2, 3, 64, 64)
    records = record_stages(net, images)
    with torch.no_grad():
        CASES[name].compare(net, images, records)
    # The comparison could tell stages apart.
    for index, record in enumerate(records):
        others = records[:index] + records[index + 1 :]
        assert not any(torch.equal(record, other) for other in others)


@pytest.mark.parametrize('mode', [True, False])
@every_family
def test_no_map_is_overwritten_by_what_follows(name, mode):
    net = build(name, training=mode)
    copies = {}
    modules = dict(net.named_modules())
    for index, tap in enumerate(find_taps(net)):
        modules[tap.source].register_forward_hook(
            lambda m, i, o, index=index: copies.update({index: o.clone()})
        )
    recorder = StageOutputsRecorder()
    recorder.initialize(net)
    with recorder:
        net(torch.randn(2, 3, 64, 64))
    for index, copy in copies.items():
        (kept,) = recorder.data_buffer[index]
        assert torch.equal(kept, copy)


def test_swin_without_outputs_at_its_last_stage_is_read_there_unnormed():
    net = mm.SwinTransformer(
        SWIN, img_size=64, window_size=2, out_indices=(0,)
    )
    taps = find_taps(net)
    assert taps[3].source == 'stages.3.blocks.0'
    assert record_stages(net, torch.rand(1, 3, 64, 64))[3].shape == (
        1, 64, 2, 2,
    )  # fmt: skip


@pytest.mark.parametrize('wrap', ['classifier', 'timm backbone', 'timm'])
def test_paths_are_relative_to_the_whole_model(tiny, wrap):
    if wrap == 'classifier':
        model = tiny.build(tiny.classifier(tiny.resnet()))
        expected = 'backbone.layer1'
    elif wrap == 'timm backbone':
        model = tiny.build(
            dict(
                type='mmpretrain.ImageClassifier',
                backbone=dict(type='TIMMBackbone', model_name='test_resnet'),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=5, in_channels=96),
            )
        )
        expected = 'backbone.timm_model.layer1'
    else:
        model = tiny.build(
            dict(
                type='mmpretrain.TimmClassifier',
                model_name='test_resnet',
                loss=dict(type='CrossEntropyLoss'),
            )
        )
        expected = 'model.layer1'
    assert find_taps(model)[0].source == expected
    prefix, backbone = find_backbone(model)
    assert model.get_submodule(prefix.rstrip('.')) is backbone
    maps = record_stages(model, torch.rand(2, 3, 64, 64))
    assert [map_.shape[-1] for map_ in maps] == [16, 8, 4, 2]


def test_a_subclass_is_found_by_its_parent():
    class MyResNet(mm.ResNetV1d):
        pass

    taps = find_taps(MyResNet(depth=18, stem_channels=4, base_channels=4))
    assert [tap.source for tap in taps] == [f'layer{i}' for i in (1, 2, 3, 4)]


# ------------------------------------------------------------------- blocks


@pytest.mark.parametrize(
    ('blocks', 'ends'),
    [
        (12, (1, 3, 9, 11)),
        (24, (1, 3, 21, 23)),
        (8, (1, 3, 5, 7)),
        (6, (0, 1, 4, 5)),
        (4, (0, 1, 2, 3)),
    ],
)
def test_blocks_are_split_like_those_of_swin(blocks, ends):
    assert split_blocks(blocks) == ends


@pytest.mark.parametrize('blocks', range(4, 41))
def test_any_split_is_a_valid_choice(blocks):
    ends = split_blocks(blocks)
    assert check_blocks(ends, blocks) == ends


def test_fewer_than_four_blocks_cannot_be_split():
    with pytest.raises(ValueError, match='3 blocks.*taps'):
        split_blocks(3)


@pytest.mark.parametrize('name', ['VisionTransformer', 'MlpMixer'])
def test_chosen_blocks_are_read(name):
    net = build(name)
    images = torch.rand(1, 3, 64, 64)
    chosen = record_stages(net, images, blocks=[0, 2, 3, 5])
    default = record_stages(net, images)
    assert torch.equal(chosen[0], default[0])
    assert not torch.equal(chosen[1], default[1])
    assert not torch.equal(chosen[2], default[2])
    assert torch.equal(chosen[3], default[3])


@pytest.mark.parametrize(
    'blocks',
    [
        (0, 1, 5),
        (0, 1, 2, 3, 5),
        (0, 1, 2, 4),
        (1, 0, 4, 5),
        (1, 1, 4, 5),
        (-1, 1, 4, 5),
        (0, 1, 2, 6),
    ],
)
@pytest.mark.parametrize('name', ['VisionTransformer', 'MlpMixer'])
def test_blocks_that_make_no_stages_are_refused(name, blocks):
    net = build(name)
    with pytest.raises(ValueError, match='ending with 5') as caught:
        find_taps(net, blocks)
    assert str(blocks) in str(caught.value)


# ------------------------------------------------------------------ unknown


@pytest.mark.parametrize(
    'net', [mm.VGG(11, num_classes=5), timm.create_model('test_vit')]
)
def test_unknown_family_is_told_how_to_name_its_taps(net):
    with pytest.raises(ValueError, match='no stages are known') as caught:
        find_taps(net)
    message = str(caught.value)
    assert type(net).__name__ in message
    assert "type='mmcakd.StageOutputs', taps=[dict(source=" in message
    for name, _ in net.named_children():
        assert name in message


def test_family_of_timm_is_not_mistaken_for_one_of_mmpretrain():
    # Both have a VisionTransformer; only MMPretrain's has `layers`.
    assert 'VisionTransformer' in FAMILIES
    with pytest.raises(ValueError, match=r'timm\..*VisionTransformer'):
        find_taps(timm.create_model('test_vit'))


@pytest.mark.parametrize('stages', [3, 5])
def test_another_number_of_stages_is_refused(stages):
    arch = dict(embed_dims=8, depths=[1] * stages, num_heads=[1] * stages)
    net = mm.SwinTransformer(
        arch, img_size=64, window_size=2, out_indices=(stages - 1,)
    )
    with pytest.raises(ValueError, match=f'{stages} stages.*four.*taps'):
        find_taps(net)


# --------------------------------------------------------------------- taps


def test_tap_of_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"'stem'.*'NCWH'.*NCHW"):
        Tap('stem', 'NCWH')


def test_tap_of_tokens_needs_to_say_where_the_grid_is():
    with pytest.raises(ValueError, match=r"'blocks\.3'.*grid_source"):
        Tap('blocks.3', 'NLC')
