"""Soft targets against their closed forms."""

import math

import pytest
import torch

from mmcakd.models.losses import SoftTargetLoss

both_modes = pytest.mark.parametrize('mode', ['ce', 'kl'])


@pytest.mark.parametrize('classes', [2, 10, 1000])
@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_uniform_logits_give_the_log_of_the_class_count(classes, tau):
    logits = torch.full((3, classes), 2.0)
    cross_entropy = SoftTargetLoss(tau)(logits, logits)
    assert cross_entropy.item() == pytest.approx(tau**2 * math.log(classes))
    assert abs(SoftTargetLoss(tau, mode='kl')(logits, logits)) < 1e-5


@pytest.mark.parametrize('tau', [1.0, 2.5])
@both_modes
def test_value_is_that_of_the_formula(mode, tau):
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64) * 3
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        q = (s / tau).exp() / (s / tau).exp().sum()
        p = (t / tau).exp() / (t / tau).exp().sum()
        total -= (p * q.log()).sum()
        if mode == 'kl':
            total += (p * p.log()).sum()
    loss = SoftTargetLoss(tau, mode, loss_weight=0.5)(student, teacher)
    assert loss.item() == pytest.approx(0.5 * tau**2 * total.item() / 4)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_the_two_forms_differ_by_the_entropy_of_the_teacher(tau):
    student, teacher = torch.randn(2, 8, 10)
    difference = SoftTargetLoss(tau)(student, teacher) - SoftTargetLoss(
        tau, 'kl'
    )(student, teacher)
    entropy = torch.distributions.Categorical(logits=teacher / tau).entropy()
    expected = tau**2 * entropy.mean()
    assert difference.item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_two_forms_have_the_same_gradient():
    teacher = torch.randn(8, 10)
    gradients = []
    for mode in ('ce', 'kl'):
        student = torch.linspace(-3, 3, 80).view(8, 10).requires_grad_()
        SoftTargetLoss(2.0, mode)(student, teacher).backward()
        gradients.append(student.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-6)


def test_equal_logits_give_no_divergence_and_no_gradient():
    logits = torch.randn(4, 10)
    student = logits.clone().requires_grad_()
    loss = SoftTargetLoss(3.0, 'kl')(student, logits)
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-6


@both_modes
def test_gradient_is_that_of_finite_differences(mode):
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    student.requires_grad_()
    loss = SoftTargetLoss(2.0, mode, loss_weight=0.7)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@both_modes
def test_half_precision_is_lifted_and_autocast_is_kept_out(mode):
    student, teacher = 3 * torch.randn(2, 4, 10)
    loss = SoftTargetLoss(2.0, mode)
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float32]
)
@both_modes
def test_a_gap_of_a_thousand_does_not_overflow(mode, dtype):
    student = torch.tensor([[1000.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0.0, 1000.0]], dtype=dtype)
    loss = SoftTargetLoss(mode=mode)(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert student.grad.tolist() == [[1, -1]]


@both_modes
def test_teacher_gets_no_gradient(mode):
    student = torch.randn(2, 5, requires_grad=True)
    teacher = torch.randn(2, 5, requires_grad=True)
    SoftTargetLoss(mode=mode)(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_other_class_counts_are_refused():
    with pytest.raises(ValueError, match='num_classes') as caught:
        SoftTargetLoss()(torch.rand(2, 10), torch.rand(2, 1000))
    assert '(2, 10)' in str(caught.value)
    assert '(2, 1000)' in str(caught.value)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(mode='mse'), "'ce' or 'kl'"),
        (dict(tau=0.0), 'tau should be a positive number'),
        (dict(tau=-1.0), 'tau should be a positive number'),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        SoftTargetLoss(**arguments)
