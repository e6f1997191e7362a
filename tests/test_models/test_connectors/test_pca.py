"""Partially cross attention: its closed forms, masks and shapes."""

import sys

import pytest
import torch
import torch.nn.functional as F

from mmcakd.models.connectors import PCAConnector, attend
from mmcakd.models.functional import resize_map
from mmcakd.models.losses import PCALoss
from mmcakd.models.recorders import QKV, find_windows

TARGETS = ('output', 'prob', 'score')


def teacher_qkv(grid=(3, 5), heads=2, dims=4, batch=2, windows=None):
    parts = torch.randn(3, batch, heads, grid[0] * grid[1], dims)
    return QKV(*parts, grid, windows)


def build(replace_prob=0.0, channels=6, heads=2, dims=4, **kwargs):
    return PCAConnector(
        replace_prob=replace_prob,
        in_channels=channels,
        num_heads=heads,
        head_dims=dims,
        **kwargs,
    )


def by_hand(q, k, v, target):
    """Attention with sums over indices alone."""
    score = torch.einsum('nhid,nhjd->nhij', q, k) / q.shape[-1] ** 0.5
    prob = score.exp() / score.exp().sum(-1, keepdim=True)
    output = torch.einsum('nhij,nhjd->nhid', prob, v)
    return dict(output=output, prob=prob, score=score)[target]


def own_qkv(connector, feature, heads=2):
    """Three convolutions, one after the other."""
    parts = []
    for w, b in zip(
        connector.project.weight.chunk(3),
        connector.project.bias.chunk(3),
        strict=True,
    ):
        rows = F.conv2d(feature, w, b, padding=1).flatten(2).transpose(1, 2)
        parts.append(torch.stack(rows.chunk(heads, -1), 1))
    return parts


@pytest.fixture
def mixed(monkeypatch):
    """The queries, keys and values that the student attends with."""
    module = sys.modules[PCAConnector.__module__]
    seen = []

    def spy(qkv, *args):
        seen.append(qkv)
        return attend(qkv, *args)

    monkeypatch.setattr(module, 'attend', spy)

    def run(connector, *inputs):
        seen.clear()
        connector(*inputs)
        return seen[0]

    return run


@pytest.mark.parametrize('average', [False, True])
@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('grid', [(4, 4), (3, 5)])
def test_without_replacement_the_student_attends_alone(grid, target, average):
    connector = build(attn_target=target, average_heads=average).train()
    feature, qkv = torch.randn(2, 6, *grid), teacher_qkv(grid)
    out = connector(feature, qkv)
    expected = own_qkv(connector, feature)
    for side, parts in (('student', expected), ('teacher', qkv[:3])):
        attention = by_hand(*parts, target)
        if average:
            attention = attention.mean(1)
        torch.testing.assert_close(out[side].attention, attention)
        torch.testing.assert_close(out[side].value, parts[2])


@pytest.mark.parametrize('shift', [None, 0, 1])
@pytest.mark.parametrize('replace', ['element', 'token', 'matrix'])
@pytest.mark.parametrize('target', TARGETS)
def test_replaced_by_the_teacher_throughout_it_attends_as_the_teacher(
    target, replace, shift
):
    windows = shift if shift is None else find_windows((3, 5), 2, shift, 'cpu')
    qkv = teacher_qkv(windows=windows)
    connector = build(1.0, attn_target=target, replace=replace).train()
    out = connector(torch.randn(2, 6, 3, 5), qkv)
    assert torch.equal(out['student'].attention, out['teacher'].attention)
    # The value is never replaced.
    assert not torch.equal(out['student'].value, out['teacher'].value)


def test_nothing_is_replaced_in_eval_mode():
    connector = build(1.0).eval()
    feature, qkv = torch.randn(2, 6, 3, 5), teacher_qkv()
    expected = by_hand(*own_qkv(connector, feature), 'output')
    attention = connector(feature, qkv)['student'].attention
    torch.testing.assert_close(attention, expected)


@pytest.mark.parametrize('prob', [0.2, 0.5, 0.9])
def test_elements_are_replaced_as_often_as_asked(mixed, prob):
    grid = (8, 10)
    connector = build(prob).train()
    qkv = teacher_qkv(grid, batch=8)
    seen = mixed(connector, torch.randn(8, 6, *grid), qkv)
    for got, teacher in zip(seen[:3], qkv[:3], strict=True):
        count = got.numel()
        bound = 5 * (prob * (1 - prob) / count) ** 0.5
        rate = (got == teacher).float().mean().item()
        assert abs(rate - prob) < bound


