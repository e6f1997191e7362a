"""The two sides of a discriminator."""

import math

import pytest
import torch
from torch import nn

from mmcakd.models.discriminators import PatchDiscriminator, TokenDiscriminator
from mmcakd.models.losses import AdversarialLoss, Attended


class Given(nn.Module):
    """A discriminator that finds its logits in the features."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def prepare(self, feature):
        pass

    def forward(self, feature):
        return self.scale * feature


def in_training(**kwargs) -> AdversarialLoss:
    """As an AdversarialDistill leaves it."""
    loss = AdversarialLoss(**kwargs)
    loss.has_turns = True
    return loss


def given(fake, real=(0.0,), **kwargs):
    loss = in_training(discriminator=Given(), **kwargs).double()
    fake = torch.tensor(fake, dtype=torch.float64, requires_grad=True)
    real = torch.tensor(real, dtype=torch.float64)
    return loss, fake, real, loss(fake, real)


# ------------------------------------------------------------------- its value


def test_undecided_discriminator_gives_log_two():
    loss, *sides, student = given([0.0, 0.0], [0.0, 0.0])
    assert student.item() == pytest.approx(math.log(2))
    own = loss.discriminator_loss(*sides)
    assert own.item() == pytest.approx(2 * math.log(2))
    *_, saturating = given([0.0, 0.0], saturating=True)
    assert saturating.item() == pytest.approx(-math.log(2))


def test_probabilities_enter_by_their_logarithms():
    def logit(p):
        return math.log(p / (1 - p))

    fake, real = [logit(0.2), logit(0.5)], [logit(0.9), logit(0.6)]
    loss, *sides, student = given(fake, real, loss_weight=3.0)
    assert student.item() == pytest.approx(
        3 * -(math.log(0.2) + math.log(0.5)) / 2
    )
    # The weight is the student's alone.
    assert loss.discriminator_loss(*sides).item() == pytest.approx(
        -(math.log(0.9) + math.log(0.6)) / 2
        - (math.log(0.8) + math.log(0.5)) / 2
    )
    *_, saturating = given(fake, real, saturating=True)
    assert saturating.item() == pytest.approx(
        (math.log(0.8) + math.log(0.5)) / 2
    )


def test_gradients_are_those_of_the_formulas():
    loss, fake, real, student = given([-1.0, 2.0], [0.5, 3.0])
    student.backward()
    # d/dx -log sigmoid(x) = sigmoid(x) - 1
    expected = (torch.sigmoid(fake) - 1) / 2
    assert torch.allclose(fake.grad, expected)

    loss.discriminator_loss(fake, real).backward()
    # d/ds of a logit s x is x times d/dx
    by_hand = ((torch.sigmoid(real) - 1) * real).mean()
    by_hand = by_hand + (torch.sigmoid(fake) * fake).mean()
    assert loss.discriminator.scale.grad.item() == pytest.approx(
        by_hand.item()
    )

    _, fake, _, student = given([-1.0, 2.0], saturating=True)
    student.backward()
    # d/dx log(1 - sigmoid(x)) = -sigmoid(x)
    assert torch.allclose(fake.grad, -torch.sigmoid(fake) / 2)


def test_saturating_form_has_no_gradient_where_the_discriminator_wins():
    _, fake, _, student = given([-1000.0], saturating=True)
    student.backward()
    assert fake.grad.item() == 0
    _, fake, _, student = given([-1000.0])
    student.backward()
    assert fake.grad.item() == -1


@pytest.mark.parametrize('saturating', [False, True])
@pytest.mark.parametrize('gap', [1000.0, -1000.0])
def test_logits_of_a_thousand_stay_finite(gap, saturating):
    loss, fake, real, student = given([-gap], [gap], saturating=saturating)
    (student + loss.discriminator_loss(fake, real)).backward()
    assert fake.grad.isfinite().all()
    assert loss.discriminator.scale.grad.isfinite()
    # Where it is sure and right, the student's -log D is 1000.
    won = gap > 0
    assert student.item() == {
        (False, True): 1000, (False, False): 0,
        (True, True): 0, (True, False): -1000,
    }[saturating, won]  # fmt: skip
    assert loss.discriminator_loss(fake, real).item() == (0 if won else 2000)


@pytest.mark.parametrize(
    ('discriminator', 'shape'),
    [
        (TokenDiscriminator(8), (2, 5, 8)),
        (PatchDiscriminator(1, 2, num_layers=1), (2, 6, 7)),
    ],
)
@pytest.mark.parametrize('saturating', [False, True])
def test_gradient_of_the_student_is_numerical(
    discriminator, shape, saturating
):
    loss = in_training(discriminator=discriminator, saturating=saturating)
    loss.double()
    fake = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    real = torch.randn(shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: loss(f, real), fake)


# ---------------------------------------------------------------- two sides


def test_each_side_has_a_gradient_for_itself_alone():
    loss = in_training()
    fake = torch.randn(2, 5, 8, requires_grad=True)
    real = torch.randn(2, 7, 8, requires_grad=True)
    loss(fake, real).backward()
    assert fake.grad.any()
    assert real.grad is None
    parameters = list(loss.discriminator.parameters())
    assert len(parameters) == 6
    assert all(p.requires_grad for p in parameters)
    assert all(p.grad is None for p in parameters)

    fake.grad = None
    loss.discriminator_loss(fake, real).backward()
    assert fake.grad is None
    assert real.grad is None
    assert all(p.grad.any() for p in parameters)


def test_attention_of_a_pca_connector_is_read():
    loss = in_training(discriminator=Given())
    maps = [torch.randn(2, 6, 6) for _ in range(2)]
    values = torch.zeros(2, 1, 6, 4)
    attended = [Attended(attention, values) for attention in maps]
    assert torch.equal(loss(*attended), loss(*maps))


def test_half_precision_is_judged_in_float32():
    loss = in_training()
    fake, real = torch.randn(2, 2, 5, 8).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        student = loss(fake.requires_grad_(), real)
        own = loss.discriminator_loss(fake, real)
    exact = loss(fake.float(), real.float())
    assert student.dtype == own.dtype == torch.float32
    assert torch.equal(student, exact)
    assert torch.equal(own, loss.discriminator_loss(fake, real))


def test_student_of_an_untrained_discriminator_is_refused():
    loss = AdversarialLoss()
    features = torch.randn(2, 5, 8)
    loss(features, features)
    with pytest.raises(RuntimeError, match='mmcakd.AdversarialDistill'):
        loss(features.requires_grad_(), features.detach())
    loss.eval()(features, features.detach())
