"""What losses say of themselves, and keep."""

import pytest
import torch

from mmcakd.models import losses
from mmcakd.models.losses import (
    BinaryTargetLoss,
    CCLoss,
    ComparesClasses,
    ComparesImages,
    ComparesPlaces,
    CRDLoss,
    DISTLoss,
    DKDLoss,
    DualViewLoss,
    InfoNCELoss,
    MSELoss,
    NeedsHardLabels,
    OFALoss,
    PCALoss,
    ReadsLogits,
    RKDLoss,
    RouterLoss,
    SoftTargetLoss,
    compares_classes,
    compares_places,
    needs_hard_labels,
    reads_logits,
)
from mmcakd.registry import MODELS

#: Losses that compare images, and the fewest they learn from.
FEWEST = [
    (CCLoss, {}, 2),
    (DISTLoss, {}, 2),
    (DISTLoss, dict(beta=0.0, gamma=0.5), 3),
    (DISTLoss, dict(gamma=0.0), 1),
    (InfoNCELoss, {}, 2),
    (InfoNCELoss, dict(symmetric=True), 2),
    (RKDLoss, {}, 3),
    (RKDLoss, dict(angle_weight=0.0), 3),
    (RKDLoss, dict(distance_weight=0.0), 3),
]
#: Losses over a softmax, and what they read besides logits.
SOFTMAX = [
    (SoftTargetLoss, {}, ()),
    (SoftTargetLoss, dict(mode='kl', tau=4.0), ()),
    (DISTLoss, dict(gamma=0.0), ()),
    (DKDLoss, {}, (torch.zeros(4, dtype=torch.long),)),
    (OFALoss, {}, (torch.zeros(4, dtype=torch.long),)),
]


def classes_with(trait) -> set:
    return {
        cls
        for cls in vars(losses).values()
        if isinstance(cls, type) and issubclass(cls, trait)
    } - {trait}


def test_every_loss_of_a_trait_is_in_its_contract():
    assert {kind for kind, *_ in FEWEST} == classes_with(ComparesImages)
    assert {kind for kind, *_ in SOFTMAX} == classes_with(ComparesClasses)


# ------------------------------------------------------------------- images


