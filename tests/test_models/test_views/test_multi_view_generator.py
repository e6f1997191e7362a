"""Another view of a batch, made on the device."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from mmengine.model import ImgDataPreprocessor
from mmpretrain.models import ClsDataPreprocessor

from mmcakd.models.views import MultiViewGenerator

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
NORMALISE = dict(mean=MEAN.flatten().tolist(), std=STD.flatten().tolist())
OFF = dict(prob=1.0, brightness=0, contrast=0, saturation=0, mask_ratio=0)


def generator(**kwargs) -> MultiViewGenerator:
    """Every image, by the named transforms alone; for normalised images."""
    made = MultiViewGenerator(**(OFF | kwargs))
    made.adapt_to(ClsDataPreprocessor(**NORMALISE, to_rgb=True))
    return made


def images(size=8, height=48, width=80, seed=0) -> torch.Tensor:
    """Pixels up to 1."""
    numbers = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, height, width, generator=numbers)


def normalise(pixels):
    return (pixels * 255 - MEAN) / STD


def denormalise(inputs):
    return (inputs * STD + MEAN) / 255


# --------------------------------------------------------------- which images


def test_half_of_the_images_are_changed_and_the_batch_is_not():
    batch = normalise(images(2000, 4, 6))
    before = batch.clone()
    views = generator(prob=0.5, brightness=0.4)(batch)
    assert torch.equal(batch, before)
    changed = (views != batch).flatten(1).any(1)
    # four standard deviations
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.045)


@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_probability_of_nought_and_one_are_sure(prob):
    batch = normalise(images(50, 32, 32))
    views = generator(prob=prob, mask_ratio=0.5)(batch)
    changed = (views != batch).flatten(1).any(1)
    assert changed.float().mean().item() == prob


def test_seed_decides():
    made = generator(
        prob=0.5,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        crop_scale=(0.5, 1.0),
        max_rotation=15.0,
        mask_ratio=0.25,
    )
    batch = normalise(images())
    views = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        views.append(made(batch))
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    # Nothing else is drawn from.
    first, second = made(batch), made(batch)
    assert not torch.equal(first, second)


def test_images_are_transformed_independently():
    same = normalise(images(1)).expand(6, -1, -1, -1)
    views = generator(brightness=0.4, mask_ratio=0.25)(same)
    for i in range(6):
        for j in range(i):
            assert not torch.equal(views[i], views[j])


def test_defaults_do_not_move_anything():
    made = MultiViewGenerator()
    assert made.prob == 0.5
    assert not made.is_geometric
    assert MultiViewGenerator(crop_scale=(0.5, 1)).is_geometric
    assert MultiViewGenerator(max_rotation=5).is_geometric


# ---------------------------------------------------------------------- colour


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
def test_colours_change_as_in_torchvision(name):
    pixels = images(200, 5, 7)
    views = denormalise(generator(**{name: 0.4})(normalise(pixels)))
    change = getattr(tv, f'adjust_{name}')
    # One factor fits all pixels of an image; find it on a grid.
    factors = []
    grid = torch.linspace(0.58, 1.42, 85)
    for image, view in zip(pixels[:20], views[:20], strict=True):
        tried = torch.stack([change(image, f.item()) for f in grid])
        errors = (tried - view).abs().amax((1, 2, 3))
        assert errors.min() < 0.006
        factors.append(grid[errors.argmin()].item())
    assert 0.59 < min(factors) < 0.85
    assert 1.15 < max(factors) < 1.41
    assert views.min() > -1e-6
    assert views.max() < 1 + 1e-6


def test_factor_of_the_brightness_is_uniform_in_its_range():
    # Dark enough that nothing is cut off.
    pixels = images(4000, 1, 1) * 0.5
    views = denormalise(generator(brightness=0.3)(normalise(pixels)))
    factors = (views.double().sum((1, 2, 3)) / pixels.sum((1, 2, 3))).float()
    assert factors.min() > 0.7 - 1e-4
    assert factors.max() < 1.3 + 1e-4
    counts = torch.histc(factors, 6, 0.7, 1.3) / 4000
    assert torch.allclose(counts, torch.full((6,), 1 / 6), atol=0.025)


def test_factor_of_one_changes_nothing():
    pixels = images(4)
    made = generator(brightness=1e-9, contrast=1e-9, saturation=1e-9)
    batch = normalise(pixels)
    assert torch.allclose(made(batch), batch, atol=1e-5)


def test_greys_have_no_saturation_to_change():
    grey = images(4)[:, :1].expand(-1, 3, -1, -1)
    batch = normalise(grey)
    assert torch.allclose(generator(saturation=0.9)(batch), batch, atol=1e-3)


@pytest.mark.parametrize(
    'preprocessor',
    [
        ClsDataPreprocessor(to_rgb=True),
        ImgDataPreprocessor(bgr_to_rgb=True),
        ClsDataPreprocessor(**NORMALISE, to_rgb=False),
    ],
)
def test_order_and_normalisation_of_the_channels_are_the_preprocessors(
    preprocessor,
):
    pixels = images(6)
    made = MultiViewGenerator(**(OFF | dict(saturation=0.8)))
    is_rgb = getattr(preprocessor, 'to_rgb', True)
    normalised = preprocessor._enable_normalize
    made.adapt_to(preprocessor)
    reference = generator(saturation=0.8)

    rgb = pixels if is_rgb else pixels.flip(1)
    batch = rgb * 255
    if normalised:
        batch = (batch - preprocessor.mean) / preprocessor.std
    torch.manual_seed(0)
    views = made(batch)
    if normalised:
        views = views * preprocessor.std + preprocessor.mean
    views = views / 255 if is_rgb else views.flip(1) / 255
    torch.manual_seed(0)
    expected = denormalise(reference(normalise(pixels)))
    assert torch.allclose(views, expected, atol=1e-5)


# -------------------------------------------------------------------- geometry


@pytest.mark.parametrize('shape', [(48, 80), (80, 48), (64, 64)])
def test_rotation_is_torchvisions(shape):
    batch = normalise(images(3, *shape))
    made = generator(max_rotation=30.0)
    torch.manual_seed(1)
    views = made(batch)
    # The same numbers: which images, side, x, y, angle.
    torch.manual_seed(1)
    for _ in range(4):
        torch.empty(3, 1, 1, 1).uniform_()
    degrees = torch.empty(3, 1, 1, 1).uniform_(-30, 30).flatten()
    for image, view, angle in zip(batch, views, degrees, strict=True):
        expected = tv.rotate(
            image, angle.item(), tv.InterpolationMode.BILINEAR
        )
        # torchvision does not blend with what is outside.
        filled = tv.rotate(torch.ones(1, *shape), angle.item(), expand=False)[
            0
        ]
        inside = (
            torch.nn.functional.max_pool2d(1 - filled[None, None], 3, 1, 1)[
                0, 0
            ]
            == 0
        )
        inside[[0, -1]] = inside[:, [0, -1]] = False
        assert inside.float().mean() > 0.5
        assert torch.allclose(view[:, inside], expected[:, inside], atol=1e-3)


def ramp(size, height, width) -> torch.Tensor:
    """Channels: column, row, one."""
    y, x = torch.meshgrid(
        torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing='ij'
    )
    ramp = torch.stack([x / width, y / height, torch.ones_like(x)])
    return ramp.expand(size, -1, -1, -1)


@pytest.mark.parametrize(('height', 'width'), [(40, 64), (64, 40)])
def test_crops_lie_inside_and_have_the_areas_asked_for(height, width):
    made = generator(crop_scale=(0.3, 0.9))
    views = made(ramp(500, height, width))
    # Nothing of the outside, whose third channel would be 0; but for the
    # half pixel at the border that is blended with it.
    assert views[:, 2, 1:-1, 1:-1].min() > 0.999
    middle = views[:, :, 5:-5, 5:-5]
    across = (middle[:, 0, 0, -1] - middle[:, 0, 0, 0]) / (width - 11)
    down = (middle[:, 1, -1, 0] - middle[:, 1, 0, 0]) / (height - 11)
    # Both sides by the same factor: the aspect ratio stays.
    assert torch.allclose(across * width, down * height, atol=1e-4)
    area = across * width * down * height
    assert 0.3 - 1e-3 < area.min() < 0.34
    assert 0.86 < area.max() < 0.9 + 1e-3
    # Left edges reach from one side to the other.
    left = views[:, 0, height // 2, 5] - 5.5 * across
    room = 1 - across * width
    place = left / room
    assert -0.02 < place.min() < 0.05
    assert 0.95 < place.max() < 1.02


def test_rotations_have_angles_of_both_signs_up_to_the_limit():
    views = generator(max_rotation=20.0)(ramp(500, 64, 64))
    # Where the x coordinate of the source grows, at the centre.
    to_right = views[:, 0, 32, 40] - views[:, 0, 32, 24]
    down = views[:, 0, 40, 32] - views[:, 0, 24, 32]
    degrees = torch.atan2(-down, to_right) * 180 / math.pi
    assert -20.01 < degrees.min() < -18.5
    assert 18.5 < degrees.max() < 20.01


def test_outside_of_the_image_is_zero():
    views = generator(max_rotation=45.0)(ramp(20, 40, 64))
    corners = views[:, 2][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).any()


# --------------------------------------------------------------------- masking


@pytest.mark.parametrize(
    ('height', 'width', 'ratio', 'masked'),
    # 3 x 5 squares of 16; 4 x 3 where the last ones are cut
    [(48, 80, 0.25, 4), (48, 80, 0.6, 9), (56, 40, 0.5, 6)],
)
def test_part_of_the_squares_is_masked(height, width, ratio, masked):
    batch = 1 + images(10, height, width)
    views = generator(mask_ratio=ratio)(batch)
    rows, columns = math.ceil(height / 16), math.ceil(width / 16)
    for image, view in zip(batch, views, strict=True):
        empty = 0
        for row in range(rows):
            for column in range(columns):
                place = (
                    slice(None),
                    slice(16 * row, 16 * row + 16),
                    slice(16 * column, 16 * column + 16),
                )
                if not view[place].any():
                    empty += 1
                else:
                    assert torch.equal(view[place], image[place])
        assert empty == masked


def test_every_square_is_masked_at_some_time():
    views = generator(mask_ratio=0.25, mask_size=8)(torch.ones(400, 3, 24, 32))
    rate = (views == 0).float().mean((0, 1))
    assert torch.allclose(rate, torch.full((24, 32), 0.25), atol=0.09)


@pytest.mark.parametrize(
    ('mask_size', 'ratio', 'masks'),
    # Larger than the image; none of 6 squares; both of 2.
    [(999, 0.6, 1), (40, 0.05, 0), (48, 0.8, 2)],
)
def test_squares_that_mask_nothing_or_all_are_named(mask_size, ratio, masks):
    made = generator(mask_size=mask_size, mask_ratio=ratio)
    batch = images(height=48, width=90 if mask_size == 40 else 80)
    with pytest.raises(ValueError, match=f'mask_size={mask_size}.*48 x') as e:
        made(batch)
    assert f'masks {masks};' in str(e.value)
    # All and nothing may be meant.
    for meant in (0, 1):
        generator(mask_size=mask_size, mask_ratio=meant)(batch)


# ----------------------------------------------------------------------- other


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_precision_stays(dtype):
    made = MultiViewGenerator(prob=1.0, max_rotation=5).to(dtype)
    with torch.autocast('cpu', torch.bfloat16):
        assert made(images().to(dtype)).dtype == dtype


def test_checkpoint_has_nothing_of_it():
    assert not generator().state_dict()


@pytest.mark.parametrize(
    ('setting', 'named'),
    [
        (dict(prob=1.5), 'prob'),
        (dict(brightness=-0.1), 'brightness'),
        (dict(contrast=2), 'contrast'),
        (dict(saturation=-1), 'saturation'),
        (dict(mask_ratio=1.1), 'mask_ratio'),
        (dict(mask_size=0), 'mask_size'),
        (dict(crop_scale=(0, 1)), 'crop_scale'),
        (dict(crop_scale=(0.9, 0.5)), 'crop_scale'),
        (dict(max_rotation=-3), 'max_rotation'),
    ],
)
def test_setting_out_of_range_is_named(setting, named):
    with pytest.raises(ValueError, match=named):
        MultiViewGenerator(**setting)