def test_every_element_is_the_students_or_the_teachers(mixed):
    connector = build(0.5).train()
    feature, qkv = torch.randn(2, 6, 3, 5), teacher_qkv()
    own = own_qkv(connector, feature)
    seen = mixed(connector, feature, qkv)
    for got, student, teacher in zip(seen[:3], own, qkv[:3], strict=True):
        is_own = torch.isclose(got, student, atol=1e-6)
        assert (is_own | (got == teacher)).all()


def test_masks_are_fresh_for_each_matrix_and_step(mixed):
    connector = build(0.5).train()
    inputs = torch.randn(2, 6, 3, 5), teacher_qkv()
    masks = []
    for _ in range(2):
        seen = mixed(connector, *inputs)
        masks += [
            seen_part == part
            for seen_part, part in zip(seen[:3], inputs[1][:3], strict=True)
        ]
    for i, mask in enumerate(masks):
        assert not any(torch.equal(mask, other) for other in masks[:i])


def test_masks_come_from_torchs_generator():
    connector = build(0.5).train()
    inputs = torch.randn(2, 6, 3, 5), teacher_qkv()
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(connector(*inputs)['student'].attention)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ('replace', 'axes'), [('token', (1, 3)), ('matrix', (1, 2, 3))]
)
def test_larger_units_are_replaced_as_a_whole(mixed, replace, axes):
    batch = 64 if replace == 'matrix' else 8
    connector = build(0.5, replace=replace).train()
    qkv = teacher_qkv(batch=batch)
    seen = mixed(connector, torch.randn(batch, 6, 3, 5), qkv)
    for got, teacher in zip(seen[:3], qkv[:3], strict=True):
        mask = got == teacher
        unit = mask.all(dim=axes)
        assert torch.equal(unit, mask.any(dim=axes))
        bound = 5 * (0.25 / unit.numel()) ** 0.5
        assert abs(unit.float().mean().item() - 0.5) < bound


def test_no_gradient_reaches_the_teacher():
    parts = torch.randn(3, 2, 2, 15, 4, requires_grad=True)
    connector = build(0.5).train()
    out = connector(torch.randn(2, 6, 3, 5), QKV(*parts, (3, 5)))
    assert not out['teacher'].attention.requires_grad
    assert not out['teacher'].value.requires_grad
    PCALoss()(**out).backward()
    assert connector.project.weight.grad.abs().sum() > 0
    assert parts.grad is None


def test_gradient_of_the_student_skips_what_was_replaced():
    connector = build(1.0).train()
    feature = torch.randn(2, 6, 3, 5, requires_grad=True)
    out = connector(feature, teacher_qkv())
    out['student'].attention.sum().backward()
    assert feature.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ('given', 'grid'), [((6, 10), (3, 5)), ((2, 9), (4, 3)), ((1, 1), (3, 5))]
)
def test_other_grids_are_brought_to_the_teachers(given, grid):
    connector, qkv = build(), teacher_qkv(grid)
    feature = torch.randn(2, 6, *given)
    out = connector(feature, qkv)['student']
    again = connector(resize_map(feature, grid), qkv)['student']
    assert out.attention.shape == qkv.q.shape
    assert torch.equal(out.attention, again.attention)


def test_one_connector_serves_several_sizes():
    connector = build(0.5).train()
    for grid in ((4, 4), (3, 5), (6, 2)):
        out = connector(torch.randn(2, 6, *grid), teacher_qkv(grid))
        assert out['student'].attention.shape[2] == grid[0] * grid[1]


@pytest.mark.parametrize('target', TARGETS)
@pytest.mark.parametrize('shift', [0, 1])
def test_attention_stays_inside_windows(shift, target):
    windows = find_windows((3, 5), 2, shift, 'cpu')
    qkv = teacher_qkv(windows=windows)
    # All pairs at once, with those that do not meet ruled out.
    q, k, v = qkv[:3]
    meets = torch.zeros(16, 16, dtype=torch.bool)
    for index, mask in zip(windows.index, windows.mask, strict=True):
        rows, cols = mask.nonzero(as_tuple=True)
        meets[index[rows], index[cols]] = True
    meets = meets[:-1, :-1]
    score = by_hand(q, k, v, 'score')
    prob = score.masked_fill(~meets, -torch.inf).softmax(-1)
    got = attend(qkv, target)
    if target == 'output':
        torch.testing.assert_close(got, prob @ v)
        return
    full = torch.zeros(2, 2, 16, 16)
    got = got.unflatten(0, (2, -1))
    for index, rows in zip(windows.index, got.unbind(1), strict=True):
        full[:, :, index[:, None], index] += rows
    expected = prob if target == 'prob' else score.masked_fill(~meets, 0)
    torch.testing.assert_close(full[:, :, :-1, :-1], expected)


def test_the_paper_has_three_convolutions_its_code_a_linear_layer():
    count = {
        kind: sum(p.numel() for p in build(qkv=kind).parameters())
        for kind in ('conv', 'linear')
    }
    assert count == dict(conv=3 * (9 * 6 * 8 + 8), linear=3 * 6 * 8)


