"""Finding a model's family, its taps, and where its stages end."""

import mmpretrain.models as mm
import pytest
import timm
import torch
from torch import nn

from mmcakd.models.stages import (
    FAMILIES,
    Tap,
    build_tail,
    check_blocks,
    find_backbone,
    find_family,
    find_taps,
    split_blocks,
)

ARCH = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32)
MIXER = dict(
    embed_dims=16, num_layers=6, tokens_mlp_dims=8, channels_mlp_dims=32
)
NETS = {
    'VisionTransformer': lambda: mm.VisionTransformer(ARCH, 64),
    'MlpMixer': lambda: mm.MlpMixer(MIXER, 64),
}


def record_stages(model, images, **kwargs):
    from mmcakd.models.recorders import StageOutputsRecorder

    recorder = StageOutputsRecorder(**kwargs)
    recorder.initialize(model)
    with recorder, torch.no_grad():
        model(images)
    return recorder.get_record_data()


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


def test_a_subclass_of_another_package_is_found_by_its_parent_too():
    class MyViT(timm.models.VisionTransformer):
        pass

    net = MyViT(64, embed_dim=16, depth=4, num_heads=2)
    assert find_taps(net)[0].source == 'blocks.0'


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
    net = NETS[name]()
    net.eval()
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
    net = NETS[name]()
    with pytest.raises(ValueError, match='ending with 5') as caught:
        find_taps(net, blocks)
    assert str(blocks) in str(caught.value)


def test_blocks_of_a_network_with_stages_are_refused():
    net = mm.ResNet(18, stem_channels=4, base_channels=4)
    with pytest.raises(ValueError, match='ResNet has stages of its own'):
        find_taps(net, (0, 1, 4, 5))


# ------------------------------------------------------------------ unknown


class Unknown(nn.Module):
    """A network of a family that is not in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.blocks = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(6)])
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Wrapper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Unknown()

    def forward(self, x):
        return self.backbone(x)


def test_unknown_family_is_told_how_to_name_its_taps():
    model = Wrapper()
    with pytest.raises(ValueError, match='no stages are known') as caught:
        find_taps(model)
    message = str(caught.value)
    assert 'Unknown' in message
    assert "type='mmcakd.StageOutputs', taps=[dict(source=" in message
    assert (
        'Its parts are: backbone.stem, '
        'backbone.blocks (backbone.blocks.0 to .5), backbone.norm' in message
    )
    # What it advises works.
    sources = [f'backbone.blocks.{i}' for i in (0, 1, 4)] + ['backbone.norm']
    taps = [dict(source=source) for source in sources]
    maps = record_stages(model, torch.rand(2, 3, 8, 12), taps=taps)
    assert [tuple(map_.shape) for map_ in maps] == [(2, 4, 2, 3)] * 4


def test_networks_that_share_a_name_have_families_of_their_own():
    found = {
        find_family(net)[0]: [tap.source for tap in find_taps(net)]
        for net in (NETS['VisionTransformer'](), timm.create_model('test_vit'))
    }
    assert found == {
        'VisionTransformer': ['layers.0', 'layers.1', 'layers.4', 'ln1'],
        'timm.VisionTransformer': ['blocks.0', 'blocks.1', 'blocks.4', 'norm'],
    }
    assert found.keys() <= FAMILIES.keys()


def test_class_of_timm_is_never_taken_for_one_of_mmpretrain():
    class VisionTransformer(nn.Module):
        __module__ = 'timm.layers.something'

    class SwinTransformer(VisionTransformer):
        __module__ = 'timm.models.another'

    assert find_family(SwinTransformer())[0] == 'timm.SwinTransformer'
    AlexNet = type('AlexNet', (nn.Module,), {'__module__': 'torchvision.x'})
    assert 'AlexNet' in FAMILIES
    assert find_family(AlexNet()) is None


@pytest.mark.parametrize('stages', [2, 3, 5])
def test_a_network_has_the_stages_it_was_built_with(stages):
    arch = dict(embed_dims=8, depths=[1] * stages, num_heads=[1] * stages)
    net = mm.SwinTransformer(
        arch, img_size=128, window_size=2, out_indices=(stages - 1,)
    )
    net.eval()
    images = torch.rand(1, 3, 128, 128)
    maps = record_stages(net, images)
    widths = [8 * 2**index for index in range(stages)]
    assert [map_.shape[1] for map_ in maps] == widths
    assert torch.equal(maps[-1], net(images)[-1])
    tail = build_tail(net, stages - 1, stages)
    net(images)
    tokens = [map_.flatten(2).transpose(1, 2) for map_ in maps]
    assert torch.equal(tail(tokens[-2]), tokens[-1])
    with pytest.raises(ValueError, match=f'has {stages} stages'):
        build_tail(net, 1, stages + 1)


# --------------------------------------------------------------------- taps


def test_tap_of_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"'stem'.*'NCWH'.*NCHW"):
        Tap('stem', 'NCWH')


def test_tap_of_tokens_needs_to_say_where_the_grid_is():
    with pytest.raises(ValueError, match=r"'blocks\.3'.*grid_source"):
        Tap('blocks.3', 'NLC')
