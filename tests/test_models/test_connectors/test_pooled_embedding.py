"""The embedding of pooled features."""

import pytest
import torch

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


def test_an_embedding_without_a_width_is_refused():
    with pytest.raises(ValueError, match='in_channels'):
        PooledEmbedding()(torch.rand(2, 3))


@pytest.mark.parametrize('shape', [(2, 4, 5, 5), (2, 9, 3), (2, 4)])
def test_other_features_are_refused(shape):
    with pytest.raises(ValueError) as caught:
        PooledEmbedding(in_channels=3)(torch.rand(shape))
    assert str(shape) in str(caught.value)
