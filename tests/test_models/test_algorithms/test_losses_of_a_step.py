"""What a step adds up, logs and learns from."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper
from torch import nn

from mmcakd.models.losses import DualViewLoss


def learn(model, data, **kwargs) -> dict:
    """Take one step as a Runner does."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    wrapper = OptimWrapper(optimizer, **kwargs)
    wrapper.initialize_count_status(model, 0, len(data))
    model.train()
    for images, samples in data:
        log = model.train_step(
            dict(inputs=images, data_samples=samples), wrapper
        )
    return log


# ------------------------------------------------------------------- logging


def test_every_loss_is_logged_and_the_sum_is_trained(tiny):
    log = learn(tiny.build_distillation(), [tiny.batch()])
    parts = {key for key in log if key != 'loss'}
    assert parts == {
        'student.loss',
        'distill.loss_s3_original',
        'distill.loss_s3_frequency',
        'distill.loss_s4_original',
        'distill.loss_s4_frequency',
        'distill.loss_kd',
    }
    assert all(log[key] > 0 for key in parts)
    total = sum(log[key] for key in parts)
    assert log['loss'].item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize('weight', [1.0, 0.5])
def test_weight_of_the_students_own_losses(tiny, weight):
    cfg = tiny.classifier(tiny.resnet())
    cfg['head']['cal_acc'] = True
    model = tiny.build_distillation(
        architecture=cfg, student_loss_weight=weight
    ).eval()
    images, samples = tiny.batch()
    alone = model.student(images, samples, mode='loss')
    losses = model(images, samples, mode='loss')
    assert losses['student.loss'].item() == pytest.approx(
        weight * alone['loss'].item()
    )
    # An accuracy is no loss.
    assert torch.equal(
        torch.as_tensor(losses['student.accuracy_top-1']),
        torch.as_tensor(alone['accuracy_top-1']),
    )


@pytest.mark.parametrize('kind', [list, tuple])
def test_weight_counts_for_each_of_a_list_of_losses(tiny, kind, monkeypatch):
    model = tiny.build_distillation(
        distiller=tiny.logit_kd(), student_loss_weight=0.25
    ).eval()
    images, samples = tiny.batch()
    # As of a detector, level by level.
    levels = [torch.tensor(8.0), torch.tensor([2.0, 4.0])]

    def loss(inputs, data_samples):
        model.student(inputs, mode='tensor')
        return dict(loss_box=kind(levels), num_boxes=torch.tensor(5.0))

    monkeypatch.setattr(model.student, 'loss', loss)
    losses = model(images, samples, mode='loss')
    box = losses['student.loss_box']
    assert [level.tolist() for level in box] == [2.0, [0.5, 1.0]]
    assert losses['student.num_boxes'] == 5
    total, log = model.parse_losses(losses | {'student.loss_box': list(box)})
    assert log['student.loss_box'] == 2.0 + 0.75
    expected = 2.75 + losses['distill.loss_kd'].item()
    assert total.item() == pytest.approx(expected)


def test_student_losses_count_in_full_by_default(tiny):
    cfg = tiny.distillation(distiller=tiny.logit_kd())
    del cfg['student_loss_weight']
    model = tiny.build(cfg).eval()
    images, samples = tiny.batch()
    alone = model.student(images, samples, mode='loss')
    losses = model(images, samples, mode='loss')
    assert losses['student.loss'] == alone['loss']


def test_soft_targets_are_those_of_the_two_models(tiny):
    model = tiny.build_distillation(
        distiller=tiny.logit_kd(tau=2.0, loss_weight=0.5)
    ).eval()
    images, samples = tiny.batch(4)
    loss = model(images, samples, mode='loss')['distill.loss_kd']
    p = (model.teacher(images) / 2).softmax(1)
    q = (model.student(images, mode='tensor') / 2).log_softmax(1)
    expected = -0.5 * 4 * (p * q).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_student_may_learn_from_the_teacher_alone(tiny):
    model = tiny.build_distillation(calculate_student_loss=False)
    losses = model.train()(*tiny.batch(), mode='loss')
    assert not [key for key in losses if key.startswith('student')]
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.student.parameters())


