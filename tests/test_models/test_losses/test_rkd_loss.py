"""Relational KD against plain loops, and what MMRazor's makes of it."""

import numpy as np
import pytest
import torch
from mmrazor.models.losses import AngleWiseRKD, DistanceWiseRKD

from mmcakd.models.losses import RKDLoss


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def definition(student, teacher) -> tuple[float, float]:
    """Mean Huber loss of distances and of angles."""
    n = len(student)
    features = [f.numpy() for f in (student, teacher)]
    means = [
        np.mean(
            [np.linalg.norm(f[i] - f[j])
             for i in range(n) for j in range(n) if i != j]
        )
        for f in features
    ]  # fmt: skip
    distance = sum(
        huber(
            np.linalg.norm(features[0][i] - features[0][j]) / means[0]
            - np.linalg.norm(features[1][i] - features[1][j]) / means[1]
        )
        for i in range(n)
        for j in range(n)
    )
    angle = 0.0
    for i in range(n):
        for j in set(range(n)) - {i}:
            for k in set(range(n)) - {i}:
                cosines = [
                    (f[j] - f[i])
                    @ (f[k] - f[i])
                    / np.linalg.norm(f[j] - f[i])
                    / np.linalg.norm(f[k] - f[i])
                    for f in features
                ]
                angle += huber(cosines[0] - cosines[1])
    return distance / n**2, angle / n**3


@pytest.fixture
def features():
    """Of different widths."""
    return (
        torch.randn(5, 4, dtype=torch.float64),
        3 + 2 * torch.randn(5, 7, dtype=torch.float64),
    )


@pytest.mark.parametrize('weights', [(1, 0), (0, 1), (25, 50), (3, 0.5)])
def test_value_is_that_of_the_definition(features, weights):
    distance, angle = definition(*features)
    loss = RKDLoss(*weights, loss_weight=0.3)(*features)
    expected = 0.3 * (weights[0] * distance + weights[1] * angle)
    assert loss.item() == pytest.approx(expected)


def test_defaults_are_those_of_the_published_comparison(features):
    distance, angle = definition(*features)
    expected = 25 * distance + 50 * angle
    assert RKDLoss()(*features).item() == pytest.approx(expected)


def test_maps_are_averaged_over_positions(features):
    loss = RKDLoss()
    student = torch.randn(5, 4, 3, 2, dtype=torch.float64)
    assert torch.allclose(
        loss(student, features[1]), loss(student.mean((2, 3)), features[1])
    )


def test_maps_of_tokens_need_not_be_contiguous(features):
    tokens = torch.randn(5, 6, 4, dtype=torch.float64)
    feature = tokens.transpose(1, 2).unflatten(2, (3, 2))
    loss = RKDLoss()(feature, features[1])
    expected = RKDLoss()(tokens.mean(1), features[1])
    assert loss.item() == pytest.approx(expected.item())


def test_moving_turning_and_scaling_changes_nothing(features):
    teacher = features[1]
    turn, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))
    student = 0.2 * teacher @ turn + 11
    assert RKDLoss()(student, teacher).item() < 1e-12


def test_length_of_a_feature_matters(features):
    """There is no L2 normalisation."""
    student, teacher = features
    longer = student * torch.tensor([[1.0], [2], [3], [4], [5]])
    assert RKDLoss()(longer, teacher) != RKDLoss()(student, teacher)


@pytest.mark.parametrize('weights', [(1, 0), (0, 1)])
def test_gradient_is_that_of_finite_differences(features, weights):
    student, teacher = features
    student.requires_grad_()
    loss = RKDLoss(*weights)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('same', [slice(2), slice(None)])
def test_images_with_equal_features_have_a_bounded_gradient(same, dtype):
    student = torch.randn(4, 8, dtype=dtype)
    student[same] = student[0].clone()
    student.requires_grad_()
    RKDLoss()(student, torch.randn(4, 8, dtype=dtype)).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100


def test_small_distances_survive_a_large_common_part():
    student, teacher = 100 + 0.1 * torch.randn(2, 8, 64, dtype=torch.float64)
    expected = RKDLoss()(student, teacher).item()
    found = RKDLoss()(student.float(), teacher.float()).item()
    assert found == pytest.approx(expected, rel=1e-3)


def test_half_precision_is_lifted_and_autocast_is_kept_out(features):
    student, teacher = (feature.float() for feature in features)
    loss = RKDLoss()
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.03)


def test_large_half_precision_features_do_not_overflow():
    student = (1e4 * torch.randn(4, 64)).half().requires_grad_()
    loss = RKDLoss()(student, (1e4 * torch.randn(4, 64)).half())
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_teacher_gets_no_gradient(features):
    student, teacher = (x.clone().requires_grad_() for x in features)
    RKDLoss()(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


# ------------------------------------------------------------------ MMRazor


def test_mmrazors_is_the_same_without_its_normalisation(features):
    for make, weights in ((DistanceWiseRKD, (25, 0)), (AngleWiseRKD, (0, 50))):
        ours = RKDLoss(*weights)(*features).item()
        assert make(with_l2_norm=False)(*features).item() == pytest.approx(
            ours
        )
        # which it does unless told otherwise
        assert make()(*features).item() != pytest.approx(ours, rel=0.01)


def test_mmrazors_gradient_explodes_for_two_equal_features():
    student = torch.randn(4, 8)
    student[1] = student[0]
    student.requires_grad_()
    AngleWiseRKD(with_l2_norm=False)(student, torch.randn(4, 8)).backward()
    assert student.grad.abs().max() > 1e6


def test_mmrazors_loses_small_distances():
    student, teacher = 100 + 0.1 * torch.randn(2, 8, 64, dtype=torch.float64)
    expected = RKDLoss(1, 0)(student, teacher).item()
    theirs = DistanceWiseRKD(1.0, with_l2_norm=False)
    error = abs(theirs(student.float(), teacher.float()).item() - expected)
    assert error > 0.01 * expected


def test_mmrazors_is_not_a_number_for_a_batch_of_one():
    assert DistanceWiseRKD()(torch.rand(1, 4), torch.rand(1, 4)).isnan()


def test_mmrazors_cannot_read_the_map_of_a_vit():
    feature = torch.randn(4, 9, 8).transpose(1, 2).unflatten(2, (3, 3))
    with pytest.raises(RuntimeError, match='view'):
        DistanceWiseRKD()(feature, feature)
    assert RKDLoss()(feature, feature) == 0


# ---------------------------------------------------------------- bad input


def test_other_batches_are_refused():
    with pytest.raises(ValueError, match='2 images of the student'):
        RKDLoss()(torch.rand(2, 4), torch.rand(3, 4))


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r'\(2, 9, 4\)'):
        RKDLoss()(torch.rand(2, 9, 4), torch.rand(2, 4))
