"""Labels mean what the losses think, and heads what they read."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.models.utils import RandomBatchAugment
from mmpretrain.structures import DataSample, MultiTaskDataSample

from mmcakd.models.connectors import BaseConnector

CONFIGS = Path(__file__).parents[3] / 'configs'


def head(type_: str, classes: int | None = None, **kwargs) -> dict:
    sizes = {} if classes is None else dict(num_classes=classes)
    return dict(type=type_, in_channels=32) | sizes | kwargs


@pytest.fixture
def distil(tiny):
    """Build a tiny pair of ResNets by their heads, with one loss on logits."""

    def build(
        loss: dict,
        student: dict | None = None,
        teacher: dict | None = None,
        reads: dict | None = None,
        **kwargs,
    ):
        distiller = tiny.logit_kd()
        distiller['distill_losses'] = dict(loss_kd=loss)
        mapping = distiller['loss_forward_mappings']['loss_kd']
        for argument, more in (reads or {}).items():
            mapping[argument] = mapping.get(argument, {}) | more
        if loss['type'].startswith('mmrazor.'):
            names = dict(student='preds_S', teacher='preds_T')
            for ours, theirs in names.items():
                mapping[theirs] = mapping.pop(ours)
        single = head('LinearClsHead', tiny.classes)
        models = {
            role: tiny.classifier(tiny.resnet(), head=given or single)
            for role, given in (
                ('architecture', student),
                ('teacher', teacher),
            )
        }
        return tiny.build_distillation(
            distiller=distiller, input_size=32, **models, **kwargs
        )

    return build


HARD = dict(label=dict(label='hard'))
AUTO = dict(label=dict(label='auto'))
#: Losses for one class an image, with what they read.
ONE_CLASS = [
    (dict(type='mmcakd.SoftTargetLoss'), {}),
    (dict(type='mmcakd.SoftTargetLoss', mode='kl', tau=4), {}),
    (dict(type='mmcakd.DISTLoss'), {}),
    (dict(type='mmcakd.DKDLoss'), HARD),
    (dict(type='mmcakd.DKDLoss'), AUTO),
    (dict(type='mmcakd.OFALoss'), AUTO),
    (dict(type='mmrazor.KLDivergence'), {}),
]
one_class_losses = pytest.mark.parametrize(('loss', 'reads'), ONE_CLASS)
BINARY = dict(type='mmcakd.BinaryTargetLoss')


# ------------------------------------------------------------ several labels


@one_class_losses
@pytest.mark.parametrize('whose', ['student', 'teacher'])
@pytest.mark.parametrize(
    'multi',
    [
        head('MultiLabelLinearClsHead', 5),
        head('CSRAClsHead', 5, num_heads=1, lam=0.1),
        head('MultiLabelLinearClsHead', 5, loss=dict(type='AsymmetricLoss')),
    ],
    ids=['linear', 'CSRA', 'asymmetric'],
)
def test_multi_label_heads_are_refused_while_building(
    distil, loss, reads, whose, multi
):
    with pytest.raises(ValueError, match='mmcakd.BinaryTargetLoss') as caught:
        distil(loss, reads=reads, **{whose: multi})
    for named in ('loss_kd', f'the {whose} has a {multi["type"]}'):
        assert named in str(caught.value)


def several_labels() -> list[list[DataSample]]:
    lists = [
        DataSample().set_gt_label(label) for label in ([1, 4], [], [2], [0])
    ]
    hot = [
        DataSample().set_gt_score(torch.tensor(score))
        for score in ([0.0, 1, 0, 1, 0], [1.0, 0, 0, 0, 0])
    ]
    return [lists, hot]


@one_class_losses
@pytest.mark.parametrize('kind', [0, 1], ids=['lists', 'multi-hot'])
def test_samples_of_several_labels_are_refused_in_the_step(
    distil, loss, reads, kind
):
    bce = dict(type='CrossEntropyLoss', use_sigmoid=True)
    samples = several_labels()[kind]
    model = distil(
        loss, head('LinearClsHead', 5, loss=bce), reads=reads
    ).train()
    model.calculate_student_loss = False
    if kind == 0:
        # What the student's own loss would make of them.
        model.student.head.loss = lambda feats, samples: dict(
            loss=model.student.head(feats).sum()
        )
    images = torch.randn(len(samples), 3, 32, 32)
    with pytest.raises((ValueError, RuntimeError)) as caught:
        model(images, samples, mode='loss')
    if reads is not HARD or kind == 0:
        assert 'BinaryTargetLoss' in str(caught.value)


@pytest.mark.parametrize('mode', ['ce', 'kl'])
@pytest.mark.parametrize(
    'multi',
    [
        head('MultiLabelLinearClsHead', 5),
        head('CSRAClsHead', 5, num_heads=2, lam=0.1),
        head(
            'LinearClsHead',
            1,
            loss=dict(type='CrossEntropyLoss', use_sigmoid=True),
        ),
    ],
    ids=['linear', 'CSRA', 'one logit'],
)
def test_sigmoid_kd_trains_such_heads(distil, tiny, multi, mode):
    given = {} if multi['type'] != 'CSRAClsHead' else dict(neck=None)
    distiller = tiny.logit_kd()
    distiller['distill_losses'] = dict(loss_kd=BINARY | dict(mode=mode))
    models = {
        role: tiny.classifier(tiny.resnet(), head=multi, **given)
        for role in ('architecture', 'teacher')
    }
    model = tiny.build_distillation(
        distiller=distiller, input_size=32, **models
    ).train()
    classes = multi['num_classes']
    samples = [
        DataSample().set_gt_score(torch.arange(classes) % (i + 1) == 0)
        for i in range(4)
    ]
    for sample in samples:
        sample.set_gt_score(sample.gt_score.float())
    losses = model(torch.randn(4, 3, 32, 32), samples, mode='loss')
    loss = losses['distill.loss_kd']
    assert loss.item() > 1e-3 or mode == 'kl'
    loss.backward()
    assert model.student.backbone.layer1[0].conv1.weight.grad.abs().sum() > 0


class Prior(BaseConnector):
    """Shift logits by how often the batch has each class."""

    def forward(self, logits, label):
        counts = label.bincount(minlength=logits.shape[1])
        return logits + (counts + 1).log()


@pytest.mark.parametrize('kind', ['hard', 'soft', 'auto'])
def test_labels_that_a_connector_reads_are_of_one_class_too(tiny, kind):
    distiller = tiny.logit_kd(type='mmcakd.BinaryTargetLoss')
    distiller['connectors'] = dict(
        prior=dict(
            type=Prior,
            inputs=dict(
                logits=tiny.record('logits', True), label=dict(label=kind)
            ),
        )
    )
    mapping = distiller['loss_forward_mappings']['loss_kd']
    mapping['student'] = dict(connector='prior')
    multi = head('MultiLabelLinearClsHead', tiny.classes)
    with pytest.raises(ValueError, match='connector .*MultiLabelLinearCls'):
        tiny.build_distillation(
            architecture=tiny.classifier(tiny.resnet(), head=multi),
            distiller=distiller,
        )


# ---------------------------------------------------------------- one logit


@one_class_losses
def test_a_single_logit_is_refused(distil, loss, reads):
    one = head('LinearClsHead', 1)
    images = torch.randn(4, 3, 32, 32)
    samples = [DataSample().set_gt_label(0) for _ in range(4)]
    with pytest.raises(ValueError, match='mmcakd.BinaryTargetLoss') as caught:
        # Those of MMRazor are not tried while building.
        distil(loss, one, one, reads)(images, samples, mode='loss')
    assert "'loss_kd'" in str(caught.value)


# ----------------------------------------------------------- mixing in a run


@pytest.mark.parametrize('kind', ['Mixup', 'CutMix'])
def test_mixing_that_is_switched_on_later_is_found_in_the_step(
    distil, tiny, kind
):
    preprocessor = dict(num_classes=tiny.classes, to_onehot=True)
    smooth = dict(type='LabelSmoothLoss', label_smooth_val=0.1)
    model = distil(
        dict(type='mmcakd.DKDLoss'),
        head('LinearClsHead', tiny.classes, loss=smooth),
        reads=HARD,
        data_preprocessor=preprocessor,
    ).train()

    def step():
        images, samples = tiny.batch(4, 32)
        batch = dict(inputs=images, data_samples=samples)
        return model(**model.data_preprocessor(batch, True), mode='loss')

    assert step()['distill.loss_kd'].isfinite()
    augment = RandomBatchAugment(dict(type=kind, alpha=1.0))
    model.data_preprocessor.batch_augments = augment
    with pytest.raises(ValueError, match='SwitchRecipeHook.*mixes images'):
        step()
    # Nothing is mixed in validation.
    model.eval()
    images, samples = tiny.batch(4, 32)
    model(images, samples, mode='loss')
    model.data_preprocessor.batch_augments = None
    assert step()['distill.loss_kd'].isfinite()


def test_mixing_that_nobody_announced_is_found_in_the_step(distil, tiny):
    """As by a transform, or a collate function of one's own."""
    model = distil(dict(type='mmcakd.DKDLoss'), reads=HARD).train()
    images, samples = tiny.batch(4, 32, soft=True)
    with pytest.raises(ValueError, match='hard labels, but an image'):
        model(images, samples, mode='loss')


