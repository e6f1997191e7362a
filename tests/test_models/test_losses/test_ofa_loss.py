"""OFA loss against closed forms and an independent computation."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.autograd import gradcheck

from mmcakd.models.losses import OFALoss, SoftTargetLoss, enhanced_targets


def definition(student, teacher, label, eps, tau, exponent_on) -> float:
    """The loss by loops, in NumPy."""
    total = 0.0
    for s, t, y in zip(student, teacher, label, strict=True):
        log_q, p = log_softmax(s / tau), softmax(t / tau)
        for c in range(len(p)):
            weight = p[c] ** eps if exponent_on == 'all' else p[c]
            if c == y:
                weight = (1 + p[c]) ** eps - 1
            total -= weight * log_q[c]
    return total / len(student)


@pytest.mark.parametrize('exponent_on', ['all', 'target'])
@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('eps', [0.5, 1.0, 1.3, 2.0])
def test_loss_is_its_definition(eps, tau, exponent_on):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 11)) * 3
    label = rng.integers(0, 11, 6)
    loss = OFALoss(eps, tau, exponent_on, loss_weight=0.7)(
        torch.tensor(student), torch.tensor(teacher), torch.tensor(label)
    )
    expected = definition(student, teacher, label, eps, tau, exponent_on)
    assert loss.item() == pytest.approx(0.7 * expected, rel=1e-12)


@pytest.mark.parametrize(
    ('eps', 'value'), [(1.0, 4.605170), (1.5, 0.525162), (2.0, 0.138155)]
)
def test_uniform_student_and_teacher(eps, value):
    uniform = torch.zeros(3, 100)
    loss = OFALoss(eps)(uniform, uniform, torch.tensor([0, 50, 99]))
    assert loss.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize('eps', [0.7, 1.0, 1.5, 2.0])
def test_certain_teacher_and_uniform_student(eps):
    teacher = torch.full((4, 10), -1000.0)
    teacher[:, 3] = 1000.0
    loss = OFALoss(eps)(torch.zeros(4, 10), teacher, torch.full((4,), 3))
    assert loss.item() == pytest.approx((2**eps - 1) * math.log(10), rel=1e-6)


def test_exponent_one_is_the_soft_cross_entropy():
    student, teacher = torch.randn(2, 5, 7)
    label = torch.arange(5)
    expected = SoftTargetLoss()(student, teacher)
    torch.testing.assert_close(OFALoss()(student, teacher, label), expected)


@pytest.mark.parametrize('eps', [1.0, 1.4])
def test_gradient_is_the_closed_form(eps):
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    label, tau = torch.tensor([1, 0, 5, 5]), 2.0
    OFALoss(eps, tau)(student, teacher, label).backward()
    w = enhanced_targets(teacher.detach(), label, eps, tau)
    q = (student.detach() / tau).softmax(1)
    expected = (w.sum(1, keepdim=True) * q - w) / (tau * len(student))
    torch.testing.assert_close(student.grad, expected)
    assert teacher.grad is None
    assert gradcheck(
        lambda s: OFALoss(eps, tau)(s, teacher.detach(), label), student
    )


@pytest.mark.parametrize('exponent_on', ['all', 'target'])
@pytest.mark.parametrize('eps', [0.7, 1.0, 1.4])
def test_gradient_reaches_a_teacher_that_is_trained(eps, exponent_on):
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64)
    student.requires_grad_()
    teacher.requires_grad_()
    label = torch.tensor([1, 0, 5, 5])
    loss = OFALoss(eps, 2.0, exponent_on, detach_teacher=False)
    assert gradcheck(lambda s, t: loss(s, t, label), (student, teacher))
    # Neither the value nor the student notices.
    trained, fixed = loss, OFALoss(eps, 2.0, exponent_on)
    assert trained(student, teacher, label) == fixed(student, teacher, label)
    gradients = [
        torch.autograd.grad(one(student, teacher, label), student)[0]
        for one in (trained, fixed)
    ]
    assert torch.equal(*gradients)


def test_gradient_of_a_trained_teacher_is_the_closed_form():
    student = torch.randn(3, 5, dtype=torch.float64)
    teacher = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    loss = OFALoss(detach_teacher=False)
    loss(student, teacher, torch.tensor([0, 4, 2])).backward()
    # At eps = 1 the loss is the mean of -log q under p.
    p, surprise = teacher.detach().softmax(1), -student.log_softmax(1)
    mean = (p * surprise).sum(1, keepdim=True)
    expected = p * (surprise - mean) / len(student)
    torch.testing.assert_close(teacher.grad, expected)


def test_minimum_is_at_the_normalised_targets():
    teacher, label = torch.randn(3, 5, dtype=torch.float64), torch.arange(3)
    w = enhanced_targets(teacher, label, eps=1.5)
    best = (w / w.sum(1, keepdim=True)).log().requires_grad_()
    loss = OFALoss(1.5)(best, teacher, label)
    loss.backward()
    assert best.grad.abs().max() < 1e-12
    for _ in range(20):
        other = best.detach() + 0.1 * torch.randn_like(best)
        assert OFALoss(1.5)(other, teacher, label) > loss


def test_mixed_labels_count_by_their_largest_score():
    student, teacher = torch.randn(2, 3, 4)
    scores = torch.tensor(
        [[0.6, 0.4, 0, 0], [0, 0.3, 0, 0.7], [0.1, 0.1, 0.7, 0.1]]
    )
    loss = OFALoss(1.5)
    torch.testing.assert_close(
        loss(student, teacher, scores),
        loss(student, teacher, torch.tensor([0, 3, 2])),
    )


def test_several_logits_add_up_each_with_its_exponent():
    students, teacher = list(torch.randn(3, 2, 4)), torch.randn(2, 4)
    label = torch.tensor([1, 2])
    expected = sum(
        OFALoss(eps)(logits, teacher, label)
        for eps, logits in zip((1.0, 1.2, 1.4), students, strict=True)
    )
    loss = OFALoss([1.0, 1.2, 1.4])(students, teacher, label)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(
        OFALoss(1.2)(students, teacher, label),
        sum(OFALoss(1.2)(s, teacher, label) for s in students),
    )


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('eps', [1.0, 1.5])
def test_gap_of_a_thousand_does_not_overflow(eps, autocast):
    student = torch.zeros(2, 5, requires_grad=True)
    teacher = torch.zeros(2, 5)
    with torch.no_grad():
        student[:, 0] = teacher[:, 1] = 1000
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss = OFALoss(eps)(student, teacher, torch.tensor([1, 2]))
    loss.backward()
    assert loss.dtype == torch.float32
    # The wanted class, here at a logit 1000 below, has weight w.
    expected = 1000 * ((2**eps - 1) + 1) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.isfinite(student.grad).all()


def test_half_precision_logits_are_lifted():
    student, teacher = torch.randn(2, 8, 16)
    label = torch.arange(8)
    full = OFALoss(1.5)(student, teacher, label)
    half = OFALoss(1.5)(student.bfloat16(), teacher.bfloat16(), label)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=2e-2, atol=2e-2)


def test_wrong_number_of_exponents_is_refused():
    logits, label = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match='3 values for 4 student logits'):
        OFALoss([1.0, 1.0, 1.0])([logits] * 4, logits, label)


def test_other_classes_are_refused():
    label = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match='same classes.*num_classes'):
        OFALoss()(torch.zeros(2, 4), torch.zeros(2, 5), label)


def test_labels_of_another_class_count_are_refused():
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r'labels \(2, 5\)'):
        OFALoss()(logits, logits, torch.zeros(2, 5))


@pytest.mark.parametrize(
    ('kwargs', 'named'),
    [
        (dict(eps=0.0), 'eps'),
        (dict(eps=[1.0, -1.0]), 'eps'),
        (dict(eps=[]), 'eps'),
        (dict(tau=0.0), 'tau'),
        (dict(exponent_on='label'), 'exponent_on'),
    ],
)
def test_impossible_settings_are_refused(kwargs, named):
    with pytest.raises(ValueError, match=named):
        OFALoss(**kwargs)
