"""Backbones without a head, and training without labels."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.structures import BaseDataElement
from mmpretrain.apis import get_model
from mmpretrain.models import ResNet
from mmpretrain.structures import DataSample
from torch import nn

from mmcakd.models.connectors import BaseConnector
from mmcakd.models.headless import pool_features
from mmcakd.utils import export_student


class Blind(DataSample):
    """A sample whose labels must not be touched."""

    @property
    def gt_label(self):
        raise AssertionError('a label was read')

    gt_score = gt_label


def blind(count: int = 2) -> list:
    return [Blind(metainfo=dict(sample_idx=index)) for index in range(count)]


def features(tiny, stage: int = 3, **kwargs) -> dict:
    """A distiller that compares a stage of both backbones."""
    stages = dict(stages=dict(type='mmcakd.StageOutputs'))
    return dict(
        student_recorders=stages,
        teacher_recorders=stages,
        connectors=dict(
            project=dict(
                type='mmcakd.FitNetConnector',
                inputs=dict(feature=tiny.record('stages', True, stage)),
                shape_like=tiny.record('stages', False, 3),
            )
        ),
        distill_losses=dict(loss_mimic=dict(type='mmcakd.MSELoss')),
        loss_forward_mappings=dict(
            loss_mimic=dict(
                student=dict(connector='project'),
                teacher=tiny.record('stages', False, 3),
            )
        ),
    )


class Spread(nn.Module):
    """A figure of the student alone."""

    def forward(self, logits):
        return logits.var()


def typed(backbone: dict) -> dict:
    return backbone | dict(type=f'mmpretrain.{backbone["type"]}')


@pytest.fixture
def bare(tiny):
    """A bare ResNet that learns from a bare ViT."""
    return tiny.distillation(
        architecture=typed(tiny.resnet()),
        teacher=typed(tiny.vit()),
        distiller=features(tiny),
    )


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What is logged."""
    lines = []
    for place in ('unread', 'cross_arch_distill'):
        monkeypatch.setattr(
            f'mmcakd.models.algorithms.{place}.print_log',
            lambda text, *args, **kwargs: lines.append(text),
        )
    return lines


def trained(model: nn.Module, **optimizer) -> set[int]:
    """What an optimizer of MMEngine gets."""
    cfg = dict(optimizer=dict(type='SGD', lr=0.1)) | optimizer
    groups = build_optim_wrapper(model, cfg).optimizer.param_groups
    return {id(p) for group in groups for p in group['params']}


# ---------------------------------------------------------------- no head


def test_bare_backbones_are_student_and_teacher(tiny, bare):
    model = tiny.build(bare).train()
    assert isinstance(model.student.backbone, ResNet)
    assert model.student.head is None
    images, _ = tiny.batch()
    losses = model(images, blind(), mode='loss')
    assert set(losses) == {'distill.loss_mimic'}
    losses['distill.loss_mimic'].backward()
    assert all(p.grad is not None for p in model.parameters())
    (model(images, None, mode='loss')['distill.loss_mimic']).backward()


class Scale(nn.Module):
    """A loss that reads what a function returned."""

    def forward(self, student, own):
        return student.mean() * own[-1].mean()


@pytest.mark.parametrize('whose', ['student', 'teacher'])
def test_functions_of_a_model_without_a_head_are_recorded(tiny, bare, whose):
    kind = bare['architecture' if whose == 'student' else 'teacher']['type']
    name = kind.removeprefix('mmpretrain.')
    source = f'mmpretrain.models.backbones.{name}.forward'
    distiller = bare['distiller']
    distiller[f'{whose}_recorders'] = dict(
        distiller[f'{whose}_recorders'],
        own=dict(type='MethodOutputs', source=source),
    )
    distiller['distill_losses']['loss_own'] = dict(type=Scale)
    distiller['loss_forward_mappings']['loss_own'] = dict(
        student=dict(connector='project'),
        own=tiny.record('own', whose == 'student'),
    )
    model = tiny.build(bare).train()
    losses = model(tiny.batch()[0], blind(), mode='loss')
    assert set(losses) == {'distill.loss_mimic', 'distill.loss_own'}


