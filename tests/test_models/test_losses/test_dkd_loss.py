"""Decoupled KD against its definition, and what MMRazor's makes of it."""

import math

import pytest
import torch
from mmrazor.models.losses import DKDLoss as MMRazorDKDLoss

from mmcakd.models.losses import DKDLoss, SoftTargetLoss


def definition(student, teacher, target, alpha, beta, tau) -> float:
    """Plain probabilities, one image and class after the other."""
    total = 0.0
    for s, t, y in zip(
        student.tolist(), teacher.tolist(), target.tolist(), strict=True
    ):
        q, p = (
            [math.exp(x / tau) / sum(math.exp(z / tau) for z in logits)
             for x in logits]
            for logits in (s, t)
        )  # fmt: skip
        total += alpha * p[y] * math.log(p[y] / q[y])
        total += alpha * (1 - p[y]) * math.log((1 - p[y]) / (1 - q[y]))
        for c in range(len(s)):
            if c != y:
                p_hat, q_hat = p[c] / (1 - p[y]), q[c] / (1 - q[y])
                total += beta * p_hat * math.log(p_hat / q_hat)
    return tau**2 * total / len(student)


@pytest.fixture
def logits():
    return 3 * torch.randn(2, 5, 7, dtype=torch.float64)


TARGET = torch.tensor([0, 6, 3, 3, 1])


@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('weights', [(1, 0), (0, 1), (1, 2), (0.5, 8)])
def test_value_is_that_of_the_definition(logits, weights, tau):
    student, teacher = logits
    loss = DKDLoss(*weights, tau, loss_weight=0.3)
    expected = 0.3 * definition(student, teacher, TARGET, *weights, tau)
    assert loss(student, teacher, TARGET).item() == pytest.approx(expected)


def test_defaults_are_those_of_the_published_comparison(logits):
    expected = definition(*logits, TARGET, 1.0, 2.0, 1.0)
    assert DKDLoss()(*logits, TARGET).item() == pytest.approx(expected)


def test_beta_of_the_teachers_doubt_makes_it_plain_kd(logits):
    student, teacher = logits[:, :1]
    target = torch.tensor([2])
    doubt = 1 - teacher.softmax(1)[0, 2].item()
    decoupled = DKDLoss(1.0, doubt)(student, teacher, target)
    plain = SoftTargetLoss(mode='kl')(student, teacher)
    assert decoupled.item() == pytest.approx(plain.item())


def test_of_mixed_labels_the_largest_is_the_target(logits):
    scores = torch.full((5, 7), 0.05)
    scores[range(5), TARGET] = 0.6
    loss = DKDLoss()
    assert loss(*logits, scores) == loss(*logits, TARGET)


def test_equal_logits_give_no_loss_and_no_gradient(logits):
    student = logits[0].clone().requires_grad_()
    loss = DKDLoss(tau=2.0)(student, logits[0], TARGET)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert student.grad.abs().max() < 1e-12


def test_of_two_classes_only_the_target_counts():
    student, teacher = torch.randn(2, 3, 2)
    target = torch.tensor([0, 1, 1])
    assert DKDLoss(0.0, 1.0)(student, teacher, target) == 0
    assert DKDLoss(1.0, 0.0)(student, teacher, target) > 0


@pytest.mark.parametrize('tau', [1.0, 2.5])
def test_gradient_is_that_of_finite_differences(logits, tau):
    student, teacher = logits
    student.requires_grad_()
    loss = DKDLoss(0.7, 3.0, tau)
    assert torch.autograd.gradcheck(
        lambda s: loss(s, teacher, TARGET), student
    )


def test_half_precision_is_lifted_and_autocast_is_kept_out(logits):
    student, teacher = logits.float()
    loss = DKDLoss()
    expected = loss(student, teacher, TARGET)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher, TARGET)
        halves = loss(student.bfloat16(), teacher.half(), TARGET)
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize('gap', [100.0, 1000.0, 5000.0])
@pytest.mark.parametrize('target', [0, 1])
def test_a_gap_of_thousands_does_not_overflow(gap, target):
    """The student is sure of class 0, the teacher of class 1."""
    student = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, gap, 0.0]])
    label = torch.tensor([target])
    loss = DKDLoss(1.0, 2.0)(student, teacher, label)
    loss.backward()
    # Among the others: sure of class 1 against undecided, or undecided
    # against sure of class 0.
    others = math.log(2) if target == 0 else gap / 2 - math.log(2)
    binary = gap - (math.log(2) if target == 0 else 0)
    assert loss.item() == pytest.approx(binary + 2 * others, rel=1e-4)
    assert student.grad.isfinite().all()


def test_teacher_gets_no_gradient(logits):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    DKDLoss()(student, teacher, TARGET).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


# ------------------------------------------------------------------ MMRazor


def test_mmrazors_mean_is_a_sum(logits):
    by_reduction = {
        reduction: MMRazorDKDLoss(beta=2.0, reduction=reduction)(
            *logits, TARGET
        ).item()
        for reduction in ('sum', 'mean', 'batchmean')
    }
    ours = DKDLoss()(*logits, TARGET).item()
    assert by_reduction['batchmean'] == pytest.approx(ours)
    assert by_reduction['mean'] == by_reduction['sum']
    assert by_reduction['mean'] == pytest.approx(5 * ours)


@pytest.mark.parametrize('gap', [100.0, 1000.0])
def test_mmrazors_gradient_is_lost_at_a_gap_of_a_hundred(gap):
    student = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 0.0]])
    target = torch.tensor([1])
    MMRazorDKDLoss()(student, teacher, target).backward()
    assert student.grad.isnan().all()
    student.grad = None
    DKDLoss()(student, teacher, target).backward()
    assert student.grad.isfinite().all()


# ---------------------------------------------------------------- bad input


def test_other_class_counts_are_refused():
    with pytest.raises(ValueError, match='num_classes'):
        DKDLoss()(torch.rand(2, 5), torch.rand(2, 6), torch.tensor([0, 1]))


@pytest.mark.parametrize('shape', [(3,), (2, 6), (2, 1)])
def test_labels_that_do_not_fit_are_refused(shape):
    logits = torch.rand(2, 5)
    with pytest.raises(ValueError, match='scores') as caught:
        DKDLoss()(logits, logits, torch.zeros(shape, dtype=torch.long))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize('tau', [0.0, -1.0])
def test_temperature_must_be_positive(tau):
    with pytest.raises(ValueError, match='tau should be a positive number'):
        DKDLoss(tau=tau)
