"""The weights that a router learns."""

import math

import pytest
import torch

from mmcakd.models.losses import RouterLoss, router_loss


def features(rows=2, columns=3, scale=1.0):
    teacher = [torch.randn(2, 4, 3, 5) for _ in range(rows)]
    student = [
        [scale * torch.randn(2, 4, 3, 5) for _ in range(columns)]
        for _ in range(rows)
    ]
    return student, teacher


def build(rows=2, columns=3, **kwargs):
    return RouterLoss(100, rows, columns, **kwargs)


def errors(student, teacher):
    return torch.stack(
        [
            torch.stack([(s - t).square().mean() for s in row])
            for row, t in zip(student, teacher, strict=True)
        ]
    )


def at_distance(*distances):
    """One teacher layer, student layers with these squared errors."""
    teacher = torch.zeros(1, 1, 2, 2)
    return [[teacher + d**0.5 for d in distances]], [teacher]


def test_weights_start_equal():
    loss = build()
    torch.testing.assert_close(loss.weights, torch.full((2, 3), 1 / 6))
    # All pairs stand at their own mean, and the entropy is at its height.
    torch.testing.assert_close(loss(*features()), torch.tensor(0.0))
    torch.testing.assert_close(
        build(entropy_weight=0.25, loss_weight=2)(*features()),
        torch.tensor(1.5),
    )


def test_weighted_sum_by_definition():
    loss = build(entropy_weight=0.3, momentum=0.9).train()
    torch.nn.init.normal_(loss.routes)
    first, second = features(), features(scale=2.0)
    loss(*first)
    got = loss(*second)
    means = 0.9 * errors(*first) + 0.1 * errors(*second)
    weights = loss.routes.flatten().softmax(0).view(2, 3)
    entropy = -(weights * weights.log()).sum() / math.log(6)
    expected = (weights * errors(*second) / means).sum()
    expected = expected - 0.3 * (1 - 1 / 100) * entropy
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(loss.means, means)


def test_entropy_lets_go_in_the_course_of_the_steps():
    loss = RouterLoss(4, 1, 2, entropy_weight=0.5).train()
    values = [loss(*at_distance(1, 1)).item() for _ in range(6)]
    expected = [1 - 0.5 * max(0, 1 - t / 4) for t in range(6)]
    assert values == pytest.approx(expected)


def test_gradient_of_the_matrix_by_hand():
    loss = build(entropy_weight=0.3).train()
    torch.nn.init.normal_(loss.routes)
    loss(*features())
    student, teacher = features()
    loss(student, teacher).backward()
    relative = errors(student, teacher) / loss.means
    w = loss.weights
    entropy = -(w * w.log()).sum()
    expected = w * (relative - (w * relative).sum())
    expected += 0.3 * 0.99 * w * (w.log() + entropy) / math.log(6)
    torch.testing.assert_close(loss.routes.grad, expected)


def test_gradient_of_the_student_by_hand():
    loss = build().train()
    torch.nn.init.normal_(loss.routes)
    student, teacher = features()
    for feature in [*teacher, *student[0], *student[1]]:
        feature.requires_grad_()
    loss(student, teacher).backward()
    assert all(t.grad is None for t in teacher)
    for i, (row, t) in enumerate(zip(student, teacher, strict=True)):
        for j, s in enumerate(row):
            slope = 2 * (s - t).detach() / s.numel()
            expected = loss.weights[i, j] / loss.means[i, j] * slope
            torch.testing.assert_close(s.grad, expected)


def test_gradcheck():
    loss = build(1, 2, entropy_weight=0.3).double().eval()
    loss.means.copy_(torch.tensor([[0.5, 3.0]]))
    torch.nn.init.normal_(loss.routes)
    s1, s2, t = (
        torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        for _ in range(3)
    )

    def of(routes, s1, s2):
        return torch.func.functional_call(
            loss, dict(routes=routes), ([[s1, s2]], [t.detach()])
        )

    routes = loss.routes.detach().requires_grad_()
    assert torch.autograd.gradcheck(of, (routes, s1, s2))


