"""The projectors of all pairs of stages."""

import pytest
import torch

from mmcakd.models.connectors import (
    FitNetConnector,
    GLPConnector,
    RouterConnector,
)


def cnn():
    return [torch.randn(2, 4 * 2**i, 16 >> i, 24 >> i) for i in range(4)]


def vit():
    return [torch.randn(2, 6, 4, 6) for _ in range(4)]


def build(student, teacher, **kwargs):
    router = RouterConnector(**kwargs)
    router.prepare(dict(student=student, teacher=teacher), None)
    return router


@pytest.mark.parametrize(
    ('student', 'teacher'), [(cnn(), vit()), (vit(), cnn())]
)
def test_every_student_stage_comes_in_the_shape_of_every_teacher_stage(
    student, teacher
):
    out = build(student, teacher)(student, teacher)
    assert all(map(torch.equal, out['teacher'], teacher))
    for row, like in zip(out['student'], teacher, strict=True):
        assert [pair.shape for pair in row] == [like.shape] * 4


def test_each_pair_has_a_projector_of_its_own():
    student, teacher = cnn(), vit()
    router = build(student, teacher)
    out = router(student, teacher)['student']
    for i in range(4):
        for j in range(4):
            projector = router.projectors[i][j]
            assert isinstance(projector, FitNetConnector)
            assert torch.equal(out[i][j], projector(student[j]))
    assert len({id(p) for p in router.parameters()}) == 16


def test_stages_can_be_chosen():
    student, teacher = vit(), cnn()
    router = build(
        student, teacher, teacher_stages=(2, 4), student_stages=(1, 3, 4)
    )
    out = router(student, teacher)
    assert [len(row) for row in out['student']] == [3, 3]
    assert out['teacher'][0] is teacher[1]
    assert out['teacher'][1] is teacher[3]
    pair = router.projectors[1][1](student[2])
    assert torch.equal(out['student'][1][1], pair)


def test_projectors_of_another_kind():
    student, teacher = vit(), cnn()
    router = build(
        student,
        teacher,
        teacher_stages=(3, 4),
        projector=dict(type='mmcakd.GLPConnector', dropout=0.0),
    )
    assert isinstance(router.projectors[0][0], GLPConnector)
    out = router(student, teacher)['student']
    assert out[1][0].shape == (2, 2 * 3, 32)


def test_it_is_prepared_once():
    student, teacher = cnn(), vit()
    router = build(student, teacher)
    before = list(router.parameters())
    router.prepare(dict(student=student, teacher=teacher), None)
    after = list(router.parameters())
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize('stages', [(), (0, 1), (5,)])
@pytest.mark.parametrize('side', ['teacher_stages', 'student_stages'])
def test_stages_that_are_not_there_are_refused(side, stages):
    with pytest.raises(ValueError, match=side):
        RouterConnector(**{side: stages})


def test_inputs_of_another_kind_are_refused():
    with pytest.raises(ValueError, match='no projectors yet'):
        RouterConnector()(cnn(), vit())
    with pytest.raises(ValueError, match='`student`.*data_idx'):
        build(cnn()[0], vit())
    with pytest.raises(ValueError, match='stage 4.*`teacher` has 2 stages'):
        build(cnn(), vit()[:2])
    with pytest.raises(ValueError, match='`teacher`.*map'):
        build(cnn(), [x.flatten(2) for x in vit()])
