"""What is wrong in a config is said while the model is built."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from mmcakd.models.algorithms import CrossArchDistill


@pytest.fixture
def refuse(tiny):
    """Build a distillation that must not be built; return the message."""

    def build(error=ValueError, **kwargs) -> str:
        with pytest.raises(error) as caught:
            tiny.build_distillation(**kwargs)
        return str(caught.value)

    return build


def assert_names(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message


# ------------------------------------------------------------------ the models


@pytest.mark.parametrize('teacher', [None, {}])
def test_no_teacher(refuse, teacher):
    message = refuse(teacher=teacher)
    assert_names(message, 'no teacher is given', "teacher='mmpretrain::")


def test_no_student(refuse):
    message = refuse(architecture=None)
    assert_names(message, 'no student is given', "architecture='mmpretrain::")


@pytest.mark.parametrize('distiller', [None, {}])
def test_no_distiller(refuse, distiller):
    assert_names(refuse(distiller=distiller), 'model.distiller')


def test_config_without_teacher_key(tiny):
    with pytest.raises(ValueError, match='no teacher is given'):
        CrossArchDistill(
            architecture=tiny.classifier(tiny.resnet()),
            distiller=tiny.logit_kd(),
        )


def test_teacher_to_be_trained(refuse):
    message = refuse(teacher_trainable=True)
    assert_names(message, 'frozen', 'mmrazor.SingleTeacherDistill')


def test_other_class_count_of_the_teacher(tiny, refuse):
    message = refuse(teacher=tiny.classifier(tiny.swin(), classes=9))
    assert_names(
        message, "'loss_kd'", '(2, 5)', '(2, 9)', 'same classes', 'num_classes'
    )


def classifier(tiny, backbone: dict, width: int) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=tiny.classes, in_channels=width
        ),
    )


def test_student_without_stages(tiny, refuse):
    backbone = dict(type='SparseResNet', depth=50)
    message = refuse(architecture=classifier(tiny, backbone, 16))
    assert_names(
        message,
        'student_recorders.stages',
        'SparseResNet',
        'SparK',
        'taps=[dict(',
    )


def test_student_without_the_stage_that_is_read(tiny, refuse):
    backbone = dict(
        type='RevVisionTransformer',
        arch=dict(
            embed_dims=16,
            num_layers=4,
            num_heads=2,
            feedforward_channels=16,
        ),
        img_size=64,
        out_type='featmap',
    )
    message = refuse(architecture=classifier(tiny, backbone, 16))
    assert_names(
        message,
        'student_recorders.stages',
        'RevVisionTransformer',
        'taps=[dict(',
    )


@pytest.mark.parametrize('whose', ['student', 'teacher'])
def test_image_size_that_a_model_cannot_take(tiny, refuse, whose):
    arch = dict(
        embed_dims=16, num_layers=4, tokens_mlp_dims=8, channels_mlp_dims=8
    )
    mixer = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='MlpMixer', arch=arch, img_size=64),
        neck=dict(type='GlobalAveragePooling', dim=1),
        head=dict(
            type='LinearClsHead', num_classes=tiny.classes, in_channels=16
        ),
    )
    role = dict(student='architecture', teacher='teacher')[whose]
    kwargs = dict(distiller=tiny.logit_kd(), input_size=96)
    message = refuse(**kwargs, **{role: mixer})
    cure = dict(student='img_size', teacher='input_size=...')[whose]
    assert_names(message, f'the {whose}', '(96, 96)', cure)
    if whose == 'teacher':
        tiny.build_distillation(**kwargs, teacher=mixer, teacher_input_size=64)


def test_open_image_size(tiny, refuse):
    message = refuse(
        teacher=tiny.classifier(tiny.resnet(), classes=tiny.classes),
        input_size=None,
        distiller=dict(
            student_recorders=tiny.recorders(),
            teacher_recorders=tiny.recorders(),
            connectors=dict(
                cap=dict(
                    type='mmcakd.CAPConnector',
                    num_heads=2,
                    inputs=dict(feature=tiny.record('stages', True, 3)),
                    shape_like=tiny.record('stages', False, 3),
                )
            ),
            distill_losses=dict(loss=dict(type='mmcakd.DualViewLoss')),
            loss_forward_mappings=dict(
                loss=dict(
                    student=dict(connector='cap'),
                    teacher=tiny.record('stages', False, 3),
                )
            ),
        ),
    )
    assert_names(message, 'model.input_size')


def test_image_size_is_read_from_a_model_that_tells_it(tiny):
    model = tiny.build_distillation(input_size=None)
    assert model.distiller.connectors.s3_original.in_grid == (4, 4)


def test_oblong_images(tiny):
    model = tiny.build_distillation(input_size=(64, 96))
    assert model.distiller.connectors.s3_original.in_grid == (4, 6)
    losses = model(*tiny.batch(pixels=(64, 96)), mode='loss')
    assert all(loss.isfinite() for loss in losses.values())


# -------------------------------------------------------------- the checkpoint


class Hostile:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.system, (f'touch {self.trace}',)


def test_missing_checkpoint(refuse, tmp_path):
    path = tmp_path / 'nowhere.pth'
    message = refuse(FileNotFoundError, teacher_ckpt=str(path))
    assert_names(message, str(path))


def test_checkpoint_of_another_architecture(tiny, refuse, tmp_path):
    path = tmp_path / 'resnet.pth'
    other = tiny.build(tiny.classifier(tiny.resnet()))
    torch.save(dict(state_dict=other.state_dict()), path)
    message = refuse(RuntimeError, teacher_ckpt=str(path))
    assert_names(
        message, str(path), 'missing', 'unexpected', 'this architecture'
    )


def test_truncated_checkpoint(tiny, refuse, tmp_path):
    path = tmp_path / 'cut.pth'
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    torch.save(dict(state_dict=teacher.state_dict()), path)
    path.write_bytes(path.read_bytes()[:-2000])
    message = refuse(RuntimeError, teacher_ckpt=str(path))
    assert_names(message, str(path), 'truncated', 'again')


def test_checkpoint_with_code_in_it(tiny, refuse, tmp_path):
    path, trace = tmp_path / 'hostile.pth', tmp_path / 'code_ran'
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    torch.save(
        dict(state_dict=teacher.state_dict(), hook=Hostile(trace)), path
    )
    message = refuse(RuntimeError, teacher_ckpt=str(path))
    assert_names(message, str(path), 'could run code', 'weights only')
    assert not trace.exists()


def test_good_checkpoint_is_loaded_and_kept(tiny, tmp_path):
    path = tmp_path / 'swin.pth'
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    torch.save(dict(state_dict=teacher.state_dict()), path)
    model = tiny.build_distillation(teacher_ckpt=str(path))
    # What a Runner does before training.
    model.init_weights()
    for key, value in teacher.state_dict().items():
        assert torch.equal(model.teacher.model.state_dict()[key], value), key


def test_weights_named_in_the_config_of_the_teacher_are_loaded(tiny, tmp_path):
    """MMRazor loads a teacher's `init_cfg`; to ignore it would be silent."""
    path = tmp_path / 'swin.pth'
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    torch.save(dict(state_dict=teacher.state_dict()), path)
    cfg = tiny.classifier(
        tiny.swin(), init_cfg=dict(type='Pretrained', checkpoint=str(path))
    )
    model = tiny.build_distillation(teacher=cfg, teacher_ckpt=None)
    model.init_weights()
    for key, value in teacher.state_dict().items():
        assert torch.equal(model.teacher.model.state_dict()[key], value), key


