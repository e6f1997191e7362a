"""A discriminator of pooled tokens."""

import pytest
import torch
import torch.nn.functional as F

from mmcakd.models.discriminators import TokenDiscriminator


def test_logit_is_three_linear_layers_of_the_mean_token():
    discriminator = TokenDiscriminator(16).double()
    tokens = torch.randn(3, 10, 16, dtype=torch.float64)
    state = discriminator.state_dict()
    hidden = tokens.sum(1) / 10
    for index in (0, 2, 4):
        weight = state[f'layers.{index}.weight']
        hidden = hidden @ weight.T + state[f'layers.{index}.bias']
        if index < 4:
            hidden = torch.where(hidden > 0, hidden, 0.2 * hidden)
    assert hidden.shape == (3, 1)
    assert torch.allclose(discriminator(tokens), hidden)


@pytest.mark.parametrize(('width', 'hidden'), [(768, 384), (3, 1)])
def test_widths_are_a_half_and_a_quarter(width, hidden):
    discriminator = TokenDiscriminator(width)
    quarter = max(width // 4, 1)
    assert [p.shape for p in discriminator.parameters() if p.ndim == 2] == [
        (hidden, width),
        (quarter, hidden),
        (1, quarter),
    ]


def test_tokens_maps_and_vectors_are_the_same_to_it():
    discriminator = TokenDiscriminator(8)
    maps = torch.randn(2, 8, 3, 5)
    logits = discriminator(maps)
    tokens = maps.flatten(2).transpose(1, 2)
    vectors = F.adaptive_avg_pool2d(maps, 1).flatten(1)
    assert torch.allclose(discriminator(tokens), logits, atol=1e-6)
    assert torch.allclose(discriminator(vectors), logits, atol=1e-6)


def test_width_is_read_once():
    discriminator = TokenDiscriminator()
    assert not list(discriminator.parameters())
    discriminator.prepare(torch.rand(2, 49, 12))
    weights = list(discriminator.parameters())
    assert discriminator.embed_dims == 12
    discriminator.prepare(torch.rand(2, 49, 20))
    assert [id(p) for p in discriminator.parameters()] == list(
        map(id, weights)
    )


def test_other_width_is_named():
    with pytest.raises(ValueError, match=r'width 8.*\(2, 5, 7\).*project'):
        TokenDiscriminator(8)(torch.rand(2, 5, 7))
    with pytest.raises(ValueError, match=r'tokens \(N, L, d\).*\(8,\)'):
        TokenDiscriminator(8)(torch.rand(8))
