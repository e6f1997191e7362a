"""Several teachers, stored ones, and none."""

import copy
import re
import warnings

import pytest
import torch
from mmpretrain.structures import DataSample
from mmrazor.engine import SingleTeacherDistillValLoop
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmcakd.engine.hooks.training_set_hook import check_val_loop
from mmcakd.models.distillers import CrossArchDistiller
from mmcakd.models.losses import NeedsHardLabels, SoftTargetLoss
from mmcakd.models.teachers import InMemoryTargets, Teacher

IMAGES = 6


def of(name: str, recorder: str = 'logits', **kwargs) -> dict:
    return dict(recorder=recorder, teacher=name, **kwargs)


@pytest.fixture
def three(tiny):
    """Two live teachers and a stored one, each with a loss on logits."""
    student = tiny.record('logits', True)
    logits = dict(logits=dict(type='mmcakd.Logits'))
    names = ('swin', 'vit', 'stored')
    stored = torch.arange(IMAGES * tiny.classes).view(IMAGES, -1) % 7 / 7.0
    cfg = tiny.distillation(
        teachers=dict(
            swin=dict(model=tiny.classifier(tiny.swin()), ckpt='random'),
            vit=dict(
                model=tiny.classifier(tiny.vit()),
                ckpt='random',
                input_size=32,
                precision='bf16',
            ),
            stored=dict(
                type='mmcakd.InMemoryTargets', records=dict(logits=stored)
            ),
        ),
        distiller=dict(
            student_recorders=logits,
            teacher_recorders={name: logits for name in names},
            distill_losses={
                f'loss_{name}': dict(type='mmcakd.MSELoss') for name in names
            },
            loss_forward_mappings={
                f'loss_{name}': dict(student=student, teacher=of(name))
                for name in names
            },
        ),
    )
    del cfg['teacher'], cfg['teacher_ckpt']
    cfg['teachers']['vit']['model']['backbone']['img_size'] = 32
    return cfg


def batch(tiny, places=(4, 1)) -> tuple:
    images, samples = tiny.batch(len(places))
    for sample, place in zip(samples, places, strict=True):
        sample.set_metainfo(dict(sample_idx=place))
    return images, samples


# -------------------------------------------------------------------- a step


def test_each_teacher_is_run_once_and_answers_for_itself(tiny, three):
    torch.manual_seed(0)
    model = tiny.build(three).eval()
    calls = []
    for name, teacher in model.live_teachers.items():
        teacher.model.register_forward_hook(
            lambda m, i, o, name=name: calls.append((name, i[0].shape, o))
        )
    images, samples = batch(tiny)
    losses = model(images, samples, mode='loss')
    assert [(name, shape[-1]) for name, shape, _ in calls] == [
        ('swin', 64),
        ('vit', 32),
    ]
    student = model.student(images, mode='tensor')
    targets = {name: output.float() for name, _, output in calls}
    targets['stored'] = torch.stack(
        [
            torch.tensor([(place * 5 + c) % 7 / 7 for c in range(5)])
            for place in (4, 1)
        ]
    )
    for name, target in targets.items():
        expected = (student - target).square().mean()
        torch.testing.assert_close(losses[f'distill.loss_{name}'], expected)