def test_only_the_connectors_learn_where_the_student_is_frozen(tiny):
    distiller = tiny.scalekd()
    del distiller['distill_losses']['loss_kd']
    del distiller['loss_forward_mappings']['loss_kd']
    model = tiny.build_distillation(
        distiller=distiller,
        student_trainable=False,
        calculate_student_loss=False,
    )
    losses = model.train()(*tiny.batch(), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is None for p in model.student.parameters())
    assert all(p.grad is not None for p in model.distiller.parameters())


def test_switching_modes_returns_the_model_and_spares_the_teacher(tiny):
    model = tiny.build_distillation()
    assert model.train() is model
    assert model.student.training
    assert model.distiller.training
    assert not model.teacher.model.training
    assert model.eval() is model
    assert not model.student.training
    assert not model.distiller.training


def test_prediction_is_that_of_the_student(tiny):
    model = tiny.build_distillation().eval()
    images, samples = tiny.batch()
    expected = model.student(images, mode='tensor').softmax(1)
    predicted = model(images, samples, mode='predict')
    assert torch.allclose(
        torch.stack([sample.pred_score for sample in predicted]), expected
    )
    assert torch.allclose(model(images, mode='tensor').softmax(1), expected)


# ------------------------------------------------------- ScaleKD by its paths


