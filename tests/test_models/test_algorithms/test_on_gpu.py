"""What only an accelerator shows."""

import pytest
import torch
from mmengine.optim import AmpOptimWrapper

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)


def learn(model, images, samples, steps=3, **kwargs):
    wrapper = AmpOptimWrapper(
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01), **kwargs
    )
    model.train()
    for _ in range(steps):
        log = model.train_step(
            dict(inputs=images, data_samples=samples), wrapper
        )
    return log


def test_whole_model_moves_to_the_device(tiny):
    model = tiny.build_distillation().cuda()
    tensors = [*model.parameters(), *model.teacher.parameters()]
    assert all(tensor.is_cuda for tensor in tensors)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
@pytest.mark.parametrize('precision', [None, 'fp32', 'bf16', 'fp16'])
def test_mixed_precision_trains(tiny, dtype, precision):
    model = tiny.build_distillation(teacher_precision=precision).cuda()
    logits = []
    model.teacher.model.head.register_forward_hook(
        lambda m, i, o: logits.append(o.dtype)
    )
    kwargs = dict(loss_scale='dynamic') if dtype == 'float16' else {}
    log = learn(model, *tiny.batch(4), dtype=dtype, **kwargs)
    assert all(value.isfinite() for value in log.values())
    assert {value.dtype for value in log.values()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
    expected = dict(
        fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16
    ).get(precision, getattr(torch, dtype))
    assert set(logits) == {expected}


def test_losses_are_those_of_the_processor(tiny):
    model = tiny.build_distillation().eval().to(torch.float64)
    images, samples = tiny.batch()
    images = images.double()
    expected = model(images, samples, mode='loss')
    model.cuda()
    losses = model(
        images.cuda(), [sample.cuda() for sample in samples], mode='loss'
    )
    for name, loss in expected.items():
        assert losses[name].item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize('option', ['channels_last', 'compile'])
def test_faster_teacher_gives_the_same_targets(tiny, option):
    plain = tiny.build_distillation().cuda()
    fast = tiny.build_distillation(**{f'teacher_{option}': True}).cuda()
    fast.teacher.model.load_state_dict(plain.teacher.model.state_dict())
    images = tiny.batch(4)[0].cuda()
    assert torch.allclose(
        fast.teacher(images), plain.teacher(images), atol=1e-3
    )
    torch.compiler.reset()