def test_step_costs_what_its_models_cost(tiny, three):
    model = tiny.build(three).train()
    images, samples = batch(tiny)

    def flops(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    parts = [
        flops(lambda t=teacher: t(images))
        for teacher in model.live_teachers.values()
    ]
    parts.append(flops(lambda: model.student(images, samples, mode='loss')))
    whole = flops(lambda: model(images, samples, mode='loss'))
    assert all(parts)
    assert whole == sum(parts)


def test_teachers_are_kept_out_of_all_that_is_trained(tiny, three):
    model = tiny.build(three).train()
    assert not [key for key in model.state_dict() if 'teacher' in key]
    own = {id(p) for p in model.parameters()}
    for teacher in model.live_teachers.values():
        assert not any(p.requires_grad for p in teacher.parameters())
        assert not own & {id(p) for p in teacher.parameters()}
        assert not any(m.training for m in teacher.model.modules())
    clone = copy.deepcopy(model)
    assert all(
        clone.teachers[name] is teacher
        for name, teacher in model.teachers.items()
    )
    model.double()
    weights = [
        p.dtype for t in model.live_teachers.values() for p in t.parameters()
    ]
    assert set(weights) == {torch.float64}


def test_teacher_that_nothing_reads_does_not_run(tiny, three):
    del three['distiller']['distill_losses']['loss_vit']
    del three['distiller']['loss_forward_mappings']['loss_vit']
    model = tiny.build(three)

    def refuse(*args) -> None:
        raise AssertionError('it runs')

    model.teachers['vit'].register_forward_pre_hook(refuse)
    model(*batch(tiny), mode='loss')


def test_teachers_are_built_in_any_order(tiny, three):
    results = []
    for names in (('swin', 'vit', 'stored'), ('stored', 'vit', 'swin')):
        torch.manual_seed(0)
        three['teachers'] = {name: three['teachers'][name] for name in names}
        model = tiny.build(three).eval()
        torch.manual_seed(1)
        results.append(model(*batch(tiny), mode='loss'))
    assert results[0] == results[1]


def test_connectors_say_which_teacher_they_hold(tiny):
    """ScaleKD from a named teacher beside another."""
    distiller = tiny.scalekd()

    def rename(cfg):
        if isinstance(cfg, dict):
            if cfg.get('from_student') is False:
                cfg = {k: v for k, v in cfg.items() if k != 'from_student'}
                cfg['teacher'] = 'swin'
            return {key: rename(value) for key, value in cfg.items()}
        return cfg

    named = rename(copy.deepcopy(distiller))
    named['teacher_recorders'] = dict(swin=distiller['teacher_recorders'])
    teacher = tiny.classifier(tiny.swin())
    other = dict(model=tiny.classifier(tiny.vit()), ckpt='random')
    teachers = dict(swin=dict(model=teacher, ckpt='random'), vit=other)
    two = tiny.distillation(teachers=teachers, distiller=named)
    del two['teacher'], two['teacher_ckpt']
    with pytest.raises(ValueError, match="'tail' leaves open .*swin, vit"):
        tiny.build(two)
    named['connectors']['tail']['teacher'] = 'swine'
    with pytest.raises(ValueError, match="no teacher 'swine'; did you mean"):
        tiny.build(two)
    named['connectors']['tail']['teacher'] = 'swin'
    named['connectors']['s3_original']['teacher'] = 'swin'
    with pytest.raises(ValueError, match="'s3_original' gets hold of no"):
        tiny.build(two)
    del named['connectors']['s3_original']['teacher']
    model = tiny.build(two).eval()
    model.teachers['vit'].register_forward_pre_hook(pytest.fail)

    torch.manual_seed(1)
    alone = tiny.build_distillation().eval()
    alone.load_state_dict(model.state_dict())
    swin = model.teachers['swin'].model.state_dict()
    alone.teacher.model.load_state_dict(swin)
    data = tiny.batch()
    expected = alone(*data, mode='loss')
    assert model(*data, mode='loss') == expected


# ------------------------------------------------------------- how to write it


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(teacher='resnet18_8xb32_in1k'), 'one more by `teacher`'),
        (dict(teacher_ckpt='random'), 'one more by `teacher`'),
        (dict(teacher_precision='bf16'), 'one more by `teacher`'),
        (dict(teachers=['swin']), 'teachers should be a dict'),
    ],
)
def test_two_spellings_are_refused(tiny, three, change, message):
    with pytest.raises(ValueError, match=message):
        tiny.build(three | change)


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('resnet18_8xb32_in1k', r'teachers\.swin should be a dict with the'),
        (dict(type='ImageClassifier'), r'teachers\.swin=dict\(model='),
        (dict(model='resnet18_8xb32_in1k', precison='bf16'), 'precision'),
        (dict(model='resnet18_8xb32_in1k', precision='int8'), 'int8'),
        (dict(model='resnet1_8xb32_in1k'), r'teachers\.swin: .*resnet1_8xb32'),
        (
            dict(model='resnet18_8xb32_in1k', ckpt='no.pth'),
            r'teachers\.swin: .*no\.pth',
        ),
        (
            dict(
                type='mmcakd.InMemoryTargets',
                records=dict(logits=[[1.0]]),
                precision='bf16',
            ),
            r'swin is read from a store .*precision would say nothing',
        ),
    ],
)
def test_bad_entry_of_teachers_is_named(tiny, three, source, message):
    three['teachers']['swin'] = source
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny.build(three)


def test_teacher_is_not_called_student(tiny, three):
    three['teachers']['student'] = three['teachers'].pop('vit')
    with pytest.raises(ValueError, match="cannot be called 'student'"):
        tiny.build(three)


def change_first(three, **reference) -> dict:
    mappings = three['distiller']['loss_forward_mappings']
    mappings['loss_swin']['teacher'] = dict(recorder='logits', **reference)
    return three


