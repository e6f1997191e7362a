"""The loss on attention and values."""

import pytest
import torch

from mmcakd.models.losses import Attended, PCALoss


def side(shape=(2, 3, 10, 4), **kwargs):
    return Attended(*torch.randn(2, *shape, **kwargs))


def gram(value, scale=True):
    out = torch.einsum('nhid,nhjd->nhij', value, value)
    return out / value.shape[-1] ** 0.5 if scale else out


def test_loss_is_zero_for_equal_sides():
    one = side()
    assert PCALoss()(one, one) == 0


def test_both_terms_by_definition():
    student, teacher = side(), side()
    attention = (student.attention - teacher.attention).square().mean()
    values = (gram(student.value) - gram(teacher.value)).square().mean()
    for weights in ((1, 1), (0.2, 0), (0, 0.05)):
        expected = weights[0] * attention + weights[1] * values
        got = PCALoss(*weights)(student, teacher)
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        PCALoss(0.2, 0.05, loss_weight=3)(student, teacher),
        3 * (0.2 * attention + 0.05 * values),
    )


def test_teachers_gram_matrix_may_stay_undivided():
    student, teacher = side((1, 2, 5, 64)), side((1, 2, 5, 64))
    expected = gram(student.value) - gram(teacher.value, scale=False)
    got = PCALoss(0, scale_teacher_gram=False)(student, teacher)
    torch.testing.assert_close(got, expected.square().mean())
    # With heads of 64 channels the two differ 8 times.
    long = teacher._replace(value=teacher.value * 8**0.5)
    loss = PCALoss(0, scale_teacher_gram=False)(long, teacher)
    torch.testing.assert_close(loss, torch.tensor(0.0), atol=1e-8, rtol=0)


def test_mean_over_heads_compares_models_with_other_heads():
    student, teacher = side((2, 4, 10, 4)), side((2, 3, 10, 5))
    student = student._replace(attention=torch.zeros(2, 10, 10))
    teacher = teacher._replace(attention=torch.zeros(2, 10, 10))
    expected = gram(student.value).mean(1) - gram(teacher.value).mean(1)
    got = PCALoss(average_heads=True)(student, teacher)
    torch.testing.assert_close(got, expected.square().mean())
    with pytest.raises(ValueError, match='Gram.*average_heads=True'):
        PCALoss()(student, teacher)


def test_turning_all_values_alike_changes_nothing():
    student, teacher = side(), side()
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    turned = student._replace(value=student.value @ turn)
    torch.testing.assert_close(
        PCALoss()(turned, teacher), PCALoss()(student, teacher)
    )


@pytest.mark.parametrize('average', [False, True])
def test_gradients(average):
    student = side((1, 2, 3, 2), dtype=torch.float64, requires_grad=True)
    teacher = side((1, 2, 3, 2), dtype=torch.float64, requires_grad=True)
    leaves = [x.detach().requires_grad_() for x in student]
    loss = PCALoss(0.3, 0.7, average_heads=average)
    assert torch.autograd.gradcheck(
        lambda *x: loss(Attended(*x), teacher), leaves
    )


def test_no_gradient_reaches_the_teacher():
    student = [torch.randn(2, 3, 10, 4, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(2, 3, 10, 4, requires_grad=True) for _ in range(2)]
    PCALoss()(Attended(*student), Attended(*teacher)).backward()
    assert all(x.grad.abs().sum() > 0 for x in student)
    assert all(x.grad is None for x in teacher)


def test_float32_inside_autocast():
    student, teacher = side(), side()
    halves = [
        Attended(*(x.bfloat16() for x in one)) for one in (student, teacher)
    ]
    with torch.autocast('cpu', torch.bfloat16):
        loss = PCALoss()(*halves)
    expected = PCALoss()(
        *(Attended(*(x.float() for x in one)) for one in halves)
    )
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_inputs_of_another_kind_are_refused():
    one = side()
    with pytest.raises(ValueError, match="student.*connector_idx='student'"):
        PCALoss()(dict(student=one, teacher=one), one)
    with pytest.raises(ValueError, match="teacher.*connector_idx='teacher'"):
        PCALoss()(one, one.value)
    with pytest.raises(ValueError, match='attentions differ'):
        PCALoss()(one, side((2, 3, 9, 4)))