def test_scalekd_follows_its_two_paths(tiny):
    """The method's notes, wired by hand from the same parts."""
    model = tiny.build_distillation().eval().to(torch.float64)
    images, samples = tiny.batch(3)
    images = images.double()
    losses = model(images, samples, mode='loss')

    maps, normed = {}, []
    student = model.student.backbone
    for name in ('layer3', 'layer4'):
        student.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: maps.update({name: o})
        )
    model.student(images, mode='tensor')
    swin = model.teacher.model.backbone
    swin.norm3.register_forward_hook(lambda m, i, o: normed.append(o))
    model.teacher(images)
    target = normed[0]

    caps = model.distiller.connectors
    for view, weight in (('original', 0.08), ('frequency', 0.06)):
        tokens = caps[f's3_{view}'](maps['layer3'])
        tokens, grid = swin.stages[2].downsample(tokens, (4, 4))
        tokens, _ = swin.stages[3](tokens, grid)
        tokens = swin.norm3(tokens)
        loss = DualViewLoss(view, weight)
        expected = loss(tokens, target)
        found = losses[f'distill.loss_s3_{view}']
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)

        tokens = caps[f's4_{view}'](maps['layer4'], tokens)
        expected = loss(tokens, target)
        found = losses[f'distill.loss_s4_{view}']
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def gradients(model, loss) -> dict:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {
        name: p.grad is not None and bool(p.grad.any())
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize('view', ['original', 'frequency'])
def test_stage_four_teaches_the_projectors_of_stage_three(tiny, view):
    model = tiny.build_distillation().train()
    losses = model(*tiny.batch(), mode='loss')
    other = dict(original='frequency', frequency='original')[view]

    reached = gradients(model, losses[f'distill.loss_s4_{view}'])
    assert reached[f'distiller.connectors.s3_{view}.query']
    assert reached[f'distiller.connectors.s4_{view}.v_proj.weight']
    assert reached['architecture.backbone.layer4.0.conv1.weight']
    assert not reached[f'distiller.connectors.s3_{other}.query']

    reached = gradients(model, losses[f'distill.loss_s3_{view}'])
    assert reached[f'distiller.connectors.s3_{view}.query']
    assert reached['architecture.backbone.layer3.0.conv1.weight']
    assert not reached[f'distiller.connectors.s4_{view}.v_proj.weight']
    assert not reached['architecture.backbone.layer4.0.conv1.weight']
    assert not reached[f'distiller.connectors.s3_{other}.query']


# ------------------------------------------------------------------ optimising


def no_batch_norm(tiny, **kwargs):
    return tiny.build_distillation(
        architecture=tiny.classifier(tiny.convnext()),
        distiller=tiny.scalekd('LN2d'),
        **kwargs,
    )


def test_accumulated_gradients_are_those_of_the_large_batch(tiny):
    # Its mean and deviation make of float32 images the models' float64.
    preprocessor = dict(mean=[0.0] * 3, std=[1.0] * 3)
    large, small = (
        no_batch_norm(tiny, data_preprocessor=preprocessor).double()
        for _ in range(2)
    )
    small.load_state_dict(large.state_dict())
    small.teacher.load_state_dict(large.teacher.state_dict())
    images, samples = tiny.batch(4)
    before = [p.detach().clone() for p in large.parameters()]
    learn(large, [(images, samples)])
    learn(
        small,
        [(images[:2], samples[:2]), (images[2:], samples[2:])],
        accumulative_counts=2,
    )
    for (name, p), q, old in zip(
        large.named_parameters(), small.parameters(), before, strict=True
    ):
        step = (p - old).norm()
        # The softmax ignores a bias that all keys share.
        assert step > 0 or name.endswith('k_proj.bias'), name
        assert (p - q).norm() < 1e-9 * step + 1e-13, name


def test_clipping_covers_student_and_connectors(tiny):
    model = tiny.build_distillation()
    before = [p.detach().clone() for p in model.parameters()]
    learn(model, [tiny.batch()], clip_grad=dict(max_norm=0.25))
    moved = [
        old - p.detach()
        for p, old in zip(model.parameters(), before, strict=True)
    ]
    norm = torch.stack([m.norm() for m in moved]).norm()
    assert norm.item() == pytest.approx(0.25, rel=1e-4)


# --------------------------------------------------------------- after the end


def test_after_the_end_the_teacher_rests_and_zeros_are_logged(tiny):
    model = tiny.build_distillation()
    first = learn(model, [tiny.batch()])
    model.distillation_stopped = True
    calls = []
    model.teacher.register_forward_hook(lambda *args: calls.append(args))
    for connector in model.distiller.connectors.values():
        connector.register_forward_hook(lambda *args: calls.append(args))
    before = copy.deepcopy(model.state_dict())
    second = learn(model, [tiny.batch()])
    assert not calls
    assert set(second) == set(first)
    assert all(v == 0 for k, v in second.items() if k.startswith('distill'))
    assert second['loss'] == second['student.loss'] > 0
    for key, value in model.state_dict().items():
        if key.startswith('distiller'):
            assert torch.equal(value, before[key]), key
    conv = 'architecture.backbone.layer1.0.conv1.weight'
    assert not torch.equal(model.state_dict()[conv], before[conv])
    assert not [n for n, p in model.named_parameters() if p.grad is None] or (
        all(p.grad is None for p in model.parameters())
    )


def test_after_the_end_every_parameter_is_still_in_the_graph(tiny):
    model = tiny.build_distillation().train()
    model.distillation_stopped = True
    losses = model(*tiny.batch(), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_distiller_without_connectors_can_end_too(tiny):
    model = tiny.build_distillation(distiller=tiny.logit_kd())
    model.distillation_stopped = True
    log = learn(model, [tiny.batch()])
    assert log['distill.loss_kd'] == 0


# --------------------------------------------------------- labels and mixing


class LabelProbe(nn.Module):
    """Keep the labels that a loss is fed."""

    seen: list = []

    def forward(self, student, soft):
        self.seen.append(soft)
        return student.sum() * 0


def probing(tiny) -> dict:
    distiller = tiny.logit_kd()
    distiller['distill_losses']['loss_probe'] = dict(type=LabelProbe)
    distiller['loss_forward_mappings']['loss_probe'] = dict(
        student=tiny.record('logits', True),
        soft=dict(label='soft'),
    )
    return distiller


MINE = dict(mean=[100.0, 110.0, 120.0], std=[50.0, 51.0, 52.0], to_rgb=True)
ITS = dict(mean=[1.0, 2.0, 3.0], std=[10.0, 20.0, 30.0], to_rgb=False)


@pytest.mark.parametrize('its', [MINE, ITS])
@pytest.mark.parametrize('given', ['to the algorithm', 'to the student'])
def test_mixup_is_applied_once_and_to_everyone(tiny, its, given, monkeypatch):
    monkeypatch.setattr(LabelProbe, 'seen', [])
    mine = MINE | dict(num_classes=tiny.classes)
    student = tiny.classifier(
        tiny.resnet(),
        train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)),
    )
    kwargs = {}
    if given == 'to the student':
        student['data_preprocessor'] = mine
    else:
        kwargs['data_preprocessor'] = mine
    model = tiny.build_distillation(
        architecture=student,
        teacher=tiny.classifier(tiny.swin(), data_preprocessor=dict(its)),
        distiller=probing(tiny),
        student_loss_weight=1.0,
        **kwargs,
    )
    seen = {}
    for name, net in (
        ('student', model.student.backbone),
        ('teacher', model.teacher.model.backbone),
    ):
        net.register_forward_pre_hook(
            lambda m, i, name=name: seen.setdefault(name, []).append(i[0])
        )
    logits = []
    model.student.head.register_forward_hook(lambda m, i, o: logits.append(o))
    LabelProbe.seen.clear()
    raw = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    _, samples = tiny.batch(4)
    log = learn(model, [(raw, samples)])

    (soft,) = LabelProbe.seen
    hard = torch.arange(4)
    assert soft.shape == (4, tiny.classes)
    assert torch.allclose(soft.sum(1), torch.ones(4))
    # lam of one's own class, the rest of one other image's
    factors = soft[torch.arange(4), hard]
    factor = factors[factors < 1 - 1e-6][0]
    assert 0 < factor < 1
    partners = []
    for index in range(4):
        rest = soft[index].clone()
        rest[index] -= factor
        partners.append(int(rest.argmax()))
        assert rest[partners[-1]].item() == pytest.approx(
            1 - factor.item(), abs=1e-5
        )
    assert sorted(partners) == [0, 1, 2, 3]

    def mixed(preprocessing):
        pixels = raw.float()
        if preprocessing['to_rgb']:
            pixels = pixels.flip(1)
        mean = torch.tensor(preprocessing['mean']).view(3, 1, 1)
        std = torch.tensor(preprocessing['std']).view(3, 1, 1)
        pixels = (pixels - mean) / std
        return factor * pixels + (1 - factor) * pixels[partners]

    assert len(seen['student']) == len(seen['teacher']) == 1
    assert torch.allclose(seen['student'][0], mixed(MINE), atol=1e-3)
    assert torch.allclose(seen['teacher'][0], mixed(its), atol=2e-3)
    expected = -(soft * F.log_softmax(logits[0], 1)).sum(1).mean()
    assert log['student.loss'].item() == pytest.approx(
        expected.item(), rel=1e-4
    )