@pytest.mark.parametrize('whose', ['student', 'teacher'])
@pytest.mark.parametrize('out_type', ['cls_token', 'featmap'])
def test_losses_of_a_model_without_a_head_are_missed_before_training(
    tiny, bare, whose, out_type
):
    vit = typed(tiny.vit(out_type=out_type))
    bare['architecture' if whose == 'student' else 'teacher'] = vit
    distiller = bare['distiller']
    distiller[f'{whose}_recorders'] = dict(
        distiller[f'{whose}_recorders'],
        own=dict(
            type='MethodOutputs',
            source='mmpretrain.models.heads.LinearClsHead.loss',
        ),
    )
    distiller['distill_losses']['loss_own'] = dict(type=Scale)
    distiller['loss_forward_mappings']['loss_own'] = dict(
        student=dict(connector='project'),
        own=tiny.record('own', whose == 'student'),
    )
    with pytest.raises(RuntimeError, match='recorders.own .* nothing'):
        tiny.build(bare)


def test_built_backbones_are_as_good(tiny, bare):
    torch.manual_seed(0)
    expected = tiny.build(bare)
    student = tiny.build(bare['architecture'])
    teacher = tiny.build(bare['teacher'])
    for net, model in (
        (student, expected.student),
        (teacher, expected.teacher.model),
    ):
        net.load_state_dict(model.backbone.state_dict())
    del bare['teacher_ckpt']
    model = tiny.build(bare | dict(architecture=student, teacher=teacher))
    # It came built, and has its weights.
    model.init_weights()
    assert model.student.backbone is student
    weights = expected.distiller.state_dict()
    model.distiller.load_state_dict(weights)
    student.load_state_dict(expected.student.backbone.state_dict())
    data = tiny.batch()[0], blind()
    assert model.eval()(*data, mode='loss') == expected.eval()(
        *data, mode='loss'
    )


def test_headless_classifiers_are_backbones(tiny, bare):
    vit = tiny.classifier(tiny.vit()) | dict(head=None)
    resnet = tiny.classifier(tiny.resnet()) | dict(head=None)
    model = tiny.build(bare | dict(architecture=resnet, teacher=vit))
    model(tiny.batch()[0], blind(), mode='loss')


def test_networks_of_timm_without_a_head(tiny, bare):
    timm = dict(
        type='mmpretrain.TimmClassifier', model_name='resnet10t', num_classes=0
    )
    model = tiny.build(bare | dict(architecture=timm)).train()
    assert not model.student_loss_counts
    losses = model(tiny.batch()[0], blind(), mode='loss')
    assert set(losses) == {'distill.loss_mimic'}


def test_student_without_a_head_predicts_features(tiny, bare):
    model = tiny.build(bare).eval()
    images, _ = tiny.batch()
    expected = model.student.backbone(images)[-1].mean((2, 3))
    for samples in (blind(), [BaseDataElement(), BaseDataElement()], None):
        predicted = model(images, samples, mode='predict')
        found = torch.stack([sample.feature for sample in predicted])
        torch.testing.assert_close(found, expected)


def test_features_of_any_layout_are_pooled():
    tokens, pooled = torch.rand(2, 6, 4), torch.rand(2, 4)
    torch.testing.assert_close(pool_features(tokens), tokens.mean(1))
    assert pool_features((tokens, pooled)) is pooled
    maps = torch.rand(2, 4, 3, 2)
    torch.testing.assert_close(pool_features([maps]), maps.mean((2, 3)))


@pytest.mark.parametrize('keys', ['whole', 'bare'])
def test_weights_of_a_whole_model_fill_a_bare_teacher(
    tiny, bare, tmp_path, keys
):
    whole = tiny.build(tiny.classifier(tiny.vit()))
    weights = whole if keys == 'whole' else whole.backbone
    file = tmp_path / 'teacher.pth'
    torch.save(dict(state_dict=weights.state_dict()), file)
    model = tiny.build(bare | dict(teacher_ckpt=str(file)))
    backbone = model.teacher.model.backbone.state_dict()
    for name, value in whole.backbone.state_dict().items():
        assert torch.equal(backbone[name], value), name
    other = tiny.build(tiny.classifier(tiny.resnet()))
    torch.save(other.state_dict(), file)
    with pytest.raises(RuntimeError, match='missing'):
        tiny.build(bare | dict(teacher_ckpt=str(file)))


