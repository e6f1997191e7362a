"""Configs of MMRazor give the losses and gradients they give in MMRazor."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmrazor.models import SingleTeacherDistill


def ref(recorder: str, from_student: bool, **kwargs) -> dict:
    return dict(recorder=recorder, from_student=from_student, **kwargs)


def pair(names: tuple[str, str], recorder: str, **kwargs) -> dict:
    """Student's and teacher's argument of a loss, from recorders of a name."""
    student, teacher = names
    return {student: ref(recorder, True), teacher: ref(recorder, False)}


def outputs(**sources) -> dict:
    return {
        name: dict(type='ModuleOutputs', source=source)
        for name, source in sources.items()
    }


def compare(mapping: dict, loss: dict, sources: dict, **kwargs) -> dict:
    """A distiller with one loss; the same recorders on both sides."""
    return (
        dict(
            student_recorders=outputs(**sources),
            teacher_recorders=outputs(**sources),
            distill_losses=dict(loss_one=loss),
            loss_forward_mappings=dict(loss_one=mapping),
        )
        | kwargs
    )


LOGITS = dict(fc='head.fc')
PREDS = ('preds_S', 'preds_T')
FEATURES = ('s_feature', 't_feature')
POOLED = dict(gap='neck.gap')
LAST = dict(last='backbone.layer4')
LABELS = dict(gt_labels=dict(type='ModuleInputs', source='head.loss_module'))
READ_LABELS = dict(gt_labels=ref('gt_labels', True, data_idx=1))

#: Student 32 channels and teacher 64 at the last stage.
CONFIGS = {
    'kd': compare(
        pair(PREDS, 'fc'),
        dict(type='KLDivergence', tau=6, loss_weight=10, reduction='mean'),
        LOGITS,
    ),
    'soft cross-entropy': compare(
        pair(PREDS, 'fc'), dict(type='KDSoftCELoss', tau=2), LOGITS
    ),
    'dist': compare(
        pair(('logits_S', 'logits_T'), 'fc'),
        dict(type='DISTLoss', tau=1, loss_weight=2),
        LOGITS,
    ),
    'wsld': compare(
        pair(('student', 'teacher'), 'fc') | READ_LABELS,
        dict(type='WSLD', tau=2, loss_weight=2.5, num_classes=5),
        LOGITS,
        student_recorders=outputs(**LOGITS) | LABELS,
    ),
    'dkd': compare(
        pair(PREDS, 'fc') | READ_LABELS,
        dict(type='DKDLoss', tau=1, beta=0.5),
        LOGITS,
        student_recorders=outputs(**LOGITS) | LABELS,
    ),
    'rkd': compare(
        pair(PREDS, 'gap'),
        dict(type='DistanceWiseRKD', loss_weight=25),
        POOLED,
        distill_losses=dict(
            loss_dw=dict(type='DistanceWiseRKD', loss_weight=25),
            loss_aw=dict(type='AngleWiseRKD', loss_weight=50),
        ),
        loss_forward_mappings=dict(
            loss_dw=pair(PREDS, 'gap'), loss_aw=pair(PREDS, 'gap')
        ),
    ),
    'fitnets': dict(
        student_recorders=outputs(
            bb_s4='backbone.layer4.1.relu', fc='head.fc'
        ),
        teacher_recorders=outputs(
            bb_s4='backbone.layer4.1.relu', fc='head.fc'
        ),
        distill_losses=dict(
            loss_s4=dict(type='L2Loss', loss_weight=10),
            loss_kl=dict(type='KLDivergence', tau=6, loss_weight=10),
        ),
        connectors=dict(
            loss_s4_sfeat=dict(
                type='ConvModuleConnector',
                in_channel=32,
                out_channel=64,
                norm_cfg=dict(type='BN'),
            )
        ),
        loss_forward_mappings=dict(
            loss_s4=dict(
                s_feature=ref(
                    'bb_s4', True, record_idx=1, connector='loss_s4_sfeat'
                ),
                t_feature=ref('bb_s4', False, record_idx=1),
            ),
            loss_kl=pair(PREDS, 'fc'),
        ),
    ),
    'connectors as a list': compare(
        dict(
            s_feature=ref('last', True, connector='wide'),
            t_feature=ref('last', False),
        ),
        dict(type='L2Loss', normalize=False),
        LAST,
        connectors=dict(
            wide=[
                dict(
                    type='TorchNNConnector',
                    module_name='Conv2d',
                    module_args=dict(
                        in_channels=32, out_channels=64, kernel_size=1
                    ),
                ),
                dict(
                    type='NormConnector',
                    norm_cfg=dict(type='BN'),
                    in_channels=64,
                ),
            ]
        ),
    ),
    'connectors on both sides': compare(
        dict(
            s_feature=ref('last', True, connector='student'),
            t_feature=ref('last', False, connector='teacher'),
        ),
        dict(type='FTLoss'),
        LAST,
        connectors=dict(
            student=dict(type='Translator', in_channel=32, out_channel=16),
            teacher=dict(
                type='Paraphraser',
                phase='train',
                in_channel=64,
                out_channel=16,
            ),
        ),
    ),
    'attention transfer, by place in a tuple': compare(
        dict(
            s_feature=ref('all', True, data_idx=0),
            t_feature=ref('all', False, data_idx=0),
        ),
        dict(type='ATLoss', loss_weight=25000.0),
        dict(all='backbone'),
    ),
    'channel-wise and correlation': compare(
        {},
        {},
        LAST,
        connectors=dict(
            wide=dict(
                type='ConvModuleConnector', in_channel=32, out_channel=64
            )
        ),
        distill_losses=dict(
            loss_cwd=dict(type='ChannelWiseDivergence', tau=4),
            loss_pkd=dict(type='PKDLoss'),
            loss_l1=dict(type='L1Loss'),
        ),
        loss_forward_mappings=dict(
            loss_cwd=dict(
                preds_S=ref('last', True, connector='wide'),
                preds_T=ref('last', False),
            ),
            loss_pkd=dict(
                preds_S=ref('last', True, connector='wide'),
                preds_T=ref('last', False),
            ),
            loss_l1=dict(
                s_feature=ref('last', True, connector='wide'),
                t_feature=ref('last', False),
            ),
        ),
    ),
    'a statistic that is no loss': compare(
        {},
        {},
        LOGITS,
        distill_losses=dict(
            loss_kl=dict(type='KLDivergence'), gap=dict(type='L1Loss')
        ),
        loss_forward_mappings=dict(
            loss_kl=pair(PREDS, 'fc'), gap=pair(FEATURES, 'fc')
        ),
    ),
    'recorders of inputs, methods and parameters': dict(
        student_recorders=dict(
            read=dict(type='ModuleInputs', source='head.fc'),
            weight=dict(type='Parameter', source='head.fc.weight'),
        ),
        teacher_recorders=dict(
            read=dict(
                type='MethodOutputs',
                source='mmpretrain.models.heads.LinearClsHead.pre_logits',
            ),
            weight=dict(type='Parameter', source='head.fc.weight'),
        ),
        connectors=dict(
            wide=dict(
                type='TorchNNConnector',
                module_name='Linear',
                module_args=dict(in_features=32, out_features=64),
            )
        ),
        distill_losses=dict(
            loss_read=dict(type='L2Loss'), loss_weight=dict(type='L1Loss')
        ),
        loss_forward_mappings=dict(
            loss_read=dict(
                s_feature=ref('read', True, data_idx=0, connector='wide'),
                t_feature=ref('read', False),
            ),
            loss_weight=dict(
                s_feature=ref('weight', True, connector='wide'),
                t_feature=ref('weight', False),
            ),
        ),
    ),
    'labels handed over by a function': compare(
        pair(PREDS, 'fc'),
        dict(type='KLDivergence'),
        LOGITS,
        distill_deliveries=dict(
            labels=dict(
                type='FunctionOutputs',
                max_keep_data=1,
                func_path='mmpretrain.models.losses.label_smooth_loss'
                '.convert_to_one_hot',
            )
        ),
    ),
}


def both(tiny, distiller: dict, student: dict, teacher: dict):
    """The same distillation by MMRazor and by mmcakd, with equal weights."""
    architecture, frozen = tiny.build(student), tiny.build(teacher)
    with DefaultScope.overwrite_default_scope('mmrazor'):
        theirs = SingleTeacherDistill(
            architecture=architecture,
            teacher=frozen,
            distiller=dict(type='mmrazor.ConfigurableDistiller', **distiller),
        )
    ours = tiny.build(
        dict(
            type='mmcakd.CrossArchDistill',
            architecture=student,
            teacher=teacher,
            distiller=dict(type='mmcakd.CrossArchDistiller', **distiller),
            input_size=64,
        )
    )
    weights = {
        key: value
        for key, value in theirs.state_dict().items()
        if not key.startswith('teacher.')
    }
    ours.load_state_dict(weights)
    ours.teacher.model.load_state_dict(theirs.teacher.state_dict())
    theirs.train()
    theirs.teacher.eval()
    return theirs, ours.train()


def run(model, images, samples) -> tuple[dict, dict]:
    losses = model(images, samples, mode='loss')
    model.parse_losses(losses)[0].backward()
    gradients = {
        name: p.grad
        for name, p in model.named_parameters()
        if not name.startswith('teacher.')
    }
    return losses, gradients


def assert_same(tiny, distiller, student=None, teacher=None):
    head = dict(loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1))
    student = student or tiny.classifier(tiny.resnet())
    teacher = teacher or tiny.classifier(tiny.resnet(base_channels=8))
    for cfg in (student, teacher):
        cfg['head'] = cfg['head'] | head
    teacher['head']['in_channels'] = 8 * teacher['backbone']['base_channels']
    theirs, ours = both(tiny, distiller, student, teacher)
    data = tiny.batch(4)
    expected_losses, expected = run(theirs, *data)
    losses, gradients = run(ours, *data)
    assert set(losses) == set(expected_losses)
    for name, value in expected_losses.items():
        assert torch.equal(losses[name], value), name
    assert set(gradients) == set(expected)
    for name, value in expected.items():
        if value is None:
            assert gradients[name] is None, name
        else:
            # Ours runs a connector of several losses once.
            difference = (gradients[name] - value).norm()
            assert difference <= 1e-4 * value.norm(), name
    return losses


@pytest.mark.parametrize('name', CONFIGS)
def test_losses_and_gradients_are_those_of_mmrazor(tiny, name):
    losses = assert_same(tiny, CONFIGS[name])
    distilled = [v for k, v in losses.items() if k.startswith('distill')]
    assert distilled
    assert all(value.abs() > 0 for value in distilled)


def test_features_handed_over_by_a_method(tiny):
    """The student's head reads what the teacher's head read."""
    distiller = compare(
        pair(PREDS, 'fc'),
        dict(type='KLDivergence'),
        LOGITS,
        distill_deliveries=dict(
            features=dict(
                type='MethodOutputs',
                max_keep_data=1,
                method_path='mmpretrain.models.heads.LinearClsHead.pre_logits',
            )
        ),
    )
    cfg = tiny.classifier(tiny.resnet())
    with_other_blocks = tiny.classifier(tiny.resnet(depth=34))
    with_other_blocks['backbone']['base_channels'] = 4
    assert_same(tiny, distiller, cfg, with_other_blocks)


def test_teacher_may_be_recorded_where_only_losses_are_computed(tiny):
    one_hot = dict(
        type='FunctionOutputs',
        source='mmpretrain.models.losses.label_smooth_loss.convert_to_one_hot',
    )
    distiller = dict(
        student_recorders=outputs(**LOGITS),
        teacher_recorders=dict(labels=one_hot),
        distill_losses=dict(loss_labels=dict(type='L1Loss')),
        loss_forward_mappings=dict(
            loss_labels=dict(
                s_feature=ref('fc', True), t_feature=ref('labels', False)
            )
        ),
    )
    assert_same(tiny, distiller)


def test_a_config_without_prefixes_means_the_parts_of_mmrazor(tiny):
    model = tiny.build_distillation(
        teacher=tiny.classifier(tiny.resnet()), distiller=CONFIGS['kd']
    )
    loss = model.distiller.distill_losses.loss_one
    assert type(loss).__module__.startswith('mmrazor.')


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mmrazor', 'mmcakd'])
def test_plain_names_in_a_distiller_are_mmrazors_under_any_scope(tiny, scope):
    with DefaultScope.overwrite_default_scope(scope):
        model = tiny.build_distillation(
            teacher=tiny.classifier(tiny.resnet()), distiller=CONFIGS['wsld']
        )
    recorder = model.distiller.student_recorders.get_recorder('gt_labels')
    assert type(recorder).__name__ == 'ModuleInputsRecorder'


def test_parts_of_both_packages_mix(tiny):
    distiller = dict(
        student_recorders=tiny.recorders() | LABELS | outputs(**LOGITS),
        teacher_recorders=tiny.recorders() | outputs(**LOGITS),
        connectors=dict(
            wide=dict(
                type='ConvModuleConnector', in_channel=32, out_channel=64
            )
        ),
        distill_losses=dict(
            loss_wsld=dict(type='WSLD', num_classes=5),
            loss_map=dict(type='mmcakd.DualViewLoss'),
            loss_kd=dict(type='mmcakd.SoftTargetLoss', mode='kl', tau=6),
            loss_kl=dict(type='KLDivergence', tau=6),
        ),
        loss_forward_mappings=dict(
            loss_wsld=dict(
                student=ref('logits', True),
                teacher=ref('logits', False),
                gt_labels=ref('gt_labels', True, data_idx=1),
            ),
            loss_map=dict(
                student=ref('stages', True, data_idx=3, connector='wide'),
                teacher=ref('stages', False, data_idx=3),
            ),
            loss_kd=pair(('student', 'teacher'), 'logits'),
            loss_kl=pair(PREDS, 'fc'),
        ),
    )
    model = tiny.build_distillation(distiller=distiller).train()
    losses = model(*tiny.batch(4), mode='loss')
    assert all(value.isfinite() for value in losses.values())
    assert losses['distill.loss_kd'].item() == pytest.approx(
        losses['distill.loss_kl'].item(), rel=1e-3
    )


def test_preprocessor_of_mmrazors_configs_is_accepted(tiny):
    preprocessor = dict(
        type='ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    )
    model = tiny.build_distillation(
        teacher=tiny.classifier(tiny.resnet()),
        distiller=CONFIGS['kd'],
        data_preprocessor=preprocessor,
    )
    raw = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    batch = model.data_preprocessor(dict(inputs=[raw]), training=True)
    mean = torch.tensor(preprocessor['mean']).view(3, 1, 1)
    std = torch.tensor(preprocessor['std']).view(3, 1, 1)
    assert torch.allclose(
        batch['inputs'][0], (raw.flip(0) - mean) / std, atol=1e-5
    )
