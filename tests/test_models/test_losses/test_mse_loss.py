"""Mean squared error, and what MMRazor's L2Loss makes of it."""

import numpy as np
import pytest
import torch
from mmrazor.models.losses import L2Loss

from mmcakd.models.losses import MSELoss


@pytest.fixture
def features():
    return torch.randn(2, 3, 4, 2, 5, dtype=torch.float64)


def test_value_is_that_of_the_definition(features):
    student, teacher = (f.numpy() for f in features)
    loss = MSELoss(loss_weight=0.3)(*features)
    expected = 0.3 * np.mean((student - teacher) ** 2)
    assert loss.item() == pytest.approx(expected)


def test_gradient_is_that_of_finite_differences(features):
    student, teacher = features
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: MSELoss()(s, teacher), student)


def test_half_precision_is_lifted_and_autocast_is_kept_out(features):
    student, teacher = features.float()
    loss = MSELoss()
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.02)


def test_large_half_precision_features_do_not_overflow():
    student = (1e4 * torch.randn(2, 4, 3, 3)).half().requires_grad_()
    loss = MSELoss()(student, (1e4 * torch.randn(2, 4, 3, 3)).half())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_teacher_gets_no_gradient(features):
    student, teacher = (x.clone().requires_grad_() for x in features)
    MSELoss()(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_mmrazors_is_the_same_with_two_switches_turned(features):
    student, teacher = (f.flatten(1) for f in features)
    expected = MSELoss()(student, teacher).item()
    right = L2Loss(normalize=False, div_element=True)
    assert right(student, teacher).item() == pytest.approx(expected)
    for other in (L2Loss(), L2Loss(normalize=False)):
        assert other(student, teacher).item() != pytest.approx(expected)


def test_mmrazors_spreads_a_pooled_feature_over_a_map():
    pooled, whole = torch.ones(2, 3, 1, 1), torch.zeros(2, 3, 4, 4)
    theirs = L2Loss(normalize=False, div_element=True)
    # The mean of ones, 16 times too large.
    assert theirs(pooled, whole) == 16
    with pytest.raises(ValueError, match='FitNetConnector'):
        MSELoss()(pooled, whole)


def test_mmrazors_computes_in_half_precision(features):
    student, teacher = features.bfloat16()
    loss = L2Loss(normalize=False, div_element=True)(student, teacher)
    assert loss.dtype == torch.bfloat16


def test_tokens_are_compared_with_a_map_position_by_position():
    feature = torch.randn(2, 3, 4, 5)
    tokens = feature.flatten(2).transpose(1, 2)
    other = torch.randn(2, 20, 3)
    expected = (other - tokens).square().mean()
    torch.testing.assert_close(MSELoss()(other, feature), expected)
    torch.testing.assert_close(MSELoss()(feature, other), expected)
    assert MSELoss()(tokens, feature) == 0