def test_bare_student_is_exported_as_a_backbone(tiny, bare, tmp_path):
    model = tiny.build(bare)
    cfg = Config(dict(default_scope='mmpretrain', model=bare))
    checkpoint = dict(
        meta=dict(cfg=cfg.pretty_text), state_dict=model.state_dict()
    )
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    file = export_student(tmp_path / 'epoch_1.pth')
    exported = get_model(str(file.with_suffix('.py')), pretrained=str(file))
    own = model.student.state_dict()
    assert own.keys() == exported.state_dict().keys()
    # As detectors start from it.
    start = dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    net = tiny.build(typed(tiny.resnet(init_cfg=start)))
    net.init_weights()
    for name, value in net.state_dict().items():
        assert torch.equal(value, own[f'backbone.{name}'].cpu()), name


# ---------------------------------------------- losses that do not count


@pytest.mark.parametrize(
    'off', [dict(student_loss_weight=0.0), dict(calculate_student_loss=False)]
)
def test_no_label_is_touched_where_the_students_losses_do_not_count(tiny, off):
    model = tiny.build_distillation(distiller=tiny.logit_kd(), **off).train()
    seen = []
    model.student.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs['mode']), with_kwargs=True
    )
    losses = model(tiny.batch()[0], blind(), mode='loss')
    assert set(losses) == {'distill.loss_kd'}
    assert seen == ['tensor']
    with pytest.raises(AssertionError, match='a label was read'):
        tiny.build_distillation(distiller=tiny.logit_kd()).train()(
            tiny.batch()[0], blind(), mode='loss'
        )


def test_losses_are_computed_where_a_recorder_needs_them(tiny):
    class Take(nn.Module):
        def forward(self, losses):
            return losses['loss']

    distiller = tiny.logit_kd()
    distiller['student_recorders']['own'] = dict(
        type='MethodOutputs',
        source='mmpretrain.models.heads.LinearClsHead.loss',
    )
    distiller['distill_losses']['loss_own'] = dict(type=Take)
    distiller['loss_forward_mappings']['loss_own'] = dict(
        losses=tiny.record('own', True)
    )
    model = tiny.build_distillation(
        distiller=distiller, calculate_student_loss=False
    ).eval()
    images, samples = tiny.batch()
    losses = model(images, samples, mode='loss')
    assert set(losses) == {'distill.loss_kd', 'distill.loss_own'}
    own = model.student(images, samples, mode='loss')['loss']
    assert losses['distill.loss_own'] == own


def test_parts_that_nothing_reads_are_frozen_and_named(tiny, said):
    torch.manual_seed(0)
    cfg = tiny.distillation(
        distiller=features(tiny, stage=2), student_loss_weight=0
    )
    model = tiny.build(cfg).train()
    (line,) = said
    assert 'backbone.layer4.0.conv1 (1)' in line
    assert 'head.fc (2)' in line
    assert 'layer3' not in line
    student = model.student
    names = {name for name, _ in student.named_parameters()}
    assert names
    assert not any(
        name.startswith(('backbone.layer4', 'head')) for name in names
    )
    # They are saved as before.
    plain = tiny.build(cfg['architecture'])
    assert student.state_dict().keys() == plain.state_dict().keys()
    held = trained(model)
    assert held == {id(p) for p in model.parameters()}
    assert held == trained(
        model, paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=2.0)})
    )
    losses = model(tiny.batch()[0], blind(), mode='loss')
    losses['distill.loss_mimic'].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not student.head.fc.weight.requires_grad
    # A copy, moved and loaded as any other.
    clone = copy.deepcopy(model).double()
    assert clone.student.head.fc.weight.dtype == torch.float64
    clone.load_state_dict(model.state_dict())
    model.init_weights()


