"""The cross attention projector against a naive implementation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.models.connectors import CAPConnector


def make_cap(**kwargs) -> CAPConnector:
    """A projector of an odd size, so that no two widths are mixed up."""
    cfg = dict(num_heads=2, kappa=5.0, in_channels=6, in_grid=(3, 5))
    cfg |= dict(embed_dims=8, query_grid=(2, 4)) | kwargs
    return CAPConnector(**cfg)


def spread(cap: CAPConnector) -> CAPConnector:
    """Give every parameter a size at which no step of it can hide."""
    for name, parameter in cap.named_parameters():
        scale = 1.0 if name == 'query' else 0.4
        nn.init.normal_(parameter, std=scale)
    return cap.double()


def naive_cap(cap, feature, query=None, kappa=5.0, heads=2):
    """Equations of the method's notes, one image, head and token at a time."""
    conv, norm, _ = cap.stem
    context = F.conv2d(feature, conv.weight, conv.bias, stride=1, padding=1)
    if isinstance(norm, nn.BatchNorm2d):
        mean = context.mean((0, 2, 3), keepdim=True)
        variance = context.var((0, 2, 3), unbiased=False, keepdim=True)
    else:
        mean = context.mean(1, keepdim=True)
        variance = context.var(1, unbiased=False, keepdim=True)
    context = (context - mean) / (variance + 1e-5).sqrt()
    context = context * norm.weight.view(1, -1, 1, 1)
    context = (context + norm.bias.view(1, -1, 1, 1)).clamp(min=0)
    context = context + cap.pos_embed

    outputs = []
    for index, image in enumerate(context):
        tokens = torch.stack(
            [
                image[:, row, column]
                for row in range(image.shape[1])
                for column in range(image.shape[2])
            ]
        )
        asked = cap.query if query is None else query[index]
        asked = (
            asked @ cap.query_embed.weight.T + cap.query_embed.bias
        ).clamp(min=0)
        q = asked @ cap.q_proj.weight.T + cap.q_proj.bias
        k = tokens @ cap.k_proj.weight.T + cap.k_proj.bias
        v = tokens @ cap.v_proj.weight.T + cap.v_proj.bias
        width = q.shape[1] // heads
        read = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = q[:, part] @ k[:, part].T * width**-0.5 * kappa
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            read.append(weights @ v[:, part])
        out = torch.cat(read, 1) @ cap.out_proj.weight.T + cap.out_proj.bias
        y = F.layer_norm(
            out, out.shape[1:], cap.norm.weight, cap.norm.bias, 1e-5
        )
        first, _, second = cap.ffn
        hidden = (y @ first.weight.T + first.bias).clamp(min=0)
        outputs.append(y + hidden @ second.weight.T + second.bias)
    return torch.stack(outputs)


# -------------------------------------------------------------- its numbers

#: student channels, its side, teacher width, teacher side, learnable, count
COUNTS = {
    'swin-l to resnet50, stage 3': (1024, 14, 768, 14, True, 17_861_632),
    'swin-l to resnet50, stage 4': (2048, 7, 1536, 7, False, 70_117_376),
    'swin-b to resnet50, stage 3': (1024, 14, 512, 14, True, 13_679_616),
    'swin-b to resnet50, stage 4': (2048, 7, 1024, 7, False, 53_596_160),
    'swin-l to mobilenetv1, stage 3': (512, 14, 768, 14, True, 9_895_424),
    'swin-l to mobilenetv1, stage 4': (1024, 7, 1536, 7, False, 38_606_848),
}


@pytest.mark.parametrize('pair', COUNTS)
def test_parameter_count_is_the_published_one(pair):
    s, side, t, query_side, learnable, expected = COUNTS[pair]
    with torch.device('meta'):
        cap = CAPConnector(
            num_heads=8,
            in_channels=s,
            in_grid=(side, side),
            embed_dims=t,
            query_grid=(query_side, query_side) if learnable else None,
        )
    assert sum(p.numel() for p in cap.parameters()) == expected
    assert all(p.requires_grad for p in cap.parameters())


@pytest.mark.parametrize('learnable', [True, False])
def test_parameter_count_follows_the_formula(learnable):
    s, p, t, q = 6, 15, 8, 8
    cap = make_cap(query_grid=(2, 4) if learnable else None)
    expected = 9 * s**2 + 3 * s + s * p + 2 * s * t + 11 * t**2 + 12 * t
    expected += q * t if learnable else 0
    assert sum(x.numel() for x in cap.parameters()) == expected


