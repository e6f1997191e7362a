"""The teacher runs once a step and is part of nothing that is kept."""

import copy
from collections import Counter

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mmcakd.models.stages import to_tokens


def step(model, images, samples):
    """One training step with a large learning rate, on prepared inputs."""
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    model.train()
    losses = model(images, samples, mode='loss')
    total, log = model.parse_losses(losses)
    wrapper.update_params(total)
    return log


# ------------------------------------------------------------------- kept


def test_teacher_is_in_no_state_dict(tiny):
    model = tiny.build_distillation()
    keys = list(model.state_dict())
    assert not [key for key in keys if 'teacher' in key]
    assert {key.partition('.')[0] for key in keys} == {
        'architecture',
        'distiller',
    }
    trained = sum(p.numel() for p in model.student.parameters()) + sum(
        p.numel() for p in model.distiller.connectors.parameters()
    )
    assert sum(p.numel() for p in model.parameters()) == trained


def test_teacher_is_in_no_optimizer(tiny):
    model = tiny.build_distillation()
    wrapper = build_optim_wrapper(
        model,
        dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=dict(norm_decay_mult=0.0),
        ),
    )
    optimised = {
        id(p)
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    assert optimised == {id(p) for p in model.parameters()}
    assert not optimised & {id(p) for p in model.teacher.parameters()}


def test_teacher_is_shared_by_the_averaged_copy(tiny):
    model = tiny.build_distillation()
    images, samples = tiny.batch()
    step(model, images, samples)
    averaged = ExponentialMovingAverage(model, momentum=0.5)
    assert averaged.module.teacher is model.teacher
    assert not [key for key in averaged.state_dict() if 'teacher' in key]
    averaged.update_parameters(model)
    weights = [p.detach().clone() for p in model.parameters()]
    step(model, images, samples)
    averaged.update_parameters(model)
    for mean, old, new in zip(
        averaged.module.parameters(), weights, model.parameters(), strict=True
    ):
        assert torch.allclose(mean, (old + new) / 2, atol=1e-6)
    predictions = averaged.module.eval()(images, samples, mode='predict')
    assert len(predictions) == 2


def test_model_can_be_copied_after_a_step(tiny):
    # MMRazor keeps the features, which no copy can hold.
    model = tiny.build_distillation()
    step(model, *tiny.batch())
    twin = copy.deepcopy(model)
    assert twin.teacher is model.teacher
    for (name, p), q in zip(
        model.named_parameters(), twin.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        assert p is not q


def test_no_feature_outlives_its_step(tiny):
    model = tiny.build_distillation()
    step(model, *tiny.batch())
    distiller = model.distiller
    for manager in (distiller.student_recorders, distiller.teacher_recorders):
        for recorder in manager.recorders.values():
            flat = [
                x
                for item in recorder.data_buffer
                for x in (item if isinstance(item, list) else [item])
            ]
            assert not flat


def test_teacher_moves_along(tiny):
    model = tiny.build_distillation()
    model.to(torch.float64)
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float64}
    images, samples = tiny.batch()
    log = step(model, images.double(), samples)
    assert log['loss'].dtype == torch.float64
    model.to('meta')
    assert all(p.is_meta for p in model.teacher.parameters())


# ------------------------------------------------------------------- runs


def count_calls(**modules) -> Counter:
    """Count the forwards of some modules from now on."""
    calls = Counter()
    for name, module in modules.items():
        module.register_forward_hook(
            lambda m, i, o, name=name: calls.update([name])
        )
    return calls


def test_everything_runs_once_a_step(tiny):
    model = tiny.build_distillation()
    parts = dict(
        teacher=model.teacher.model.backbone,
        head_of_the_teacher=model.teacher.model.head,
        student=model.student.backbone,
        head=model.student.head,
        **model.distiller.connectors,
    )
    calls = count_calls(**parts)
    step(model, *tiny.batch())
    assert calls == dict.fromkeys(parts, 1)


def test_teacher_computes_no_loss(tiny, monkeypatch):
    model = tiny.build_distillation()

    def refuse(*args, **kwargs):
        raise AssertionError('the teacher computes a loss')

    monkeypatch.setattr(model.teacher.model.head, 'loss', refuse)
    step(model, *tiny.batch())


def test_a_connector_of_several_losses_runs_once(tiny):
    connectors = dict(
        narrow=dict(type='ConvModuleConnector', in_channel=32, out_channel=64)
    )
    student = tiny.record('stages', True, 3) | dict(connector='narrow')
    teacher = tiny.record('stages', False, 3)
    distiller = dict(
        student_recorders=tiny.recorders(),
        teacher_recorders=tiny.recorders(),
        connectors=connectors,
        distill_losses={
            f'loss_{view}': dict(type='mmcakd.DualViewLoss', view=view)
            for view in ('original', 'frequency')
        },
        loss_forward_mappings={
            f'loss_{view}': dict(student=student, teacher=teacher)
            for view in ('original', 'frequency')
        },
    )
    model = tiny.build_distillation(distiller=distiller)
    calls = count_calls(narrow=model.distiller.connectors.narrow)
    step(model, *tiny.batch())
    assert calls['narrow'] == 1


def test_targets_do_not_change_while_the_student_trains(tiny):
    model = tiny.build_distillation(
        teacher=tiny.classifier(tiny.swin(drop_path_rate=0.5)),
        distiller=tiny.scalekd(),
    )
    images, samples = tiny.batch()
    targets = []
    model.teacher.model.head.register_forward_hook(
        lambda m, i, o: targets.append(o)
    )
    # What a Runner does between steps.
    for mode in (True, False, True):
        model.train(mode)
        model.train()
        step(model, images, samples)
    assert len(targets) == 3
    assert torch.equal(targets[0], targets[1])
    assert torch.equal(targets[0], targets[2])


def test_paper_faithful_teacher_keeps_its_stochastic_depth(tiny):
    model = tiny.build_distillation(
        teacher=tiny.classifier(tiny.swin(drop_path_rate=0.5)),
        teacher_mode='train',
    )
    images, samples = tiny.batch()
    targets = []
    model.teacher.model.head.register_forward_hook(
        lambda m, i, o: targets.append(o)
    )
    for _ in range(2):
        step(model, images, samples)
    assert not torch.equal(*targets)


def test_nothing_of_the_teachers_forward_is_saved_for_backward(tiny):
    model = tiny.build_distillation()
    saved = Counter()
    running = ['the rest']

    def note(tensor):
        saved[running[0]] += tensor.numel()
        return tensor

    def enter(module, inputs):
        running[0] = 'teacher'

    def leave(module, inputs, outputs):
        running[0] = 'the rest'

    model.teacher.register_forward_pre_hook(enter)
    model.teacher.register_forward_hook(leave)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        step(model, *tiny.batch())
    assert saved['teacher'] == 0
    assert saved['the rest'] > 0


def test_step_costs_teacher_student_and_connectors(tiny):
    model = tiny.build_distillation().train()
    images, samples = tiny.batch(4)

    def flops(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    teacher = flops(lambda: model.teacher(images))
    student = flops(lambda: model.student(images, samples, mode='loss'))
    maps = {
        name: model.student.backbone.get_submodule(name)
        for name in ('layer3', 'layer4')
    }
    kept = {}
    for name, module in maps.items():
        module.register_forward_hook(
            lambda m, i, o, name=name: kept.update({name: o})
        )
    model.student(images, mode='tensor')

    connectors = model.distiller.connectors
    queries = torch.randn(4, 16, 32)

    def run_connectors():
        for view in ('original', 'frequency'):
            connectors[f's3_{view}'](kept['layer3'])
        replayed = connectors['tail'](original=queries, frequency=queries)
        for view, query in replayed.items():
            connectors[f's4_{view}'](kept['layer4'], query)

    connected = flops(run_connectors)
    assert min(teacher, student, connected) > 0
    total = flops(lambda: model(images, samples, mode='loss'))
    assert total == teacher + student + connected


def test_two_views_cost_one_pass_of_the_tail(tiny):
    model = tiny.build_distillation()
    calls = count_calls(
        last_block=model.teacher.model.backbone.stages[3].blocks[-1]
    )
    step(model, *tiny.batch())
    # Once for the images, once for both views.
    assert calls['last_block'] == 2


def test_no_gradient_reaches_the_teacher(tiny):
    model = tiny.build_distillation()
    before = copy.deepcopy(model.teacher.model.state_dict())
    step(model, *tiny.batch())
    assert all(p.grad is None for p in model.teacher.parameters())
    after = model.teacher.model.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize('kind', ['resnet', 'convnext', 'swin', 'vit'])
@pytest.mark.parametrize('teacher', ['swin', 'vit'])
def test_every_trained_parameter_gets_a_gradient(tiny, kind, teacher):
    # DDP then needs no search for unused ones.
    model = tiny.build_distillation(
        architecture=tiny.classifier(getattr(tiny, kind)()),
        teacher=tiny.classifier(getattr(tiny, teacher)()),
        distiller=tiny.scalekd('BN' if kind == 'resnet' else 'LN2d'),
    )
    model.train()
    losses = model(*tiny.batch(), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


# ------------------------------------------------------ what the teacher sees


def test_teacher_sees_the_batch_as_its_own_preprocessor_makes_it(tiny):
    mine = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 51.0, 52.0])
    its = dict(mean=[1.0, 2.0, 3.0], std=[10.0, 20.0, 30.0], to_rgb=True)
    model = tiny.build_distillation(
        data_preprocessor=mine | dict(to_rgb=False),
        teacher=tiny.classifier(tiny.swin(), data_preprocessor=its),
        teacher_input_size=96,
    )
    seen = []
    model.teacher.model.backbone.register_forward_pre_hook(
        lambda m, i: seen.append(i[0])
    )
    raw = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8)
    _, samples = tiny.batch()
    data = model.data_preprocessor(
        dict(inputs=raw, data_samples=samples), training=True
    )
    model.teacher(data['inputs'])
    expected = model.teacher.model.data_preprocessor(dict(inputs=raw))
    assert torch.allclose(seen[0], expected['inputs'], atol=1e-4)


