"""The rendered sets, read and scored by MMDetection and MMSegmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmcakd.datasets import (
    CLASSES,
    MIN_VISIBLE,
    PIXEL_CLASSES,
    index_mask,
    render_scene,
)

# MMDetection and MMSegmentation, half imported, would not import again.
pytest.importorskip(
    'mmcv._ext', reason='mmcv is installed without its compiled operators'
)
pytest.importorskip('mmdet', reason='MMDetection is not installed')
pytest.importorskip('mmseg', reason='MMSegmentation is not installed')

from mmengine.registry import init_default_scope  # noqa: E402

TOOL = 'tools/dataset_converters/render_shapes.py'
NUM_VAL = 48


@pytest.fixture(scope='module')
def render_set(run_tool, tmp_path_factory):
    def render(layout):
        out = tmp_path_factory.mktemp('data') / layout
        command = f'--layout {layout} --num-train 24 --num-val {NUM_VAL}'
        run_tool(TOOL, out, *command.split(), '--workers', 1)
        return out

    return render


@pytest.fixture(scope='module')
def coco(render_set):
    return render_set('coco')


@pytest.fixture(scope='module')
def ade20k(render_set):
    return render_set('ade20k')


@pytest.fixture
def detection(coco):
    """What MMDetection makes of the held-out images."""
    import mmdet.datasets.transforms  # noqa: F401
    from mmdet.datasets import CocoDataset

    init_default_scope('mmdet')
    return CocoDataset(
        data_root=str(coco),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        metainfo=dict(classes=CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(
                type='PackDetInputs',
                meta_keys=('img_id', 'ori_shape', 'img_path'),
            ),
        ],
        test_mode=True,
    )


@pytest.fixture
def segmentation(ade20k):
    """What MMSegmentation makes of the held-out images."""
    import mmseg.datasets.transforms  # noqa: F401
    from mmseg.datasets import BaseSegDataset

    init_default_scope('mmseg')
    return BaseSegDataset(
        data_root=str(ade20k),
        data_prefix=dict(
            img_path='images/validation',
            seg_map_path='annotations/validation',
        ),
        img_suffix='.png',
        reduce_zero_label=True,
        metainfo=dict(classes=PIXEL_CLASSES),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='PackSegInputs'),
        ],
        test_mode=True,
    )


def score_detection(dataset, coco, spoil=lambda predicted: predicted):
    """Score the ground truth, or what ``spoil`` makes of it."""
    from mmdet.evaluation import CocoMetric

    metric = CocoMetric(
        ann_file=str(coco / 'annotations/instances_val2017.json'),
        metric=['bbox', 'segm'],
    )
    metric.dataset_meta = dataset.metainfo
    for sample in (data['data_samples'] for data in dataset):
        truth = sample.gt_instances
        predicted = spoil(
            dict(
                bboxes=truth.bboxes.tensor,
                scores=torch.ones(len(truth)),
                labels=truth.labels,
                masks=torch.from_numpy(truth.masks.masks),
            )
        )
        record = dict(
            img_id=sample.img_id,
            ori_shape=sample.ori_shape,
            pred_instances=predicted,
        )
        metric.process({}, [record])
    return metric.evaluate(len(dataset))


def score_segmentation(dataset, spoil=lambda mask: mask):
    from mmseg.evaluation import IoUMetric

    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dataset.metainfo
    for sample in (data['data_samples'] for data in dataset):
        truth = sample.gt_sem_seg.data
        record = dict(
            gt_sem_seg=dict(data=truth),
            pred_sem_seg=dict(data=spoil(truth)),
        )
        metric.process({}, [record])
    return metric.evaluate(len(dataset))


def test_mmdet_loads_the_objects_of_each_scene(detection):
    assert len(detection) == NUM_VAL
    for data in detection:
        sample = data['data_samples']
        scene = render_scene(sample.img_id, 'val')
        image = data['inputs'].numpy()[::-1].transpose(1, 2, 0)
        assert np.array_equal(image, scene.image)
        assert len(sample.ignored_instances) == 0

        annotated = [o for o in scene.objects if o.mask.mean() >= MIN_VISIBLE]
        areas = [o.mask.sum() for o in annotated]
        found = sample.gt_instances
        assert found.masks.masks.sum((1, 2)).tolist() == areas
        for i, obj in enumerate(annotated):
            assert found.labels[i] == obj.label
            assert found.bboxes.tensor[i].tolist() == list(obj.box)
            assert np.array_equal(found.masks.masks[i], obj.mask)


def test_mmdet_keeps_every_image_for_training(coco):
    import mmdet.datasets.transforms  # noqa: F401
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        data_root=str(coco),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        metainfo=dict(classes=CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
    )
    assert len(dataset) == 24


def test_the_truth_has_an_ap_of_one(detection, coco):
    scores = score_detection(detection, coco)
    assert scores['coco/bbox_mAP'] == 1
    assert scores['coco/segm_mAP'] == 1


def test_wrong_classes_have_no_ap(detection, coco):
    def spoil(predicted):
        labels = (predicted['labels'] + 1) % len(CLASSES)
        return predicted | dict(labels=labels)

    scores = score_detection(detection, coco, spoil)
    assert scores['coco/bbox_mAP'] < 0.1
    assert scores['coco/segm_mAP'] < 0.1


def test_mmseg_loads_the_classes_of_each_pixel(segmentation):
    assert len(segmentation) == NUM_VAL
    for data in segmentation:
        sample = data['data_samples']
        scene = render_scene(int(Path(sample.img_path).stem), 'val')
        image = data['inputs'].numpy()[::-1].transpose(1, 2, 0)
        assert np.array_equal(image, scene.image)
        found = sample.gt_sem_seg.data[0].numpy()
        assert np.array_equal(found, index_mask(scene) - 1)
        assert found.max() < len(PIXEL_CLASSES)


def test_the_truth_has_a_miou_of_100(segmentation):
    scores = score_segmentation(segmentation)
    assert scores['mIoU'] == 100
    assert scores['aAcc'] == 100


def test_a_shape_seen_in_the_clutter_is_a_mistake(segmentation):
    def spoil(mask):
        return torch.where(mask == 0, 1, mask)

    pixels = np.concatenate(
        [data['data_samples'].gt_sem_seg.data.ravel() for data in segmentation]
    )
    clutter = (pixels == 0).mean()
    scores = score_segmentation(segmentation, spoil)
    assert 0.4 < clutter < 0.95
    assert scores['aAcc'] == pytest.approx(100 * (1 - clutter), abs=0.01)
