"""Sigmoid KD against its closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmcakd.models.losses import BinaryTargetLoss, SoftTargetLoss

both_modes = pytest.mark.parametrize('mode', ['ce', 'kl'])


@pytest.mark.parametrize('classes', [1, 3, 80])
@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_undecided_logits_give_log_two_for_each_class(classes, tau):
    logits = torch.zeros(5, classes)
    cross_entropy = BinaryTargetLoss(tau)(logits, logits)
    expected = tau**2 * classes * math.log(2)
    assert cross_entropy.item() == pytest.approx(expected)
    assert abs(BinaryTargetLoss(tau, 'kl')(logits, logits)) < 1e-5


@pytest.mark.parametrize('tau', [1.0, 2.5])
@both_modes
def test_value_is_that_of_the_formula(mode, tau):
    student, teacher = torch.randn(2, 4, 6, dtype=torch.float64) * 3
    total = 0.0
    for s, t in zip(student.flatten(), teacher.flatten(), strict=True):
        q, p = 1 / (1 + (-s / tau).exp()), 1 / (1 + (-t / tau).exp())
        total -= p * q.log() + (1 - p) * (1 - q).log()
        if mode == 'kl':
            total += p * p.log() + (1 - p) * (1 - p).log()
    loss = BinaryTargetLoss(tau, mode, loss_weight=0.5)(student, teacher)
    # A sum over classes, a mean over images.
    assert loss.item() == pytest.approx(0.5 * tau**2 * total.item() / 4)


def test_value_is_that_of_the_label_loss_of_multi_label_heads():
    """A teacher that is sure of the labels is the labels."""
    from mmpretrain.models import MultiLabelClsHead
    from mmpretrain.structures import DataSample

    student = torch.randn(3, 5)
    labels = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    samples = [DataSample().set_gt_score(label.float()) for label in labels]
    expected = MultiLabelClsHead().loss((student,), samples)['loss']
    loss = BinaryTargetLoss()(student, 200.0 * labels - 100)
    assert loss.item() == pytest.approx(expected.item())


@both_modes
def test_two_classes_of_a_softmax_are_one_of_a_sigmoid(mode):
    student, teacher = torch.randn(2, 7, 1)
    zero = torch.zeros(7, 1)
    expected = SoftTargetLoss(2.0, mode)(
        torch.cat((student, zero), 1), torch.cat((teacher, zero), 1)
    )
    loss = BinaryTargetLoss(2.0, mode)(student, teacher)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_the_two_forms_differ_by_the_entropy_of_the_teacher(tau):
    student, teacher = torch.randn(2, 8, 10)
    difference = BinaryTargetLoss(tau)(student, teacher) - BinaryTargetLoss(
        tau, 'kl'
    )(student, teacher)
    entropy = torch.distributions.Bernoulli(logits=teacher / tau).entropy()
    expected = tau**2 * entropy.sum(1).mean()
    assert difference.item() == pytest.approx(expected.item(), rel=1e-4)


@both_modes
def test_gradient_is_the_difference_of_the_beliefs(mode):
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 6, dtype=torch.float64)
    tau = 3.0
    BinaryTargetLoss(tau, mode)(student, teacher).backward()
    difference = (student / tau).sigmoid() - (teacher / tau).sigmoid()
    expected = tau * difference / 4
    assert torch.allclose(student.grad, expected.detach())


@both_modes
def test_gradient_is_that_of_finite_differences(mode):
    student, teacher = torch.randn(2, 3, 4, dtype=torch.float64)
    student.requires_grad_()
    loss = BinaryTargetLoss(2.0, mode, loss_weight=0.7)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@both_modes
def test_half_precision_is_lifted_and_autocast_is_kept_out(mode):
    student, teacher = 3 * torch.randn(2, 4, 10)
    loss = BinaryTargetLoss(2.0, mode)
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.03)


@pytest.mark.parametrize(
    'dtype', [torch.float16, torch.bfloat16, torch.float32]
)
@both_modes
def test_a_gap_of_a_thousand_does_not_overflow(mode, dtype):
    student = torch.tensor([[1000.0, -1000.0]], dtype=dtype).requires_grad_()
    teacher = torch.tensor([[-1000.0, 1000.0]], dtype=dtype)
    loss = BinaryTargetLoss(mode=mode)(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(2000)
    assert student.grad.tolist() == [[1, -1]]


def test_value_is_that_of_pytorch():
    student, teacher = torch.randn(2, 6, 9)
    expected = F.binary_cross_entropy_with_logits(
        student, teacher.sigmoid(), reduction='sum'
    )
    loss = BinaryTargetLoss()(student, teacher)
    assert loss.item() == pytest.approx(expected.item() / 6, rel=1e-5)


@both_modes
def test_teacher_gets_no_gradient(mode):
    student = torch.randn(2, 5, requires_grad=True)
    teacher = torch.randn(2, 5, requires_grad=True)
    BinaryTargetLoss(mode=mode)(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize(
    ('student', 'teacher', 'named'),
    [
        ((2, 10), (2, 1000), 'num_classes'),
        ((2, 1), (2, 5), 'num_classes'),
        ((2, 3, 4), (2, 3, 4), r'\(N, C\)'),
    ],
)
def test_logits_that_do_not_fit_are_refused(student, teacher, named):
    with pytest.raises(ValueError, match=named):
        BinaryTargetLoss()(torch.rand(student), torch.rand(teacher))


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
        BinaryTargetLoss(**arguments)
