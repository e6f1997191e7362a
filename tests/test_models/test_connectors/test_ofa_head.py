"""Heads of OFA-KD: sizes as published, and what they compute."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmcakd.models.connectors import OFAHeadConnector
from mmcakd.models.connectors.ofa_head import (
    MapHead,
    PatchMerging,
    SeparableBlock,
    TokenHead,
)
from mmcakd.models.stages import StageTokens


def maps(widths, grids, count: int = 2) -> list[torch.Tensor]:
    """Stages of a convolutional student."""
    return [
        torch.rand(count, width, *grid)
        for width, grid in zip(widths, grids, strict=True)
    ]


def tokens(widths, grids, extra: int = 0) -> list[StageTokens]:
    """Stages of a student of tokens."""
    return [
        StageTokens(stage, torch.rand(len(stage), extra, stage.shape[1]))
        for stage in maps(widths, grids)
    ]


def build(features, teacher_width: int = 24, classes: int = 5, **kwargs):
    connector = OFAHeadConnector(**kwargs)
    like = dict(
        feature=torch.rand(2, teacher_width, 2, 2),
        logits=torch.rand(2, classes),
    )
    connector.prepare(dict(stages=features), like)
    return connector


PYRAMID = [(s, s) for s in (56, 28, 14, 7)]
FLAT = [(14, 14)] * 4
STUDENTS = dict(
    resnet18=lambda: maps([64, 128, 256, 512], PYRAMID),
    mobilenetv2=lambda: maps([24, 32, 96, 1280], PYRAMID),
    deit_t=lambda: tokens([192] * 4, FLAT, extra=1),
    swin_n=lambda: tokens([64, 128, 256, 512], PYRAMID),
    resmlp=lambda: tokens([384] * 4, FLAT),
)


@pytest.mark.parametrize(
    ('student', 'teacher_width', 'classes', 'parameters'),
    [
        ('resnet18', 192, 1000, 3_041_184),  # DeiT-T
        ('resnet18', 768, 1000, 4_394_656),  # Swin-T, Mixer-B
        ('mobilenetv2', 192, 1000, 7_140_896),
        ('mobilenetv2', 768, 1000, 7_140_896),
        ('deit_t', 2048, 1000, 4_477_984),  # ResNet-50
        ('deit_t', 768, 1000, 4_477_984),  # ConvNeXt-T, Mixer-B
        ('swin_n', 768, 1000, 28_187_040),
        ('resmlp', 2048, 1000, 16_324_768),
        ('resnet18', 768, 100, 1_626_256),
        ('resnet18', 384, 100, 1_194_384),  # ViT-S
        ('mobilenetv2', 384, 100, 2_529_296),
        ('deit_t', 768, 100, 3_783_184),
    ],
)
def test_parameter_counts_are_the_published_ones(
    student, teacher_width, classes, parameters
):
    heads = build(STUDENTS[student](), teacher_width, classes)
    assert sum(p.numel() for p in heads.parameters()) == parameters


@pytest.mark.parametrize('student', STUDENTS)
def test_each_stage_gets_logits(student):
    stages = STUDENTS[student]()
    logits = build(stages, 24, 7)(stages)
    assert [tuple(x.shape) for x in logits] == [(2, 7)] * 4


def test_only_the_stages_asked_for_get_a_head():
    stages = maps([4, 8, 16, 32], [(8, 6), (4, 3), (2, 2), (1, 1)])
    connector = build(stages, stages=(2, 4)).eval()
    assert len(connector.heads) == 2
    both = connector(stages)
    torch.testing.assert_close(both[1], connector.heads[1](stages[3]))


def test_map_head_ends_at_the_larger_width():
    stages = maps([4, 8, 16, 32], [(8, 8), (4, 4), (2, 2), (1, 1)])
    for teacher, width in ((24, 32), (48, 48)):
        heads = build(stages, teacher).heads
        assert [head[-1].in_features for head in heads] == [width] * 4


def test_map_head_is_its_layers_one_by_one():
    head = MapHead(3, 6, 10, 5).double().eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 5, 8, dtype=torch.float64)
    block = head[0]
    assert isinstance(block, SeparableBlock)
    weights = [m.weight for m in block if isinstance(m, nn.Conv2d)]
    norms = [m for m in block if isinstance(m, nn.BatchNorm2d)]
    out = x
    for i, stride in ((0, 2), (1, 1)):
        out = F.conv2d(out, weights[2 * i], None, stride, 1, groups=6)
        out = torch.einsum('nchw,dc->ndhw', out, weights[2 * i + 1][..., 0, 0])
        norm = norms[i]
        shape = (1, -1, 1, 1)
        out = (out - norm.running_mean.view(shape)) / (
            norm.running_var.view(shape) + norm.eps
        ).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
        out = out.clamp(min=0)
    assert out.shape == (2, 10, 3, 4)
    expected = head[-1](out.mean((2, 3)))
    torch.testing.assert_close(head(x), expected)


def test_merging_joins_neighbours_column_by_column():
    merging = PatchMerging(3, 12).double()
    nn.init.eye_(merging.reduction.weight)
    x = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    out = merging(x)
    assert out.shape == (2, 2, 3, 12)
    joined = torch.cat(
        [x[1, 2, 4], x[1, 3, 4], x[1, 2, 5], x[1, 3, 5]]
    )  # (0, 0), (1, 0), (0, 1), (1, 1)
    expected = F.layer_norm(joined, (12,))
    torch.testing.assert_close(out[1, 1, 2], expected)


def test_merging_pads_odd_sides():
    assert PatchMerging(3, 5)(torch.rand(1, 7, 10, 3)).shape == (1, 4, 5, 5)


@pytest.mark.parametrize(
    ('grid', 'merged', 'activations'),
    [
        ((56, 56), (7, 7), 2),
        ((28, 28), (7, 7), 1),
        ((14, 14), (7, 7), 1),
        ((7, 7), (7, 7), 0),
        ((4, 4), (4, 4), 0),
        ((10, 20), (5, 10), 1),
        ((27, 29), (14, 15), 1),
    ],
)
def test_patches_are_merged_to_about_7x7(grid, merged, activations):
    head = TokenHead(4, 4, grid, 8, 5, num_heads=2, final_grid=7)
    out = head.merge(torch.rand(1, *grid, 4))
    assert out.shape == (1, *merged, 8)
    found = [m for m in head.merge if isinstance(m, nn.GELU)]
    # After each merging but the last of several.
    assert len(found) == activations


def test_earlier_stages_get_more_blocks():
    stages = tokens([8] * 4, [(4, 4)] * 4)
    blocks = [len(head.blocks) for head in build(stages).heads]
    assert blocks == [3, 2, 1, 1]


def test_token_head_is_its_layers_one_by_one():
    head = TokenHead(4, 8, (3, 2), 8, 5, num_heads=4, final_grid=7)
    head = head.double().eval()
    (stage,) = tokens([8], [(3, 2)], extra=2)
    stage = StageTokens(stage.map.double(), stage.extra.double())
    x = torch.cat((stage.extra, stage.map.flatten(2).transpose(1, 2)), 1)
    block = head.blocks[0]
    assert block.attn.qkv.bias is None
    assert block.ln1.eps == block.ln2.eps == 1e-5

    normed = F.layer_norm(x, (8,), block.ln1.weight, block.ln1.bias)
    q, k, v = (
        part.unflatten(-1, (4, 2)).transpose(1, 2)
        for part in (normed @ block.attn.qkv.weight.T).chunk(3, -1)
    )
    attention = (q @ k.transpose(-1, -2) / 2**0.5).softmax(-1)
    x = x + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
    normed = F.layer_norm(x, (8,), block.ln2.weight, block.ln2.bias)
    hidden, out = (m for m in block.ffn.modules() if isinstance(m, nn.Linear))
    assert hidden.out_features == 32
    x = x + out(F.gelu(hidden(normed)))

    torch.testing.assert_close(head(stage), head.classifier(x[:, 0]))
    without = StageTokens(stage.map, stage.extra[:, :0])
    pooled = head.blocks(x.new_tensor(0) + without.map.flatten(2).mT).mean(1)
    torch.testing.assert_close(head(without), head.classifier(pooled))


def test_class_token_passes_the_merging_by():
    head = TokenHead(4, 8, (14, 14), 8, 5, num_heads=2, final_grid=7)
    (stage,) = tokens([8], [(14, 14)], extra=1)
    seen = []
    head.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    head(stage)
    assert seen[0].shape == (2, 1 + 49, 8)
    assert torch.equal(seen[0][:, :1], stage.extra)


def test_narrow_stage_without_merging_is_widened():
    stages = tokens([4, 8, 16, 32], [(16, 16), (8, 8), (4, 4), (2, 2)])
    connector = build(stages)
    assert connector.embed_dims == 32
    assert [tuple(x.shape) for x in connector(stages)] == [(2, 5)] * 4


def test_every_parameter_gets_a_gradient():
    for stages in (
        maps([4, 8, 16, 32], [(8, 8), (4, 4), (2, 2), (1, 1)]),
        tokens([8] * 4, [(14, 14)] * 4, extra=1),
    ):
        connector = build(stages)
        sum(logits.square().sum() for logits in connector(stages)).backward()
        for name, parameter in connector.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_weights_start_as_published_and_init_weights_keeps_them():
    stages = tokens([64] * 4, [(14, 14)] * 4, extra=1)
    connector = build(stages, classes=50)
    before = {k: v.clone() for k, v in connector.state_dict().items()}
    connector.init_weights()
    for key, value in connector.state_dict().items():
        assert torch.equal(value, before[key])
    for module in connector.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()
    convolution = build(maps([64, 128, 256, 512], PYRAMID), 768).heads[3][0]
    # Kaiming for ReLU over the outputs of a 1x1 convolution.
    expected = (2 / 768) ** 0.5
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not convolution.bias.any()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match='num_heads=4.*width 10'):
        build(tokens([10] * 4, [(4, 4)] * 4))


@pytest.mark.parametrize('stages', [(), (0, 1), (4, 5)])
def test_stages_outside_of_four_are_refused(stages):
    with pytest.raises(ValueError, match='1, 2, 3 and 4'):
        OFAHeadConnector(stages=stages)


def test_a_single_stage_is_refused():
    with pytest.raises(ValueError, match='all stages.*without data_idx'):
        build(torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match='all stages.*without data_idx'):
        build(tokens([8], [(4, 4)])[0])


def test_only_stages_that_are_read_have_to_exist():
    three = maps([4, 8, 16], [(4, 4), (2, 2), (1, 1)])
    with pytest.raises(ValueError, match='stage 4.*3 stages.*`stages`'):
        build(three)
    heads = build(three, stages=(1, 3))
    assert [tuple(logits.shape) for logits in heads(three)] == [
        (2, heads.num_classes)
    ] * 2


def test_open_sizes_are_named():
    stages = maps([4, 8, 16, 32], [(8, 8), (4, 4), (2, 2), (1, 1)])
    connector = OFAHeadConnector()
    with pytest.raises(ValueError, match='shape_like.*num_classes'):
        connector.prepare(dict(stages=stages), None)
    connector = OFAHeadConnector(num_classes=5)
    with pytest.raises(ValueError, match='shape_like.*embed_dims'):
        connector.prepare(dict(stages=stages), None)
    connector = OFAHeadConnector(num_classes=5, embed_dims=16)
    connector.prepare(dict(stages=stages), None)
    assert connector.heads[0][-1].in_features == 16