def test_scale_of_a_pair_does_not_draw_weight():
    loss = RouterLoss(1, 1, 2, entropy_weight=0.0).train()
    for _ in range(3):
        loss(*at_distance(1e-4, 1e4)).backward()
    torch.testing.assert_close(loss.routes.grad, torch.zeros(1, 2))


def test_the_pair_whose_error_falls_wins():
    loss = RouterLoss(1, 1, 2, entropy_weight=0.0).train()
    optimizer = torch.optim.SGD(loss.parameters(), 1.0)
    for step in range(20):
        optimizer.zero_grad()
        # The first stays small, the second falls from a hundred.
        loss(*at_distance(0.01, 100 * 0.9**step)).backward()
        optimizer.step()
    assert loss.weights[0, 1] > 0.8


def test_entropy_holds_the_weights_together():
    loose = RouterLoss(1, 1, 2, entropy_weight=0.0).train()
    held = RouterLoss(10**6, 1, 2, entropy_weight=5.0).train()
    for loss in (loose, held):
        optimizer = torch.optim.SGD(loss.parameters(), 0.2)
        for step in range(50):
            optimizer.zero_grad()
            loss(*at_distance(1, 0.9**step)).backward()
            optimizer.step()
    assert loose.weights[0, 1] > held.weights[0, 1] + 0.1


def test_evaluation_moves_nothing():
    loss = build().eval()
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss(*features())
    for key, value in loss.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_run_resumes_where_it_stopped():
    first, second = build().train(), build().train()
    for _ in range(3):
        loss = first(*features())
    second.load_state_dict(first.state_dict())
    inputs = features()
    assert torch.equal(first(*inputs), second(*inputs))
    assert second.steps == 4
    assert loss.requires_grad


def test_means_are_those_of_all_processes(monkeypatch):
    def double(tensor, op):
        assert op == 'mean'
        tensor *= 2

    monkeypatch.setattr(router_loss, 'all_reduce', double)
    loss = build(entropy_weight=0.0).train()
    inputs = features()
    torch.testing.assert_close(loss(*inputs), torch.tensor(0.5))
    torch.testing.assert_close(loss.means, 2 * errors(*inputs))


def test_pairs_without_error_are_no_trouble():
    loss = RouterLoss(1, 1, 2, entropy_weight=0.0).train()
    student = torch.zeros(1, 1, 2, 2, requires_grad=True)
    value = loss([[student, student + 1]], [torch.zeros(1, 1, 2, 2)])
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()
    assert torch.isfinite(loss.routes.grad).all()


def test_maps_and_tokens_may_be_mixed():
    student, teacher = features()
    tokens = [[x.flatten(2).transpose(1, 2) for x in row] for row in student]
    loss = build(momentum=0.5).train()
    loss(*features())
    loss.eval()
    torch.testing.assert_close(loss(tokens, teacher), loss(student, teacher))


def test_float32_inside_autocast():
    student, teacher = features()
    loss = build().eval()
    loss.means.fill_(1.0)
    expected = loss(
        [[x.bfloat16().float() for x in row] for row in student], teacher
    )
    with torch.autocast('cpu', torch.bfloat16):
        got = loss([[x.bfloat16() for x in row] for row in student], teacher)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match='anneal_iters.*0'):
        RouterLoss(0)
    with pytest.raises(ValueError, match='1 x 1.*MSELoss'):
        RouterLoss(10, 1, 1)
    with pytest.raises(ValueError, match='num_teacher_layers.*positive.*0'):
        RouterLoss(10, 0, 4)


def test_other_layers_are_refused():
    student, teacher = features()
    with pytest.raises(ValueError, match='4 teacher and 4 student'):
        RouterLoss(10)(student, teacher)
    with pytest.raises(ValueError, match=r'2 teacher layers and \[3, 2\]'):
        build()([student[0], student[1][:2]], teacher)
    student[1][2] = student[1][2][:, :2]
    with pytest.raises(ValueError, match='tokens differ.*RouterConnector'):
        build()(student, teacher)
