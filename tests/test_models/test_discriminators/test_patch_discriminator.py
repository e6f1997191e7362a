"""A discriminator of patches of a map."""

import pytest
import torch

from mmcakd.models.discriminators import PatchDiscriminator


def test_logit_sees_a_patch_of_70_pixels():
    discriminator = PatchDiscriminator(in_channels=1)
    kernels = [
        (module.kernel_size[0], module.stride[0])
        for module in discriminator.layers
        if isinstance(module, torch.nn.Conv2d)
    ]
    field = 1
    for kernel, stride in reversed(kernels):
        field = (field - 1) * stride + kernel
    # What its paper says of this depth.
    assert field == 70
    assert discriminator(torch.rand(1, 1, 196, 196)).shape == (1, 1, 22, 22)


def test_widths_double_up_to_eight_times():
    discriminator = PatchDiscriminator(2, base_channels=4, num_layers=5)
    weights = [p.shape for p in discriminator.parameters() if p.ndim == 4]
    assert [shape[:2] for shape in weights] == [
        (4, 2), (8, 4), (16, 8), (32, 16), (32, 32), (32, 32), (1, 32)
    ]  # fmt: skip


@pytest.mark.parametrize('shape', [(2, 1, 24, 40), (2, 24, 40)])
def test_channels_are_read_and_maps_may_be_rectangular(shape):
    discriminator = PatchDiscriminator(base_channels=4)
    maps = torch.rand(shape, requires_grad=True)
    discriminator.prepare(maps)
    assert discriminator.in_channels == 1
    logits = discriminator(maps)
    assert logits.shape == (2, 1, 1, 3)
    logits.sum().backward()
    assert maps.grad.any()
    assert all(p.grad.any() for p in discriminator.parameters())


def test_what_does_not_fit_is_named():
    discriminator = PatchDiscriminator(1, base_channels=4)
    with pytest.raises(ValueError, match=r'at least 24.*16, 16.*num_layers'):
        discriminator(torch.rand(2, 1, 16, 16))
    with pytest.raises(ValueError, match=r'N, 1, H, W.*\(2, 3, 32, 32\)'):
        discriminator(torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r'maps.*\(2, 32\)'):
        discriminator(torch.rand(2, 32))
    with pytest.raises(
        ValueError, match='num_layers should be a positive whole'
    ):
        PatchDiscriminator(num_layers=0)
    PatchDiscriminator(1, base_channels=4, num_layers=1)(torch.rand(1, 6, 6))
