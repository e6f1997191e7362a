"""Partially cross attention from a CNN to a transformer."""

import pytest
import torch

from mmcakd.models.connectors import InversePCAConnector
from mmcakd.models.functional import resize_map
from mmcakd.models.losses import PCALoss
from mmcakd.models.recorders import QKV, find_windows


def student_qkv(grid=(3, 5), heads=2, dims=4, requires_grad=True):
    shape = (3, 2, heads, grid[0] * grid[1], dims)
    return QKV(*torch.randn(shape, requires_grad=requires_grad), grid)


def build(replace_prob=0.0, head_dims=6, **kwargs):
    return InversePCAConnector(
        head_dims,
        replace_prob=replace_prob,
        in_channels=8,
        out_channels=12,
        **kwargs,
    )


def heads(tokens, dims):
    return torch.stack(tokens.split(dims, -1), 1)


def by_hand(q, k, v):
    score = torch.einsum('nhid,nhjd->nhij', q, k) / q.shape[-1] ** 0.5
    return score.softmax(-1) @ v


def normalised(feature):
    """Tokens with mean 0 and variance 1."""
    tokens = feature.flatten(2).transpose(1, 2)
    mean = tokens.mean(-1, keepdim=True)
    std = tokens.var(-1, unbiased=False, keepdim=True).add(1e-5).sqrt()
    return (tokens - mean) / std


@pytest.mark.parametrize('head_dims', [4, 6, 12])
def test_target_is_the_attention_of_the_map_to_itself(head_dims):
    connector = build(head_dims=head_dims)
    feature = torch.randn(2, 12, 3, 5)
    out = connector(student_qkv(), feature)['teacher']
    tokens = heads(normalised(feature), head_dims)
    torch.testing.assert_close(out.value, tokens)
    torch.testing.assert_close(out.attention, by_hand(tokens, tokens, tokens))


def test_student_attends_with_its_own_queries_keys_and_values():
    connector, qkv = build(), student_qkv()
    out = connector(qkv, torch.randn(2, 12, 3, 5))['student']
    parts = []
    for x, w, b in zip(
        qkv[:3],
        connector.project.weight[:, :, 0, 0].chunk(3),
        connector.project.bias.chunk(3),
        strict=True,
    ):
        tokens = torch.cat(x.unbind(1), -1)
        parts.append(heads(tokens @ w.T + b, 6))
    torch.testing.assert_close(out.attention, by_hand(*parts))
    torch.testing.assert_close(out.value, parts[2])


def test_replaced_throughout_the_student_attends_as_the_map():
    connector = build(1.0).train()
    out = connector(student_qkv(), torch.randn(2, 12, 3, 5))
    assert torch.equal(out['student'].attention, out['teacher'].attention)


def test_scale_of_the_map_does_not_matter():
    connector, qkv = build(), student_qkv()
    # Above the 1e-5 that the normalisation adds to every variance.
    feature = 100 * torch.randn(2, 12, 3, 5)
    one = connector(qkv, feature)['teacher'].attention
    thousand = connector(qkv, 1000 * feature)['teacher'].attention
    torch.testing.assert_close(one, thousand)


def test_nothing_on_the_teachers_side_is_trained():
    connector = build(0.5).train()
    feature = torch.randn(2, 12, 3, 5, requires_grad=True)
    out = connector(student_qkv(), feature)
    assert not out['teacher'].attention.requires_grad
    assert not out['teacher'].value.requires_grad
    PCALoss()(**out).backward()
    assert feature.grad is None
    assert connector.project.weight.grad.abs().sum() > 0


def test_a_projection_to_zero_does_not_pay():
    connector = build()
    for parameter in connector.parameters():
        torch.nn.init.zeros_(parameter)
    out = connector(student_qkv(), torch.randn(2, 12, 3, 5))
    loss = PCALoss(gram_weight=0)(**out)
    expected = out['teacher'].attention.square().mean()
    torch.testing.assert_close(loss, expected)
    assert loss > 0.1


