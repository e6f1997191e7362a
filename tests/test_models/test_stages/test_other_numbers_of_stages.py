"""Networks of three stages, or of one."""

import mmpretrain.models as mm
import pytest
import timm
import torch
from mmpretrain.registry import MODELS
from timm import models as tm

from mmcakd.models.stages import build_tail, find_taps


def build(type_, **arguments):
    return MODELS.build(dict(type=type_, _scope_='mmpretrain', **arguments))


def levit():
    # It takes no other widths.
    return build('LeViT', arch='128s', img_size=64, out_indices=[0, 1, 2])


def hivit():
    arch = dict(embed_dims=16, depths=[1, 1, 8], num_heads=2)
    return mm.HiViT(arch, img_size=64)


def rev_vit(**kwargs):
    arch = dict(
        embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=16
    )
    return mm.RevVisionTransformer(arch, img_size=(64, 96), **kwargs)


#: What is built, and ``(C, H, W)`` of its stages with their extra tokens.
CASES = {
    'LeNet5': (mm.LeNet5, [(6, 28, 28), (16, 10, 10), (120, 1, 1)]),
    'LeViT': (levit, [(128, 4, 4, 0), (256, 2, 2, 0), (384, 1, 1, 0)]),
    'HiViT': (hivit, [(4, 16, 16, 0), (8, 8, 8, 0), (16, 4, 4, 0)]),
    'RevVisionTransformer': (
        lambda: rev_vit(out_type='featmap'),
        # Two streams, and no class token.
        [(32, 4, 6, 0)],
    ),
    'timm.EfficientViM': (
        lambda: timm.create_model('efficientvim_m1'),
        [(128, 4, 4), (192, 2, 2), (320, 1, 1)],
    ),
    'timm.PoolingVisionTransformer': (
        lambda: tm.pit.PoolingVisionTransformer(
            img_size=64,
            patch_size=8,
            stride=4,
            stem_type='overlap',
            base_dims=(4, 4, 4),
            depth=(1, 1, 2),
            heads=(1, 2, 4),
            mlp_ratio=2,
            distilled=True,
        ),
        [(4, 15, 15), (8, 8, 8), (16, 4, 4)],
    ),
    'timm.Visformer': (
        lambda: tm.visformer.Visformer(
            img_size=64, embed_dim=32, depth=(1, 1, 2), num_heads=2
        ),
        None,
    ),
    'timm.Nest': (
        lambda: tm.nest.Nest(
            img_size=64,
            patch_size=4,
            num_levels=3,
            embed_dims=(8, 8, 16),
            num_heads=(1, 2, 2),
            depths=(1, 1, 2),
        ),
        None,
    ),
    'timm.Levit': (
        lambda: tm.levit.Levit(
            img_size=(64, 96),
            embed_dim=(16, 24, 32),
            key_dim=8,
            depth=(1, 1, 2),
            num_heads=(2, 3, 4),
        ),
        [(16, 4, 6, 0), (24, 2, 3, 0), (32, 1, 2, 0)],
    ),
    'timm.Levit of convolutions': (
        lambda: tm.levit.Levit(
            img_size=64,
            embed_dim=(16, 24, 32),
            key_dim=8,
            depth=(1, 1, 2),
            num_heads=(2, 3, 4),
            use_conv=True,
        ),
        [(16, 4, 4), (24, 2, 2), (32, 1, 1)],
    ),
}
every_case = pytest.mark.parametrize('name', CASES)


def images_for(name):
    if name == 'LeNet5':
        return torch.randn(2, 1, 32, 32)
    oblong = name in ('RevVisionTransformer', 'timm.Levit')
    return torch.randn(2, 3, 64, 96 if oblong else 64)


@every_case
def test_shapes_and_extra_tokens(name, checks):
    make, expected = CASES[name]
    net = checks.ready(make())
    images = images_for(name)
    stages = checks.record(net, images, final_norm=False, extra_tokens=True)
    assert len(stages) == len(find_taps(net))
    if expected is not None:
        assert checks.shapes(stages) == expected


@pytest.mark.parametrize('name', [n for n in CASES if n.startswith('timm.')])
def test_maps_are_the_intermediates_that_timm_returns(name, checks):
    net = checks.ready(CASES[name][0]())
    images = images_for(name)
    maps = checks.record(net, images, final_norm=False)
    with torch.no_grad():
        own = net.forward_intermediates(
            images, intermediates_only=True, norm=False
        )
    for kept, map_ in zip(maps, own, strict=True):
        assert torch.equal(kept, map_)


@pytest.mark.parametrize(
    'name', ['LeNet5', 'LeViT', 'HiViT', 'RevVisionTransformer']
)
def test_maps_are_those_that_the_backbone_hands_out(name, checks):
    net = checks.ready(CASES[name][0]())
    images = images_for(name)
    maps = checks.record(net, images)
    with torch.no_grad():
        own = net(images)
    for kept, map_ in zip(maps[-len(own) :], own, strict=True):
        assert torch.equal(kept, map_)


def test_windows_of_a_hivit_lie_where_its_merging_takes_them(checks):
    net = checks.ready(hivit())
    images = images_for('HiViT')
    first, second, _ = checks.record(net, images)
    merged = {}
    net.blocks[2].register_forward_hook(
        lambda module, inputs, outputs: merged.update(x=outputs)
    )
    with torch.no_grad():
        net(images)
    merge = net.blocks[2]
    # Each place of the merged map is made of the 2 x 2 places under it.
    for row, column in ((0, 0), (3, 5), (7, 2)):
        corners = [
            first[:, :, 2 * row + i, 2 * column + j]
            for j in (0, 1)
            for i in (0, 1)
        ]
        place = merge.reduction(merge.norm(torch.cat(corners, 1)))
        window = merged['x'][:, row // 2 * 4 + column // 2]
        assert torch.allclose(place, window[:, row % 2, column % 2], atol=1e-5)
    assert second.shape == (2, 8, 8, 8)


@pytest.mark.parametrize('name', ['timm.Visformer', 'timm.Nest'])
def test_last_map_is_behind_the_final_norm(name, checks):
    net = checks.ready(CASES[name][0]())
    images = images_for(name)
    with torch.no_grad():
        features = net.forward_features(images)
    *_, last = checks.record(net, images)
    assert torch.equal(last, features)
    *_, raw = checks.record(net, images, final_norm=False)
    assert not torch.allclose(last, raw, atol=0.1)


@every_case
def test_no_map_is_overwritten_by_what_follows(name, checks):
    checks.overwriting(CASES[name][0](), images_for(name))


@every_case
def test_any_part_replayed_is_the_networks_own(name, checks):
    checks.replay(checks.ready(CASES[name][0]()), images_for(name))


@every_case
def test_a_tail_cannot_run_to_a_stage_that_is_not_there(name):
    net = CASES[name][0]()
    count = len(find_taps(net))
    named = f'{type(net).__name__} has {count} stage'
    with pytest.raises(ValueError, match=named):
        build_tail(net, 1, count + 1)