@pytest.mark.parametrize(
    ('reference', 'message'),
    [
        (dict(from_student=False), 'leaves open which teacher .*stored, swin'),
        (dict(teacher='swim'), "no teacher 'swim'; did you mean 'swin'"),
        (dict(teacher='swin', from_student=True), 'of the student and of the'),
        (dict(), 'from_student=True or False, or teacher=NAME'),
        (dict(teacher=3), 'teacher should be a string'),
    ],
)
def test_reference_that_names_no_teacher(tiny, three, reference, message):
    with pytest.raises(ValueError, match=message):
        tiny.build(change_first(three, **reference))


def test_name_of_a_teacher_beside_from_student_is_fine(tiny, three):
    tiny.build(change_first(three, teacher='swin', from_student=False))


def test_recorders_of_several_teachers_are_by_name(tiny, three):
    logits = dict(type='mmcakd.Logits')
    cfg = copy.deepcopy(three)
    cfg['distiller']['teacher_recorders'] = dict(logits=logits)
    with pytest.raises(ValueError, match='leaves open whose they are'):
        tiny.build(cfg)
    cfg['distiller']['teacher_recorders'] = dict(
        swin=dict(logits=logits), logits=logits
    )
    with pytest.raises(ValueError, match=r'recorders \(logits\) beside'):
        tiny.build(cfg)
    cfg['distiller']['teacher_recorders'] = dict(swim=dict(logits=logits))
    with pytest.raises(ValueError, match="no teacher 'swim'; did you mean"):
        tiny.build(cfg)


def test_only_teacher_may_have_a_name(tiny):
    cfg = tiny.distillation(distiller=tiny.logit_kd())
    teacher = dict(model=cfg.pop('teacher'), ckpt=cfg.pop('teacher_ckpt'))
    model = tiny.build(cfg | dict(teachers=dict(swin=teacher)))
    assert model.teacher is model.teachers['swin']
    by_name = dict(swin=cfg['distiller']['teacher_recorders'])
    cfg['distiller']['teacher_recorders'] = by_name
    tiny.build(cfg | dict(teachers=dict(swin=teacher)))


def test_there_is_no_teacher_where_there_are_several(tiny, three):
    model = tiny.build(three)
    assert not hasattr(model, 'teacher')
    with pytest.raises(AttributeError, match='stored, swin, vit'):
        _ = model.teacher


def test_options_that_move_say_where_to(tiny):
    teacher = tiny.classifier(tiny.swin())
    now = re.escape("teacher=dict(model=..., mode='train', precision='bf16')")
    with pytest.warns(FutureWarning, match=now):
        old = tiny.build_distillation(
            teacher=teacher, teacher_precision='bf16', teacher_mode='train'
        )
    with warnings.catch_warnings():
        warnings.simplefilter('error', FutureWarning)
        new = tiny.build_distillation(
            teacher=dict(model=teacher, precision='bf16', mode='train')
        )
    for model in (old, new):
        assert model.teacher.precision == 'bf16'
        assert model.teacher.mode == 'train'


def test_option_given_twice_is_refused(tiny):
    teacher = dict(model=tiny.classifier(tiny.swin()), ckpt='random')
    with pytest.raises(ValueError, match='ckpt of the teacher is given'):
        tiny.build_distillation(teacher=teacher, teacher_ckpt='random')


# ------------------------------------------------------------ stored and none


def stored_kd(tiny, records, **kwargs) -> dict:
    return tiny.distillation(
        distiller=tiny.logit_kd(),
        teacher=dict(type='mmcakd.InMemoryTargets', records=records),
        **kwargs,
    )


def test_only_teacher_may_be_stored(tiny):
    logits = torch.randn(IMAGES, tiny.classes)
    cfg = stored_kd(tiny, dict(logits=logits))
    with pytest.raises(ValueError, match='store, where ckpt would say'):
        tiny.build(cfg)
    del cfg['teacher_ckpt']
    with pytest.raises(ValueError, match='where precision would say nothing'):
        tiny.build(cfg | dict(teacher_precision='bf16'))
    model = tiny.build(cfg).train()
    data = batch(tiny, (5, 0, 5))
    loss = model(*data, mode='loss')['distill.loss_kd']
    model.eval()
    student = model.student(data[0], mode='tensor')
    torch.testing.assert_close(
        model(*data, mode='loss')['distill.loss_kd'],
        SoftTargetLoss()(student, logits[[5, 0, 5]]),
    )
    loss.backward()
    # A teacher that came built is as good.
    built = InMemoryTargets(dict(logits=logits))
    tiny.build(cfg | dict(teacher=built))


