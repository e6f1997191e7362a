"""OFA-KD as a whole, on pairs of every kind."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

METHODS = Path(__file__).parents[3] / 'configs' / '_base_' / 'methods'


def ofakd(**losses) -> dict:
    """The distiller of the configs, with other losses."""
    distiller = Config.fromfile(METHODS / 'ofakd.py').distiller.to_dict()
    for name, changes in losses.items():
        distiller['distill_losses'][name].update(changes)
    # The tiny models are too narrow for many heads.
    distiller['connectors']['heads']['num_heads'] = 2
    return distiller


KINDS = dict(
    cnn=lambda tiny: tiny.classifier(tiny.resnet()),
    convnext=lambda tiny: tiny.classifier(tiny.convnext()),
    vit=lambda tiny: tiny.classifier(tiny.vit()),
    swin=lambda tiny: tiny.classifier(tiny.swin()),
    mlp=lambda tiny: tiny.classifier(tiny.mixer()),
)


@pytest.mark.parametrize('teacher', KINDS)
@pytest.mark.parametrize('student', KINDS)
def test_every_kind_teaches_every_kind(tiny, student, teacher):
    model = tiny.build_distillation(
        architecture=KINDS[student](tiny),
        teacher=KINDS[teacher](tiny),
        distiller=ofakd(),
        student_loss_weight=1.0,
    ).train()
    losses = model(*tiny.batch(), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert set(losses) == {
        'student.loss',
        'distill.loss_kd',
        'distill.loss_ofa',
    }
    trained = dict(model.named_parameters())
    assert any(name.startswith('distiller') for name in trained)
    assert not any(name.startswith('teacher') for name in trained)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad is None for p in model.teacher.parameters())


def test_heads_send_gradient_into_the_stage_they_read(tiny):
    model = tiny.build_distillation(
        distiller=ofakd(loss_kd=dict(loss_weight=0.0)),
        student_loss_weight=0.0,
    ).train()
    model.distiller.connectors.heads.stages = (1,)
    model.distiller.connectors.heads.heads = (
        model.distiller.connectors.heads.heads[:1]
    )
    losses = model(*tiny.batch(), mode='loss')
    model.parse_losses(losses)[0].backward()
    backbone = model.student.backbone
    assert backbone.layer1[0].conv1.weight.grad.abs().sum() > 0
    later = backbone.layer2[0].conv1.weight.grad
    assert later is None or later.abs().sum() == 0


def test_total_is_the_sum_of_its_parts(tiny):
    torch.manual_seed(1)
    model = tiny.build_distillation(
        distiller=ofakd(
            loss_kd=dict(eps=1.5, loss_weight=0.7),
            loss_ofa=dict(eps=[1.0, 1.1, 1.2, 1.3], loss_weight=0.1),
        ),
        student_loss_weight=1.0,
    ).eval()
    images, samples = tiny.batch()
    caught = {}
    model.student.head.register_forward_hook(
        lambda m, i, o: caught.update(student=o)
    )
    model.teacher.model.head.register_forward_hook(
        lambda m, i, o: caught.update(teacher=o)
    )
    model.distiller.connectors.heads.register_forward_hook(
        lambda m, i, o: caught.update(heads=o)
    )
    losses = model(images, samples, mode='loss')
    label = torch.cat([sample.gt_label for sample in samples])

    def definition(student, eps):
        q, p = student.softmax(1), caught['teacher'].softmax(1)
        w = p**eps
        rows = torch.arange(len(label))
        w[rows, label] = (1 + p[rows, label]) ** eps - 1
        return -(w * q.log()).sum(1).mean()

    kd = 0.7 * definition(caught['student'], 1.5)
    ofa = 0.1 * sum(
        definition(logits, eps)
        for logits, eps in zip(
            caught['heads'], (1.0, 1.1, 1.2, 1.3), strict=True
        )
    )
    torch.testing.assert_close(losses['distill.loss_kd'], kd)
    torch.testing.assert_close(losses['distill.loss_ofa'], ofa)


def test_mixed_batches_are_distilled(tiny):
    student = KINDS['vit'](tiny) | dict(
        train_cfg=dict(
            augments=[
                dict(type='Mixup', alpha=0.8),
                dict(type='CutMix', alpha=1.0),
            ]
        )
    )
    model = tiny.build_distillation(
        architecture=student,
        distiller=ofakd(),
        data_preprocessor=dict(num_classes=tiny.classes),
    ).train()
    images, samples = tiny.batch(4)
    data = dict(inputs=list(images), data_samples=samples)
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    assert torch.isfinite(model.parse_losses(losses)[0])


def test_wrong_number_of_exponents_is_told_before_training(tiny):
    with pytest.raises(ValueError, match='loss_ofa.*3 values for 4 student'):
        tiny.build_distillation(
            distiller=ofakd(loss_ofa=dict(eps=[1.0, 1.0, 1.0]))
        )


def test_other_classes_are_told_before_training(tiny):
    with pytest.raises(ValueError, match='same classes'):
        tiny.build_distillation(
            distiller=ofakd(), teacher=tiny.classifier(tiny.swin(), 7)
        )


def test_student_of_three_stages_gets_heads_where_it_has_stages(tiny):
    student = tiny.classifier(
        tiny.resnet(
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
        )
    )
    student['head']['in_channels'] = 16
    with pytest.raises(ValueError, match='stage 4 is read.* 3 stages'):
        tiny.build_distillation(architecture=student, distiller=ofakd())
    distiller = ofakd()
    distiller['connectors']['heads']['stages'] = (1, 2, 3)
    model = tiny.build_distillation(architecture=student, distiller=distiller)
    assert len(model.distiller.connectors['heads'].heads) == 3