def test_mixed_batches_are_no_matter_where_soft_labels_are_read(distil, tiny):
    soft = dict(label=dict(label='soft'))
    model = distil(dict(type='mmcakd.OFALoss'), reads=soft).train()
    images, samples = tiny.batch(4, 32, soft=True)
    assert model(images, samples, mode='loss')['distill.loss_kd'].isfinite()


# ------------------------------------------------------------ several heads


TASKS = dict(
    type='MultiTaskHead',
    in_channels=32,
    task_heads=dict(
        coarse=dict(type='LinearClsHead', num_classes=3),
        fine=dict(type='LinearClsHead', num_classes=5),
        marks=dict(type='MultiLabelLinearClsHead', num_classes=4),
    ),
)


def of_tasks(count: int) -> list:
    samples = []
    for index in range(count):
        sample = MultiTaskDataSample()
        sample.set_field(DataSample().set_gt_label(index % 3), 'coarse')
        if index % 2:
            sample.set_field(DataSample().set_gt_label(index % 5), 'fine')
        samples.append(sample)
    return samples


@pytest.mark.parametrize('task', ['fine', 1])
def test_a_task_learns_from_a_teacher_of_its_classes(distil, task):
    model = distil(
        dict(type='mmcakd.SoftTargetLoss'),
        TASKS,
        reads=dict(student=dict(data_idx=task)),
    ).train()
    images = torch.randn(6, 3, 32, 32)
    losses = model(images, of_tasks(6), mode='loss')
    losses['distill.loss_kd'].backward()
    heads = model.student.head.task_heads
    assert heads['fine'].fc.weight.grad.abs().sum() > 0
    assert heads['coarse'].fc.weight.grad is None
    model.eval()
    found = model(images, of_tasks(6), mode='loss')['distill.loss_kd']
    expected = model.distiller.distill_losses['loss_kd'](
        model.student(images)['fine'], model.teacher(images)
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('whose', ['student', 'teacher'])
def test_an_open_choice_of_heads_is_named_while_building(distil, whose):
    with pytest.raises(
        ValueError, match=r"\['coarse', 'fine', 'marks'\].*data_idx='coarse'"
    ) as caught:
        distil(dict(type='mmcakd.SoftTargetLoss'), **{whose: TASKS})
    assert f'{whose}_recorders.logits' in str(caught.value)


def test_only_the_task_that_is_read_has_to_be_of_one_class(distil):
    marks = dict(student=dict(data_idx='marks'))
    four = head('LinearClsHead', 4)
    with pytest.raises(ValueError, match='MultiLabelLinearClsHead'):
        distil(dict(type='mmcakd.DISTLoss'), TASKS, four, marks)
    assert distil(BINARY, TASKS, four, marks)


def test_labels_of_one_of_several_tasks_are_refused(distil):
    with pytest.raises(RuntimeError, match='hard labels'):
        distil(
            dict(type='mmcakd.DKDLoss'),
            TASKS,
            reads=HARD | dict(student=dict(data_idx='fine')),
        )


def test_an_assistant_cannot_end_in_several_heads(tiny):
    distiller = Config.fromfile(CONFIGS / '_base_/methods/tas.py').distiller
    student = tiny.classifier(tiny.resnet(), head=TASKS)
    distiller['connectors']['assistant']['first'] = 'teacher'
    for reference in distiller['loss_forward_mappings'].values():
        if reference.get('student', {}).get('recorder') == 'logits':
            reference['student']['data_idx'] = 'fine'
    with pytest.raises(ValueError, match='does more between its') as caught:
        tiny.build_distillation(architecture=student, distiller=distiller)
    assert "connector 'assistant'" in str(caught.value)


# ------------------------------------------- no more stages than are read


def levit() -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='LeViT', arch='128s', img_size=64),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LeViTClsHead', num_classes=5, in_channels=384),
    )


