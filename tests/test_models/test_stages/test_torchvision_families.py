"""The four stages of every family of torchvision."""

import pytest
import torch
import torchvision.models as tv
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.regnet import BlockParams
from torchvision.models.swin_transformer import (
    PatchMergingV2,
    SwinTransformerBlockV2,
)

from mmcakd.models.stages import FAMILIES, find_family, find_taps

SWIN = ([4, 4], 8, [1, 1, 2, 1], [1, 2, 4, 4], [2, 2])

#: A small network, and ``(C, H, W)`` of its stages for an image of 64 x 96,
#: with the number of extra tokens of token networks.
CASES = {
    'ResNet': (
        lambda: tv.ResNet(
            tv.resnet.Bottleneck, [1] * 4, groups=2, width_per_group=4
        ),
        [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (2048, 2, 3)],
    ),
    'RegNet': (
        lambda: tv.RegNet(
            BlockParams.from_init_params(
                depth=8, w_0=8, w_a=8.0, w_m=2.2, group_width=8
            )
        ),
        [(8, 16, 24), (16, 8, 12), (40, 4, 6), (88, 2, 3)],
    ),
    'MobileNetV2': (
        lambda: tv.MobileNetV2(width_mult=0.25),
        [(8, 16, 24), (8, 8, 12), (24, 4, 6), (1280, 2, 3)],
    ),
    'MobileNetV3': (
        lambda: tv.mobilenet_v3_small(width_mult=0.5),
        [(8, 16, 24), (16, 8, 12), (24, 4, 6), (288, 2, 3)],
    ),
    'EfficientNet': (
        lambda: tv.efficientnet_b0(),
        [(24, 16, 24), (40, 8, 12), (112, 4, 6), (1280, 2, 3)],
    ),
    'ConvNeXt': (
        lambda: tv.ConvNeXt(
            [
                CNBlockConfig(8, 16, 1),
                CNBlockConfig(16, 32, 1),
                CNBlockConfig(32, 64, 1),
                CNBlockConfig(64, None, 1),
            ]
        ),
        [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)],
    ),
    'SwinTransformer': (
        lambda: tv.SwinTransformer(*SWIN),
        [(8, 16, 24, 0), (16, 8, 12, 0), (32, 4, 6, 0), (64, 2, 3, 0)],
    ),
    'SwinTransformer of version 2': (
        lambda: tv.SwinTransformer(
            *SWIN,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        ),
        [(8, 16, 24, 0), (16, 8, 12, 0), (32, 4, 6, 0), (64, 2, 3, 0)],
    ),
    'VisionTransformer': (
        lambda: tv.VisionTransformer(64, 16, 6, 2, 16, 32),
        [(16, 4, 4, 1)] * 4,
    ),
}

every_case = pytest.mark.parametrize('name', CASES)


def images_for(name):
    return torch.randn(2, 3, 64, 64 if 'Vision' in name else 96)


@every_case
def test_maps_and_extra_tokens(name, checks):
    net, expected = CASES[name][0](), CASES[name][1]
    net.eval()
    assert find_family(net)[0] == f'torchvision.{name.split()[0]}'
    images = images_for(name)
    stages = checks.record(net, images, extra_tokens=True, final_norm=False)
    assert checks.shapes(stages) == expected
    maps = checks.record(net, images)
    assert checks.shapes(maps) == [shape[:3] for shape in expected]


@every_case
def test_maps_are_those_that_torchvision_extracts(name, checks):
    net, expected = CASES[name][0](), CASES[name][1]
    checks.ready(net)
    images = images_for(name)
    names = {tap.source: str(i) for i, tap in enumerate(find_taps(net))}
    own = create_feature_extractor(net, names)(images)
    stages = checks.record(net, images, extra_tokens=True)
    for index, shape in enumerate(expected):
        feature = own[str(index)]
        if len(shape) == 3:
            assert torch.equal(stages[index], feature)
            continue
        tokens = stages[index].map.flatten(2).transpose(1, 2)
        tokens = torch.cat((stages[index].extra, tokens), 1)
        assert torch.equal(tokens, feature.view_as(tokens))


@every_case
def test_no_map_is_overwritten_by_what_follows(name, checks):
    checks.overwriting(CASES[name][0](), images_for(name))


@every_case
def test_any_part_replayed_is_the_networks_own(name, checks):
    net = checks.ready(CASES[name][0]())
    checks.replay(net, images_for(name))


def test_every_family_of_torchvision_is_tested():
    entries = {key for key in FAMILIES if key.startswith('torchvision.')}
    assert {f'torchvision.{name.split()[0]}' for name in CASES} == entries
