"""Group-wise linear projector: tiles, grids and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmcakd.models.connectors import GLPConnector
from mmcakd.models.functional import resize_map

GRIDS = [((14, 14), 16), ((7, 7), 4), ((10, 14), 12), ((4, 4), 1), ((1, 9), 3)]


def build(grid, dropout=0.0, channels=3, width=5):
    return GLPConnector(dropout, channels, width, grid)


@pytest.mark.parametrize(('grid', 'tiles'), GRIDS)
def test_each_tile_has_a_linear_layer(grid, tiles):
    connector = build(grid)
    shapes = {n: tuple(p.shape) for n, p in connector.named_parameters()}
    assert shapes == dict(weight=(tiles, 3, 5), bias=(tiles, 1, 5))


@pytest.mark.parametrize(('grid', 'tiles'), GRIDS)
def test_each_place_goes_through_the_layer_of_its_tile(grid, tiles):
    connector = build(grid)
    feature = torch.randn(2, 3, *grid)
    expected = []
    for y in range(grid[0]):
        for x in range(grid[1]):
            tile = y // 4 * math.ceil(grid[1] / 4) + x // 4
            expected.append(
                feature[:, :, y, x] @ connector.weight[tile]
                + connector.bias[tile]
            )
    torch.testing.assert_close(connector(feature), torch.stack(expected, 1))


def test_tiles_are_contiguous_and_alone():
    connector = build((7, 10))
    feature = torch.randn(1, 3, 7, 10, requires_grad=True)
    tokens = connector(feature).unflatten(1, (7, 10))
    tokens[:, 4:, 4:8].sum().backward()
    seen = feature.grad[0].abs().sum(0) > 0
    expected = torch.zeros(7, 10, dtype=torch.bool)
    expected[4:, 4:8] = True
    assert torch.equal(seen, expected)
    used = connector.weight.grad.abs().sum((1, 2)) > 0
    assert used.tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize(
    ('given', 'grid'), [((14, 14), (7, 7)), ((3, 9), (5, 6)), ((2, 2), (7, 7))]
)
def test_other_grids_are_brought_to_the_teachers(given, grid):
    connector = build(grid)
    feature = torch.randn(2, 3, *given)
    out = connector(feature)
    assert out.shape == (2, grid[0] * grid[1], 5)
    assert torch.equal(out, connector(resize_map(feature, grid)))


@pytest.mark.parametrize(
    ('given', 'grid'),
    [((8, 6), (2, 3)), ((2, 3), (7, 5)), ((8, 2), (4, 6)), ((4, 4), (4, 4))],
)
def test_resizing_averages_down_and_interpolates_up(given, grid):
    feature = torch.randn(2, 3, *given)
    expected = feature
    if given[0] > grid[0]:
        expected = F.adaptive_avg_pool2d(expected, (grid[0], None))
    if given[1] > grid[1]:
        expected = F.adaptive_avg_pool2d(expected, (None, grid[1]))
    expected = F.interpolate(expected, grid, mode='bilinear')
    torch.testing.assert_close(resize_map(feature, grid), expected)


def test_dropout_is_of_training_alone():
    connector = build((8, 8), dropout=0.1, width=50).train()
    feature = torch.randn(4, 3, 8, 8)
    out = connector(feature)
    plain = connector.eval()(feature)
    dropped = out == 0
    bound = 5 * (0.09 / out.numel()) ** 0.5
    assert abs(dropped.float().mean().item() - 0.1) < bound
    torch.testing.assert_close(out[~dropped], plain[~dropped] / 0.9)
    assert not (plain == 0).any()


def test_first_weights_are_those_of_linear_layers():
    connector = build((16, 16), channels=64, width=100)
    for parameter in (connector.weight, connector.bias):
        assert parameter.abs().max() <= 1 / 8
        std = parameter.std().item()
        assert std == pytest.approx(1 / 8 / 3**0.5, rel=0.05)


def test_tokens_become_the_map_of_a_cnn():
    # iGL: tokens of a ViT on 4x6 to the 2x3 map of a CNN.
    connector = GLPConnector()
    student, teacher = torch.randn(2, 16, 4, 6), torch.randn(2, 32, 2, 3)
    connector.prepare(dict(feature=student), teacher)
    assert connector(student).shape == (2, 6, 32)


def test_sizes_are_read_from_the_models():
    connector = GLPConnector()
    feature = torch.randn(2, 6, 4, 8)
    connector.prepare(dict(feature=feature), torch.randn(2, 10, 3, 5))
    assert connector(feature).shape == (2, 15, 10)
    weight = connector.weight
    # and only once
    connector.prepare(dict(feature=feature), torch.randn(2, 12, 3, 5))
    assert connector.weight is weight


def test_given_sizes_come_before_those_of_the_models():
    connector = GLPConnector(out_channels=7)
    feature = torch.randn(2, 6, 4, 8)
    connector.prepare(dict(feature=feature), torch.randn(2, 10, 3, 5))
    assert connector(feature).shape == (2, 15, 7)


def test_gradients():
    connector = build((5, 6), channels=2, width=2).double()
    feature = torch.randn(2, 2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(connector, feature)

    def of_weights(weight, bias):
        return torch.func.functional_call(
            connector, dict(weight=weight, bias=bias), feature.detach()
        )

    assert torch.autograd.gradcheck(
        of_weights, (connector.weight, connector.bias)
    )


def test_bf16_autocast():
    connector = build((7, 7))
    feature = torch.randn(2, 3, 7, 7)
    expected = connector(feature)
    with torch.autocast('cpu', torch.bfloat16):
        out = connector(feature)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.03)
    out.float().square().sum().backward()
    assert torch.isfinite(connector.weight.grad).all()


def test_a_connector_without_sizes_is_refused():
    with pytest.raises(ValueError, match='in_channels'):
        GLPConnector()(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match='shape_like'):
        GLPConnector().prepare(dict(feature=torch.rand(1, 3, 4, 4)), None)


def test_features_that_are_no_maps_are_refused():
    tokens, feature = torch.rand(2, 16, 3), torch.rand(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r'`feature`.*\(2, 16, 3\)'):
        GLPConnector().prepare(dict(feature=tokens), feature)
    with pytest.raises(ValueError, match=r'`shape_like`.*\(2, 16, 3\)'):
        GLPConnector().prepare(dict(feature=feature), tokens)
    with pytest.raises(ValueError, match=r'`feature`.*\(2, 16, 3\)'):
        build((4, 4))(tokens)


def test_a_map_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r'3 channels.*\(2, 4, 7, 7\)'):
        build((4, 4))(torch.rand(2, 4, 7, 7))
