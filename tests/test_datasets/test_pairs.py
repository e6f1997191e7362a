"""Images and what belongs to them, from files to batches."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import mmengine.registry
import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.dataset import (
    ConcatDataset,
    RepeatDataset,
    default_collate,
    pseudo_collate,
)
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmcakd.arguments import ArgumentError
from mmcakd.datasets import (
    AnotherView,
    LoadPairedImage,
    PackNamedInputs,
    make_resumable,
)
from mmcakd.datasets.pairs import check_pairs
from mmcakd.registry import MODELS

LOAD = dict(type='LoadImageFromFile')
FLIP = dict(type='RandomFlip', prob=0.5)
CROP = dict(type='RandomResizedCrop', scale=24, interpolation='nearest')
SHARED = dict(
    type='mmcakd.SharedTransforms', transforms=[CROP, FLIP], names=['depth']
)
VIEW = dict(
    type='mmcakd.AnotherView',
    name='view1',
    transforms=[dict(type='RandomResizedCrop', scale=32), FLIP],
)
PACK = dict(type='mmcakd.PackNamedInputs', names=['depth'])


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write images whose pixels tell their places, and 16-bit depth maps."""

    def write_pairs(count: int = 4, missing: tuple[int, ...] = ()) -> Path:
        rows, columns = np.mgrid[:48, :64]
        for index in range(count):
            image = np.stack([4 * rows, 3 * columns, 0 * rows + index], -1)
            depth = image[..., 0] * 250 + image[..., 1]
            kind = f'class_{index % 2}'
            for folder, name, pixels in (
                ('images', f'{index}.png', image.astype(np.uint8)),
                ('depth', f'{index}_d.png', depth.astype(np.uint16)),
            ):
                path = tmp_path / folder / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if folder == 'images' or index not in missing:
                    cv2.imwrite(str(path), pixels)
        return tmp_path

    return write_pairs


def load_depth(folder: Path, **kwargs) -> dict:
    return (
        dict(
            type='mmcakd.LoadPairedImage',
            name='depth',
            root=str(folder / 'depth'),
            image_root=str(folder / 'images'),
            suffix='_d.png',
        )
        | kwargs
    )


def build(root: Path, *steps: dict):
    """Build MMPretrain's data set of the images."""
    return mmengine.registry.DATASETS.build(
        dict(
            type='mmpretrain.CustomDataset',
            data_root=str(root / 'images'),
            pipeline=[LOAD, load_depth(root), *steps],
            serialize_data=False,  # for the time that it takes
        )
    )


def depth_of(image: torch.Tensor) -> torch.Tensor:
    return image[..., :1, :, :].int() * 250 + image[..., 1:2, :, :]


# ------------------------------------------------------------------- loading


def test_depth_of_16_bits_survives(write):
    sample = build(write())[3]
    assert sample['depth'].dtype == np.uint16
    assert sample['depth'].shape == (48, 64)
    assert sample['depth'].max() == 47 * 1000 + 63 * 3
    assert sample['img'].shape == (48, 64, 3)


def test_files_of_the_same_name_in_colour(write):
    root = write()
    step = load_depth(
        root, root=str(root / 'images'), suffix=None, color_type='color'
    )
    sample = Compose([LOAD, step])(
        dict(img_path=str(root / 'images/class_1/3.png'))
    )
    assert np.array_equal(sample['depth'], sample['img'])


@pytest.mark.parametrize(
    ('img_path', 'image_root', 'suffix', 'found'),
    [
        ('data/a/b/c.jpg', 'data', '.png', 'pairs/a/b/c.png'),
        ('data/a/b/c.jpg', 'data/', None, 'pairs/a/b/c.jpg'),
        ('./data/x/../a/c.tar.jpg', 'data', '.png', 'pairs/a/c.tar.png'),
        ('/data/..a/c.jpg', '/data', '.png', 'pairs/..a/c.png'),
    ],
)
def test_place_of_the_file(img_path, image_root, suffix, found):
    load = LoadPairedImage('depth', 'pairs', image_root, suffix)
    assert load.find(img_path) == found


def test_an_image_elsewhere_is_refused():
    load = LoadPairedImage('depth', 'depth', 'data/train')
    with pytest.raises(ValueError, match='data/val/a.png does not lie in'):
        load.find('data/val/a.png')


def test_images_in_no_file_have_no_pairs():
    load = LoadPairedImage('depth', 'depth', 'images')
    with pytest.raises(ValueError, match='the samples have no img_path'):
        load(dict(img=np.zeros((4, 6, 3))))


def test_a_missing_file_is_named_when_it_is_read(write):
    dataset = build(write(missing=(1,)))
    with pytest.raises(FileNotFoundError, match=r'no .*class_1/1_d.png, the'):
        [dataset[index] for index in range(4)]


