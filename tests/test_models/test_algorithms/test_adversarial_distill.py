"""Views for the student, and turns of the discriminators."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn
from torch.amp import GradScaler

from mmcakd.engine.optim_wrappers import BF16OptimWrapper
from mmcakd.models.algorithms import AdversarialDistill, CrossArchDistill
from mmcakd.models.connectors import BaseConnector
from mmcakd.models.losses import AdversarialLoss, MSELoss, RKDLoss


class Tokens(BaseConnector):
    """A 1x1 convolution, and tokens out."""

    def prepare(self, inputs, like):
        self.conv = nn.Conv2d(inputs['feature'].shape[1], like.shape[1], 1)

    def forward(self, feature):
        return self.conv(feature).flatten(2).transpose(1, 2)


def stage(from_student: bool, index: int = 3) -> dict:
    return dict(recorder='stages', from_student=from_student, data_idx=index)


def distiller(tiny, **losses) -> dict:
    """Tokens of the student's stage 3 against the teacher's last map."""
    losses = losses or dict(loss_adv=dict(type=AdversarialLoss))
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=tiny.recorders(),
        teacher_recorders=tiny.recorders(),
        connectors=dict(
            tokens=dict(
                type=Tokens,
                inputs=dict(feature=stage(True, 2)),
                shape_like=stage(False),
            )
        ),
        distill_losses=losses,
        loss_forward_mappings={
            name: dict(student=dict(connector='tokens'), teacher=stage(False))
            for name in losses
        },
    )


@pytest.fixture
def build(tiny):
    def make(**kwargs) -> AdversarialDistill:
        cfg = tiny.distillation(
            type='mmcakd.AdversarialDistill',
            # without BatchNorm
            architecture=tiny.classifier(tiny.convnext()),
            teacher=tiny.classifier(tiny.vit()),
            distiller=distiller(tiny),
        )
        return tiny.build(cfg | kwargs).train()

    return make


def optimise(model, student=None, discriminator=None):
    sgd = dict(optimizer=dict(type='SGD', lr=0.1))
    return build_optim_wrapper(
        model,
        dict(
            constructor='mmcakd.AdversarialOptimWrapperConstructor',
            student=sgd | (student or {}),
            discriminator=sgd | (discriminator or {}),
        ),
    )


def weights(module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def moved(module, before) -> bool:
    same = [
        torch.equal(p, old)
        for p, old in zip(module.parameters(), before, strict=True)
    ]
    assert len(set(same)) == 1
    return not same[0]


def copy_weights(model, twin) -> None:
    twin.load_state_dict(model.state_dict())
    twin.teacher.load_state_dict(model.teacher.state_dict())


def data(batch) -> dict:
    images, samples = batch
    return dict(inputs=images, data_samples=samples)


# ----------------------------------------------------------------- gradients


def test_student_learns_from_the_adversarial_loss(build, tiny):
    model = build()
    optimise(model)
    losses = model(*tiny.batch(4), mode='loss')
    losses['distill.loss_adv'].backward()
    assert model.student.backbone.stages[0][0].depthwise_conv.weight.grad.any()
    assert model.distiller.connectors.tokens.conv.weight.grad.any()
    assert all(
        p.grad is None for p in model.discriminators['loss_adv'].parameters()
    )


@pytest.mark.parametrize('saturating', [False, True])
def test_step_of_the_student_pushes_its_tokens_towards_the_teacher(
    build, tiny, saturating
):
    loss = dict(type=AdversarialLoss, saturating=saturating, loss_weight=1e3)
    model = build(
        distiller=distiller(tiny, loss_adv=loss), calculate_student_loss=False
    )
    wrapper = optimise(
        model, student=dict(optimizer=dict(type='SGD', lr=1e-4))
    )
    batch = tiny.batch(4)

    def term():
        return model(*batch, mode='loss')['distill.loss_adv'].item()

    before = term()
    model.train_step(data(batch), wrapper)
    assert term() < before


# ------------------------------------------------------------------- the turns


@pytest.mark.parametrize(('interval', 'accumulate'), [(5, 1), (1, 1), (2, 3)])
def test_discriminator_changes_in_its_turn_alone(
    build, tiny, interval, accumulate
):
    model = build(discriminator_interval=interval)
    wrapper = optimise(model, student=dict(accumulative_counts=accumulate))
    discriminator = model.discriminators['loss_adv']
    changed, trained = [], []
    for step in range(1, 21):
        before, student = weights(discriminator), weights(model.student)
        model.train_step(data(tiny.batch()), wrapper)
        if moved(discriminator, before):
            changed.append(step)
        if not torch.equal(student[-1], weights(model.student)[-1]):
            trained.append(step)
        # Nothing is left for the next turn, nor kept in memory.
        if step % (interval * accumulate) == 0:
            assert all(p.grad is None for p in discriminator.parameters())
        assert model.features == {}
    period = interval * accumulate
    assert changed == list(range(period, 21, period))
    assert trained == list(range(accumulate, 21, accumulate))


def test_discriminator_learns_to_tell_both_apart(build, tiny):
    # The student stands still.
    model = build(discriminator_interval=1)
    wrapper = optimise(
        model,
        student=dict(optimizer=dict(type='SGD', lr=0.0)),
        discriminator=dict(optimizer=dict(type='Adam', lr=0.02)),
    )
    batch = tiny.batch(4)
    seen = []
    for _ in range(40):
        model.train_step(data(batch), wrapper)
        history = wrapper.message_hub.get_scalar('train/discriminator_loss')
        seen.append(history.current())
    assert seen[0] > 1.2
    assert seen[-1] < 0.3


def test_step_is_that_of_plain_gradient_descent(build, tiny):
    """The student first, on the old discriminator; and both on one batch."""
    model = build(discriminator_interval=1)
    twin = build(discriminator_interval=1)
    copy_weights(model, twin)
    batch = tiny.batch(4)
    wrapper = optimise(
        model,
        discriminator=dict(
            optimizer=dict(type='SGD', lr=0.3),
            clip_grad=dict(max_norm=1e-2),
        ),
    )
    log = model.train_step(data(batch), wrapper)

    losses = twin(*batch, mode='loss')
    student = twin.parse_losses(losses)[0]
    own = twin.discriminator_loss()
    discriminator = list(twin.discriminators['loss_adv'].parameters())
    theirs = {id(p) for p in discriminator}
    others = [p for p in twin.parameters() if id(p) not in theirs]
    steps = torch.autograd.grad(student, others, allow_unused=True)
    own_steps = torch.autograd.grad(own, discriminator)
    norm = torch.cat([g.flatten() for g in own_steps]).norm()
    assert norm > 1e-2
    with torch.no_grad():
        for p, step in zip(others, steps, strict=True):
            if step is not None:
                p -= 0.1 * step
        for p, step in zip(discriminator, own_steps, strict=True):
            p -= 0.3 * step * 1e-2 / norm
    for (name, p), q in zip(
        model.named_parameters(), twin.parameters(), strict=True
    ):
        assert torch.allclose(p, q, atol=1e-7), name

    assert log['loss'].item() == pytest.approx(student.item())
    logged = wrapper.message_hub.get_scalar
    assert logged('train/discriminator_loss').current() == pytest.approx(
        own.item()
    )
    assert logged('train/discriminator.grad_norm').current() == pytest.approx(
        norm.item()
    )
    # The student's is not clipped, so that there is nothing to tell.
    assert 'train/grad_norm' not in wrapper.message_hub.log_scalars


def test_accumulated_batches_are_one_large_batch(build, tiny):
    images, samples = tiny.batch(8)
    whole, parts = build(discriminator_interval=1), build()
    parts.discriminator_interval = 1
    copy_weights(whole, parts)
    for model, size in ((whole, 8), (parts, 2)):
        wrapper = optimise(model, student=dict(accumulative_counts=8 // size))
        wrapper.initialize_count_status(model, 0, 8 // size)
        for start in range(0, 8, size):
            part = slice(start, start + size)
            model.train_step(data((images[part], samples[part])), wrapper)
    for (name, p), q in zip(
        whole.named_parameters(), parts.parameters(), strict=True
    ):
        assert torch.allclose(p, q, atol=1e-6), name


def test_last_step_of_a_run_may_have_fewer_batches(build, tiny):
    model = build(discriminator_interval=2)
    twin = build(discriminator_interval=2)
    wrapper = optimise(model, student=dict(accumulative_counts=2))
    # The first batch of the second and last step.
    wrapper.initialize_count_status(model, 2, 3)
    copy_weights(model, twin)
    alone = optimise(twin)
    alone.initialize_count_status(twin, 1, 2)
    batch = tiny.batch(4)
    before = weights(model.discriminators['loss_adv'])
    model.train_step(data(batch), wrapper)
    twin.train_step(data(batch), alone)
    assert moved(model.discriminators['loss_adv'], before)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-7)


def test_bfloat16_on_a_processor(build, tiny):
    model = build(discriminator_interval=1)
    exact = build(discriminator_interval=1)
    copy_weights(model, exact)
    bf16 = dict(type='mmcakd.BF16OptimWrapper')
    batch, logs, seen = tiny.batch(4), [], []
    model.distiller.connectors.tokens.conv.register_forward_hook(
        lambda m, i, o: seen.append(o.dtype)
    )
    model.discriminators['loss_adv'].layers.register_forward_hook(
        lambda m, i, o: seen.append(o.dtype)
    )
    before = weights(model.discriminators['loss_adv'])
    for net, student in ((model, bf16), (exact, {})):
        wrapper = optimise(net, student)
        log = net.train_step(data(batch), wrapper)
        logs.append({name: value.item() for name, value in log.items()})
        logs[-1]['own'] = wrapper.message_hub.get_scalar(
            'train/discriminator_loss'
        ).current()
    # The projector in half precision; the discriminator, three times, not.
    assert seen == [torch.bfloat16] + 3 * [torch.float32]
    assert moved(model.discriminators['loss_adv'], before)
    for name, value in logs[0].items():
        assert value == pytest.approx(logs[1][name], rel=0.05)


def test_scaled_losses_give_the_same_step(build, tiny, monkeypatch):
    """Each side has a scale of its own, as with float16 on an accelerator."""
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'is_cuda_available', lambda: True
    )
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'GradScaler', partial(GradScaler, 'cpu')
    )
    model = build(discriminator_interval=2)
    twin = build(discriminator_interval=2)
    copy_weights(model, twin)
    batches = [tiny.batch(4) for _ in range(8)]

    def amp(scale):
        return dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=scale)

    for net, student, discriminator in (
        (model, amp(2.0**10), amp(dict(init_scale=2.0**4))),
        (twin, dict(type='mmcakd.BF16OptimWrapper'), {}),
    ):
        accumulate = dict(accumulative_counts=2, clip_grad=dict(max_norm=1e-2))
        wrapper = optimise(
            net,
            student | accumulate,
            discriminator | dict(clip_grad=dict(max_norm=1e-2)),
        )
        for batch in batches:
            net.train_step(data(batch), wrapper)
    for (name, p), q in zip(
        model.named_parameters(), twin.parameters(), strict=True
    ):
        assert torch.allclose(p, q, atol=1e-6), name


@pytest.fixture
def one_process(tmp_path):
    """A group of one, in which DDP works as in a larger one."""
    store = (tmp_path / 'store').as_uri()
    dist.init_process_group('gloo', store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_ddp_leaves_discriminators_to_their_turns(build, tiny, one_process):
    model = build(discriminator_interval=2)
    twin = build(discriminator_interval=2)
    copy_weights(model, twin)
    wrapped = MMDistributedDataParallel(model)
    accumulate = dict(accumulative_counts=2)
    wrapper, alone = (optimise(net, accumulate) for net in (wrapped, twin))
    discriminator = model.discriminators['loss_adv']
    for step in range(1, 9):
        before = weights(discriminator)
        batch = tiny.batch()
        log = wrapped.train_step(data(batch), wrapper)
        expected = twin.train_step(data(batch), alone)
        assert moved(discriminator, before) == (step % 4 == 0)
        assert log['loss'].item() == pytest.approx(expected['loss'].item())
    for (name, p), q in zip(
        model.named_parameters(), twin.parameters(), strict=True
    ):
        assert torch.allclose(p, q, atol=1e-6), name


def test_ddp_without_turns_is_refused(build, tiny, one_process):
    wrapped = MMDistributedDataParallel(build())
    wrapper = OptimWrapper(torch.optim.SGD(wrapped.parameters(), lr=0.1))
    with pytest.raises(
        RuntimeError, match='AdversarialOptimWrapperConstructor'
    ):
        wrapped.train_step(data(tiny.batch()), wrapper)


def test_after_the_end_of_distillation_only_the_student_learns(build, tiny):
    model = build(discriminator_interval=1)
    wrapper = optimise(model)
    model.train_step(data(tiny.batch()), wrapper)
    model.distillation_stopped = True
    before = weights(model.distiller), weights(model.student)
    log = model.train_step(data(tiny.batch()), wrapper)
    assert log['distill.loss_adv'] == 0
    assert not moved(model.distiller, before[0])
    assert not torch.equal(before[1][-1], weights(model.student)[-1])


def test_several_discriminators_learn_together(build, tiny):
    model = build(
        discriminator_interval=2,
        distiller=distiller(
            tiny,
            loss_a=dict(type=AdversarialLoss),
            loss_b=dict(type=AdversarialLoss, saturating=True),
            loss_c=dict(type='mmcakd.AdversarialLoss'),
        ),
    )
    assert set(model.discriminators) == {'loss_a', 'loss_b', 'loss_c'}
    wrapper = optimise(model)
    before = {k: weights(d) for k, d in model.discriminators.items()}
    for turn in (False, True):
        model.train_step(data(tiny.batch()), wrapper)
        for name, discriminator in model.discriminators.items():
            assert moved(discriminator, before[name]) == turn


# ------------------------------------------------------------------ optimizers


def test_every_parameter_is_in_one_optimizer(build):
    model = build()
    wrapper = optimise(
        model,
        student=dict(
            optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05),
            paramwise_cfg=dict(
                norm_decay_mult=0.0,
                custom_keys={'discriminator': dict(lr_mult=7.0)},
            ),
        ),
        discriminator=dict(
            optimizer=dict(type='Adam', lr=0.2),
            paramwise_cfg=dict(bias_lr_mult=2.0),
        ),
    )
    found = {
        key: {
            id(p): group
            for group in part.optimizer.param_groups
            for p in group['params']
        }
        for key, part in wrapper.items()
    }
    mine = {
        id(p) for d in model.discriminators.values() for p in d.parameters()
    }
    everything = {id(p) for p in model.parameters()}
    assert set(found['discriminator']) == mine
    assert set(found['student']) == everything - mine
    norm = model.student.backbone.stages[0][0].norm.weight
    assert found['student'][id(norm)]['weight_decay'] == 0
    assert {g['lr'] for g in found['student'].values()} == {0.1}
    assert {g['lr'] for g in found['discriminator'].values()} == {0.2, 0.4}
    # Back in their places.
    keys = [k for k in model.state_dict() if '.discriminator.' in k]
    assert len(keys) == 6


def test_learning_rates_of_both_are_told_apart(build):
    wrapper = optimise(
        build(), discriminator=dict(optimizer=dict(type='SGD', lr=0.001))
    )
    assert wrapper.get_lr() == {
        'student.lr': [0.1], 'discriminator.lr': [0.001]
    }  # fmt: skip


@pytest.mark.parametrize(
    ('cfg', 'named'),
    [
        (dict(student=dict()), r"needs \['discriminator'\]"),
        (dict(optimizer=dict()), r"needs \['discriminator', 'student'\]"),
        (
            dict(student={}, discriminator={}, type='AmpOptimWrapper'),
            r"write \['type'\].*student",
        ),
        (
            dict(student={}, discriminator={}, paramwise_cfg=dict(a=1)),
            r"write \['paramwise_cfg'\].*student",
        ),
    ],
)
def test_key_in_the_wrong_place_is_named(build, cfg, named):
    constructor = 'mmcakd.AdversarialOptimWrapperConstructor'
    with pytest.raises(ValueError, match=named):
        build_optim_wrapper(build(), dict(constructor=constructor, **cfg))


def test_accumulation_of_the_discriminator_alone_is_refused(build):
    with pytest.raises(ValueError, match='same batches as the student'):
        optimise(build(), discriminator=dict(accumulative_counts=2))


def test_model_without_discriminators_is_refused(build, tiny):
    model = build(distiller=tiny.logit_kd())
    for net in (model, tiny.build_distillation(), nn.Linear(1, 1)):
        with pytest.raises(ValueError, match='has no discriminators'):
            optimise(net)


@pytest.mark.parametrize('kind', [OptimWrapper, OptimWrapperDict])
def test_optimizer_without_turns_is_refused(build, tiny, kind):
    model = build()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    if kind is OptimWrapperDict:
        wrapper = OptimWrapperDict(student=wrapper, discriminator=wrapper)
    with pytest.raises(
        RuntimeError, match='AdversarialOptimWrapperConstructor'
    ):
        model.train_step(data(tiny.batch()), wrapper)


def test_algorithm_without_turns_is_refused(build, tiny):
    model = build(type='mmcakd.CrossArchDistill')
    assert type(model) is CrossArchDistill
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RuntimeError, match="'mmcakd.AdversarialDistill'"):
        model.train_step(data(tiny.batch()), wrapper)


def test_views_alone_need_one_optimizer(build, tiny):
    model = build(
        distiller=tiny.logit_kd(),
        view_generator=dict(type='mmcakd.MultiViewGenerator'),
    )
    wrapper = BF16OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    before = weights(model.student)
    model.train_step(data(tiny.batch()), wrapper)
    assert not torch.equal(before[-1], weights(model.student)[-1])


def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ValueError, match='discriminator_interval.*got 0'):
        build(discriminator_interval=0)


def test_discriminator_without_an_example_is_refused(build, tiny):
    # Two convolutional networks, which do not tell a size.
    small = tiny.distillation(
        architecture=tiny.classifier(tiny.convnext()),
        teacher=tiny.classifier(tiny.resnet()),
        input_size=None,
        distiller=dict(
            student_recorders=tiny.recorders(),
            teacher_recorders=tiny.recorders(),
            distill_losses=dict(loss_adv=dict(type=AdversarialLoss)),
            loss_forward_mappings=dict(
                loss_adv=dict(student=stage(True), teacher=stage(False))
            ),
        ),
    )
    with pytest.raises(ValueError, match='loss_adv.*model.input_size'):
        build(**small | dict(type='mmcakd.AdversarialDistill'))


# ----------------------------------------------------------------------- views


class Seen:
    """What each model is given."""

    def __init__(self, model):
        self.images = {}
        model.teacher.register_forward_pre_hook(
            lambda m, args: self.keep('teacher', args[0])
        )
        model.student.backbone.register_forward_pre_hook(
            lambda m, args: self.keep('student', args[0])
        )

    def keep(self, name, images):
        self.images[name] = images.clone()


def views(**kwargs) -> dict:
    return dict(type='mmcakd.MultiViewGenerator', prob=1.0) | kwargs


@pytest.mark.parametrize('pixels', [64, (64, 96)])
def test_student_alone_sees_the_view(build, tiny, pixels):
    student = tiny.classifier(tiny.convnext())
    model = build(
        architecture=student,
        # takes any size
        teacher=tiny.classifier(tiny.resnet()),
        view_generator=views(),
        input_size=pixels,
        student_channels_last=True,
    )
    optimise(model)
    seen = Seen(model)
    batch = tiny.batch(4, pixels)
    before = batch[0].clone()
    model(*batch, mode='loss')
    assert torch.equal(batch[0], before)
    assert torch.equal(seen.images['teacher'], before)
    assert seen.images['student'].shape == before.shape
    assert seen.images['student'].is_contiguous(
        memory_format=torch.channels_last
    )
    for image, view in zip(before, seen.images['student'], strict=True):
        assert not torch.equal(image, view)


def test_views_are_for_training_and_distillation_alone(build, tiny):
    model = build(view_generator=views())
    optimise(model)
    seen = Seen(model)
    images, samples = tiny.batch(4)
    for mode in ('loss', 'tensor', 'predict'):
        model.eval()(images, samples, mode=mode)
        assert torch.equal(seen.images['student'], images)
    model.train()
    model.distillation_stopped = True
    model(images, samples, mode='loss')
    assert torch.equal(seen.images['student'], images)
    model.distillation_stopped = False
    model(images, samples, mode='loss')
    assert not torch.equal(seen.images['student'], images)


def test_squares_larger_than_the_images_are_told_before_training(build):
    with pytest.raises(ValueError, match='mask_size=999.*64 x 64'):
        build(view_generator=views(mask_size=999))


def test_view_knows_how_the_batch_is_normalised(build, tiny):
    mean, std = [10.0, 20.0, 30.0], [40.0, 50.0, 60.0]
    model = build(
        architecture=tiny.classifier(
            tiny.convnext(),
            data_preprocessor=dict(mean=mean, std=std, to_rgb=True),
        ),
        view_generator=views(),
    )
    made = model.view_generator
    assert made.mean.flatten().tolist() == mean
    assert made.std.flatten().tolist() == std
    assert not [k for k in model.state_dict() if 'view' in k]


@pytest.mark.parametrize(
    'move', [dict(crop_scale=(0.5, 1.0)), dict(max_rotation=10.0)]
)
def test_moved_places_are_warned_of(build, tiny, capsys, move):
    cfg = distiller(
        tiny,
        loss_adv=dict(type=AdversarialLoss),
        loss_places=dict(type=MSELoss),
        loss_relations=dict(type=RKDLoss),
    )
    cfg['connectors']['map'] = dict(
        type='mmcakd.FitNetConnector',
        inputs=dict(feature=stage(True, 2)),
        shape_like=stage(False),
    )
    for name in ('loss_places', 'loss_relations'):
        cfg['loss_forward_mappings'][name] = dict(
            student=dict(connector='map'), teacher=stage(False)
        )
    kd = tiny.logit_kd()
    for part in ('distill_losses', 'loss_forward_mappings'):
        cfg[part] |= kd[part]
    build(distiller=cfg, view_generator=views())
    assert 'crops or rotates' not in ''.join(capsys.readouterr())
    build(distiller=cfg, view_generator=views(**move))
    said = ''.join(capsys.readouterr())
    assert "['loss_places'] read features of the teacher" in said


def test_places_behind_a_connector_are_warned_of(build, tiny, capsys):
    class Both(BaseConnector):
        def forward(self, student, teacher):
            return dict(student=student, teacher=teacher)

    both = dict(student=stage(True, 2), teacher=stage(False))
    cfg = distiller(tiny)
    cfg |= dict(
        connectors=dict(both=dict(type=Both, inputs=both)),
        distill_losses=dict(loss_places=dict(type=MSELoss)),
        loss_forward_mappings=dict(
            loss_places={
                side: dict(connector='both', connector_idx=side)
                for side in both
            }
        ),
    )
    build(
        architecture=tiny.classifier(tiny.resnet()),
        distiller=cfg,
        view_generator=views(max_rotation=10.0),
    )
    assert "['loss_places'] read" in ''.join(capsys.readouterr())


def test_losses_without_places_are_not_warned_of(build, capsys):
    build(view_generator=views(max_rotation=10.0))
    assert 'crops or rotates' not in ''.join(capsys.readouterr())


# -------------------------------------------------------------- an accelerator


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_mixed_precision_on_a_gpu(build, tiny, dtype):
    model = build(discriminator_interval=2, view_generator=views()).cuda()
    amp = dict(type='AmpOptimWrapper', dtype=dtype)
    wrapper = optimise(
        model,
        amp | dict(accumulative_counts=2, clip_grad=dict(max_norm=1.0)),
        amp | dict(clip_grad=dict(max_norm=1.0)),
    )
    assert model.view_generator.mean.is_cuda
    discriminator = model.discriminators['loss_adv']
    assert all(p.is_cuda for p in discriminator.parameters())
    for step in range(1, 9):
        before = weights(discriminator)
        log = model.train_step(data(tiny.batch(4)), wrapper)
        assert all(value.isfinite() for value in log.values())
        assert moved(discriminator, before) == (step % 4 == 0)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)
def test_view_is_made_on_the_gpu(build, tiny):
    model = build(
        view_generator=views(crop_scale=(0.5, 1.0), max_rotation=10.0)
    ).cuda()
    images = tiny.batch(4)[0].cuda()
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(model.view_generator(images))
    assert made[0].is_cuda
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
