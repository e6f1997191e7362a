"""The hybrid of student and teacher."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from mmcakd.models.connectors import AssistantConnector
from mmcakd.models.connectors.assistant import (
    LocalToGlobalProjector,
    works_on_maps,
)
from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.teachers import Teacher

KINDS = ('resnet', 'convnext', 'vit', 'swin', 'mixer')
CNNS = ('resnet', 'convnext')
PAIRS = list(product(KINDS, KINDS))
#: Channels of the third and of the last stage; those of the tokens that
#: enter the latter; what its grid is coarser than that of the third stage of
#: a network with a stride of 16; and the heads of its attention.
THIRD = dict(resnet=16, convnext=16, swin=32, vit=16, mixer=16)
LAST = dict(resnet=32, convnext=32, swin=64, vit=16, mixer=16)
ENTRY = dict(resnet=16, convnext=32, swin=64, vit=16, mixer=16)
STRIDE = dict(resnet=1, convnext=2, swin=2, vit=1, mixer=1)
HEADS = dict(resnet=1, convnext=1, swin=4, vit=2, mixer=1)


@pytest.fixture
def assemble(tiny):
    """Build an assistant of two models, ready to run.

    All parameters are drawn, those that start at 0 or 1 as well.
    """

    def make(student, teacher, pixels=64, teacher_cfg=None, **kwargs):
        student = tiny.build(tiny.classifier(getattr(tiny, student)())).eval()
        teacher = Teacher(
            tiny.build(
                teacher_cfg or tiny.classifier(getattr(tiny, teacher)())
            )
        )
        for parameter in (*student.parameters(), *teacher.parameters()):
            nn.init.normal_(parameter, std=0.3)
        recorders = dict(
            student=StageOutputsRecorder(), teacher=StageOutputsRecorder()
        )
        recorders['student'].initialize(student)
        recorders['teacher'].initialize(teacher.model)
        assistant = AssistantConnector(**kwargs)
        assistant.attach(student, teacher)

        def run(images) -> dict:
            """The third stages of both."""
            with recorders['student'], recorders['teacher']:
                teacher(images)
                student(images)
            stages = {
                name: recorder.get_record_data(data_idx=2)
                for name, recorder in recorders.items()
            }
            for recorder in recorders.values():
                recorder.reset_data_buffer()
            return stages

        with torch.no_grad():
            pixels = (pixels, pixels) if isinstance(pixels, int) else pixels
            assistant.prepare(run(torch.zeros(2, 3, *pixels)), None)
        for parameter in assistant.parameters():
            nn.init.normal_(parameter, std=0.3)
        return SimpleNamespace(
            student=student,
            teacher=teacher.model,
            assistant=assistant,
            run=run,
            receiving=dict(student=teacher.model, teacher=student)[
                assistant.first
            ],
        )

    return make


# ------------------------------------------------------------- which is first


@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
def test_cnn_gives_its_early_stages(student, teacher, assemble):
    both = assemble(student, teacher)
    crosses = teacher in CNNS and student not in CNNS
    assert both.assistant.first == ('teacher' if crosses else 'student')
    receiver = student if crosses else teacher
    third = teacher if crosses else student

    stages = both.run(torch.randn(3, 3, 64, 64))
    output = both.assistant(**stages)
    assert output['feature'].shape == (3, LAST[receiver])
    assert output['logits'].shape == (3, 5)

    projector = both.assistant.projector
    conv = projector.patch_embed.projection
    assert conv.in_channels == THIRD[third]
    assert conv.out_channels == ENTRY[receiver]
    assert conv.kernel_size == conv.stride == (STRIDE[receiver],) * 2
    assert conv.padding == (0, 0)
    assert isinstance(projector.patch_embed.norm, nn.LayerNorm)
    attention = projector.block.attn
    assert attention.w_msa.num_heads == HEADS[receiver]
    # The whole grid, 64 / 16 tokens a side or less.
    assert attention.window_size == 4 // STRIDE[receiver]
    assert attention.shift_size == 0
    assert projector.block.ffn.feedforward_channels == 4 * ENTRY[receiver]


@pytest.mark.parametrize('kind', KINDS)
def test_networks_that_work_on_maps(kind, tiny):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)()))
    assert works_on_maps(model) == (kind in CNNS)


@pytest.mark.parametrize(
    ('student', 'teacher', 'first'),
    [('resnet', 'swin', 'teacher'), ('vit', 'resnet', 'student')],
)
def test_other_model_may_come_first(student, teacher, first, assemble):
    both = assemble(student, teacher, first=first)
    assert both.assistant.first == first
    output = both.assistant(**both.run(torch.randn(2, 3, 64, 64)))
    receiver = student if first == 'teacher' else teacher
    assert output['feature'].shape == (2, LAST[receiver])


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('swin', 'resnet')]
)
def test_only_the_first_models_features_are_used(student, teacher, assemble):
    both = assemble(student, teacher)
    stages = both.run(torch.randn(2, 3, 64, 64))
    expected = both.assistant(**stages)
    for name in stages:
        changed = stages | {name: torch.randn_like(stages[name])}
        logits = both.assistant(**changed)['logits']
        same = torch.equal(logits, expected['logits'])
        assert same == (name != both.assistant.first)


def test_heads_and_window_may_be_chosen(assemble):
    both = assemble('resnet', 'vit', num_heads=8, window_size=3)
    attention = both.assistant.projector.block.attn
    assert attention.w_msa.num_heads == 8
    assert attention.window_size == 3


def test_window_is_the_projectors_even_where_the_grid_is_large(assemble):
    both = assemble('resnet', 'vit', pixels=160)
    assert both.assistant.receiver.grid == (10, 10)
    assert both.assistant.projector.block.attn.window_size == 7


# ---------------------------------------------------------------- its weights


@pytest.mark.parametrize(
    ('stride', 'heads', 'window'), [((2, 2), 4, 2), ((1, 3), 2, 5)]
)
def test_number_of_parameters(stride, heads, window):
    c, d = 6, 16
    project = LocalToGlobalProjector(c, d, stride, heads, window)
    patch_embedding = c * stride[0] * stride[1] * d + d + 2 * d
    attention = 4 * d * d + 4 * d + (2 * window - 1) ** 2 * heads
    ffn = 8 * d * d + 5 * d
    count = sum(p.numel() for p in project.parameters())
    assert count == patch_embedding + 2 * d + attention + 2 * d + ffn


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('vit', 'resnet')]
)
def test_only_the_projector_is_new(student, teacher, assemble):
    both = assemble(student, teacher)
    connector = both.assistant
    own = {id(p) for p in connector.parameters()}
    assert own == {id(p) for p in connector.projector.parameters()}
    for model in (both.student, both.teacher):
        assert not own & {id(p) for p in model.parameters()}
        assert not set(connector.modules()) & set(model.modules())
    assert all(key.startswith('projector.') for key in connector.state_dict())


@pytest.mark.parametrize(
    ('student', 'teacher'), [('resnet', 'swin'), ('vit', 'resnet')]
)
def test_weights_are_those_of_the_receiving_model(student, teacher, assemble):
    both = assemble(student, teacher)
    stages = both.run(torch.randn(2, 3, 64, 64))
    before = both.assistant(**stages)['logits']
    with torch.no_grad():
        list(both.receiving.head.parameters())[-1].add_(1.0)
    after = both.assistant(**stages)['logits']
    torch.testing.assert_close(after, before + 1)


# ------------------------------------------------------------ what it computes


def attend(x, block, window):
    """Attention of a Swin block on a map ``(N, H, W, C)``, by loops."""
    attention = block.attn.w_msa
    heads = attention.num_heads
    table = attention.relative_position_bias_table
    places = list(product(range(window), range(window)))
    index = torch.tensor(
        [
            [
                (y - v + window - 1) * (2 * window - 1) + x_ - u + window - 1
                for v, u in places
            ]
            for y, x_ in places
        ]
    )
    bias = table[index].permute(2, 0, 1)
    _, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
    result = torch.zeros_like(x)
    for top, left in product(
        range(0, height, window), range(0, width, window)
    ):
        there = slice(top, top + window), slice(left, left + window)
        tokens = x[:, there[0], there[1]].flatten(1, 2)
        q, k, v = F.linear(
            tokens, attention.qkv.weight, attention.qkv.bias
        ).chunk(3, -1)
        split = [part.unflatten(-1, (heads, -1)) for part in (q, k, v)]
        scores = torch.einsum('nqhc,nkhc->nhqk', *split[:2])
        weights = (scores / (channels // heads) ** 0.5 + bias).softmax(-1)
        mixed = torch.einsum('nhqk,nkhc->nqhc', weights, split[2]).flatten(2)
        mixed = F.linear(mixed, attention.proj.weight, attention.proj.bias)
        result[:, there[0], there[1]] = mixed.unflatten(1, (window, window))
    return result[:, :height, :width]


def project_by_hand(projector, feature, grid):
    """The projector as a formula of its weights."""
    conv, norm = projector.patch_embed.projection, projector.patch_embed.norm
    block = projector.block

    def normalise(x, norm):
        return F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, 1e-5)

    size = [g * s for g, s in zip(grid, projector.stride, strict=True)]
    feature = F.adaptive_avg_pool2d(feature, size)
    x = F.conv2d(feature, conv.weight, conv.bias, projector.stride)
    x = normalise(x.permute(0, 2, 3, 1), norm)
    assert x.shape[1:3] == grid
    x = x + attend(normalise(x, block.norm1), block, block.attn.window_size)
    first, second = block.ffn.layers[0][0], block.ffn.layers[1]
    hidden = F.gelu(
        F.linear(normalise(x, block.norm2), first.weight, first.bias)
    )
    x = x + F.linear(hidden, second.weight, second.bias)
    return x.flatten(1, 2)


def receive_by_hand(kind, model, tokens, grid):
    """Pooled feature and logits, by the model's modules."""
    net, head = model.backbone, model.head
    if kind == 'vit':
        cls = net.cls_token + net.pos_embed[:, :1]
        tokens = torch.cat((cls.expand(len(tokens), -1, -1), tokens), 1)
        tokens = net.ln1(net.layers[5](tokens))
        return tokens[:, 1:].mean(1), head.layers.head(tokens[:, 0])
    if kind == 'swin':
        for block in net.stages[3].blocks:
            tokens = block(tokens, grid)
        pooled = net.norm3(tokens).mean(1)
    elif kind == 'mixer':
        pooled = net.norm1(net.layers[3](tokens)).mean(1)
    else:
        map_ = tokens.transpose(1, 2).unflatten(2, grid)
        stage = net.layer4 if kind == 'resnet' else net.stages[3]
        pooled = stage(map_).mean((2, 3))
    if kind == 'convnext':
        norm = net.norm3
        normed = F.layer_norm(pooled, (32,), norm.weight, norm.bias, 1e-6)
        return pooled, head.fc(normed)
    return pooled, head.fc(pooled)


