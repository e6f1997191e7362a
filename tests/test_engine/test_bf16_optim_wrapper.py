"""bfloat16 on a processor."""

import pytest
import torch
from mmengine.optim import OptimWrapper

from mmcakd.engine.optim_wrappers import BF16OptimWrapper


def step(model, images, samples, cls):
    wrapper = cls(torch.optim.SGD(model.parameters(), lr=0.1))
    seen = {}
    for name, module in dict(
        student=model.student.backbone.layer3,
        teacher=model.teacher.model.backbone.stages[2].blocks[0].ffn,
        projector=model.distiller.connectors.s4_original.v_proj,
    ).items():
        module.register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: o.dtype})
        )
    model.train()
    losses = model.train_step(
        dict(inputs=images, data_samples=samples), wrapper
    )
    return losses, seen


def test_models_run_in_bfloat16_and_losses_in_float32(tiny):
    data = tiny.batch(4)
    model = tiny.build_distillation()
    exact = tiny.build_distillation()
    exact.load_state_dict(model.state_dict())
    exact.teacher.load_state_dict(model.teacher.state_dict())

    losses, seen = step(model, *data, BF16OptimWrapper)
    assert set(seen.values()) == {torch.bfloat16}
    assert {value.dtype for value in losses.values()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())

    expected, seen = step(exact, *data, OptimWrapper)
    assert set(seen.values()) == {torch.float32}
    # The frequency view of the tiny maps is mostly rounding.
    for name in (
        'student.loss',
        'distill.loss_kd',
        'distill.loss_s4_original',
    ):
        assert losses[name].item() == pytest.approx(
            expected[name].item(), rel=0.1
        )


def test_teacher_may_keep_float32(tiny):
    model = tiny.build_distillation(teacher_precision='fp32')
    _, seen = step(model, *tiny.batch(), BF16OptimWrapper)
    assert seen['student'] == torch.bfloat16
    # The tail, which runs last, is part of the student's forward.
    logits = []
    model.teacher.model.head.register_forward_hook(
        lambda m, i, o: logits.append(o.dtype)
    )
    step(model, *tiny.batch(), BF16OptimWrapper)
    assert logits == [torch.float32]


def test_teacher_may_take_bfloat16_alone(tiny):
    model = tiny.build_distillation(teacher_precision='bf16')
    logits = []
    model.teacher.model.head.register_forward_hook(
        lambda m, i, o: logits.append(o.dtype)
    )
    losses, seen = step(model, *tiny.batch(), OptimWrapper)
    assert logits == [torch.bfloat16]
    assert seen['student'] == torch.float32
    assert all(value.isfinite() for value in losses.values())


def test_gradients_accumulate(tiny):
    model = tiny.build_distillation()
    wrapper = BF16OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2
    )
    wrapper.initialize_count_status(model, 0, 2)
    images, samples = tiny.batch()
    before = model.student.head.fc.weight.detach().clone()
    for moved in (False, True):
        model.train_step(dict(inputs=images, data_samples=samples), wrapper)
        same = torch.equal(model.student.head.fc.weight, before)
        assert same != moved
