"""A transformer on convolutions sees the same grid as on patches."""

import pytest
import torch
from mmpretrain.models import SwinTransformer, VisionTransformer
from torch import nn

from mmcakd.models.backbones import ConvStem

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
STEM = dict(conv_type='mmcakd.ConvStem')


@pytest.mark.parametrize('stride', [2, 4, 16])
def test_stem_halves_until_a_patch_is_one_position(stride):
    stem = ConvStem(3, 32, kernel_size=stride, stride=stride)
    assert stem(torch.rand(2, 3, 64, 48)).shape == (
        2,
        32,
        64 // stride,
        48 // stride,
    )
    strided = [m for m in stem if getattr(m, 'stride', None) == (2, 2)]
    assert 2 ** len(strided) == stride
    widths = [m.out_channels for m in stem if isinstance(m, nn.Conv2d)]
    assert widths == sorted(widths) and widths[-1] == 32


@pytest.mark.parametrize('size', [(64, 64), (60, 100)], ids=str)
def test_vit_has_the_grid_of_its_patches(size):
    """Also where the image is no multiple of the patch and is padded."""
    cfg = dict(img_size=64, patch_size=8, out_type='featmap')
    on_patches = VisionTransformer(ARCH, **cfg)
    on_convolutions = VisionTransformer(ARCH, patch_cfg=STEM, **cfg)
    images = torch.rand(2, 3, *size)
    assert on_convolutions(images)[0].shape == on_patches(images)[0].shape


def test_swin_takes_it_too():
    arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
    swin = SwinTransformer(arch, img_size=64, window_size=2, patch_cfg=STEM)
    assert swin(torch.rand(1, 3, 64, 64))[0].shape == (1, 64, 2, 2)


@pytest.mark.parametrize('stride', [1, 6])
def test_other_strides_are_refused(stride):
    with pytest.raises(ValueError, match='power of two'):
        ConvStem(3, 8, kernel_size=3, stride=stride)