# ----------------------------------------------------------- what it computes


@pytest.mark.parametrize('norm', ['BN', 'LN2d'])
@pytest.mark.parametrize('kappa', [1.0, 5.0, 0.2])
@pytest.mark.parametrize('heads', [1, 2, 8])
def test_output_is_that_of_a_naive_implementation(norm, kappa, heads):
    cap = spread(
        make_cap(num_heads=heads, kappa=kappa, norm_cfg=dict(type=norm))
    )
    feature = torch.randn(3, 6, 3, 5, dtype=torch.float64)
    expected = naive_cap(cap, feature, kappa=kappa, heads=heads)
    assert expected.shape == (3, 8, 8)
    assert torch.allclose(cap(feature), expected, atol=1e-10)


def test_query_from_outside_is_that_of_a_naive_implementation():
    cap = spread(make_cap(query_grid=None))
    feature = torch.randn(3, 6, 3, 5, dtype=torch.float64)
    query = torch.randn(3, 4, 8, dtype=torch.float64)
    expected = naive_cap(cap, feature, query)
    assert expected.shape == (3, 4, 8)
    assert torch.allclose(cap(feature, query), expected, atol=1e-10)
    assert torch.allclose(
        cap(feature=feature, query=query), expected, atol=1e-10
    )


def test_attention_is_torchs_multi_head_attention_at_kappa_one():
    cap = spread(make_cap(kappa=1.0)).eval()
    attention = nn.MultiheadAttention(
        8, 2, kdim=6, vdim=6, batch_first=True
    ).double()
    attention.q_proj_weight.data = cap.q_proj.weight.data
    attention.k_proj_weight.data = cap.k_proj.weight.data
    attention.v_proj_weight.data = cap.v_proj.weight.data
    attention.in_proj_bias.data = torch.cat(
        [cap.q_proj.bias, cap.k_proj.bias, cap.v_proj.bias]
    ).data
    attention.out_proj.load_state_dict(cap.out_proj.state_dict())

    feature = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    context = (cap.stem(feature) + cap.pos_embed).flatten(2).transpose(1, 2)
    query = F.relu(cap.query_embed(cap.query)).expand(2, -1, -1)
    y = cap.norm(attention(query, context, context, need_weights=False)[0])
    assert torch.allclose(cap(feature), y + cap.ffn(y), atol=1e-10)


def test_external_query_wins_over_the_learnable_one():
    cap = spread(make_cap())
    feature = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    own = cap.query.expand(2, -1, -1)
    assert torch.allclose(cap(feature, own), cap(feature), atol=1e-10)
    other = cap(feature, -own)
    assert not torch.allclose(other, cap(feature), atol=1e-2)


def test_each_image_is_asked_its_own_query():
    cap = spread(make_cap(query_grid=None)).eval()
    feature = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    query = torch.randn(2, 4, 8, dtype=torch.float64)
    together = cap(feature, query)
    for index in range(2):
        part = slice(index, index + 1)
        alone = cap(feature[part], query[part])
        assert torch.allclose(together[part], alone, atol=1e-10)


def test_gradient_is_that_of_finite_differences():
    cap = spread(
        CAPConnector(2, 2.0, None, 2, (2, 2), 4, query_grid=(1, 2))
    ).eval()
    feature = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    query = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cap, (feature, query))

    names = [name for name, _ in cap.named_parameters()]

    def by_parameters(*values):
        parameters = dict(zip(names, values, strict=True))
        return torch.func.functional_call(cap, parameters, (feature.detach(),))

    values = tuple(
        p.detach().clone().requires_grad_() for p in cap.parameters()
    )
    assert torch.autograd.gradcheck(by_parameters, values, fast_mode=True)


def test_every_parameter_and_both_inputs_get_a_gradient():
    cap = make_cap()
    feature = torch.randn(2, 6, 3, 5, requires_grad=True)
    cap(feature).square().sum().backward()
    assert not [n for n, p in cap.named_parameters() if p.grad is None]
    assert feature.grad.abs().sum() > 0

    follower = make_cap(query_grid=None)
    query = torch.randn(2, 4, 8, requires_grad=True)
    follower(torch.randn(2, 6, 3, 5), query).square().sum().backward()
    assert query.grad.abs().sum() > 0