def gradient(loss, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    student, teacher = torch.randn(2, count, 6, generator=generator)
    student.requires_grad_()
    loss(student, teacher).backward()
    return student.grad


@pytest.mark.parametrize(('kind', 'arguments', 'fewest'), FEWEST)
def test_the_fewest_images_teach_each_of_them_something(
    kind, arguments, fewest
):
    loss = kind(**arguments)
    assert loss.min_images == fewest
    loss.check_batch_size(fewest)
    assert gradient(loss, fewest).abs().sum() > 1e-4


@pytest.mark.parametrize(
    ('kind', 'arguments', 'fewest'), [case for case in FEWEST if case[2] > 1]
)
def test_fewer_images_are_refused_in_the_step_and_before(
    kind, arguments, fewest
):
    loss = kind(**arguments)
    for count in range(1, fewest):
        for check in (
            lambda count=count: gradient(loss, count),
            lambda count=count: loss.check_batch_size(count),
        ):
            with pytest.raises(ValueError, match='larger batch.*drop_last'):
                check()


@pytest.mark.parametrize(
    ('kind', 'arguments', 'fewest'),
    [
        (CCLoss, {}, 2),
        (DISTLoss, dict(beta=0.0), 3),
        (RKDLoss, dict(angle_weight=0.0), 3),
        (RKDLoss, dict(distance_weight=0.0), 3),
    ],
)
def test_refused_batches_would_have_taught_nothing(
    kind, arguments, fewest, monkeypatch
):
    """The limits are none too high."""
    monkeypatch.setattr(kind, 'check_batch_size', lambda self, count: None)
    found = gradient(kind(**arguments), fewest - 1)
    # 0, or 0 / 0 pairs.
    assert found.nan_to_num().abs().max() < 1e-4


# ------------------------------------------------------------------ classes


@pytest.mark.parametrize(('kind', 'arguments', 'labels'), SOFTMAX)
def test_a_single_logit_is_refused_with_the_cure(kind, arguments, labels):
    logits = torch.randn(4, 1)
    with pytest.raises(ValueError, match='mmcakd.BinaryTargetLoss') as caught:
        kind(**arguments)(logits, -logits, *labels)
    assert 'num_classes=2' in str(caught.value)
    kind(**arguments)(torch.randn(4, 2), torch.randn(4, 2), *labels)


@pytest.mark.parametrize(('kind', 'arguments', 'labels'), SOFTMAX)
@pytest.mark.parametrize('shape', [(4,), (4, 3, 5), (4, 3, 2, 2)])
def test_logits_of_another_shape_are_refused(kind, arguments, labels, shape):
    with pytest.raises(ValueError, match=r'\(N, C\)'):
        kind(**arguments)(torch.rand(shape), torch.rand(shape), *labels)


@pytest.mark.parametrize('kind', [DKDLoss, OFALoss])
@pytest.mark.parametrize('label', [-1, 3])
def test_labels_of_classes_that_are_not_there_are_refused(kind, label):
    logits = torch.randn(2, 3)
    with pytest.raises(ValueError, match='3 classes') as caught:
        kind()(logits, logits, torch.tensor([0, label]))
    assert str(label) in str(caught.value)


@pytest.mark.parametrize(
    ('cfg', 'expected'),
    [
        (dict(type='mmrazor.KLDivergence'), True),
        (dict(type='mmrazor.DKDLoss'), True),
        (dict(type='mmrazor.DISTLoss'), True),
        (dict(type='mmrazor.L2Loss'), False),
        (dict(type='mmcakd.MSELoss'), False),
        (dict(type='mmcakd.OFALoss'), True),
    ],
)
def test_losses_of_mmrazor_have_the_trait_too(cfg, expected):
    assert compares_classes(MODELS.build(cfg)) is expected


def test_a_sigmoid_is_for_any_number_of_labels():
    assert not compares_classes(BinaryTargetLoss())
    assert BinaryTargetLoss()(torch.ones(1, 1), torch.zeros(1, 1)) > 0


# ------------------------------------------------------------------- others


def test_traits_that_an_algorithm_asks_for():
    places = {DualViewLoss, MSELoss, PCALoss, RouterLoss}
    assert classes_with(ComparesPlaces) == places
    assert classes_with(NeedsHardLabels) == {CRDLoss}
    logits = {kind for kind, *_ in SOFTMAX} | {BinaryTargetLoss}
    assert classes_with(ReadsLogits) - {ComparesClasses} == logits
    assert compares_places(MSELoss())
    assert not compares_places(SoftTargetLoss())
    assert reads_logits(BinaryTargetLoss())
    assert not reads_logits(MSELoss())
    assert needs_hard_labels(CRDLoss())
    assert not needs_hard_labels(DKDLoss())


@pytest.mark.parametrize(
    ('name', 'places', 'logits'),
    [
        ('L2Loss', True, False),
        ('PKDLoss', True, False),
        ('ChannelWiseDivergence', True, False),
        ('KLDivergence', False, True),
        ('DistanceWiseRKD', False, False),
    ],
)
def test_losses_of_mmrazor_are_known(name, places, logits):
    loss = MODELS.build(dict(type=f'mmrazor.{name}'))
    assert compares_places(loss) == places
    assert reads_logits(loss) == logits


def test_loss_of_ones_own_has_the_traits_it_inherits():
    class Own(ComparesPlaces, torch.nn.Module):
        """A loss of somebody else."""

    assert compares_places(Own())
    # What one derives from MMRazor's is of another module.
    kind = MODELS.get('mmrazor.L2Loss')
    assert not compares_places(type('Derived', (kind,), {})())
