"""InfoNCE against closed forms, alone and in two processes."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from mmcakd.models.losses import InfoNCELoss, info_nce_loss

WORKER_CASES = [
    'one direction', 'both directions', 'trained teacher', 'both of both'
]  # fmt: skip

both_forms = pytest.mark.parametrize('symmetric', [False, True])


def pair(*shape, **kwargs):
    """Features of student and teacher in double precision."""
    return (
        torch.randn(*shape, dtype=torch.float64, **kwargs) for _ in range(2)
    )


# ------------------------------------------------------------- closed forms


@pytest.mark.parametrize('images', [2, 5, 16])
@pytest.mark.parametrize('tau', [0.07, 1.0])
@both_forms
def test_images_at_right_angles(images, tau, symmetric):
    # Lengths do not count.
    student = torch.eye(images) * torch.arange(1, images + 1)
    loss = InfoNCELoss(tau, symmetric=symmetric)(student, torch.eye(images))
    expected = math.log1p((images - 1) * math.exp(-1 / tau))
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('images', [2, 7])
@both_forms
def test_equal_images_give_the_log_of_their_number(images, symmetric):
    features = torch.randn(1, 8).expand(images, 8)
    loss = InfoNCELoss(symmetric=symmetric)(features, features)
    assert loss.item() == pytest.approx(math.log(images), rel=1e-5)


def definition(student, teacher, alpha) -> float:
    """One direction by loops, in plain numbers."""
    total = 0.0
    for n, anchor in enumerate(student):
        scores = [
            alpha * float(anchor @ other / anchor.norm() / other.norm())
            for other in teacher
        ]
        total -= scores[n] - math.log(sum(map(math.exp, scores)))
    return total / len(student)


def test_each_student_image_searches_among_the_teachers():
    student, teacher = pair(5, 3)
    forward = definition(student, teacher, 1 / 0.3)
    backward = definition(teacher, student, 1 / 0.3)
    assert abs(forward - backward) > 0.01
    for symmetric, expected in (
        (False, forward),
        (True, (forward + backward) / 2),
    ):
        loss = InfoNCELoss(0.3, symmetric=symmetric, loss_weight=0.7).double()
        value = loss(student, teacher).item()
        assert value == pytest.approx(0.7 * expected, rel=1e-6)


def test_maps_are_averaged_over_their_positions():
    student, teacher = torch.randn(4, 6, 5, 3), torch.randn(4, 6, 2, 7)
    loss = InfoNCELoss(0.5)
    expected = loss(student.mean((2, 3)), teacher.mean((2, 3)))
    torch.testing.assert_close(loss(student, teacher), expected)
    torch.testing.assert_close(loss(student, teacher.mean((2, 3))), expected)


# ---------------------------------------------------------------- gradients


def test_gradient_is_the_closed_form():
    student, teacher = pair(5, 3)
    student.requires_grad_()
    loss = InfoNCELoss(0.2).double()
    alpha = loss.logit_scale.exp().item()
    loss(student, teacher).backward()
    with torch.no_grad():
        length = student.norm(dim=1, keepdim=True)
        s, t = student / length, teacher / teacher.norm(dim=1, keepdim=True)
        cosine = s @ t.T
        wrong = ((alpha * cosine).softmax(1) - torch.eye(5)) / 5
        pull = alpha * wrong @ t
        # What is along the feature changes its length alone.
        expected = (pull - (pull * s).sum(1, keepdim=True) * s) / length
    torch.testing.assert_close(student.grad, expected)
    torch.testing.assert_close(
        loss.logit_scale.grad, alpha * (wrong * cosine).sum().view(1)
    )


@both_forms
@pytest.mark.parametrize('shape', [(4, 3), (3, 2, 2, 3)])
def test_gradient_is_that_of_finite_differences(symmetric, shape):
    student, teacher = pair(*shape, requires_grad=True)
    loss = InfoNCELoss(
        0.4, symmetric=symmetric, detach_teacher=False, loss_weight=0.7
    ).double()

    def value(s, t, logit_scale):
        return torch.func.functional_call(
            loss, dict(logit_scale=logit_scale), (s, t)
        )

    scale = loss.logit_scale.detach().requires_grad_()
    assert gradcheck(value, (student, teacher, scale))


@both_forms
def test_teacher_gets_a_gradient_only_if_asked_for(symmetric):
    student, teacher = pair(4, 3, requires_grad=True)
    gradients = []
    for detach in (True, False):
        teacher.grad = student.grad = None
        loss = InfoNCELoss(symmetric=symmetric, detach_teacher=detach)
        loss(student, teacher).backward()
        gradients.append(student.grad)
        assert (teacher.grad is None) == detach
    assert teacher.grad.abs().sum() > 0
    assert torch.equal(*gradients)


# -------------------------------------------------------------- temperature


def test_temperature_falls_where_images_are_found():
    loss = InfoNCELoss(tau=1.0)
    loss(torch.eye(4), torch.eye(4)).backward()
    # Of log(1 + 3 exp(-alpha)) by the logarithm of alpha = 1.
    missed = 3 * math.exp(-1)
    expected = -missed / (1 + missed)
    assert loss.logit_scale.grad.item() == pytest.approx(expected, rel=1e-5)


def test_scale_stays_within_its_limit():
    loss = InfoNCELoss(tau=1.0, max_scale=4.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=10.0)
    values = []
    for _ in range(20):
        value = loss(torch.eye(4), torch.eye(4))
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    least = math.log1p(3 * math.exp(-4))
    assert min(values) == values[-1] == pytest.approx(least, rel=1e-5)


def test_scale_comes_back_from_far_above_its_limit_at_once():
    loss = InfoNCELoss(tau=1.0, max_scale=4.0)
    with torch.no_grad():
        loss.logit_scale.fill_(50.0)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.01)
    # Every image is taken for the next one.
    value = loss(torch.eye(4), torch.eye(4).roll(1, 0))
    expected = math.log(3 + math.exp(4))
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert loss.logit_scale.grad.item() == pytest.approx(
        4 * math.exp(4) / (3 + math.exp(4)), rel=1e-5
    )
    optimizer.step()
    assert loss.logit_scale.item() < math.log(4)


def test_temperature_is_in_the_checkpoint():
    loss = InfoNCELoss(tau=0.5)
    assert loss.state_dict()['logit_scale'].exp().tolist() == [2.0]


# ---------------------------------------------------------------- precision


@both_forms
def test_half_precision_is_lifted_and_autocast_is_kept_out(symmetric):
    student, teacher = torch.randn(2, 8, 16)
    loss = InfoNCELoss(symmetric=symmetric)
    expected = loss(student, teacher)
    with torch.autocast('cpu', torch.bfloat16):
        inside = loss(student, teacher)
        halves = loss(student.bfloat16(), teacher.half())
    assert inside.dtype == halves.dtype == torch.float32
    assert inside == expected
    assert halves.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize('size', [1e-4, 1e4])
def test_half_precision_features_of_any_size_have_a_gradient(size):
    features = (torch.randn(4, 8) * size).half().requires_grad_()
    loss = InfoNCELoss()(features, torch.eye(4, 8))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    assert features.grad.abs().sum() > 0


# ---------------------------------------------------------------- processes


@pytest.fixture(scope='module')
def processes(run_worker):
    return run_worker('info_nce_worker.py')


@pytest.mark.parametrize('case', [*WORKER_CASES, 'few'])
def test_two_processes_are_one_with_the_joint_batch(processes, case):
    joint, left, right = (result[case] for result in processes)
    assert left['loss'] != right['loss']
    mean = (left['loss'] + right['loss']) / 2
    assert mean == pytest.approx(joint['loss'], rel=1e-10)

    # DDP has taken the mean over the processes.
    trained = {'student', 'info_nce.logit_scale'}
    if case in ('trained teacher', 'both of both'):
        trained.add('teacher')
    assert set(joint['parameters']) == trained
    for name, expected in joint['parameters'].items():
        assert expected.abs().sum() > 0
        for side in (left, right):
            torch.testing.assert_close(side['parameters'][name], expected)

    assert len(joint['inputs']) == len(trained) - 1
    for expected, *halves in zip(
        joint['inputs'], left['inputs'], right['inputs'], strict=True
    ):
        torch.testing.assert_close(torch.cat(halves) / 2, expected)


def test_outside_of_training_nothing_is_gathered(processes):
    joint, left, right = (result['evaluated'] for result in processes)
    # Fewer candidates are easier to tell apart.
    assert (left + right) / 2 < joint


def test_unequal_batches_are_refused_by_all_processes(processes):
    for result in processes[1:]:
        assert '[2, 3] images' in result['unequal']
        assert 'drop_last=True' in result['unequal']


def test_gather_in_a_single_process_changes_nothing():
    student, teacher = pair(4, 3)
    expected = InfoNCELoss()(student, teacher)
    assert InfoNCELoss(gather=True)(student, teacher) == expected


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize('gather', [False, True])
def test_a_single_image_is_refused(gather):
    with pytest.raises(ValueError, match=r'drop_last=True.*gather=True'):
        InfoNCELoss(gather=gather)(torch.rand(1, 4), torch.rand(1, 4))


@pytest.mark.parametrize(
    ('gather', 'processes', 'smallest', 'refused'),
    [
        (False, 1, 1, True),
        (False, 1, 2, False),
        # Each process searches among its own images.
        (False, 2, 1, True),
        (True, 2, 1, False),
        (True, 1, 1, True),
    ],
)
def test_batch_of_one_is_refused_before_training(
    monkeypatch, gather, processes, smallest, refused
):
    monkeypatch.setattr(info_nce_loss, 'get_world_size', lambda: processes)
    loss = InfoNCELoss(gather=gather)
    if refused:
        with pytest.raises(ValueError, match=r'drop_last=True.*gather=True'):
            loss.check_batch_size(smallest)
    else:
        loss.check_batch_size(smallest)


@pytest.mark.parametrize(
    ('student', 'teacher'), [((4, 8), (4, 16)), ((4, 8), (3, 8))]
)
def test_features_that_do_not_fit_are_refused(student, teacher):
    with pytest.raises(ValueError, match='PooledEmbedding') as caught:
        InfoNCELoss()(torch.rand(*student, 2, 2), torch.rand(*teacher))
    assert str(student) in str(caught.value)
    assert str(teacher) in str(caught.value)


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r'\(N, C, H, W\)'):
        InfoNCELoss()(torch.rand(2, 9, 4), torch.rand(2, 9, 4))


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(tau=0.0), 'tau should be a positive number'),
        (dict(tau=-1.0), 'tau should be a positive number'),
        (dict(tau=0.005), 'max_scale 100.0 is below .* 200'),
        (dict(max_scale=10.0), 'raise max_scale or tau'),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        InfoNCELoss(**arguments)