def test_bfloat16_stays_close_to_float32():
    cap = make_cap()
    feature = torch.randn(4, 6, 3, 5)
    expected = cap(feature)
    with torch.autocast('cpu', torch.bfloat16):
        output = cap(feature)
    assert output.isfinite().all()
    assert (output.float() - expected).abs().max() < 0.1


# ------------------------------------------------------------- how it starts


def test_it_starts_as_the_notes_say():
    cap = CAPConnector(
        4, in_channels=64, in_grid=(14, 14), embed_dims=32, query_grid=(14, 14)
    )
    for _ in range(2):
        assert cap.pos_embed.mean().item() == pytest.approx(0, abs=1e-3)
        assert cap.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
        assert cap.query.mean().item() == pytest.approx(0, abs=0.05)
        assert cap.query.std().item() == pytest.approx(1, rel=0.05)
        # What a Runner does before training.
        cap.init_weights()


def test_two_projectors_start_differently():
    first, second = make_cap(), make_cap()
    assert not torch.equal(first.query, second.query)
    assert not torch.equal(first.q_proj.weight, second.q_proj.weight)


# -------------------------------------------------------------- preparation


def test_sizes_are_read_from_examples():
    cap = CAPConnector(num_heads=2)
    assert not cap.is_built
    cap.prepare(dict(feature=torch.zeros(1, 6, 3, 5)), torch.zeros(1, 8, 2, 4))
    assert cap.is_built
    assert cap(torch.randn(2, 6, 3, 5)).shape == (2, 8, 8)


def test_width_is_read_from_the_query_that_is_fed():
    cap = CAPConnector(num_heads=2)
    inputs = dict(feature=torch.zeros(1, 6, 3, 5), query=torch.zeros(1, 4, 8))
    cap.prepare(inputs, None)
    assert not any(name == 'query' for name, _ in cap.named_parameters())
    out = cap(torch.randn(2, 6, 3, 5), torch.randn(2, 4, 8))
    assert out.shape == (2, 4, 8)


def test_explicit_sizes_win_over_examples():
    cap = CAPConnector(num_heads=2, query_grid=(1, 3), embed_dims=4)
    cap.prepare(dict(feature=torch.zeros(1, 6, 3, 5)), torch.zeros(1, 8, 2, 4))
    assert cap(torch.randn(2, 6, 3, 5)).shape == (2, 3, 4)


def test_second_preparation_keeps_the_parameters():
    cap = make_cap()
    before = {key: value.clone() for key, value in cap.state_dict().items()}
    cap.prepare(dict(feature=torch.zeros(1, 6, 3, 5)), torch.zeros(1, 8, 2, 4))
    assert all(
        torch.equal(value, before[key])
        for key, value in cap.state_dict().items()
    )


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize('heads', [3, 5, 16])
def test_heads_that_do_not_divide_the_width_are_refused(heads):
    with pytest.raises(ValueError, match=f'num_heads={heads}.* 8 .*divisor'):
        make_cap(num_heads=heads)


@pytest.mark.parametrize('shape', [(2, 6, 5, 3), (2, 6, 7, 7), (2, 5, 3, 5)])
def test_map_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match='input_size') as caught:
        make_cap()(torch.rand(shape))
    assert '(6, 3, 5)' in str(caught.value)
    assert str(shape[1:]) in str(caught.value)


def test_missing_query_is_refused():
    with pytest.raises(ValueError, match='no learnable query.*query_grid'):
        make_cap(query_grid=None)(torch.rand(2, 6, 3, 5))


def test_query_of_another_width_is_refused():
    with pytest.raises(ValueError, match='8'):
        make_cap()(torch.rand(2, 6, 3, 5), torch.rand(2, 4, 10))


def test_projector_without_sizes_is_refused():
    with pytest.raises(ValueError, match='in_channels, in_grid'):
        CAPConnector(num_heads=2)(torch.rand(2, 6, 3, 5))


def test_open_width_is_refused():
    with pytest.raises(ValueError, match='shape_like'):
        CAPConnector(num_heads=2).prepare(
            dict(feature=torch.zeros(1, 6, 3, 5)), None
        )


def test_feature_that_is_no_map_is_refused():
    with pytest.raises(ValueError, match=r'map \(N, C, H, W\).*\(1, 9, 6\)'):
        CAPConnector(num_heads=2).prepare(
            dict(feature=torch.zeros(1, 9, 6)), torch.zeros(1, 8, 2, 4)
        )