def test_batches_are_normalised_once(tiny):
    preprocessor = dict(MINE)
    model = tiny.build_distillation(
        distiller=tiny.logit_kd(), data_preprocessor=preprocessor
    )
    seen = []
    model.student.backbone.register_forward_pre_hook(
        lambda m, i: seen.append(i[0])
    )
    raw = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    learn(model, [(raw, tiny.batch()[1])])
    mean = torch.tensor(MINE['mean']).view(3, 1, 1)
    std = torch.tensor(MINE['std']).view(3, 1, 1)
    assert torch.allclose(seen[0], (raw.flip(1) - mean) / std, atol=1e-5)
    # The caller's config is not written to.
    assert preprocessor == MINE


def test_nothing_is_mixed_outside_training(tiny):
    student = tiny.classifier(
        tiny.resnet(),
        train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)),
    )
    model = tiny.build_distillation(
        architecture=student,
        distiller=tiny.logit_kd(),
        data_preprocessor=MINE | dict(num_classes=tiny.classes),
    ).eval()
    raw = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)
    data = dict(inputs=raw, data_samples=tiny.batch(4)[1])
    batch = model.data_preprocessor(data, training=False)['inputs']
    mean = torch.tensor(MINE['mean']).view(3, 1, 1)
    std = torch.tensor(MINE['std']).view(3, 1, 1)
    assert torch.allclose(batch, (raw.flip(1) - mean) / std, atol=1e-5)
    assert len(model.val_step(data)) == 4