METHODS = [
    'baselines/rkd',
    'baselines/cc',
    '_base_/methods/ofakd',
    '_base_/methods/cakd_gl',
    '_base_/methods/tas',
]


@pytest.mark.parametrize('method', METHODS)
def test_methods_take_a_teacher_of_three_stages(tiny, method):
    distiller = Config.fromfile(CONFIGS / f'{method}.py').distiller
    model = tiny.build_distillation(
        teacher=levit(), distiller=distiller, input_size=64
    ).train()
    images, samples = tiny.batch(4)
    losses = model(images, samples, mode='loss')
    distilled = [v for k, v in losses.items() if k.startswith('distill.')]
    assert distilled
    assert all(value.isfinite() for value in distilled)
    sum(distilled).backward()
    assert model.student.backbone.conv1.weight.grad.abs().sum() > 0


def test_the_last_stage_of_a_levit_is_what_rkd_reads(tiny):
    from mmcakd.models.losses import RKDLoss

    distiller = Config.fromfile(CONFIGS / 'baselines/rkd.py').distiller
    model = tiny.build_distillation(
        teacher=levit(), distiller=distiller, input_size=64
    ).eval()
    images, samples = tiny.batch(4)
    found = model(images, samples, mode='loss')['distill.loss_rkd']
    (student,) = model.student.backbone(images)
    (teacher,) = model.teacher.model.backbone(images)
    expected = RKDLoss()(student, teacher)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_stage_that_the_teacher_lacks_is_named(tiny):
    distiller = Config.fromfile(CONFIGS / 'baselines/fitnet.py').distiller
    with pytest.raises(ValueError, match='LeViT has 3 stages') as caught:
        tiny.build_distillation(teacher=levit(), distiller=distiller)
    assert 'teacher_recorders.stages' in str(caught.value)
    assert 'data_idx=3' in str(caught.value)


