"""The teacher's tail as a connector."""

import pytest
import torch
from torch import nn

from mmcakd.models.connectors import TeacherReplay
from mmcakd.models.stages import to_tokens
from mmcakd.models.teachers import Teacher


@pytest.fixture(params=['swin', 'vit'])
def teacher(request, tiny):
    return Teacher(tiny.build(tiny.classifier(getattr(tiny, request.param)())))


def stages(teacher, images, blocks=None):
    from mmcakd.models.recorders import StageOutputsRecorder

    recorder = StageOutputsRecorder(blocks)
    recorder.initialize(teacher.model)
    with recorder:
        teacher(images)
    return [to_tokens(map_) for map_ in recorder.get_record_data()]


def test_one_view_or_several(teacher, tiny):
    replay = TeacherReplay(from_stage=3)
    replay.attach(nn.Identity(), teacher)
    _, _, third, last = stages(teacher, tiny.batch()[0])
    assert torch.equal(replay(third), last)
    noise = torch.randn_like(third)
    for views in (
        replay(original=third, frequency=noise),
        replay(frequency=noise, original=third),
    ):
        assert set(views) == {'original', 'frequency'}
        one, other = views['original'], views['frequency']
        assert torch.allclose(one, last, atol=1e-5)
        assert torch.allclose(other, replay(noise), atol=1e-5)
        assert not torch.allclose(one, other, atol=1e-2)


def test_any_part_of_the_teacher_may_be_replayed(teacher, tiny):
    replay = TeacherReplay(from_stage=1, to_stage=2)
    replay.attach(nn.Identity(), teacher)
    first, second, _, _ = stages(teacher, tiny.batch()[0])
    assert torch.equal(replay(first), second)


def test_blocks_are_those_of_the_recorder(tiny):
    teacher = Teacher(tiny.build(tiny.classifier(tiny.vit())))
    blocks = (0, 2, 3, 5)
    replay = TeacherReplay(from_stage=3, blocks=blocks)
    replay.attach(nn.Identity(), teacher)
    _, _, third, last = stages(teacher, tiny.batch()[0], blocks)
    assert torch.equal(replay(third), last)


def test_weights_of_the_teacher_are_not_the_connectors(teacher):
    replay = TeacherReplay(from_stage=3)
    replay.attach(nn.Identity(), teacher)
    assert not list(replay.parameters())
    assert not replay.state_dict()
    assert [*replay.modules()] == [replay]
    # Neither can it wake the teacher's stochastic depth.
    replay.train()
    assert not teacher.model.training