@pytest.mark.parametrize(
    ('records', 'message'),
    [
        (dict(), 'no records'),
        (
            dict(scores=[[0.0]]),
            r"teacher_recorders\.logits.*only \['scores'\]",
        ),
        (dict(logits={0: [[0.0]]}), r'no data_idx=None, only \[0\]'),
        (dict(logits=[[0.0]], more=[[0.0], [1.0]]), 'a row of each record'),
        (dict(logits=torch.zeros(4, 7)), r'\(2, 5\).*\(2, 7\)'),
    ],
)
def test_targets_that_do_not_fit_are_refused_before_training(
    tiny, records, message
):
    cfg = stored_kd(tiny, records)
    del cfg['teacher_ckpt']
    with pytest.raises(ValueError, match=message):
        tiny.build(cfg)


def test_targets_of_another_training_set_are_refused(tiny):
    cfg = stored_kd(tiny, dict(logits=torch.zeros(IMAGES, tiny.classes)))
    del cfg['teacher_ckpt']
    model = tiny.build(cfg).train()
    with pytest.raises(ValueError, match='the training set has 7'):
        model.prepare_from_dataset(range(7))
    model.prepare_from_dataset(range(IMAGES))
    with pytest.raises(ValueError, match='has image 6 of the training set'):
        model(*batch(tiny, (6, 1)), mode='loss')
    with pytest.raises(RuntimeError, match='sample_idx'):
        model(*tiny.batch(), mode='loss')


def test_stored_answers_of_mixed_images_are_refused(tiny):
    cfg = stored_kd(tiny, dict(logits=torch.zeros(IMAGES, tiny.classes)))
    del cfg['teacher_ckpt']
    augments = dict(augments=dict(type='mmpretrain.Mixup', alpha=0.2))
    cfg['architecture']['train_cfg'] = augments
    with pytest.raises(ValueError, match='of teacher are stored for whole'):
        tiny.build(cfg | dict(data_preprocessor=dict(num_classes=5)))


def test_part_of_a_stored_teacher_cannot_run(tiny):
    cfg = tiny.distillation(
        teacher=InMemoryTargets(dict(logits=torch.zeros(4, 5)))
    )
    del cfg['teacher_ckpt']
    with pytest.raises(ValueError, match="'tail' runs a part of the teacher"):
        tiny.build(cfg)


class Spread(nn.Module):
    """A loss of the student alone."""

    def forward(self, logits):
        return logits.var()


def test_there_may_be_no_teacher(tiny):
    cfg = tiny.distillation(
        teachers=dict(),
        distiller=dict(
            student_recorders=dict(logits=dict(type='mmcakd.Logits')),
            distill_losses=dict(loss_spread=dict(type=Spread)),
            loss_forward_mappings=dict(
                loss_spread=dict(logits=tiny.record('logits', True))
            ),
        ),
    )
    del cfg['teacher'], cfg['teacher_ckpt']
    model = tiny.build(cfg).train()
    losses = model(*tiny.batch(), mode='loss')
    assert set(losses) == {'student.loss', 'distill.loss_spread'}
    assert not hasattr(model, 'teacher')
    mapping = cfg['distiller']['loss_forward_mappings']['loss_spread']
    mapping['logits'] = tiny.record('logits', False)
    with pytest.raises(ValueError, match='but there is no teacher'):
        tiny.build(cfg)


def test_none_is_said_and_not_forgotten(tiny):
    cfg = tiny.distillation()
    del cfg['teacher']
    with pytest.raises(ValueError, match=r'no teacher is given.*dict\(\)'):
        tiny.build(cfg)


def test_deliveries_come_from_one_teacher(tiny, three):
    three['distiller']['distill_deliveries'] = dict(
        rand=dict(
            type='FunctionOutputs',
            func_path='mmpretrain.models.losses.label_smooth_loss'
            '.convert_to_one_hot',
            max_keep_data=1,
        )
    )
    with pytest.raises(ValueError, match='distill_deliveries leaves open'):
        tiny.build(three)


def test_loop_that_validates_one_teacher_is_refused(tiny, three):
    loop = SingleTeacherDistillValLoop.__new__(SingleTeacherDistillValLoop)
    with pytest.raises(ValueError, match='or several, or it is stored'):
        check_val_loop(loop, tiny.build(three))
    check_val_loop(loop, tiny.build_distillation())
    check_val_loop(None, tiny.build(three))


# ------------------------------------------------------ losses of one's own


