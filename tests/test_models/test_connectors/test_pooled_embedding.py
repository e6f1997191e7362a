"""The embedding of pooled features."""

import pytest
import torch
from torch import nn

from mmcakd.models.connectors import PooledEmbedding


def test_a_map_is_averaged_and_embedded():
    embed = PooledEmbedding(4, in_channels=3)
    feature = torch.randn(2, 3, 5, 2)
    mean = feature.sum((2, 3)) / 10
    expected = mean @ embed.linear.weight.T + embed.linear.bias
    assert torch.allclose(embed(feature), expected, atol=1e-6)


def test_pooled_features_are_taken_as_they_are():
    embed = PooledEmbedding(4, in_channels=3)
    feature = torch.randn(2, 3)
    assert torch.allclose(embed(feature), embed(feature[:, :, None, None]))


def test_width_is_read_from_the_model():
    embed = PooledEmbedding()
    feature = torch.randn(2, 6, 4, 8)
    embed.prepare(dict(feature=feature), None)
    assert embed(feature).shape == (2, 128)
    linear = embed.linear
    # and only once
    embed.prepare(dict(feature=feature), None)
    assert embed.linear is linear


@pytest.mark.parametrize('shape', [(2, 6, 4, 8), (2, 6)])
def test_width_may_be_that_of_another_feature(shape):
    embed = PooledEmbedding(embed_dims=None)
    feature = torch.randn(shape)
    embed.prepare(dict(feature=feature), torch.rand(2, 4, 3, 3))
    assert isinstance(embed.linear, nn.Linear)
    assert embed(feature).shape == (2, 4)
    assert embed.embed_dims == 4


@pytest.mark.parametrize('like', [(2, 6, 3, 3), (2, 6)])
def test_feature_of_that_width_is_pooled_only(like):
    embed = PooledEmbedding(embed_dims=None)
    feature = torch.randn(2, 6, 4, 8)
    embed.prepare(dict(feature=feature), torch.rand(like))
    assert not list(embed.parameters())
    assert torch.equal(embed(feature), feature.mean((2, 3)))
    # It still knows what it was built for.
    with pytest.raises(ValueError, match='built for features'):
        embed(torch.rand(2, 7))


def test_known_width_needs_no_other_feature():
    embed = PooledEmbedding(embed_dims=None, in_channels=6)
    assert embed.linear is None
    embed.prepare(dict(feature=torch.rand(2, 6)), torch.rand(2, 3))
    assert embed.linear.weight.shape == (3, 6)


def test_width_that_nothing_tells_is_refused():
    embed = PooledEmbedding(embed_dims=None)
    with pytest.raises(ValueError, match='`shape_like`, or set `embed_dims`'):
        embed.prepare(dict(feature=torch.rand(2, 6)), None)


def test_an_embedding_without_a_width_is_refused():
    with pytest.raises(ValueError, match='in_channels'):
        PooledEmbedding()(torch.rand(2, 3))


@pytest.mark.parametrize('shape', [(2, 4, 5, 5), (2, 9, 3), (2, 4)])
def test_other_features_are_refused(shape):
    with pytest.raises(ValueError) as caught:
        PooledEmbedding(in_channels=3)(torch.rand(shape))
    assert str(shape) in str(caught.value)
