"""Depth maps beside the images of MMDetection and MMSegmentation."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import DataLoader

from mmcakd.datasets import make_resumable
from mmcakd.registry import MODELS
from mmcakd.utils.randomness import seed_generators

PLAIN = dict(mean=[0.0] * 3, std=[1.0] * 3)
NEAREST = dict(interpolation='nearest')
#: Transforms, packer and preprocessor of a package.
PACKAGES = dict(
    mmdet=(
        [
            dict(
                type='RandomChoiceResize',
                scales=[(90, 60), (60, 80)],
                keep_ratio=True,
                **NEAREST,
            ),
            dict(
                type='RandomCrop',
                crop_type='absolute_range',
                crop_size=(30, 50),
            ),
            dict(type='RandomFlip', prob=0.5),
        ],
        'PackDetInputs',
        dict(
            type='mmdet.DetDataPreprocessor',
            pad_size_divisor=32,
            pad_mask=True,
            **PLAIN,
        ),
    ),
    mmdet_by_boxes=(
        [dict(type='MinIoURandomCrop'), dict(type='RandomFlip', prob=0.5)],
        'PackDetInputs',
        dict(type='mmdet.DetDataPreprocessor', pad_mask=True, **PLAIN),
    ),
    mmseg=(
        [
            dict(
                type='RandomResize',
                scale=(80, 60),
                ratio_range=(0.5, 2.0),
                keep_ratio=True,
                **NEAREST,
            ),
            dict(type='RandomCrop', crop_size=(40, 40), cat_max_ratio=0.5),
            dict(type='RandomFlip', prob=0.5),
        ],
        'PackSegInputs',
        dict(type='mmseg.SegDataPreProcessor', size=(40, 40), **PLAIN),
    ),
)


class Scenes:
    """Images whose pixels tell their places, with depth, boxes and masks."""

    def __init__(self, root: Path, package: str) -> None:
        self.root = root
        transforms, packer, _ = PACKAGES[package]
        scope = package.partition('_')[0]
        labels = dict(
            mmdet=dict(with_bbox=True, with_mask=True),
            mmseg=dict(reduce_zero_label=False),
        )[scope]
        rows, columns = np.mgrid[:48, :64]
        image = np.stack([4 * rows, 3 * columns, 0 * rows + 9], -1)
        depth = image[..., 0] * 250 + image[..., 1]
        for name, pixels in (
            ('images/0.png', image.astype(np.uint8)),
            ('depth/0.png', depth.astype(np.uint16)),
            # A class for each quarter.
            ('maps/0.png', (rows // 24 * 2 + columns // 32).astype(np.uint8)),
        ):
            (root / name).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(root / name), pixels)
        with DefaultScope.overwrite_default_scope(scope):
            self.pipeline = Compose(
                [
                    dict(type='LoadImageFromFile'),
                    dict(
                        type='mmcakd.LoadPairedImage',
                        name='depth',
                        root=str(root / 'depth'),
                        image_root=str(root / 'images'),
                    ),
                    dict(type='LoadAnnotations', **labels),
                    dict(
                        type='mmcakd.SharedTransforms',
                        transforms=transforms,
                        names=['depth'],
                    ),
                    dict(
                        type='mmcakd.PackNamedInputs',
                        names=['depth'],
                        packer=dict(type=packer),
                    ),
                ]
            )

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict:
        instances = [
            dict(
                bbox=[x, y, x + 32, y + 24],
                bbox_label=label,
                mask=[[x, y, x + 32, y, x + 32, y + 24, x, y + 24]],
                ignore_flag=0,
            )
            for label, (x, y) in enumerate(
                [(0, 0), (32, 0), (0, 24), (32, 24)]
            )
        ]
        sample = dict(
            img_path=str(self.root / 'images/0.png'),
            seg_map_path=str(self.root / 'maps/0.png'),
            label_map=None,
            reduce_zero_label=False,
            seg_fields=[],
            height=48,
            width=64,
            instances=instances,
            img_id=index,
            sample_idx=index,
        )
        # MMDetection's crops may leave no box.
        return self.pipeline(sample) or self[index]


def build(package: str, depth: dict | None = None):
    return MODELS.build(
        dict(
            type='mmcakd.NamedInputsPreprocessor',
            image=PACKAGES[package][2],
            depth=depth or dict(mean=[0.0], std=[1.0], pad_value=-1),
        )
    )


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('package', PACKAGES)
def test_depth_belongs_to_the_images_of_a_batch(tmp_path, package, workers):
    loader = DataLoader(
        Scenes(tmp_path, package),
        3,
        num_workers=workers,
        collate_fn=pseudo_collate,
    )
    make_resumable(loader, seed=1)
    preprocessor = build(package)
    sizes = set()
    for batch in (preprocessor(batch, True) for batch in loader):
        images, depths = batch['inputs']['image'], batch['inputs']['depth']
        assert depths.shape == (3, 1, *images.shape[2:])
        for image, depth, sample in zip(
            images, depths, batch['data_samples'], strict=True
        ):
            # All that is no padding.
            is_image = image[2] == 9
            height, width = sample.img_shape[:2]
            sizes.add((height, width))
            expected = image[0] * 250 + image[1]
            assert torch.equal(depth[0][is_image], expected[is_image])
            assert (depth[0][~is_image] == -1).all()
            if package == 'mmseg':
                quarter = image[0] // 96 * 2 + image[1] // 96
                classes = sample.gt_sem_seg.data[0]
                assert torch.equal(
                    classes[is_image].float(), quarter[is_image]
                )
                continue
            for box, label in zip(
                sample.gt_instances.bboxes,
                sample.gt_instances.labels,
                strict=True,
            ):
                x1, y1, x2, y2 = box.round().int().tolist()
                centre = depth[0, (y1 + y2) // 2, (x1 + x2) // 2]
                row, column = divmod(int(centre), 250)
                assert row // 96 * 2 + column // 96 == label
    assert len(sizes) > 1 or package == 'mmseg'


def test_samples_with_depth_are_those_without(tmp_path):
    scenes = Scenes(tmp_path, 'mmdet')
    load, pair, labels, shared, pack = scenes.pipeline.transforms
    seed_generators(5)
    beside = scenes[0]
    scenes.pipeline.transforms = [
        load,
        labels,
        *shared.transforms,
        pack.packer,
    ]
    seed_generators(5)
    alone = scenes[0]
    assert torch.equal(alone['inputs'], beside['inputs']['image'])
    assert torch.equal(
        alone['data_samples'].gt_instances.bboxes.tensor,
        beside['data_samples'].gt_instances.bboxes.tensor,
    )


@pytest.mark.parametrize(
    ('package', 'packer'),
    [('mmdet', 'PackDetInputs'), ('mmseg', 'PackSegInputs')],
)
def test_images_without_labels(tmp_path, package, packer):
    Scenes(tmp_path, package)
    with DefaultScope.overwrite_default_scope(package):
        dataset = DATASETS.build(
            dict(
                type='mmcakd.UnlabelledImages',
                data_root=str(tmp_path / 'images'),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='Resize', scale=(32, 24)),
                    dict(type=packer),
                ],
            )
        )
    sample = dataset[0]
    assert sample['inputs'].shape == (3, 24, 32)
    assert sample['data_samples'].img_shape == (24, 32)


@pytest.mark.parametrize('package', ['mmdet', 'mmseg'])
def test_preprocessors_of_the_package_prepare_depth_of_several_sizes(package):
    kind = PACKAGES[package][2] | dict(mean=[5.0], std=[2.0])
    sizes = [(20, 30), (30, 20)]
    inputs = dict(
        image=[torch.ones(3, *size).byte() for size in sizes],
        depth=[torch.full((1, *size), 9) for size in sizes],
    )
    from mmdet.structures import DetDataSample
    from mmseg.structures import SegDataSample

    sample = dict(mmdet=DetDataSample, mmseg=SegDataSample)[package]
    samples = [sample(metainfo=dict(img_shape=size)) for size in sizes]
    if package == 'mmdet':
        for one in samples:
            from mmengine.structures import InstanceData

            one.gt_instances = InstanceData()
    batch = build(package, kind)(dict(inputs=inputs, data_samples=samples), 1)
    depth = batch['inputs']['depth']
    assert depth.shape == (2, 1, *batch['inputs']['image'].shape[2:])
    for one, (height, width) in zip(depth, sizes, strict=True):
        assert (one[:, :height, :width] == 2).all()
        assert not one[:, height:].any() and not one[..., width:].any()