@pytest.mark.parametrize('name', ['img', 'image', ''])
@pytest.mark.parametrize(
    'kind',
    [
        lambda name: LoadPairedImage(name, 'depth', 'images'),
        lambda name: AnotherView(name, []),
    ],
)
def test_the_name_of_the_image_is_taken(kind, name):
    with pytest.raises(ArgumentError, match='is no name for an input beside'):
        kind(name)


def test_a_name_in_use_is_refused():
    with pytest.raises(ValueError, match="a 'img_path' already"):
        AnotherView('img_path', [])(dict(img=1, img_path='a.png'))


# --------------------------------------------------------------------- views


def test_another_view_goes_its_own_way():
    image = np.arange(48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
    resize = dict(type='Resize', scale=(32, 32))
    steps = [
        AnotherView('view1', [dict(type='RandomFlip', prob=1.0)]),
        AnotherView('view2', [resize, dict(type='RandomErasing')]),
    ]
    results = Compose([*steps, resize])(dict(img=image.copy(), gt_label=1))
    assert np.array_equal(results['view1'], image[:, ::-1])
    assert results['view2'].shape == results['img'].shape == (32, 32, 3)
    assert results['img_shape'] == (32, 32) and 'flip' not in results
    assert results['gt_label'] == 1


def test_without_a_view_another_image_is_taken():
    view = AnotherView('view1', [lambda results: None])
    assert view(dict(img=np.zeros((2, 2, 3)))) is None


# ------------------------------------------------------------------- packing


def test_inputs_that_differ_by_now_are_not_packed(write):
    dataset = build(write(), CROP, PACK)
    with pytest.raises(ValueError, match=r'is of \(48, 64\).*of \(24, 24\)'):
        dataset[0]


def test_an_input_that_is_not_there_is_not_packed(write):
    dataset = build(write(), PACK | dict(names=['depth', 'view1']))
    with pytest.raises(ValueError, match="PackNamedInputs: .* no 'view1'"):
        dataset[0]


@pytest.mark.parametrize(
    ('value', 'shape', 'dtype'),
    [
        (np.full((4, 6), 65535, np.uint16), (1, 4, 6), torch.int32),
        (np.full((4, 6), 0.5, np.float32), (1, 4, 6), torch.float32),
        (np.full((4, 6, 2), 7, np.uint8)[:, ::-1], (2, 4, 6), torch.uint8),
        (Image.new('RGB', (6, 4), 9), (3, 4, 6), torch.uint8),
        (torch.full((5, 4, 6), 3.0), (5, 4, 6), torch.float32),
    ],
    ids=['uint16', 'float', 'flipped', 'PIL', 'tensor'],
)
def test_whatever_a_pipeline_has_becomes_a_tensor(value, shape, dtype):
    results = dict(img=np.zeros((4, 6, 3), np.uint8), other=value)
    packed = PackNamedInputs(['other'])(results)['inputs']
    assert packed['other'].shape == shape and packed['other'].dtype == dtype
    assert packed['other'].float().max() == np.asarray(value).max()
    assert packed['image'].shape == (3, 4, 6)


# ------------------------------------------------------------------- batches


def preprocess(batch: dict) -> dict:
    plain = dict(mean=[0.0], std=[1.0])
    preprocessor = MODELS.build(
        dict(
            type='mmcakd.NamedInputsPreprocessor',
            image=plain,
            depth=plain,
            view1=plain,
        )
    )
    return preprocessor(batch, True)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('collate', [default_collate, pseudo_collate])
def test_batches_hold_what_belongs_together(write, workers, collate):
    dataset = build(
        write(), VIEW, SHARED, PACK | dict(names=['depth', 'view1'])
    )
    loader = DataLoader(
        dataset, 3, num_workers=workers, collate_fn=collate, shuffle=True
    )
    make_resumable(loader, seed=3)
    epochs = [[preprocess(batch) for batch in loader] for _ in range(2)]
    for batches in epochs:
        for batch in batches:
            inputs = batch['inputs']
            assert inputs['image'].shape[1:] == (3, 24, 24)
            assert inputs['view1'].shape[1:] == (3, 32, 32)
            assert torch.equal(inputs['depth'], depth_of(inputs['image']))
            for sample, image, view in zip(
                batch['data_samples'],
                inputs['image'],
                inputs['view1'],
                strict=True,
            ):
                assert image[2].unique() == view[2].unique()
                assert sample.gt_label == int(image[2, 0, 0]) % 2
    assert not torch.equal(
        epochs[0][0]['inputs']['image'], epochs[1][0]['inputs']['image']
    )


def read(root: Path, *steps: dict, workers: int = 0) -> list[torch.Tensor]:
    """Read the images, by their index."""
    loader = DataLoader(
        build(root, *steps), 1, num_workers=workers, collate_fn=pseudo_collate
    )
    make_resumable(loader, seed=7)
    return [
        inputs['image'][0] if isinstance(inputs, dict) else inputs[0]
        for inputs in (batch['inputs'] for batch in loader)
    ]


def test_samples_depend_on_their_place_and_not_on_the_pairs(write):
    root = write()
    alone = read(root, CROP, FLIP, dict(type='PackInputs'))
    for workers in (0, 2):
        beside = read(root, SHARED, PACK, workers=workers)
        assert all(map(torch.equal, alone, beside))


# ----------------------------------------------------------- before training


def test_missing_files_are_named_before_training(write):
    root = write(6, missing=(3, 5))
    dataset = build(root, SHARED, PACK)
    with pytest.raises(
        FileNotFoundError,
        match=r'no .*class_1/3_d.png, the depth of .*class_1/3.png, and so '
        'for 2 of 6 images',
    ):
        check_pairs(dataset)
    check_pairs(build(write(6), SHARED, PACK))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda dataset: RepeatDataset(dataset, 2),
        lambda dataset: ConcatDataset([dataset, copy.deepcopy(dataset)]),
        lambda dataset: DataLoader(RepeatDataset(dataset, 2)).dataset,
    ],
)
def test_wrapped_data_sets_are_checked(write, wrap):
    check_pairs(wrap(build(write())))
    (write() / 'depth' / 'class_0' / '2_d.png').unlink()
    with pytest.raises(FileNotFoundError, match='class_0/2_d.png'):
        check_pairs(wrap(build(write(missing=(2,)))))


