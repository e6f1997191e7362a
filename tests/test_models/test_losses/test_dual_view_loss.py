"""Dual-view mimicking against its closed forms and the DCT."""

import pytest
import torch
from scipy.fft import dctn, idctn

from mmcakd.models.losses import DualViewLoss, frequency_view

VIEWS = ['original', 'frequency']
both_views = pytest.mark.parametrize('view', VIEWS)


@both_views
def test_equal_features_give_zero(view):
    x = torch.randn(2, 8, 7, 7)
    assert DualViewLoss(view)(x, x.clone()) == 0


@pytest.mark.parametrize(
    ('view', 'weight', 'expected'),
    [('original', 0.08, 15.68), ('frequency', 0.06, 11.76)],
)
@pytest.mark.parametrize('batch', [1, 3])
def test_opposite_features_give_four_a_position(view, weight, expected, batch):
    x = torch.randn(batch, 8, 7, 7)
    loss = DualViewLoss(view, loss_weight=weight)(x, -x)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@both_views
def test_unrelated_features_give_about_two_a_position(view):
    student, teacher = torch.randn(2, 4, 1024, 7, 7)
    loss = DualViewLoss(view, loss_weight=0.08)(student, teacher)
    assert loss.item() == pytest.approx(2 * 49 * 0.08, rel=0.02)


@both_views
def test_maps_and_tokens_are_the_same_to_it(view):
    student, teacher = torch.randn(2, 2, 8, 3, 5)
    loss = DualViewLoss(view)
    tokens = student.flatten(2).transpose(1, 2)
    assert torch.allclose(loss(tokens, teacher), loss(student, teacher))


@both_views
def test_value_is_that_of_the_formula(view):
    student, teacher = torch.randn(2, 3, 6, 4, 5, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        if view == 'frequency':
            s = s - s.mean((1, 2), keepdim=True)
            t = t - t.mean((1, 2), keepdim=True)
        for h in range(4):
            for w in range(5):
                a, b = s[:, h, w], t[:, h, w]
                total += (a / a.norm() - b / b.norm()).pow(2).sum()
    loss = DualViewLoss(view, loss_weight=0.3)(student, teacher)
    assert loss.item() == pytest.approx(0.3 * total.item() / 3)


@both_views
def test_weight_per_position_changes_nothing_on_the_published_grid(view):
    student, teacher = torch.randn(2, 3, 8, 7, 7)
    student.requires_grad_()
    losses = [
        DualViewLoss(view, 0.08, per_position=flag)(student, teacher)
        for flag in (False, True)
    ]
    grads = [torch.autograd.grad(loss, student)[0] for loss in losses]
    assert torch.equal(*losses)
    assert torch.equal(*grads)


@both_views
@pytest.mark.parametrize(
    ('grid', 'factor'),
    [
        ((14, 14), 1 / 4),
        ((16, 16), 49 / 256),
        ((3, 5), 49 / 15),
        ((1, 2), 49 / 2),
    ],
)
def test_weight_per_position_is_that_of_49_positions(view, grid, factor):
    student, teacher = torch.randn(2, 2, 8, *grid, dtype=torch.float64)
    summed = DualViewLoss(view, 0.3)(student, teacher)
    loss = DualViewLoss(view, 0.3, per_position=True)
    assert loss(student, teacher).item() == pytest.approx(
        factor * summed.item(), rel=1e-12
    )
    # 49 positions with four each.
    assert loss(teacher, -teacher).item() == pytest.approx(0.3 * 4 * 49)
    tokens = student.flatten(2).transpose(1, 2)
    torch.testing.assert_close(loss(tokens, teacher), loss(student, teacher))


@both_views
def test_length_of_a_feature_does_not_matter(view):
    student, teacher = torch.randn(2, 2, 8, 3, 3)
    loss = DualViewLoss(view)
    assert torch.allclose(
        loss(4 * student, 0.5 * teacher), loss(student, teacher)
    )


def test_only_the_frequency_view_ignores_a_constant_in_a_channel():
    x = torch.randn(2, 8, 4, 4)
    shifted = x + 3 * torch.randn(2, 8, 1, 1)
    assert DualViewLoss('frequency')(shifted, x).item() < 1e-6
    assert DualViewLoss('original')(shifted, x).item() > 1


@pytest.mark.parametrize('grid', [(7, 7), (14, 14), (5, 8), (1, 9)])
def test_frequency_view_is_the_dct_without_its_first_coefficient(grid):
    maps = torch.randn(2, 3, *grid)
    coefficients = dctn(maps.numpy(), type=2, axes=(2, 3), norm='ortho')
    coefficients[..., 0, 0] = 0
    expected = idctn(coefficients, type=2, axes=(2, 3), norm='ortho')
    tokens = frequency_view(maps.flatten(2).transpose(1, 2))
    result = tokens.transpose(1, 2).unflatten(2, grid)
    assert (result - torch.from_numpy(expected)).abs().max() < 1e-5
    # and not what it would be with another coefficient removed
    assert (result - maps).abs().max() > 1e-3


@both_views
def test_gradient_is_that_of_finite_differences(view):
    student, teacher = torch.randn(2, 2, 3, 2, 3, dtype=torch.float64)
    student.requires_grad_()
    loss = DualViewLoss(view, loss_weight=0.7)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@both_views
def test_half_precision_is_lifted_and_autocast_is_kept_out(view):
    student, teacher = torch.randn(2, 2, 8, 7, 7)
    loss = DualViewLoss(view)
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.01)
    assert halves == loss(student.bfloat16().float(), teacher.half().float())


@both_views
def test_large_half_precision_features_do_not_overflow(view):
    student = (1000 * torch.randn(2, 512, 7, 7)).half().requires_grad_()
    teacher = (1000 * torch.randn(2, 512, 7, 7)).half()
    loss = DualViewLoss(view)(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


@both_views
def test_vanished_features_have_a_finite_gradient(view):
    student = torch.zeros(1, 4, 2, 2, requires_grad=True)
    DualViewLoss(view)(student, torch.randn(1, 4, 2, 2)).backward()
    assert student.grad.isfinite().all()


@both_views
def test_teacher_gets_no_gradient(view):
    student, teacher = torch.randn(2, 1, 4, 2, 2).unbind()
    student.requires_grad_()
    teacher.requires_grad_()
    DualViewLoss(view)(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        ((2, 4, 7, 7), (2, 4, 14, 14)),
        ((2, 4, 7, 7), (2, 8, 7, 7)),
        ((2, 49, 4), (2, 4, 6, 8)),
        ((1, 4, 7, 7), (2, 4, 7, 7)),
    ],
)
def test_features_that_cannot_be_compared_are_refused(student, teacher):
    with pytest.raises(ValueError, match='CAPConnector') as caught:
        DualViewLoss()(torch.rand(student), torch.rand(teacher))
    shapes = [
        tuple(torch.rand(s).flatten(2).mT.shape) if len(s) == 4 else s
        for s in (student, teacher)
    ]
    assert all(str(shape) in str(caught.value) for shape in shapes)


def test_unknown_view_is_refused():
    with pytest.raises(ValueError, match="'original' or 'frequency'"):
        DualViewLoss('spectral')