def test_public_code_compares_the_mean_score_of_unequal_heads():
    connector = build(
        qkv='linear',
        channels=8,
        heads=4,
        dims=4,
        attn_target='score',
        average_heads=True,
    )
    feature, qkv = torch.randn(2, 8, 3, 5), teacher_qkv(heads=3, dims=4)
    out = connector(feature, qkv)
    rows = F.linear(
        feature.flatten(2).transpose(1, 2),
        connector.project.weight[:, :, 0, 0],
    )
    q, k, v = (torch.stack(part.chunk(4, -1), 1) for part in rows.chunk(3, -1))
    expected = by_hand(q, k, v, 'score').mean(1)
    torch.testing.assert_close(out['student'].attention, expected)
    loss = PCALoss(0.2, 0.05, average_heads=True, scale_teacher_gram=False)
    gram_s = torch.einsum('nhid,nhjd->nij', v, v) / 4 / 2
    gram_t = torch.einsum('nhid,nhjd->nij', qkv.v, qkv.v) / 3
    teacher = by_hand(*qkv[:3], 'score').mean(1)
    by_definition = 0.2 * (expected - teacher).square().mean()
    by_definition += 0.05 * (gram_s - gram_t).square().mean()
    torch.testing.assert_close(loss(**out), by_definition)


def test_sizes_are_read_from_the_models():
    connector = PCAConnector()
    feature, qkv = torch.randn(2, 7, 6, 10), teacher_qkv(heads=3, dims=5)
    connector.prepare(dict(feature=feature, qkv=qkv), None)
    weight = connector.project.weight
    assert weight.shape == (45, 7, 3, 3)
    assert connector(feature, qkv)['student'].value.shape == (2, 3, 15, 5)
    # and only once
    connector.prepare(dict(feature=feature, qkv=teacher_qkv(heads=1)), None)
    assert connector.project.weight is weight


@pytest.mark.parametrize('shift', [None, 1])
@pytest.mark.parametrize('target', TARGETS)
def test_gradients(target, shift):
    windows = shift if shift is None else find_windows((2, 3), 2, shift, 'cpu')
    connector = build(0.5, channels=2, dims=2, attn_target=target)
    connector.double().train()
    qkv = teacher_qkv((2, 3), dims=2, batch=1, windows=windows).apply(
        torch.Tensor.double
    )
    feature = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)

    def loss(feature):
        torch.manual_seed(0)  # the same masks each time
        return PCALoss()(**connector(feature, qkv))

    assert torch.autograd.gradcheck(loss, feature)


@pytest.mark.parametrize('target', TARGETS)
def test_attention_is_float32_inside_autocast(target):
    connector = build(0.5, attn_target=target).train()
    qkv = teacher_qkv().apply(torch.Tensor.bfloat16)
    with torch.autocast('cpu', torch.bfloat16):
        out = connector(torch.randn(2, 6, 3, 5), qkv)
        loss = PCALoss()(**out)
    assert out['student'].attention.dtype == torch.float32
    assert out['teacher'].attention.dtype == torch.float32
    expected = by_hand(*qkv.apply(torch.Tensor.float)[:3], target)
    torch.testing.assert_close(out['teacher'].attention, expected)
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(connector.project.weight.grad).all()


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('qkv', 'mlp'),
        ('replace', 'row'),
        ('replace_prob', 1.5),
        ('attn_target', 'logits'),
    ],
)
def test_unknown_options_are_refused(option, value):
    with pytest.raises(ValueError, match=f'{option}.*{value}'):
        PCAConnector(**{option: value})


def test_a_connector_without_sizes_is_refused():
    with pytest.raises(ValueError, match='head_dims'):
        PCAConnector()(torch.randn(2, 6, 3, 5), teacher_qkv())


@pytest.mark.parametrize('training', [True, False])
def test_unequal_heads_cannot_be_replaced(training):
    connector = build(0.5, heads=4, dims=2).train(training)
    with pytest.raises(ValueError, match='replace_prob=0'):
        connector(torch.randn(2, 6, 3, 5), teacher_qkv())


def test_inputs_of_another_kind_are_refused():
    connector, qkv = PCAConnector(), teacher_qkv()
    feature = torch.randn(2, 6, 3, 5)
    with pytest.raises(ValueError, match='`feature`.*map'):
        connector.prepare(dict(feature=feature.flatten(2), qkv=qkv), None)
    with pytest.raises(ValueError, match='`qkv`.*mmcakd.QKV.*Tensor'):
        connector.prepare(dict(feature=feature, qkv=feature), None)
    with pytest.raises(ValueError, match='`qkv`.*mmcakd.QKV.*Tensor'):
        build()(feature, feature)