# ------------------------------------------------------------------ the graph


def edited(tiny, edit) -> dict:
    distiller = tiny.scalekd()
    edit(distiller)
    return distiller


def add(section: str, **items):
    return lambda distiller: distiller[section].update(items)


def drop(section: str, *names: str):
    def edit(distiller):
        for name in names:
            del distiller[section][name]

    return edit


def change(section: str, name: str, **items):
    return lambda distiller: distiller[section][name].update(items)


CAP = dict(type='mmcakd.CAPConnector', num_heads=2)
STAGE = dict(recorder='stages', from_student=True, data_idx=2)
LOGITS = dict(recorder='logits', from_student=True)

#: What is done to a good distiller, and what the error has to name.
FAULTS = {
    'mapping of no loss': (
        add('loss_forward_mappings', loss_kdd=dict(student=LOGITS)),
        ["'loss_kdd'", 'not in distill_losses', 'loss_kd'],
    ),
    'loss without mapping': (
        drop('loss_forward_mappings', 'loss_kd'),
        ['loss_forward_mappings has no entry', "'loss_kd'"],
    ),
    'argument left out': (
        lambda d: d['loss_forward_mappings']['loss_kd'].pop('teacher'),
        ["loss 'loss_kd' needs ['teacher']", 'leaves out'],
    ),
    'argument of another name': (
        change('loss_forward_mappings', 'loss_kd', preds_T=LOGITS),
        ["loss 'loss_kd' takes ['student', 'teacher']", "['preds_T']"],
    ),
    'connector that nothing reads': (
        add(
            'connectors',
            spare=CAP | dict(inputs=dict(feature=STAGE), shape_like=STAGE),
        ),
        ["['spare']", 'remove them or name them'],
    ),
    'connectors in a circle': (
        change(
            'connectors',
            's3_original',
            inputs=dict(feature=STAGE, query=dict(connector='s4_original')),
        ),
        ['circle', 's3_original -> s4_original -> tail -> s3_original'],
    ),
    'connector that reads itself': (
        change(
            'connectors',
            's3_original',
            inputs=dict(feature=STAGE, query=dict(connector='s3_original')),
        ),
        ['circle: s3_original -> s3_original'],
    ),
    'unknown connector in a loss': (
        change(
            'loss_forward_mappings',
            'loss_s4_original',
            student=dict(connector='s5'),
        ),
        ["'student' of loss 'loss_s4_original'", "'s5'", 's4_original'],
    ),
    'unknown connector in a connector': (
        change(
            'connectors',
            's4_original',
            inputs=dict(feature=STAGE, query=dict(connector='head')),
        ),
        ["'query' of connector 's4_original'", "'head'", 'tail'],
    ),
    'unknown recorder of the student': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            student=dict(recorder='logit', from_student=True),
        ),
        [
            "'student' of loss 'loss_kd'",
            "'logit'",
            'student_recorders',
            "'logits'",
        ],
    ),
    'unknown recorder of the teacher': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            teacher=dict(recorder='neck', from_student=False),
        ),
        ["'teacher' of loss 'loss_kd'", "'neck'", 'teacher_recorders'],
    ),
    'recorder of nobody': (
        change(
            'loss_forward_mappings', 'loss_kd', student=dict(recorder='logits')
        ),
        ["'student' of loss 'loss_kd'", 'from_student=True or False'],
    ),
    'reference to nothing': (
        change('loss_forward_mappings', 'loss_kd', student='logits'),
        ["'student' of loss 'loss_kd'", 'recorder, connector or label'],
    ),
    'reference with a key of no meaning': (
        change(
            'loss_forward_mappings',
            'loss_s4_original',
            teacher=dict(recorder='stages', from_student=False, dataidx=3),
        ),
        [
            "'teacher' of loss 'loss_s4_original'",
            "no key 'dataidx'",
            "did you mean 'data_idx'",
        ],
    ),
    'misspelt side': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            student=dict(recorder='logits', from_studnet=True),
        ),
        ["no key 'from_studnet'", "did you mean 'from_student'"],
    ),
    'side that is no truth value': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            student=dict(recorder='logits', from_student='True'),
        ),
        ['from_student should be True or False', "'True' (str)"],
    ),
    'stage as a string': (
        change(
            'connectors',
            's3_original',
            inputs=dict(feature=STAGE | dict(data_idx='2')),
        ),
        [
            "'feature' of connector 's3_original'",
            "data_idx should be a whole number or None, but got '2' (str)",
        ],
    ),
    'stage as a truth value': (
        change(
            'connectors', 's3_original', shape_like=STAGE | dict(data_idx=True)
        ),
        ["'shape_like' of connector 's3_original'", 'True (bool)'],
    ),
    'connector by number': (
        change(
            'loss_forward_mappings',
            'loss_s4_original',
            student=dict(connector=4),
        ),
        ['connector should be a string, but got 4 (int)'],
    ),
    'record index of a connector': (
        change(
            'loss_forward_mappings',
            'loss_s4_original',
            student=dict(connector='s4_original', record_idx=0),
        ),
        ["'connector' has no key 'record_idx'", 'connector_idx'],
    ),
    'stage of a label': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            student=dict(label='hard', data_idx=0),
        ),
        ["'label' has no key 'data_idx'", 'it has label'],
    ),
    'empty reference': (
        change('loss_forward_mappings', 'loss_kd', teacher=None),
        ["'teacher' of loss 'loss_kd'", 'got None'],
    ),
    'list of inputs': (
        change('connectors', 's3_original', inputs=[STAGE]),
        ["connector 's3_original'", 'inputs should be a dict', '(list)'],
    ),
    'list of arguments': (
        lambda d: d['loss_forward_mappings'].update(loss_kd=[LOGITS, LOGITS]),
        ["loss_forward_mappings['loss_kd'] should be a dict", '(list)'],
    ),
    'name in place of a recorder': (
        lambda d: d['student_recorders'].update(logits='mmcakd.Logits'),
        ["student_recorders['logits'] should be a dict", '(str)'],
    ),
    'misspelt part of the distiller': (
        lambda d: d.update(distill_loss=d.pop('distill_losses')),
        ["no argument 'distill_loss'", "did you mean 'distill_losses'"],
    ),
    'loss of the teacher alone': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            student=dict(recorder='logits', from_student=False),
        ),
        [
            "'loss_kd' reads the teacher alone",
            'set from_student=True',
            "['student', 'teacher']",
        ],
    ),
    'connector of the teacher alone': (
        lambda d: [
            d['connectors'].update(
                own=dict(
                    type='mmcakd.FitNetConnector',
                    inputs=dict(feature=STAGE | dict(from_student=False)),
                    shape_like=STAGE | dict(from_student=False),
                )
            ),
            d['distill_losses'].update(
                loss_own=dict(type='mmcakd.DualViewLoss')
            ),
            d['loss_forward_mappings'].update(
                loss_own=dict(
                    student=dict(connector='own'),
                    teacher=STAGE | dict(from_student=False),
                )
            ),
        ],
        ["'loss_own' reads the teacher alone"],
    ),
    'loss of labels alone': (
        change(
            'loss_forward_mappings',
            'loss_kd',
            student=dict(label='soft'),
            teacher=dict(label='hard'),
        ),
        ["'loss_kd' reads labels alone"],
    ),
    'student compared with itself': (
        change('loss_forward_mappings', 'loss_kd', teacher=LOGITS),
        ["'loss_kd' compares the student with itself", 'from_student=False'],
    ),
    'unknown kind of label': (
        change('loss_forward_mappings', 'loss_kd', student=dict(label='one')),
        ["'hard', 'soft'", "'one'"],
    ),
    'record through a connector with inputs': (
        change(
            'loss_forward_mappings',
            'loss_s4_original',
            student=STAGE | dict(connector='s4_original'),
        ),
        ["'s4_original'", 'name the connector alone'],
    ),
    'connector without inputs, alone': (
        lambda d: d['connectors']['s3_original'].pop('inputs'),
        ["'s3_original' alone", 'add a recorder here or `inputs` there'],
    ),
    'input of another name': (
        change('connectors', 's3_original', inputs=dict(feat=STAGE)),
        ["connector 's3_original' takes ['feature', 'query']", "['feat']"],
    ),
    'heads that do not divide the width': (
        change('connectors', 's3_original', num_heads=5),
        ["'s3_original'", 'num_heads=5', '32', 'divisors'],
    ),
    'grid that does not fit the tail': (
        lambda d: [
            d['connectors'][f's3_{view}'].update(query_grid=(3, 3))
            for view in ('original', 'frequency')
        ],
        ["'tail'", '(2, 9, 32)', '9 tokens', '4 x 4', 'shape_like'],
    ),
    'width that does not fit the tail': (
        change('connectors', 's3_original', embed_dims=16),
        ["'tail'", '(2, 16, 16)'],
    ),
    'open width of a projector': (
        lambda d: d['connectors']['s3_original'].pop('shape_like'),
        ["'s3_original'", 'shape_like', '`query`', '`embed_dims`'],
    ),
    'stages of another shape': (
        change(
            'loss_forward_mappings',
            'loss_s4_original',
            student=dict(recorder='stages', from_student=True, data_idx=3),
        ),
        [
            "'loss_s4_original'",
            '(2, 4, 32)',
            '(2, 4, 64)',
            'mmcakd.CAPConnector',
        ],
    ),
    'unknown tap': (
        change(
            'student_recorders',
            'stages',
            taps=[dict(source=f'backbone.leyer{i}') for i in (1, 2, 3, 4)],
        ),
        ['student_recorders.stages', "'backbone.leyer1'", "'backbone.layer1'"],
    ),
    'unknown module of a stock recorder': (
        add(
            'teacher_recorders',
            fc=dict(type='ModuleOutputs', source='head.fcc'),
        ),
        ['teacher_recorders.fc', "'head.fcc'", "'head.fc'"],
    ),
    'misspelt part of a tap': (
        change(
            'student_recorders',
            'stages',
            taps=[dict(sorce=f'backbone.layer{i}') for i in (1, 2, 3, 4)],
        ),
        ["Tap has no argument 'sorce'", "did you mean 'source'"],
    ),
    'unknown layout of a tap': (
        change(
            'student_recorders',
            'stages',
            taps=[dict(source='backbone', layout='NWHC')] * 4,
        ),
        ["tap 'backbone'", "'NWHC'", "'NHWC', 'NLC'"],
    ),
    'blocks that make no stages': (
        change('student_recorders', 'stages', taps=[dict(source='backbone')]),
        ['student_recorders.stages', 'data_idx=2', 'ResNet has 1 stage,'],
    ),
    'replay from the last stage': (
        change('connectors', 'tail', from_stage=4),
        ["'tail'", 'from_stage=4'],
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_in_the_distiller(tiny, refuse, fault):
    edit, named = FAULTS[fault]
    if fault == 'stages of another shape':
        # nothing reads the projector then
        faulty = edited(tiny, edit)
        faulty['connectors'].pop('s4_original')
    else:
        faulty = edited(tiny, edit)
    assert_names(refuse(distiller=faulty), *named)


def test_teacher_without_a_tail(tiny, refuse):
    backbone = dict(type='TIMMBackbone', model_name='xception41p')
    message = refuse(teacher=classifier(tiny, backbone, 2048))
    assert_names(message, "'tail'", 'XceptionAligned', 'SwinTransformer')


def test_blocks_of_another_depth(tiny, refuse):
    distiller = tiny.scalekd()
    distiller['teacher_recorders']['stages']['blocks'] = (1, 3, 9, 11)
    message = refuse(teacher=tiny.classifier(tiny.vit()), distiller=distiller)
    assert_names(
        message, 'teacher_recorders.stages', '(1, 3, 9, 11)', 'ending with 5'
    )


def test_distiller_of_mmrazor(tiny, refuse):
    distiller = tiny.logit_kd() | dict(type='mmrazor.ConfigurableDistiller')
    distiller['distill_losses'] = dict(loss_kd=dict(type='KLDivergence'))
    distiller['loss_forward_mappings'] = dict(
        loss_kd=dict(
            preds_S=tiny.record('logits', True),
            preds_T=tiny.record('logits', False),
        )
    )
    message = refuse(distiller=distiller)
    assert_names(message, 'ConfigurableDistiller', 'mmcakd.CrossArchDistiller')


# ------------------------------------------------------- only seen in training


def test_labels_that_the_samples_lack(tiny):
    distiller = tiny.logit_kd()
    distiller['loss_forward_mappings']['loss_kd']['teacher'] = dict(
        label='soft'
    )
    model = tiny.build_distillation(distiller=distiller)
    with pytest.raises(RuntimeError, match='soft labels') as caught:
        model(*tiny.batch(), mode='loss')
    assert_names(str(caught.value), 'gt_score', 'to_onehot=True')
    losses = model(*tiny.batch(soft=True), mode='loss')
    assert losses['distill.loss_kd'].isfinite()


def test_module_that_the_forward_does_not_call(tiny):
    class Idle(nn.Module):
        pass

    student = tiny.build(tiny.classifier(tiny.resnet()))
    student.idle = Idle()
    distiller = dict(
        student_recorders=dict(idle=dict(type='ModuleOutputs', source='idle')),
        teacher_recorders=dict(logits=dict(type='mmcakd.Logits')),
        distill_losses=dict(loss=dict(type='L1Loss')),
        loss_forward_mappings=dict(
            loss=dict(
                s_feature=tiny.record('idle', True),
                t_feature=tiny.record('logits', False),
            )
        ),
    )
    model = tiny.build_distillation(architecture=student, distiller=distiller)
    with pytest.raises(RuntimeError, match=r'student_recorders\.idle'):
        model(*tiny.batch(), mode='loss')


def test_record_inside_a_checkpointed_block(tiny):
    distiller = dict(
        student_recorders=dict(
            conv=dict(type='ModuleOutputs', source='backbone.layer4.1.conv2')
        ),
        teacher_recorders=dict(
            conv=dict(type='ModuleOutputs', source='backbone.layer4.1.conv2')
        ),
        distill_losses=dict(loss_conv=dict(type='L1Loss')),
        loss_forward_mappings=dict(
            loss_conv=dict(
                s_feature=tiny.record('conv', True),
                t_feature=tiny.record('conv', False),
            )
        ),
    )

    def build(**kwargs):
        return tiny.build_distillation(
            architecture=tiny.classifier(tiny.resnet(**kwargs)),
            teacher=tiny.classifier(tiny.resnet()),
            distiller=distiller,
        ).train()

    build()(*tiny.batch(), mode='loss')
    with pytest.raises(RuntimeError, match='loss_conv.*with_cp.*blocks'):
        build(with_cp=True)(*tiny.batch(), mode='loss')


def fitnet(tiny, stage: int, **kwargs) -> dict:
    student, teacher = (
        tiny.record('stages', whose, stage) for whose in (True, False)
    )
    return dict(
        student_recorders=tiny.recorders(),
        teacher_recorders=tiny.recorders(),
        connectors=dict(
            fit=dict(
                type='mmcakd.FitNetConnector',
                inputs=dict(feature=student),
                shape_like=teacher,
            )
        ),
        distill_losses=dict(loss_fit=dict(type='mmcakd.MSELoss')),
        loss_forward_mappings=dict(
            loss_fit=dict(student=dict(connector='fit'), teacher=teacher)
        ),
    )


@pytest.mark.parametrize(
    ('backbone', 'frozen', 'stage'),
    [
        ('resnet', 4, 3),
        ('resnet', 2, 1),
        ('swin', 1, 0),
        ('vit', 6, 2),
        ('convnext', 3, 2),
    ],
)
def test_stage_that_is_frozen_names_what_freezes_it(
    tiny, backbone, frozen, stage
):
    """Even where a connector behind it would be trained."""
    net = getattr(tiny, backbone)(frozen_stages=frozen)
    options = dict(
        architecture=tiny.classifier(net),
        teacher=tiny.classifier(tiny.resnet()),
    )
    with pytest.raises(
        ValueError, match=f"'loss_fit'.*frozen_stages={frozen}.*later stage"
    ):
        tiny.build_distillation(distiller=fitnet(tiny, stage), **options)
    # The logits, and a stage after those, are trained.
    tiny.build_distillation(distiller=tiny.logit_kd(), **options)
    if frozen == 2:
        tiny.build_distillation(distiller=fitnet(tiny, 2), **options)


def test_student_that_is_frozen_by_hand_is_told(tiny):
    student = tiny.build(tiny.classifier(tiny.resnet()))
    student.backbone.requires_grad_(False)
    options = dict(architecture=student, distiller=fitnet(tiny, 3))
    with pytest.raises(ValueError, match='requires_grad.*train that'):
        tiny.build_distillation(**options)
    # Where it is not to be trained there is nothing to say.
    tiny.build_distillation(**options, student_trainable=False)


def test_images_of_another_size_than_the_projectors(tiny):
    model = tiny.build_distillation()
    with pytest.raises(ValueError, match='input_size'):
        model(*tiny.batch(pixels=96), mode='loss')
