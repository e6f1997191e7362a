"""DIST against SciPy's correlation, and what MMRazor's makes of it."""

import numpy as np
import pytest
import torch
from mmrazor.models.losses import DISTLoss as MMRazorDISTLoss
from scipy.special import softmax
from scipy.stats import pearsonr

from mmcakd.models.losses import DISTLoss
from mmcakd.models.losses.dist_loss import pearson_correlation


def definition(student, teacher, beta, gamma, tau) -> float:
    q, p = (softmax(x.numpy() / tau, axis=1) for x in (student, teacher))
    rows = np.mean([pearsonr(a, b)[0] for a, b in zip(q, p, strict=True)])
    columns = np.mean(
        [pearsonr(a, b)[0] for a, b in zip(q.T, p.T, strict=True)]
    )
    return tau**2 * (beta * (1 - rows) + gamma * (1 - columns))


@pytest.fixture
def logits():
    return 2 * torch.randn(2, 6, 9, dtype=torch.float64)


def test_rare_classes_count_for_less():
    """``1e-8`` beside norms of ``1e-4`` halves a perfect correlation."""
    x = torch.tensor([[0.0, 0.0], [1e-4, 1.0]], dtype=torch.float64)
    x = (x - x.mean(0)) * 2**0.5
    correlation = pearson_correlation(x, x, dim=0)
    assert correlation.tolist() == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize('tau', [1.0, 4.0])
@pytest.mark.parametrize('weights', [(1, 0), (0, 1), (1, 1), (2, 0.5)])
def test_value_is_that_of_the_definition(logits, weights, tau):
    loss = DISTLoss(*weights, tau, loss_weight=0.3)(*logits)
    expected = 0.3 * definition(*logits, *weights, tau)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_defaults_are_those_of_the_published_comparison(logits):
    expected = definition(*logits, 1.0, 1.0, 1.0)
    assert DISTLoss()(*logits).item() == pytest.approx(expected, rel=1e-4)


def test_equal_logits_give_no_loss_and_no_gradient(logits):
    student = logits[0].clone().requires_grad_()
    loss = DISTLoss()(student, logits[0])
    loss.backward()
    assert abs(loss.item()) < 1e-5
    assert student.grad.abs().max() < 1e-5


def test_a_linear_map_of_the_probabilities_changes_nothing(logits):
    student, teacher = logits
    q = student.softmax(1)
    # Halfway to the uniform distribution.
    softened = (0.5 * q + 0.5 / 9).log()
    loss = DISTLoss()
    assert loss(softened, teacher).item() == pytest.approx(
        loss(student, teacher).item(), rel=1e-4
    )


def test_gradient_is_that_of_finite_differences(logits):
    student, teacher = logits
    student.requires_grad_()
    loss = DISTLoss(0.7, 3.0, tau=2.0)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


def test_classes_of_a_single_image_can_be_compared(logits):
    student, teacher = logits[:, :1]
    student.requires_grad_()
    loss = DISTLoss(gamma=0.0)
    loss.check_batch_size(1)
    value = loss(student, teacher)
    value.backward()
    q, p = (softmax(x.detach().numpy()[0]) for x in (student, teacher))
    expected = 1 - pearsonr(q, p)[0]
    assert value.item() == pytest.approx(expected)
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize('constant', ['student', 'teacher', 'both'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_constant_predictions_correlate_with_nothing(constant, dtype):
    student, teacher = torch.randn(2, 4, 7, dtype=dtype)
    if constant in ('student', 'both'):
        student = torch.full((4, 7), 3.3, dtype=dtype)
    if constant in ('teacher', 'both'):
        teacher = torch.full((4, 7), -0.7, dtype=dtype)
    student.requires_grad_()
    loss = DISTLoss()(student, teacher)
    loss.backward()
    assert loss.item() == 2
    assert (student.grad == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
def test_a_gap_of_a_thousand_does_not_overflow(dtype):
    student = torch.tensor(
        [[1000.0, 0, 0], [0, 0, 1000.0]], dtype=dtype, requires_grad=True
    )
    teacher = torch.tensor([[0, 1000.0, 0], [0, 0, 1000.0]], dtype=dtype)
    loss = DISTLoss()(student, teacher)
    loss.backward()
    # Rows: -1/2 and 1. Columns: undefined, undefined, and 1.
    assert loss.item() == pytest.approx(0.75 + 2 / 3)
    assert student.grad.isfinite().all()


def test_half_precision_is_lifted_and_autocast_is_kept_out(logits):
    student, teacher = logits.float()
    loss = DISTLoss()
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.02)


def test_teacher_gets_no_gradient(logits):
    student, teacher = (x.clone().requires_grad_() for x in logits)
    DISTLoss()(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


# ------------------------------------------------------------------ MMRazor


def test_mmrazors_is_the_same_for_ordinary_logits(logits):
    theirs = MMRazorDISTLoss(2.0, 0.5, 3.0)(*logits).item()
    assert DISTLoss(2.0, 0.5, 3.0)(*logits).item() == pytest.approx(theirs)


def test_mmrazors_gradient_explodes_for_a_head_that_starts_at_zero():
    teacher = 3 * torch.randn(8, 50)
    student = torch.zeros(8, 50, requires_grad=True)
    MMRazorDISTLoss()(student, teacher).backward()
    assert student.grad.abs().max() > 1e3
    student.grad = None
    DISTLoss()(student, teacher).backward()
    assert (student.grad == 0).all()


def test_mmrazors_computes_in_half_precision(logits):
    student, teacher = logits.bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        assert MMRazorDISTLoss()(student, teacher).dtype == torch.bfloat16


# ---------------------------------------------------------------- bad input


def test_other_class_counts_are_refused():
    with pytest.raises(ValueError, match='num_classes'):
        DISTLoss()(torch.rand(2, 5), torch.rand(2, 6))


@pytest.mark.parametrize('tau', [0.0, -1.0])
def test_temperature_must_be_positive(tau):
    with pytest.raises(ValueError, match='tau should be a positive number'):
        DISTLoss(tau=tau)