def test_part_that_is_only_logged_is_not_trained(tiny, said):
    distiller = features(tiny, stage=2)
    distiller['student_recorders']['logits'] = dict(type='mmcakd.Logits')
    distiller['distill_losses']['spread'] = dict(type=Spread)
    distiller['loss_forward_mappings']['spread'] = dict(
        logits=tiny.record('logits', True)
    )
    with pytest.warns(UserWarning, match='spread'):
        model = tiny.build_distillation(
            distiller=distiller, student_loss_weight=0
        ).train()
    assert 'head.fc (2)' in said[0]
    losses = model(tiny.batch()[0], blind(), mode='loss')
    total, log = model.parse_losses(losses)
    total.backward()
    assert log['distill.spread'] > 0
    assert all(p.grad is not None for p in model.parameters())


def test_unread_part_is_frozen_beside_a_delivery(tiny, said):
    distiller = features(tiny, stage=2)
    distiller['distill_deliveries'] = dict(
        one_hot=dict(
            type='FunctionOutputs',
            func_path='mmpretrain.models.losses.label_smooth_loss'
            '.convert_to_one_hot',
            max_keep_data=1,
        )
    )
    model = tiny.build_distillation(
        distiller=distiller, student_loss_weight=0
    ).train()
    assert 'head.fc (2)' in said[0]
    losses = model(*tiny.batch(), mode='loss')
    losses['distill.loss_mimic'].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_is_frozen_that_is_read(tiny, said):
    tiny.build_distillation(student_loss_weight=0)
    assert not said


def test_part_that_a_connector_holds_is_read(tiny, said):
    """The student's own last stage and head are the assistant's."""
    distiller = features(tiny, stage=2)
    distiller['connectors'] = dict(
        assistant=dict(
            type='mmcakd.AssistantConnector',
            first='teacher',
            inputs=dict(
                student=tiny.record('stages', True, 2),
                teacher=tiny.record('stages', False, 2),
            ),
        )
    )
    distiller['teacher_recorders']['logits'] = dict(type='mmcakd.Logits')
    distiller['distill_losses'] = dict(loss=dict(type='mmcakd.SoftTargetLoss'))
    distiller['loss_forward_mappings'] = dict(
        loss=dict(
            student=dict(connector='assistant', connector_idx='logits'),
            teacher=tiny.record('logits', False),
        )
    )
    model = tiny.build_distillation(distiller=distiller, student_loss_weight=0)
    assert model.student.head.fc.weight.requires_grad
    assert not [line for line in said if 'head' in line]


class OwnHead(BaseConnector):
    """The head of the student, on a record that is sent through it."""

    def attach(self, student, teacher):
        object.__setattr__(self, 'head', student.head)

    def forward(self, feature):
        return self.head((feature.mean((2, 3)),))


def test_part_that_a_connector_without_inputs_holds_is_read(tiny, said):
    distiller = tiny.logit_kd()
    distiller['student_recorders'] = dict(
        stages=dict(type='mmcakd.StageOutputs')
    )
    distiller['connectors'] = dict(own=dict(type=OwnHead))
    distiller['loss_forward_mappings']['loss_kd']['student'] = dict(
        tiny.record('stages', True, 3), connector='own'
    )
    model = tiny.build_distillation(
        distiller=distiller, student_loss_weight=0
    ).train()
    assert not said
    losses = model(tiny.batch()[0], blind(), mode='loss')
    losses['distill.loss_kd'].backward()
    assert model.student.head.fc.weight.grad.any()


def test_without_an_input_size_it_is_said_that_nothing_is_known(tiny, said):
    cfg = tiny.distillation(
        architecture=tiny.classifier(tiny.resnet()),
        teacher=tiny.classifier(tiny.resnet()),
        distiller=tiny.logit_kd(),
        calculate_student_loss=False,
        input_size=None,
    )
    tiny.build(cfg)
    assert 'set model.input_size' in said[0]


def test_nothing_is_left_to_learn_when_distillation_stops(tiny, bare):
    model = tiny.build(bare).train()
    model.distillation_stopped = True
    with pytest.raises(RuntimeError, match='nothing is left to learn'):
        model(tiny.batch()[0], blind(), mode='loss')
