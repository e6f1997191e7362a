"""Correlation congruence against plain loops."""

import pytest
import torch

from mmcakd.models.losses import CCLoss


@pytest.fixture
def embeddings():
    return torch.randn(2, 5, 8, dtype=torch.float64)


def definition(student, teacher) -> float:
    student, teacher = student.tolist(), teacher.tolist()
    total = 0.0
    for n in range(len(student) - 1):
        for c in range(len(student[0])):
            total += abs(student[n][c] - teacher[n][c]) * abs(
                student[n + 1][c] - teacher[n + 1][c]
            )
    return total / (len(student) - 1)


@pytest.mark.parametrize('weight', [1.0, 0.3])
def test_value_is_that_of_the_definition(embeddings, weight):
    loss = CCLoss(loss_weight=weight)(*embeddings)
    assert loss.item() == pytest.approx(weight * definition(*embeddings))


def test_weight_is_that_of_the_published_comparison(embeddings):
    expected = 0.02 * definition(*embeddings)
    assert CCLoss()(*embeddings).item() == pytest.approx(expected)


def test_equal_embeddings_give_no_loss_and_no_gradient(embeddings):
    student = embeddings[0].clone().requires_grad_()
    loss = CCLoss()(student, embeddings[0])
    loss.backward()
    assert loss == 0
    assert (student.grad == 0).all()


def test_gradient_reaches_both_embeddings(embeddings):
    student, teacher = (x.clone().requires_grad_() for x in embeddings)
    assert torch.autograd.gradcheck(CCLoss(), (student, teacher))
    CCLoss()(student, teacher).backward()
    assert torch.equal(student.grad, -teacher.grad)
    assert student.grad.abs().sum() > 0


def test_half_precision_is_lifted_and_autocast_is_kept_out(embeddings):
    student, teacher = embeddings.float()
    loss = CCLoss()
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.02)


def test_large_half_precision_embeddings_do_not_overflow():
    student, teacher = (1e4 * torch.randn(2, 4, 8)).half()
    assert CCLoss()(student, teacher).isfinite()


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match='PooledEmbedding'):
        CCLoss()(torch.rand(2, 8), torch.rand(2, 16))
