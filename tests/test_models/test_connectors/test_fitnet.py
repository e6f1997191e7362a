"""The regressor of FitNets: grids, widths and weights."""

import pytest
import torch
import torch.nn.functional as F

from mmcakd.models.connectors import FitNetConnector


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        ((4, 4), (4, 4)),
        ((8, 6), (2, 3)),
        ((2, 3), (7, 5)),
        ((8, 2), (4, 6)),
        ((1, 9), (3, 3)),
        ((7, 7), (4, 5)),
    ],
)
def test_sides_are_averaged_down_or_interpolated_up(given, wanted):
    connector = FitNetConnector(3, 5, wanted)
    feature = torch.randn(2, 3, *given)
    # 1x1 convolution of each position, then one side after the other.
    expected = torch.einsum(
        'oc,nchw->nohw', connector.conv.weight[:, :, 0, 0], feature
    )
    height, width = wanted
    if given[0] > height:
        expected = F.adaptive_avg_pool2d(expected, (height, None))
    if given[1] > width:
        expected = F.adaptive_avg_pool2d(expected, (None, width))
    expected = F.interpolate(expected, wanted, mode='bilinear')
    out = connector(feature)
    assert out.shape == (2, 5, *wanted)
    assert torch.allclose(out, expected, atol=1e-5)


def test_a_constant_map_stays_constant():
    connector = FitNetConnector(3, 5, (4, 6))
    feature = torch.randn(2, 3, 1, 1).expand(-1, -1, 9, 2)
    out = connector(feature)
    assert torch.allclose(out, out[:, :, :1, :1].expand_as(out), atol=1e-6)


def test_the_only_weights_are_those_of_a_convolution_without_bias():
    connector = FitNetConnector(40, 500, (4, 4))
    shapes = {n: tuple(p.shape) for n, p in connector.named_parameters()}
    assert shapes == {'conv.weight': (500, 40, 1, 1)}
    # Kaiming, fan-out
    expected = (2 / 500) ** 0.5
    assert connector.conv.weight.std().item() == pytest.approx(
        expected, rel=0.05
    )


def test_sizes_are_read_from_the_models():
    connector = FitNetConnector()
    feature = torch.randn(2, 6, 4, 8)
    connector.prepare(dict(feature=feature), torch.randn(2, 10, 3, 5))
    assert connector(feature).shape == (2, 10, 3, 5)
    weight = connector.conv.weight
    # and only once
    connector.prepare(dict(feature=feature), torch.randn(2, 12, 3, 5))
    assert connector.conv.weight is weight


def test_given_sizes_come_before_those_of_the_models():
    connector = FitNetConnector(out_channels=7)
    feature = torch.randn(2, 6, 4, 8)
    connector.prepare(dict(feature=feature), torch.randn(2, 10, 3, 5))
    assert connector(feature).shape == (2, 7, 3, 5)


def test_gradient_reaches_the_student_and_the_weights():
    connector = FitNetConnector(2, 3, (2, 5)).double()
    feature = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(connector, feature)
    connector(feature).sum().backward()
    assert connector.conv.weight.grad.abs().sum() > 0


def test_a_connector_without_sizes_is_refused():
    with pytest.raises(ValueError, match='in_channels'):
        FitNetConnector()(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match='shape_like'):
        FitNetConnector().prepare(dict(feature=torch.rand(1, 3, 4, 4)), None)


def test_features_that_are_no_maps_are_refused():
    tokens = torch.rand(2, 16, 3)
    with pytest.raises(ValueError, match=r'\(2, 16, 3\)'):
        FitNetConnector().prepare(dict(feature=tokens), torch.rand(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r'\(2, 16, 3\)'):
        FitNetConnector(3, 5, (4, 4))(tokens)


def test_a_map_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r'\(2, 4, 7, 7\)'):
        FitNetConnector(3, 5, (4, 4))(torch.rand(2, 4, 7, 7))