def test_a_constant_student_cannot_be_projected_to_the_map():
    # With every token alike, the best projection is the mean of the target.
    qkv = student_qkv().apply(lambda x: x[:, :, :1].expand_as(x))
    connector = build()
    feature = torch.randn(2, 12, 3, 5)
    optimizer = torch.optim.Adam(connector.parameters(), 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss = PCALoss(gram_weight=0)(**connector(qkv, feature))
        loss.backward(retain_graph=True)
        optimizer.step()
    target = connector(qkv, feature)['teacher'].attention
    rest = (target - target.mean(2, keepdim=True)).square().mean()
    assert loss > 0.99 * rest


@pytest.mark.parametrize('grid', [(2, 2), (7, 4), (3, 5)])
def test_student_is_brought_to_the_grid_of_the_map(grid):
    connector, qkv = build(), student_qkv()
    feature = torch.randn(2, 12, *grid)
    out = connector(qkv, feature)['student']
    assert out.attention.shape == (2, 2, grid[0] * grid[1], 6)

    def resize(x):
        maps = torch.cat(x.unbind(1), -1).transpose(1, 2).unflatten(2, (3, 5))
        tokens = resize_map(maps, grid).flatten(2).transpose(1, 2)
        return heads(tokens, 4)

    again = connector(qkv.apply(resize)._replace(grid=grid), feature)
    torch.testing.assert_close(out.attention, again['student'].attention)


def test_windows_of_a_swin_student_do_not_bound_the_map():
    connector, qkv = build(), student_qkv()
    feature = torch.randn(2, 12, 3, 5)
    windows = find_windows((3, 5), 2, 1, 'cpu')
    plain = connector(qkv, feature)
    windowed = connector(qkv._replace(windows=windows), feature)
    for side in plain:
        assert torch.equal(plain[side].attention, windowed[side].attention)


def test_heads_are_as_wide_as_the_students_by_default():
    connector = InversePCAConnector()
    qkv, feature = student_qkv(), torch.randn(2, 20, 2, 2)
    connector.prepare(dict(qkv=qkv, feature=feature), None)
    assert connector(qkv, feature)['student'].value.shape == (2, 5, 4, 4)
    weight = connector.project.weight
    # and only once
    connector.prepare(dict(qkv=qkv, feature=feature[:, :8]), None)
    assert connector.project.weight is weight


def test_gradients():
    connector = InversePCAConnector(2, in_channels=2, out_channels=4)
    connector.double().train()
    feature = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    leaves = [
        torch.randn(1, 1, 6, 2, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    ]

    def loss(*parts):
        torch.manual_seed(0)  # the same masks each time
        return PCALoss()(**connector(QKV(*parts, (2, 3)), feature))

    assert torch.autograd.gradcheck(loss, leaves)


def test_float32_inside_autocast():
    connector = build(0.5).train()
    with torch.autocast('cpu', torch.bfloat16):
        out = connector(student_qkv(), torch.randn(2, 12, 3, 5).bfloat16())
        PCALoss()(**out).backward()
    assert out['student'].attention.dtype == torch.float32
    assert out['teacher'].attention.dtype == torch.float32
    assert torch.isfinite(connector.project.weight.grad).all()


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match='5 channels.*12 channels.*divisor'):
        build(head_dims=5)


def test_a_record_without_gradient_is_refused_in_training():
    connector, qkv = build().train(), student_qkv(requires_grad=False)
    feature = torch.randn(2, 12, 3, 5)
    with pytest.raises(ValueError, match='with_cp'):
        connector(qkv, feature)
    connector.eval()(qkv, feature)
    with torch.no_grad():
        connector.train()(qkv, feature)


def test_inputs_of_another_kind_are_refused():
    connector, qkv = InversePCAConnector(), student_qkv()
    feature = torch.randn(2, 12, 3, 5)
    with pytest.raises(ValueError, match='out_channels'):
        connector(qkv, feature)
    with pytest.raises(ValueError, match='`feature`.*map'):
        connector.prepare(dict(qkv=qkv, feature=feature.flatten(2)), None)
    with pytest.raises(ValueError, match="`qkv`.*student's.*mmcakd.QKV"):
        connector.prepare(dict(qkv=feature, feature=feature), None)
