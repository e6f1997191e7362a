"""Detectors and segmentors that learn from several teachers, and no labels."""

import mmcakd  # noqa: F401  isort: skip  (makes torchvision importable)

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import BaseDataElement

from mmcakd.registry import MODELS

SIZE = (64, 96)
#: A map of the third stage, at stride 16.
GRID = (16, 4, 6)
NARROW = dict(
    type='mmpretrain.ResNet',
    depth=18,
    stem_channels=4,
    base_channels=4,
    out_indices=(0, 1, 2, 3),
)
WIDTHS = [4, 8, 16, 32]
NORM = dict(mean=[0.0] * 3, std=[1.0] * 3)


def detector() -> dict:
    """A RetinaNet of three levels."""
    return dict(
        type='mmdet.RetinaNet',
        data_preprocessor=dict(type='mmdet.DetDataPreprocessor', **NORM),
        backbone=NARROW,
        neck=dict(
            type='mmdet.FPN',
            in_channels=WIDTHS,
            out_channels=8,
            start_level=1,
            num_outs=3,
        ),
        bbox_head=dict(
            type='mmdet.RetinaHead',
            num_classes=3,
            in_channels=8,
            feat_channels=8,
            stacked_convs=1,
            anchor_generator=dict(
                type='mmdet.AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=4,
                scales_per_octave=1,
                strides=[8, 16, 32],
            ),
            bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
        ),
        train_cfg=dict(
            assigner=dict(
                type='mmdet.MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.4,
                min_pos_iou=0,
            ),
            sampler=dict(type='mmdet.PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(
            nms_pre=10,
            score_thr=0.0,
            nms=dict(type='nms', iou_threshold=0.5),
            max_per_img=5,
        ),
    )


def segmentor() -> dict:
    """An FCN on the last stage."""
    return dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(
            type='mmseg.SegDataPreProcessor', size=SIZE, **NORM
        ),
        backbone=NARROW,
        decode_head=dict(
            type='mmseg.FCNHead',
            in_channels=32,
            in_index=3,
            channels=8,
            num_convs=1,
            concat_input=False,
            num_classes=3,
            align_corners=False,
            loss_decode=dict(type='mmseg.CrossEntropyLoss'),
        ),
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )


STUDENTS = dict(mmdet=detector, mmseg=segmentor)
#: What nothing reads where a stage of the backbone is compared.
HEADS = dict(mmdet=('neck', 'bbox_head'), mmseg=('decode_head',))


def sample(package: str, index: int, labelled: bool):
    """A sample of an image; without labels there is nothing to read."""
    image = dict(
        sample_idx=index,
        img_shape=SIZE,
        ori_shape=SIZE,
        pad_shape=SIZE,
        batch_input_shape=SIZE,
        scale_factor=(1.0, 1.0),
    )
    if package == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    if not labelled:

        class Blind(Sample):
            @property
            def gt_instances(self):
                raise AssertionError('an annotation was read')

            gt_sem_seg = gt_instances

        return Blind(metainfo=image)
    made = Sample(metainfo=image)
    if package == 'mmdet':
        from mmengine.structures import InstanceData

        made.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4.0, 40.0, 40.0]]),
            labels=torch.tensor([1]),
        )
    else:
        from mmengine.structures import PixelData

        made.gt_sem_seg = PixelData(data=torch.ones(1, *SIZE).long())
    return made


def distillation(package: str, tiny, **kwargs) -> dict:
    """From a network of the package, a bare ViT and a store."""
    stages = dict(stages=dict(type='mmcakd.StageOutputs'))
    names = ('same', 'vit', 'stored')
    targets = {
        name: dict(recorder='stages', teacher=name, data_idx=2)
        for name in names
    }
    stored = torch.arange(4 * 384).view(4, *GRID) % 7 / 7.0
    student = tiny.record('stages', True, 2)
    vit = tiny.vit(type='mmpretrain.VisionTransformer', img_size=SIZE)
    cfg = dict(
        type='mmcakd.CrossArchDistill',
        architecture=STUDENTS[package](),
        teachers=dict(
            same=dict(model=STUDENTS[package](), ckpt='random'),
            vit=dict(model=vit, ckpt='random'),
            stored=dict(
                type='mmcakd.InMemoryTargets', records=dict(stages={2: stored})
            ),
        ),
        input_size=SIZE,
        distiller=dict(
            student_recorders=stages,
            teacher_recorders=dict.fromkeys(names, stages),
            connectors={
                name: dict(
                    type='mmcakd.FitNetConnector',
                    inputs=dict(feature=student),
                    shape_like=target,
                )
                for name, target in targets.items()
            },
            distill_losses={
                f'loss_{name}': dict(type='mmcakd.MSELoss') for name in names
            },
            loss_forward_mappings={
                f'loss_{name}': dict(
                    student=dict(connector=name), teacher=target
                )
                for name, target in targets.items()
            },
        ),
        **kwargs,
    )
    return ConfigDict(cfg)