HAND = [
    ('resnet', 'swin'),
    ('resnet', 'vit'),
    ('resnet', 'mixer'),
    ('resnet', 'convnext'),
    ('swin', 'vit'),
    ('vit', 'resnet'),
    ('swin', 'convnext'),
    ('mixer', 'resnet'),
]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(('student', 'teacher'), HAND)
def test_assistant_is_what_its_parts_make(student, teacher, dtype, assemble):
    both = assemble(student, teacher)
    for module in (both.student, both.teacher, both.assistant):
        module.to(dtype)
    stages = both.run(torch.randn(2, 3, 64, 64, dtype=dtype))
    output = both.assistant(**stages)
    first = both.assistant.first
    kind = student if first == 'teacher' else teacher
    grid = (4 // STRIDE[kind],) * 2
    tokens = project_by_hand(both.assistant.projector, stages[first], grid)
    feature, logits = receive_by_hand(kind, both.receiving, tokens, grid)
    exact = dict(rtol=1e-4, atol=1e-4) if dtype == torch.float32 else {}
    torch.testing.assert_close(output['feature'], feature, **exact)
    torch.testing.assert_close(output['logits'], logits, **exact)


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [
        ('resnet', 'swin'),
        ('resnet', 'vit'),
        ('resnet', 'convnext'),
        ('vit', 'resnet'),
    ],
)
def test_other_image_sizes_than_the_one_it_was_built_with(
    student, teacher, assemble
):
    both = assemble(student, teacher)
    first = both.assistant.first
    kind = student if first == 'teacher' else teacher
    for size in ((64, 96), (128, 64), (96, 96), (64, 64)):
        stages = both.run(torch.randn(2, 3, *size))
        output = both.assistant(**stages)
        grid = tuple(side // 16 // STRIDE[kind] for side in size)
        assert both.assistant.receiver.grid == grid
        tokens = project_by_hand(both.assistant.projector, stages[first], grid)
        feature, logits = receive_by_hand(kind, both.receiving, tokens, grid)
        torch.testing.assert_close(
            output['feature'], feature, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            output['logits'], logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ('student', 'teacher', 'pixels', 'stride', 'grid'),
    [
        # 5 x 6 to 3 x 3, by averages that overlap.
        ('resnet', 'swin', (80, 96), (1, 2), (3, 3)),
        # 5 x 6 to 4 x 6.
        ('resnet', 'convnext', (80, 96), (2, 2), (2, 3)),
    ],
)
def test_grid_that_is_no_whole_multiple_is_resized(
    student, teacher, pixels, stride, grid, assemble
):
    both = assemble(student, teacher, pixels)
    assert both.assistant.projector.stride == stride
    stages = both.run(torch.randn(2, 3, *pixels))
    tokens = project_by_hand(both.assistant.projector, stages['student'], grid)
    feature, logits = receive_by_hand(teacher, both.teacher, tokens, grid)
    output = both.assistant(**stages)
    close = dict(rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output['feature'], feature, **close)
    torch.testing.assert_close(output['logits'], logits, **close)


def test_map_that_is_too_small_is_interpolated():
    project = LocalToGlobalProjector(4, 8, (1, 1), 2, 2)
    feature = torch.randn(2, 4, 2, 3)
    larger = F.interpolate(feature, (4, 5), mode='bilinear')
    expected = project_by_hand(project, larger, (4, 5))
    torch.testing.assert_close(project(feature, (4, 5)), expected)


def test_blocks_of_a_receiving_vit_may_be_split_elsewhere(assemble):
    both = assemble('resnet', 'vit', blocks=(0, 1, 3, 5))
    calls = []
    for index, layer in enumerate(both.teacher.backbone.layers):
        layer.register_forward_hook(
            lambda module, inputs, outputs, index=index: calls.append(index)
        )
    stages = both.run(torch.randn(2, 3, 64, 64))
    del calls[:]
    both.assistant(**stages)
    assert calls == [4, 5]


# ------------------------------------------------------------------ gradients


def graded(module) -> set[str]:
    """Parameters that got a gradient, each of which is finite."""
    found = {n: p.grad for n, p in module.named_parameters()}
    found = {name: grad for name, grad in found.items() if grad is not None}
    assert all(grad.isfinite().all() for grad in found.values())
    return set(found)


def names(module, *prefixes) -> set[str]:
    return {n for n, _ in module.named_parameters() if n.startswith(prefixes)}


@pytest.mark.parametrize('output', ['logits', 'feature'])
@pytest.mark.parametrize('teacher', ['swin', 'vit', 'mixer', 'convnext'])
def test_student_that_comes_first_learns_through_the_frozen_stage(
    teacher, output, assemble
):
    both = assemble('resnet', teacher)
    stages = both.run(torch.randn(2, 3, 64, 64))
    both.assistant(**stages)[output].square().sum().backward()
    early = names(
        both.student,
        *(f'backbone.{name}' for name in ('conv1', 'bn1', 'layer1')),
        *('backbone.layer2', 'backbone.layer3'),
    )
    assert graded(both.student) == early
    for name, parameter in both.student.named_parameters():
        if name in early:
            assert parameter.grad.any(), name
    assert graded(both.assistant) == names(both.assistant, '')
    assert not graded(both.teacher)


@pytest.mark.parametrize(
    ('student', 'last', 'output'),
    [
        ('swin', ('backbone.stages.3', 'backbone.norm3', 'head'), 'logits'),
        ('swin', ('backbone.stages.3', 'backbone.norm3'), 'feature'),
        ('mixer', ('backbone.layers.3', 'backbone.ln1', 'head'), 'logits'),
        # The class token that enters is the student's own.
        (
            'vit',
            (
                'backbone.layers.5',
                'backbone.ln1',
                'backbone.cls_token',
                'backbone.pos_embed',
                'backbone.patch_embed',
                'head',
            ),
            'logits',
        ),
    ],
)
def test_student_that_comes_last_learns_in_its_last_stage(
    student, last, output, assemble
):
    both = assemble(student, 'resnet')
    stages = both.run(torch.randn(2, 3, 64, 64))
    both.assistant(**stages)[output].square().sum().backward()
    assert graded(both.student) == names(both.student, *last)
    assert graded(both.assistant) == names(both.assistant, '')
    assert not graded(both.teacher)
    if student == 'vit':
        position = both.student.backbone.pos_embed.grad
        assert position[:, 0].any()
        # The patches stand beside it and get nothing.
        assert not position[:, 1:].any()
        embed = both.student.backbone.patch_embed
        assert not any(p.grad.any() for p in embed.parameters())


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('resnet', 'swin'), ('resnet', 'vit'), ('mixer', 'resnet')],
)
def test_gradient_is_that_of_finite_differences(student, teacher, assemble):
    both = assemble(student, teacher)
    for module in (both.student, both.teacher, both.assistant):
        module.double()
    stages = both.run(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    first = both.assistant.first

    def outputs(feature):
        result = both.assistant(**stages | {first: feature})
        return result['feature'], result['logits']

    feature = torch.randn_like(stages[first]).requires_grad_()
    assert gradcheck(outputs, feature, fast_mode=True)


# ------------------------------------------------------------------ precision


@pytest.mark.parametrize(
    ('student', 'teacher'),
    [('resnet', 'swin'), ('resnet', 'vit'), ('vit', 'convnext')],
)
def test_autocast_comes_close_to_full_precision(student, teacher, assemble):
    both = assemble(student, teacher)
    images = torch.randn(4, 3, 64, 64)
    stages = both.run(images)
    expected = both.assistant(**stages)
    with torch.autocast('cpu', torch.bfloat16):
        stages = both.run(images)
        output = both.assistant(**stages)
    for name, value in expected.items():
        error = (output[name].float() - value).abs().mean()
        assert error < 0.05 * value.abs().mean()
        assert error > 0
    output['logits'].float().square().sum().backward()
    assert graded(both.assistant) == names(both.assistant, '')


# --------------------------------------------------------------------- errors


def test_unknown_first_is_refused():
    with pytest.raises(
        ValueError, match="'student' or 'teacher', but got 'both'"
    ):
        AssistantConnector(first='both')


def test_heads_that_do_not_divide_the_width_are_refused(assemble):
    with pytest.raises(ValueError, match='7 heads.*64 channels.*num_heads'):
        assemble('resnet', 'swin', num_heads=7)


def test_receiver_that_does_more_is_refused(assemble):
    teacher = dict(
        type='mmpretrain.TimmClassifier', model_name='test_efficientnet'
    )
    with pytest.raises(ValueError, match='TimmClassifier of a EfficientNet'):
        assemble('resnet', None, teacher_cfg=teacher)


def test_tokens_in_place_of_a_map_are_refused(assemble):
    both = assemble('resnet', 'swin')
    other = AssistantConnector()
    other.attach(both.student, Teacher(both.teacher))
    stages = both.run(torch.randn(2, 3, 64, 64))
    with pytest.raises(ValueError, match='`student` must be a map'):
        other.prepare(stages | dict(student=torch.rand(2, 16, 16)), None)