def ofakd(**heads) -> dict:
    distiller = Config.fromfile(CONFIGS / '_base_/methods/ofakd.py').distiller
    distiller = copy.deepcopy(distiller.to_dict())
    distiller['connectors']['heads'].update(heads)
    return distiller


def no_stages(classes: int) -> dict:
    return dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='MobileNetV3', arch='small_075'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=432),
    )


@pytest.fixture
def unknown_teacher(tiny, monkeypatch):
    """A classifier of a family that the table does not have."""
    from mmcakd.models.stages import FAMILIES

    monkeypatch.delitem(FAMILIES, 'MobileNetV3')
    return no_stages(tiny.classes)


def test_logits_are_all_that_a_student_of_tokens_needs(tiny, unknown_teacher):
    """OFA-KD asks for the teacher's width for maps only."""
    model = tiny.build_distillation(
        architecture=tiny.classifier(tiny.vit()),
        teacher=unknown_teacher,
        distiller=ofakd(num_heads=2),
    ).train()
    images, samples = tiny.batch(4)
    assert model(images, samples, mode='loss')['distill.loss_ofa'].isfinite()


def test_width_that_is_needed_of_an_unknown_teacher_is_asked_for(
    tiny, unknown_teacher
):
    with pytest.raises(ValueError, match='no stages are known') as caught:
        tiny.build_distillation(teacher=unknown_teacher, distiller=ofakd())
    assert "connector 'heads'" in str(caught.value)
    assert tiny.build_distillation(
        teacher=unknown_teacher, distiller=ofakd(embed_dims=16)
    )


# -------------------------------------------------------- images of a batch


@pytest.mark.parametrize(
    ('method', 'fewest'),
    [('baselines/rkd', 3), ('baselines/cc', 2), ('baselines/dist', 2)],
)
def test_batches_that_teach_nothing_are_refused(tiny, method, fewest):
    distiller = Config.fromfile(CONFIGS / f'{method}.py').distiller
    model = tiny.build_distillation(distiller=distiller).train()
    assert model.distiller.graph.min_images == fewest
    images, samples = tiny.batch(fewest)
    assert model(images, samples, mode='loss')
    with pytest.raises(ValueError, match=f'at least {fewest}.*drop_last'):
        model(images[1:], samples[1:], mode='loss')