@pytest.mark.parametrize('package', STUDENTS)
def test_two_teachers_that_run_and_a_stored_one(package, tiny):
    torch.manual_seed(0)
    model = MODELS.build(distillation(package, tiny)).train()
    calls = []
    for name, teacher in model.live_teachers.items():
        teacher.model.register_forward_hook(
            lambda *args, name=name: calls.append(name)
        )
    images = torch.randn(2, 3, *SIZE)
    samples = [sample(package, index, True) for index in (3, 1)]
    losses = model(images, samples, mode='loss')
    assert calls == ['same', 'vit']
    distill = {name for name in losses if name.startswith('distill.')}
    assert distill == {f'distill.loss_{n}' for n in ('same', 'vit', 'stored')}
    assert any(name.startswith('student.') for name in losses)

    # Each target is that of its own source.
    model.eval()
    losses = model(images, samples, mode='loss')
    with torch.no_grad():
        third = model.student.backbone(images)[2]
        connectors = model.distiller.connectors
        expected = dict(
            same=model.teachers['same'].model.backbone(images)[2],
            stored=torch.arange(4 * 384).view(4, *GRID)[[3, 1]] % 7 / 7.0,
        )
        for name, target in expected.items():
            error = (connectors[name](third) - target).square().mean()
            torch.testing.assert_close(losses[f'distill.loss_{name}'], error)

    total, _ = model.parse_losses(losses)
    total.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not [key for key in model.state_dict() if 'teacher' in key]


@pytest.mark.parametrize('package', STUDENTS)
def test_no_annotation_is_touched_where_own_losses_do_not_count(package, tiny):
    cfg = distillation(package, tiny, student_loss_weight=0)
    model = MODELS.build(cfg).train()
    trained = {name for name, _ in model.student.named_parameters()}
    unread = ('backbone.layer4', *HEADS[package])
    assert trained and not [n for n in trained if n.startswith(unread)]
    whole = MODELS.build(cfg['architecture']).state_dict()
    assert model.student.state_dict().keys() == whole.keys()
    images = torch.randn(2, 3, *SIZE)
    samples = [sample(package, index, False) for index in (0, 2)]
    losses = model(images, samples, mode='loss')
    assert {name.split('.')[0] for name in losses} == {'distill'}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    # It predicts as before.
    samples = [sample(package, index, True) for index in (0, 2)]
    assert len(model.eval()(images, samples, mode='predict')) == 2


@pytest.mark.parametrize('package', STUDENTS)
def test_a_teacher_reads_depth_beside_the_images(package, tiny):
    cfg = distillation(package, tiny)
    teacher = cfg['teachers']['same']
    teacher['inputs'] = 'depth'
    teacher['model']['backbone']['in_channels'] = 1
    teacher['model']['data_preprocessor'].update(mean=[0.0], std=[1.0])
    cfg['data_preprocessor'] = dict(
        type='mmcakd.NamedInputsPreprocessor',
        image=cfg['architecture']['data_preprocessor'],
        depth=dict(mean=[0.0], std=[2.0]),
    )
    model = MODELS.build(cfg).eval()
    depth = [torch.full((1, *SIZE), 4.0 * index) for index in (1, 2)]
    data = dict(
        inputs=dict(
            image=[torch.zeros(3, *SIZE).byte() for _ in range(2)],
            depth=depth,
        ),
        data_samples=[sample(package, index, True) for index in (0, 1)],
    )
    seen = []
    model.teachers['same'].model.register_forward_hook(
        lambda module, args, output: seen.append(args[0])
    )
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    assert 'distill.loss_same' in losses
    (inputs,) = seen
    assert inputs.shape == (2, 1, *SIZE)
    # As it is used to: it undoes what was done to the batch.
    assert torch.equal(inputs, torch.stack(depth))
    with pytest.raises(ValueError, match="'same' reads the input 'depth'"):
        model(torch.zeros(2, 3, *SIZE), data['data_samples'], mode='loss')
    # Validation has images alone.
    samples = data['data_samples']
    images = torch.zeros(2, 3, *SIZE)
    predicted = model(images, samples, mode='predict')
    assert all(isinstance(p, BaseDataElement) for p in predicted)