def test_a_folder_that_is_not_there_is_found_out(write):
    dataset = build(write())
    dataset.pipeline.transforms[1].root = 'nowhere'
    with pytest.raises(FileNotFoundError, match='so for 4 of 4 images'):
        check_pairs(dataset)


@pytest.mark.parametrize(
    'step',
    [
        FLIP,
        CROP,
        dict(type='ResizeEdge', scale=32),
        dict(type='RandomApply', transforms=[FLIP], prob=0.5),
        dict(type='torchvision/RandomHorizontalFlip'),
        dict(type='KeyMapper', mapping=dict(a='b'), transforms=[FLIP]),
    ],
)
@pytest.mark.parametrize('place', [0, 1])
def test_what_moves_the_image_alone_is_refused(write, step, place):
    steps = [SHARED]
    steps.insert(place, step)
    with pytest.raises(ValueError, match='alone, to which depth would'):
        check_pairs(build(write(), *steps, PACK))


def test_what_changes_values_or_is_shared_or_another_view_passes(write):
    jitter = dict(type='ColorJitter', brightness=0.4)
    key_mapper = dict(
        type='KeyMapper',
        mapping=dict(img='depth'),
        auto_remap=True,
        transforms=[dict(type='Resize', scale=(64, 48))],
    )
    erase = dict(type='RandomErasing')
    steps = [key_mapper, VIEW, SHARED, jitter, erase, PACK]
    check_pairs(build(write(), *steps))


def test_a_pipeline_that_a_hook_switches_to_is_checked(write):
    root = write()
    dataset = build(root, SHARED, PACK)
    later = Compose([LOAD, load_depth(root), FLIP, PACK])
    with pytest.raises(ValueError, match='RandomFlip of the pipeline'):
        check_pairs(dataset, later)


def test_other_data_sets_pass():
    check_pairs(range(3))
    check_pairs([1, 2])


def test_the_pipeline_of_the_guide_makes_batches(tmp_path, monkeypatch):
    guide = Path(__file__).parents[2] / 'docs' / 'guide.md'
    blocks = re.findall('```python\n(.*?)```', guide.read_text(), re.DOTALL)
    (code,) = [block for block in blocks if 'LoadPairedImage' in block]
    said = {}
    exec(code, said)
    monkeypatch.chdir(tmp_path)
    rows, columns = np.mgrid[:256, :256]
    for path, pixels in (
        ('images/kitchen/1.jpg', np.zeros((256, 256, 3), np.uint8)),
        ('depth/kitchen/1.png', (rows * 256 + columns).astype(np.uint16)),
    ):
        file = tmp_path / 'data' / path
        file.parent.mkdir(parents=True)
        cv2.imwrite(str(file), pixels)
    dataset = mmengine.registry.DATASETS.build(
        dict(
            type='mmcakd.UnlabelledImages',
            data_root='data/images',
            pipeline=said['train_pipeline'],
        )
    )
    check_pairs(dataset)
    batch = pseudo_collate([dataset[0], dataset[0]])
    preprocessor = MODELS.build(said['model']['data_preprocessor'])
    inputs = preprocessor(batch, True)['inputs']
    assert inputs['image'].shape == (2, 3, 224, 224)
    depth = inputs['depth'] * 2500 + 4000
    assert depth.shape == (2, 1, 224, 224)
    assert (depth - depth.round()).abs().max() < 0.01
