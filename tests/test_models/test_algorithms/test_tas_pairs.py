"""TAS as a whole, on pairs of every kind."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmpretrain import get_model
from torch import nn

from mmcakd.utils import export_student

METHODS = Path(__file__).parents[3] / 'configs' / '_base_' / 'methods'
KINDS = ('resnet', 'vit', 'swin', 'mixer')
EDGES = ('teacher_student', 'teacher_assistant', 'assistant_student')
NCE = {f'distill.loss_nce_{edge}' for edge in EDGES}
OFA = {f'distill.loss_ofa_{edge}' for edge in EDGES}
LOSSES = NCE | OFA | {'distill.loss_assistant', 'student.loss'}


def tas(method: str = 'tas', assistant: dict | None = None, **losses) -> dict:
    """The distiller of the configs, with other arguments."""
    distiller = Config.fromfile(METHODS / f'{method}.py').distiller.to_dict()
    if assistant:
        distiller['connectors']['assistant'].update(assistant)
    for name, changes in losses.items():
        distiller['distill_losses'][name].update(changes)
    return distiller


@pytest.fixture
def build(tiny):
    """Build TAS from the names of two kinds; the teacher may be a config."""

    def make(student='resnet', teacher='swin', distiller=None, **kwargs):
        if isinstance(teacher, str):
            teacher = tiny.classifier(getattr(tiny, teacher)())
        cfg = dict(
            architecture=tiny.classifier(getattr(tiny, student)()),
            teacher=teacher,
            distiller=distiller or tas(),
            student_loss_weight=1.0,
        )
        return tiny.build_distillation(**cfg | kwargs).train()

    return make


def backward(model, losses) -> torch.Tensor:
    total, _ = model.parse_losses(losses)
    total.backward()
    return total


# ------------------------------------------------------------------ every pair


@pytest.mark.parametrize('teacher', KINDS)
@pytest.mark.parametrize('student', KINDS)
def test_every_kind_teaches_every_kind(build, tiny, student, teacher):
    model = build(student, teacher)
    losses = model(*tiny.batch(3), mode='loss')
    total = backward(model, losses)
    assert set(losses) == LOSSES
    assert torch.isfinite(total)
    # DDP then needs no search for unused ones.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    assert all(p.grad is None for p in model.teacher.parameters())
    crosses = teacher == 'resnet' and student != 'resnet'
    first = 'teacher' if crosses else 'student'
    assert model.distiller.connectors.assistant.first == first
    # A linear layer only where widths differ.
    embed = model.distiller.connectors.student_to_teacher.linear
    width = dict(resnet=32, vit=16, swin=64, mixer=16)
    differ = width[student] != width[teacher]
    assert isinstance(embed, nn.Linear if differ else nn.Identity)


@pytest.mark.parametrize(
    ('method', 'names'),
    [
        ('tas_logits', LOSSES - NCE),
        (
            'tas_pair',
            {
                'distill.loss_nce_teacher_student',
                'distill.loss_ofa_teacher_student',
                'student.loss',
            },
        ),
    ],
)
@pytest.mark.parametrize('student', ['resnet', 'vit'])
def test_parts_of_the_method_alone(build, tiny, method, names, student):
    model = build(student, 'resnet', tas(method))
    losses = model(*tiny.batch(), mode='loss')
    assert torch.isfinite(backward(model, losses))
    assert set(losses) == names
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'vit'), ('vit', 'resnet')]
)
def test_mixed_batches_are_distilled(build, tiny, student, teacher):
    architecture = tiny.classifier(
        getattr(tiny, student)(),
        train_cfg=dict(
            augments=[
                dict(type='Mixup', alpha=0.8),
                dict(type='CutMix', alpha=1.0),
            ]
        ),
    )
    model = build(
        student,
        teacher,
        architecture=architecture,
        data_preprocessor=dict(num_classes=tiny.classes),
    )
    images, samples = tiny.batch(4)
    data = dict(inputs=list(images), data_samples=samples)
    data = model.data_preprocessor(data, training=True)
    assert 'gt_score' in data['data_samples'][0]
    losses = model(**data, mode='loss')
    assert set(losses) == LOSSES
    assert torch.isfinite(backward(model, losses))


def test_teacher_in_half_precision(build, tiny):
    model = build('resnet', 'swin', teacher_precision='bf16')
    losses = model(*tiny.batch(), mode='loss')
    assert torch.isfinite(backward(model, losses))


def test_single_image_is_refused(build, tiny):
    model = build().eval()
    with pytest.raises(ValueError, match='drop_last=True'):
        model(*tiny.batch(1), mode='loss')


@pytest.mark.parametrize(
    ('teacher', 'named'),
    [
        (
            dict(
                type='mmpretrain.TimmClassifier',
                model_name='test_efficientnet',
                num_classes=5,
            ),
            'of a EfficientNet does more',
        ),
        (
            dict(
                type='mmpretrain.TimmClassifier',
                model_name='xception41p',
                num_classes=5,
            ),
            'XceptionAligned cannot be replayed',
        ),
    ],
)
def test_teacher_that_cannot_come_last_is_told_before_training(
    build, teacher, named
):
    with pytest.raises(ValueError, match=f"connector 'assistant'.*{named}"):
        build('resnet', teacher)


def test_torchvisions_teacher(build, tiny):
    teacher = dict(
        type='mmcakd.TorchvisionClassifier',
        model_name='shufflenet_v2_x0_5',
        num_classes=5,
    )
    with pytest.raises(ValueError, match='no stages are known for torchvis'):
        build('resnet', teacher)
    model = build('resnet', teacher | dict(model_name='mobilenet_v3_small'))
    assert torch.isfinite(backward(model, model(*tiny.batch(), mode='loss')))


# ------------------------------------------------------------------ its losses


def nce(student, teacher):
    student = student / student.norm(dim=1, keepdim=True)
    teacher = teacher / teacher.norm(dim=1, keepdim=True)
    scores = (student @ teacher.T / 0.07).softmax(1)
    return -scores.diagonal().log().mean()


def soft_cross_entropy(student, teacher):
    # What the loss of OFA-KD is with an exponent of 1.
    return -(teacher.softmax(1) * student.softmax(1).log()).sum(1).mean()


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('swin', 'resnet')]
)
def test_every_loss_is_that_of_its_two_models(build, tiny, student, teacher):
    model = build(student, teacher).eval()
    connectors = model.distiller.connectors
    stages, logits = {}, {}
    nets = dict(student=model.student, teacher=model.teacher.model)
    for name, kind in (('student', student), ('teacher', teacher)):
        end = dict(resnet='layer4', swin='norm3')[kind]
        nets[name].backbone.get_submodule(end).register_forward_hook(
            lambda m, i, o, name=name: stages.setdefault(name, o)
        )
        nets[name].head.register_forward_hook(
            lambda m, i, o, name=name: logits.setdefault(name, o)
        )

    def keep(module, inputs, outputs):
        stages['assistant'] = outputs['feature']
        logits['assistant'] = outputs['logits']

    connectors.assistant.register_forward_hook(keep)
    images, samples = tiny.batch(4)
    losses = model(images, samples, mode='loss')
    label = torch.cat([sample.gt_label for sample in samples])

    pooled = {
        name: x.mean(1) if x.ndim == 3 else x.flatten(2).mean(2)
        for name, x in stages.items()
        if x.ndim > 2
    } | dict(assistant=stages['assistant'])
    expected = dict(
        nce_teacher_student=nce(
            connectors.student_to_teacher.linear(pooled['student']),
            pooled['teacher'],
        ),
        nce_teacher_assistant=nce(
            connectors.assistant_to_teacher.linear(pooled['assistant']),
            pooled['teacher'],
        ),
        nce_assistant_student=nce(
            connectors.student_to_assistant.linear(pooled['student']),
            pooled['assistant'],
        ),
        assistant=nn.functional.cross_entropy(
            logits['assistant'], label, label_smoothing=0.1
        ),
        **{
            f'ofa_{edge}': soft_cross_entropy(
                *(logits[name] for name in reversed(edge.split('_')))
            )
            for edge in EDGES
        },
    )
    for name, value in expected.items():
        torch.testing.assert_close(losses[f'distill.loss_{name}'], value)


@pytest.mark.parametrize('detach', [True, False])
def test_student_teaches_the_assistant_only_if_asked_to(build, tiny, detach):
    changes = dict(detach_teacher=detach)
    model = build(
        distiller=tas(
            loss_nce_assistant_student=changes,
            loss_ofa_assistant_student=changes,
        )
    )
    projector = list(model.distiller.connectors.assistant.parameters())
    losses = model(*tiny.batch(), mode='loss')

    def reaches(name):
        grads = torch.autograd.grad(
            losses[f'distill.{name}'],
            projector,
            retain_graph=True,
            allow_unused=True,
        )
        return any(grad is not None and grad.any() for grad in grads)

    assert reaches('loss_nce_assistant_student') != detach
    assert reaches('loss_ofa_assistant_student') != detach
    for name in ('nce_teacher_assistant', 'ofa_teacher_assistant'):
        assert reaches(f'loss_{name}')
    assert reaches('loss_assistant')
    assert not reaches('loss_ofa_teacher_student')


# --------------------------------------------------- one forward of each model


@pytest.mark.parametrize(
    ('student', 'teacher', 'first'),
    [
        ('resnet', 'swin', 'auto'),
        # Its last stage normalises features of two models.
        ('resnet', 'swin', 'teacher'),
        ('resnet', 'resnet', 'teacher'),
    ],
)
def test_statistics_are_those_of_the_students_own_step(
    build, tiny, student, teacher, first
):
    model = build(student, teacher, tas(assistant=dict(first=first)))
    alone = copy.deepcopy(model.student).train()
    images, samples = tiny.batch(4)
    model(images, samples, mode='loss')
    alone(images, samples, mode='loss')
    buffers = dict(alone.named_buffers())
    assert buffers['backbone.layer4.1.bn2.num_batches_tracked'] == 1
    for name, buffer in model.student.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


@pytest.mark.parametrize(
    ('student', 'teacher', 'early', 'last'),
    [
        ('resnet', 'swin', 'layer3', 'stages.3'),
        ('swin', 'resnet', 'stages.2', 'layer4'),
    ],
)
def test_models_run_once_a_step(build, tiny, student, teacher, early, last):
    model = build(student, teacher)
    own, its = model.student.backbone, model.teacher.model.backbone
    parts = dict(
        student=own,
        early=own.get_submodule(early),
        teacher=its,
        **model.distiller.connectors,
    )
    calls = Counter()
    for name, module in parts.items():
        module.register_forward_hook(
            lambda m, i, o, name=name: calls.update([name])
        )
    receiving = own if student == 'swin' else its
    block = receiving.stages[3].blocks[0]
    block.register_forward_hook(lambda m, i, o: calls.update(['last block']))
    model(*tiny.batch(), mode='loss')
    # Once for the model itself and once for the assistant.
    assert calls == dict.fromkeys(parts, 1) | {'last block': 2}


def test_student_whose_last_stage_drops_paths(build, tiny):
    torch.manual_seed(1)
    architecture = tiny.classifier(tiny.swin(drop_path_rate=0.5))
    model = build('swin', 'resnet', architecture=architecture)
    outputs = []
    model.distiller.connectors.assistant.register_forward_hook(
        lambda m, i, o: outputs.append(o['logits'])
    )
    images, samples = tiny.batch()
    for _ in range(3):
        losses = model(images, samples, mode='loss')
        assert torch.isfinite(backward(model, losses))
    # The first model, a frozen teacher, gives the same features each time.
    assert not torch.equal(outputs[0], outputs[1]) or not torch.equal(
        outputs[1], outputs[2]
    )


# --------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('vit', 'resnet')]
)
def test_copy_shares_the_teacher_and_no_weights(build, tiny, student, teacher):
    model = build(student, teacher)
    images, samples = tiny.batch()
    backward(model, model(images, samples, mode='loss'))
    twin = copy.deepcopy(model)
    assert twin.teacher is model.teacher
    own, copied = (m.distiller.connectors.assistant for m in (model, twin))
    assert copied is not own
    # A part of the teacher stays; one of the student is the copy's own.
    assert (copied.receiver is own.receiver) == (student == 'resnet')
    assert own.receiver.model is getattr(
        model.teacher if student == 'resnet' else model, 'model', model.student
    )
    theirs = {id(p) for p in twin.parameters()}
    assert not theirs & {id(p) for p in model.parameters()}
    assert not theirs & {id(p) for p in model.teacher.parameters()}
    averaged = ExponentialMovingAverage(model, momentum=0.5)
    averaged.update_parameters(model)
    assert not [key for key in averaged.state_dict() if 'receiver' in key]


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('vit', 'resnet')]
)
def test_checkpoint_holds_the_projector_alone(build, student, teacher):
    model = build(student, teacher)
    prefix = 'distiller.connectors.assistant.'
    keys = [key for key in model.state_dict() if key.startswith(prefix)]
    assert keys
    assert all(key.startswith(f'{prefix}projector.') for key in keys)
    others = {key.partition('.')[0] for key in model.state_dict()}
    assert others == {'architecture', 'distiller'}


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('vit', 'resnet')]
)
def test_exported_student_knows_nothing_of_the_assistant(
    build, tiny, tmp_path, student, teacher
):
    model = build(student, teacher)
    images, samples = tiny.batch()
    backward(model, model(images, samples, mode='loss'))
    cfg = Config(
        dict(
            model=tiny.distillation(
                architecture=tiny.classifier(getattr(tiny, student)()),
                distiller=tas(),
            )
        )
    )
    torch.save(
        dict(meta={}, state_dict=model.state_dict()), tmp_path / 'run.pth'
    )
    out = export_student(tmp_path / 'run.pth', cfg=cfg)
    exported = torch.load(out)['state_dict']
    own = model.student.state_dict()
    assert set(exported) == set(own)
    for name, weight in own.items():
        assert torch.equal(exported[name], weight), name
    plain = get_model(str(out.with_suffix('.py')), pretrained=str(out))
    logits = plain.eval()(images)
    assert torch.equal(logits, model.student.eval()(images))


@pytest.mark.parametrize(('teacher', 'student'), [('resnet', 'swin')])
def test_copy_trains_its_own_student(build, tiny, teacher, student):
    """The assistant of a copy ends with the copy's own last stage."""
    model = build(teacher, student).train()
    batch = tiny.batch()
    model(*batch, mode='loss')
    clone = copy.deepcopy(model)
    losses = clone(*batch, mode='loss')
    sum(v for k, v in losses.items() if k.startswith('distill')).backward()
    assert clone.student.head.fc.weight.grad.any()
    assert all(p.grad is None for p in model.parameters())
    expected = model(*batch, mode='loss')
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])
