"""Noise and occlusion do what they say, to every image alike."""

import pytest
import torch

from mmcakd.evaluation import add_noise, occlude


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_has_the_deviation_asked_for():
    images = torch.full((4, 3, 64, 48), 127, dtype=torch.uint8)
    noise = add_noise(images, 12.0, generator()) - 127
    assert noise.mean().item() == pytest.approx(0, abs=0.2)
    assert noise.std().item() == pytest.approx(12, rel=0.02)


def test_noise_stays_in_the_range_of_pixels():
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 3, 50, 2)
    noisy = add_noise(images, 100.0, generator())
    assert noisy.min() == 0
    assert noisy.max() == 255


@pytest.mark.parametrize('corrupt', [add_noise, occlude])
def test_same_seed_same_corruption(corrupt):
    images = torch.randint(0, 256, (4, 3, 16, 24), dtype=torch.uint8)
    before = images.clone()
    first, again = (corrupt(images, 0.3, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, corrupt(images, 0.3, generator(6)))
    assert torch.equal(images, before)


@pytest.mark.parametrize('share', [0.0, 0.25, 0.49, 1.0])
def test_occlusion_covers_its_share_with_one_rectangle(share):
    images = torch.zeros(8, 3, 20, 40)
    covered = occlude(images, share, generator()) == 127.5
    for mask in covered:
        assert torch.equal(mask[0], mask[1])
        rows, columns = mask[0].any(1).sum(), mask[0].any(0).sum()
        assert rows * columns == mask[0].sum()
        assert rows == round(20 * share**0.5)
        assert columns == round(40 * share**0.5)


def test_occlusion_reaches_every_corner():
    images = torch.zeros(400, 1, 4, 4)
    covered = occlude(images, 0.25, generator()) == 127.5
    assert covered[:, 0].any(0).all()


@pytest.mark.parametrize('share', [-0.1, 1.1])
def test_impossible_share_is_refused(share):
    with pytest.raises(ValueError, match='between 0 and 1'):
        occlude(torch.zeros(1, 3, 4, 4), share, generator())