def test_larger_input_of_the_teacher_gives_its_tail_a_larger_grid(tiny):
    model = tiny.build_distillation(teacher_input_size=128)
    cap = model.distiller.connectors.s3_original
    assert cap.in_grid == (4, 4)
    assert cap.query_grid == (8, 8)
    log = step(model, *tiny.batch())
    assert log['loss'].isfinite()


def test_layouts_of_memory_change_no_loss(tiny):
    # In float32 the frequency view of nearly equal tokens is noise.
    model = tiny.build_distillation().eval().to(torch.float64)
    images, samples = tiny.batch()
    images = images.double()
    expected = model(images, samples, mode='loss')
    images = images.to(memory_format=torch.channels_last)
    losses = model(images, samples, mode='loss')
    for name, loss in expected.items():
        assert torch.allclose(losses[name], loss, rtol=1e-8), name


def test_tail_reads_the_maps_of_this_batch(tiny):
    """The replay in the graph is that of the teacher's own features."""
    model = tiny.build_distillation().eval()
    recorder = model.distiller.teacher_recorders.get_recorder('stages')
    recorder.stages_to_keep = {2, 3}
    images, _ = tiny.batch()
    with recorder:
        model.teacher(images)
    third, last = (
        to_tokens(recorder.get_record_data(data_idx=i)) for i in (2, 3)
    )
    tail = model.distiller.connectors.tail
    for view in tail(original=third, frequency=third).values():
        assert torch.allclose(view, last, atol=1e-5)
    assert torch.equal(tail(third), last)
