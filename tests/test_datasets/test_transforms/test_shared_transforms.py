import random

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import DefaultScope
from PIL import Image

from mmcakd.arguments import ArgumentError
from mmcakd.datasets import SharedTransforms
from mmcakd.utils.randomness import seed_generators

CROP = dict(type='RandomResizedCrop', scale=24, interpolation='nearest')
FLIP = dict(type='RandomFlip', prob=0.5)
PIPELINES = dict(
    mmpretrain=[CROP, FLIP],
    padded=[
        dict(type='RandomCrop', crop_size=40, padding=4),
        FLIP,
        dict(type='Pad', size=(50, 60), pad_val=0),
    ],
    turned=[
        dict(
            type='Rotate',
            angle=30.0,
            prob=0.7,
            pad_val=0,
            interpolation='nearest',
        ),
        dict(type='Translate', magnitude=0.2, prob=0.7, pad_val=0),
        dict(type='ResizeEdge', scale=32, interpolation='nearest'),
        dict(type='CenterCrop', crop_size=30),
    ],
    nested=[
        dict(type='RandomApply', transforms=[FLIP], prob=0.5),
        dict(
            type='RandomChoice',
            transforms=[[CROP], [dict(type='CenterCrop', crop_size=24)]],
        ),
    ],
    mmcv=[
        dict(
            type='RandomResize',
            scale=(64, 48),
            ratio_range=(0.5, 2.0),
            keep_ratio=True,
            interpolation='nearest',
        ),
        dict(
            type='RandomChoiceResize',
            scales=[(30, 20), (40, 50)],
            interpolation='nearest',
        ),
        dict(
            type='RandomFlip',
            prob=[0.3, 0.4],
            direction=['horizontal', 'vertical'],
        ),
    ],
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def places(height: int = 48, width: int = 64) -> np.ndarray:
    """An image: blue tells the row, green the column."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([4 * rows, 3 * columns, 0 * rows], -1).astype(np.uint8)


def depth_of(image: np.ndarray) -> np.ndarray:
    """The depth map that belongs to such an image, in 16 bits."""
    return image[..., 0].astype(np.uint16) * 250 + image[..., 1]


def sample() -> dict:
    image = places()
    return dict(
        img=image,
        img_path='a.png',
        img_shape=image.shape[:2],
        depth=depth_of(image),
        normals=image[..., ::-1].copy(),
        gt_label=3,
    )


@pytest.mark.parametrize('kind', PIPELINES)
def test_all_inputs_show_the_same_places(kind):
    transform = SharedTransforms(PIPELINES[kind], ['depth', 'normals'])
    seen = set()
    for seed in range(12):
        seed_generators(seed)
        results = transform(sample())
        image = results['img']
        assert np.array_equal(results['depth'], depth_of(image))
        assert np.array_equal(results['normals'], image[..., ::-1])
        assert results['depth'].dtype == np.uint16
        assert results['gt_label'] == 3
        seen.add(image.tobytes())
    assert len(seen) > 3


@pytest.mark.parametrize('kind', PIPELINES)
def test_the_image_is_what_it_would_be_alone(kind):
    from mmengine.dataset import Compose

    alone = Compose(PIPELINES[kind])
    shared = SharedTransforms(PIPELINES[kind], ['depth'])
    for seed in range(4):
        seed_generators(seed)
        expected = alone({k: v for k, v in sample().items() if k != 'depth'})
        stream = random.random(), np.random.rand(), torch.rand(1)
        seed_generators(seed)
        results = shared(sample())
        assert np.array_equal(results['img'], expected['img'])
        assert (random.random(), np.random.rand(), torch.rand(1)) == stream
        assert results.keys() - {'depth', 'normals'} == (
            expected.keys() - {'normals'}
        )


def test_torchvision_on_pil_images():
    transform = SharedTransforms(
        [
            dict(type='NumpyToPIL'),
            dict(
                type='torchvision/RandomResizedCrop',
                size=24,
                interpolation='nearest',
            ),
            dict(type='torchvision/RandomHorizontalFlip', p=0.5),
            dict(type='PILToNumpy'),
        ],
        ['normals'],
    )
    for seed in range(8):
        seed_generators(seed)
        results = transform(sample())
        assert results['img'].shape == (24, 24, 3)
        assert np.array_equal(results['normals'], results['img'][..., ::-1])


def test_boxes_and_maps_are_transformed_once():
    transform = SharedTransforms(
        [
            dict(type='mmcv.Resize', scale=(128, 96)),
            dict(type='mmcv.RandomFlip', prob=1.0),
        ],
        ['depth'],
    )
    boxes = np.array([[4.0, 6.0, 10.0, 12.0]], dtype=np.float32)
    results = sample() | dict(
        gt_bboxes=boxes, gt_seg_map=places()[..., 0].copy()
    )
    results = transform(results)
    assert results['gt_bboxes'].tolist() == [[108.0, 12.0, 120.0, 24.0]]
    assert results['gt_seg_map'].shape == results['depth'].shape == (96, 128)
    assert results['scale_factor'] == (2.0, 2.0)


class CropByLabel(BaseTransform):
    """Moves a label in place, and crops by where it was."""

    def transform(self, results):
        left = results['left']
        results['img'] = results['img'][:, left[0] : left[0] + 8]
        left[0] += 5
        return results


def test_what_labels_decide_is_decided_alike():
    results = SharedTransforms([CropByLabel()], ['depth'])(
        sample() | dict(left=[3])
    )
    assert np.array_equal(results['depth'], depth_of(results['img']))
    assert results['left'] == [8]


class OwnGenerator(BaseTransform):
    """Draws from a generator of its own, as albumentations do."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.drawn = []

    def transform(self, results):
        left = int(self.rng.integers(40))
        self.drawn.append(left)
        results['img'] = results['img'][:, left : left + 8]
        return results


def test_a_generator_of_its_own_is_replayed():
    own, alone = OwnGenerator(), OwnGenerator()
    transform = SharedTransforms([own], ['depth', 'normals'])
    for _ in range(5):
        results = transform(sample())
        assert np.array_equal(results['depth'], depth_of(results['img']))
        alone.transform(sample())
    assert own.drawn == alone.drawn


class ThreeChannels(BaseTransform):
    def transform(self, results):
        height, width, channels = results['img'].shape
        results['img'] = results['img'][:, : width // channels]
        return results


FLIP_PIL = dict(type='torchvision/RandomHorizontalFlip', p=1.0)


class ByContent(BaseTransform):
    """Decides by the values of the pixels."""

    def __init__(self, draws=False):
        self.draws = draws

    def transform(self, results):
        is_image = results['img'].dtype == np.uint8
        if self.draws and is_image:
            random.random()
        elif is_image:
            results['img'] = results['img'][4:]
        return results


@pytest.mark.parametrize('draws', [True, False])
def test_a_transform_that_decides_by_the_pixels_is_refused(draws):
    transform = SharedTransforms([ByContent(draws)], ['depth'])
    with pytest.raises(ValueError, match='depth of a.png otherwise .*ByCont'):
        transform(sample())


def test_a_transform_that_fails_on_the_other_input_is_named():
    transform = SharedTransforms([dict(type='NumpyToPIL')], ['depth'])
    with pytest.raises(ValueError, match='cannot do to the depth of a.png'):
        transform(sample())


def test_transforms_for_three_channels_take_one():
    steps = [
        dict(type='Resize', scale=(40, 40), interpolation='nearest'),
        dict(type='Pad', size=(50, 40), pad_val=dict(img=(0, 0, 7))),
        ThreeChannels(),
    ]
    results = SharedTransforms(steps, ['depth'])(sample())
    assert np.array_equal(results['depth'], depth_of(results['img']))
    column = sample() | dict(depth=sample()['depth'][..., None])
    again = SharedTransforms(steps, ['depth'])(column)
    assert np.array_equal(results['depth'], again['depth'])


@pytest.mark.parametrize(
    'last', [[], [dict(type='torchvision/ToTensor')]], ids=['PIL', 'tensor']
)
def test_a_grey_input_stays_grey_in_another_form(last):
    steps = [dict(type='NumpyToPIL', to_rgb=True), FLIP_PIL, *last]
    mask = places()[..., 0]
    results = SharedTransforms(steps, ['mask'])(sample() | dict(mask=mask))
    values = 255 if last else 1
    found = np.asarray(results['mask']).squeeze() * values
    assert np.array_equal(found.round().astype(np.uint8), mask[:, ::-1])


class Unfit(BaseTransform):
    def transform(self, results):
        return None


def test_an_unfit_image_is_left_to_the_data_set():
    assert SharedTransforms([Unfit()], ['depth'])(sample()) is None


@pytest.mark.parametrize(
    'step',
    [
        dict(type='Resize', scale=(31, 23)),
        dict(type='RandomResize', scale=(31, 23), ratio_range=(0.4, 0.6)),
        dict(type='RandomResizedCrop', scale=20),
        dict(type='Rotate', angle=30.0, prob=1.0, interpolation='bilinear'),
    ],
    ids=lambda step: step['type'],
)
def test_nearest_blends_no_values_of_the_depth_alone(step):
    holes = np.where(places()[..., 0] % 8 < 4, 0, 60000).astype(np.uint16)
    results = sample() | dict(depth=holes, normals=places())
    names = ['depth', 'normals']
    transform = SharedTransforms([step], names, nearest=['depth'])
    for seed in range(3):
        seed_generators(seed)
        out = transform(dict(results))
        assert set(np.unique(out['depth'])) <= {0, 60000, 128}
        # The others are blended as the image is.
        assert np.array_equal(out['normals'], out['img'])
        seed_generators(seed)
        blended = SharedTransforms([step], names)(dict(results))
        assert np.array_equal(out['img'], blended['img'])
        assert set(np.unique(blended['depth'])) - {0, 60000, 128}


def test_nearest_of_torchvision():
    image = Image.fromarray(np.where(places() % 8 < 4, 0, 255).astype('uint8'))
    transform = SharedTransforms(
        [dict(type='torchvision/Resize', size=(23, 31))],
        ['mask'],
        nearest=['mask'],
    )
    results = transform(dict(img=image, mask=image.copy()))
    assert set(np.unique(results['mask'])) == {0, 255}
    assert len(np.unique(results['img'])) > 2


@pytest.mark.parametrize(
    ('step', 'says'),
    [
        (dict(type='ColorJitter', brightness=0.4), 'ColorJitter changes valu'),
        (dict(type='Normalize', mean=[1], std=[1]), 'Normalize changes valu'),
        (
            dict(type='torchvision/ColorJitter', brightness=0.4),
            'ColorJitter changes',
        ),
        (
            dict(
                type='RandomApply',
                transforms=[dict(type='GaussianBlur', radius=1.0, prob=1.0)],
            ),
            'GaussianBlur changes',
        ),
        (
            dict(
                type='RandAugment',
                policies='timm_increasing',
                num_policies=2,
                magnitude_level=9,
            ),
            'RandAugment changes',
        ),
    ],
)
def test_transforms_of_values_are_refused(step, says):
    with pytest.raises(ArgumentError, match=says):
        SharedTransforms([FLIP, step], ['depth'])


class Mosaic(BaseTransform):
    def get_indexes(self, dataset):
        return [0]

    def transform(self, results):
        return results


def test_transforms_that_join_images_are_refused():
    with pytest.raises(ArgumentError, match='Mosaic joins several images'):
        SharedTransforms([Mosaic()], ['depth'])


@pytest.mark.parametrize(
    ('transforms', 'nearest', 'says'),
    [
        ([CROP], ['dpeth'], "nearest has 'dpeth', but names are depth"),
        ([FLIP], ['depth'], 'no transform has a setting interpolation'),
    ],
)
def test_nearest_that_does_nothing_is_refused(transforms, nearest, says):
    with pytest.raises(ArgumentError, match=says):
        SharedTransforms(transforms, ['depth'], nearest)


def test_inputs_of_another_size_are_refused():
    results = sample() | dict(depth=np.zeros((24, 32), np.uint16))
    with pytest.raises(ValueError, match=r'depth of a.png is of \(24, 32\)'):
        SharedTransforms([FLIP], ['depth'])(results)


def test_an_input_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no 'flow'; put LoadPairedImage"):
        SharedTransforms([FLIP], ['flow'])(sample())


def test_a_pair_that_is_left_behind_is_named():
    results = sample() | dict(paired_inputs=['depth', 'normals'])
    with pytest.raises(ValueError, match='leaves normals behind'):
        SharedTransforms([FLIP], ['depth'])(results)