class Counting(nn.Module):
    """A loss that counts its calls, wherever it is."""

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, student, teacher):
        self.calls += 1
        if student.shape != teacher.shape:
            raise ValueError('on purpose')
        return (student - teacher).square().mean()


def with_own_loss(tiny, kind: type, classes: int) -> dict:
    distiller = tiny.logit_kd()
    distiller['distill_losses'] = dict(loss_kd=dict(type=kind))
    teacher = tiny.classifier(tiny.swin(), classes=classes)
    return tiny.distillation(distiller=distiller, teacher=teacher)


def test_own_loss_is_tried_before_training_and_left_as_it_was(tiny):
    with pytest.raises(ValueError, match=r"'loss_kd' .*\(2, 5\).*on purpose"):
        tiny.build(with_own_loss(tiny, Counting, classes=7))
    model = tiny.build(with_own_loss(tiny, Counting, classes=5))
    assert model.distiller.distill_losses['loss_kd'].calls == 0
    model(*tiny.batch(), mode='loss')
    assert model.distiller.distill_losses['loss_kd'].calls == 1


def test_mixing_is_refused_where_hard_labels_are_needed(tiny):
    class Hard(NeedsHardLabels, nn.Module):
        def forward(self, student, teacher, label):
            return (student - teacher).square().mean()

    cfg = with_own_loss(tiny, Hard, classes=5)
    mapping = cfg['distiller']['loss_forward_mappings']['loss_kd']
    mapping['label'] = dict(label='auto')
    model = tiny.build(cfg)
    with pytest.raises(ValueError, match=r"reads \['auto'\] labels"):
        model.check_mixing(['a MixUp'])
    model.check_mixing(None)
    cfg['distiller']['distill_losses']['loss_kd']['type'] = Counting
    del mapping['label']
    tiny.build(cfg).check_mixing(['a MixUp'])


# -------------------------------------------------------- nothing stays behind


class Failing(nn.Module):
    """A loss that fails when it is told to."""

    fails = False

    def forward(self, student, teacher):
        if self.fails:
            raise ZeroDivisionError('on purpose')
        return (student - teacher).square().mean()


@pytest.mark.parametrize('where', ['loss', 'student', 'vit'])
def test_model_can_be_copied_and_used_after_an_error(tiny, three, where):
    three['distiller']['distill_losses']['loss_vit'] = dict(type=Failing)
    model = tiny.build(three).train()
    data = batch(tiny)
    model.eval()
    expected = model(*data, mode='loss')

    def fail(*args) -> None:
        raise ZeroDivisionError('on purpose')

    if where == 'loss':
        model.distiller.distill_losses['loss_vit'].fails = True
    else:
        network = dict(model.live_teachers, student=model.student)[where]
        last = getattr(network, 'model', network).head
        handle = last.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        model(*data, mode='loss')
    for manager in model.distiller.recorders.values():
        for recorder in manager.recorders.values():
            assert not recorder.data_buffer
    clone = copy.deepcopy(model)
    if where == 'loss':
        clone.distiller.distill_losses['loss_vit'].fails = False
    else:
        handle.remove()
        clone = copy.deepcopy(model)
    assert clone(*data, mode='loss') == expected


def test_step_frees_what_it_held(tiny, three):
    model = tiny.build(three)
    with model.distiller.step(dict(image=torch.zeros(1)), None) as step:
        step.outputs['kept'] = 1
    assert not step.outputs


def test_names_of_teachers_are_the_distillers_business_too(tiny):
    logits = dict(logits=dict(type='mmcakd.Logits'))
    distiller = CrossArchDistiller(
        student_recorders=logits,
        teacher_recorders=dict(a=logits, b=logits),
        distill_losses=dict(loss=dict(type='mmcakd.MSELoss')),
        loss_forward_mappings=dict(
            loss=dict(student=tiny.record('logits', True), teacher=of('b'))
        ),
        teachers=('a', 'b'),
    )
    assert set(distiller.recorders) == {'student', 'a', 'b'}
    assert distiller.graph.models_read == {'student', 'b'}


def test_targets_may_be_of_several_heads():
    targets = InMemoryTargets(
        dict(logits={'red': torch.eye(3), 1: torch.eye(3)})
    )
    samples = [DataSample(metainfo=dict(sample_idx=i)) for i in (2, 0)]
    read = targets.read('logits', 'red', samples)
    assert torch.equal(read, torch.eye(3)[[2, 0]])
    assert copy.deepcopy(targets) is targets
    assert not isinstance(targets, Teacher)
