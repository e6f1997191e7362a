"""ScaleKD works for any pair of families, at any grid."""

import pytest
import torch

PLAIN = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32)
CLASSES = 5


def pooled(backbone: dict, channels: int) -> dict:
    """A classifier on a backbone whose output is already pooled."""
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        head=dict(
            type='LinearClsHead', num_classes=CLASSES, in_channels=channels
        ),
    )


def plain(kind: str, size, **kwargs) -> dict:
    cfg = dict(type=kind, arch=PLAIN, img_size=size, patch_size=16)
    cfg |= dict(out_type='avg_featmap') | kwargs
    return pooled(cfg, 16)


TEACHERS = {
    'swin': lambda tiny, size: tiny.classifier(tiny.swin(img_size=size)),
    'vit': lambda tiny, size: plain('VisionTransformer', size),
    'vit without cls': lambda tiny, size: plain(
        'VisionTransformer', size, with_cls_token=False
    ),
    'beit': lambda tiny, size: plain('BEiTViT', size),
    'eva': lambda tiny, size: plain(
        'BEiTViT', size, use_abs_pos_emb=True, use_rel_pos_bias=False
    ),
    'eva02': lambda tiny, size: plain('ViTEVA02', size),
}


def mixer(size) -> dict:
    cfg = pooled(
        dict(
            type='MlpMixer',
            arch=dict(
                embed_dims=16,
                num_layers=6,
                tokens_mlp_dims=8,
                channels_mlp_dims=32,
            ),
            img_size=size,
            patch_size=16,
        ),
        16,
    )
    return cfg | dict(neck=dict(type='GlobalAveragePooling', dim=1))


STUDENTS = {
    'resnet': lambda tiny, size: tiny.classifier(tiny.resnet()),
    'convnext': lambda tiny, size: tiny.classifier(tiny.convnext()),
    'swin': lambda tiny, size: tiny.classifier(tiny.swin(img_size=size)),
    'vit with cls': lambda tiny, size: tiny.classifier(
        tiny.vit(img_size=size)
    ),
    'mixer': lambda tiny, size: mixer(size),
    'timm': lambda tiny, size: (
        pooled(dict(type='TIMMBackbone', model_name='test_efficientnet'), 256)
        | dict(neck=dict(type='GlobalAveragePooling'))
    ),
}


def check_a_step(tiny, teacher, student, size, **kwargs):
    norm = 'LN2d' if student in ('convnext', 'swin') else 'BN'
    model = tiny.build_distillation(
        teacher=TEACHERS[teacher](tiny, size),
        architecture=STUDENTS[student](tiny, size),
        distiller=tiny.scalekd(norm=norm),
        input_size=size,
        **kwargs,
    )
    model.train()
    total, log = model.parse_losses(model.loss(*tiny.batch(3, size)))
    total.backward()
    views = [value for name, value in log.items() if 'distill.loss_s' in name]
    assert len(views) == 4 and all(value > 0 for value in views)
    assert torch.isfinite(total)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad is None for p in model.teacher.parameters())
    return model


@pytest.mark.parametrize('student', STUDENTS)
@pytest.mark.parametrize('teacher', TEACHERS)
def test_every_teacher_teaches_every_student(tiny, teacher, student):
    check_a_step(tiny, teacher, student, (64, 64))


@pytest.mark.parametrize('size', [(96, 96), (128, 64)], ids=str)
@pytest.mark.parametrize('teacher', ['swin', 'vit', 'beit'])
def test_other_sizes_and_shapes_of_images(tiny, teacher, size):
    for student in ('resnet', 'swin', 'vit with cls'):
        check_a_step(tiny, teacher, student, size)


def test_teacher_on_a_larger_grid_than_the_student(tiny):
    model = check_a_step(
        tiny, 'swin', 'resnet', (64, 64), teacher_input_size=128
    )
    connector = model.distiller.connectors['s3_original']
    assert connector.in_grid == (4, 4)
    assert connector.query_grid == (8, 8)
