"""Replaying a teacher's own features gives the teacher's own result."""

import mmpretrain.models as mm
import pytest
import torch
from torch import nn

from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.stages import to_tokens
from mmcakd.models.teachers import build_tail

ARCH = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32)
SWIN = dict(embed_dims=8, depths=[1, 2, 2, 2], num_heads=[1, 2, 4, 4])


def make_swin(size, **kwargs):
    cfg = dict(img_size=size, window_size=2) | kwargs
    return mm.SwinTransformer(SWIN, **cfg)


def make_beit(size, **kwargs):
    cfg = dict(img_size=size, out_type='avg_featmap') | kwargs
    return mm.BEiTViT(ARCH, **cfg)


#: How to build each for a size. Relative position biases start at zero, which
#: would hide their absence: all parameters are drawn below.
TEACHERS = {
    'swin': make_swin,
    'swin with padded windows': lambda size: make_swin(
        size, window_size=5, pad_small_map=True
    ),
    'swin without final norm': lambda size: make_swin(size, norm_cfg=None),
    'vit': lambda size: mm.VisionTransformer(ARCH, size),
    'vit without cls': lambda size: mm.VisionTransformer(
        ARCH, size, with_cls_token=False, out_type='avg_featmap'
    ),
    'vit without final norm': lambda size: mm.VisionTransformer(
        ARCH, size, final_norm=False, out_type='avg_featmap'
    ),
    'deit distilled': lambda size: mm.DistilledVisionTransformer(
        ARCH, img_size=size
    ),
    'deit3': lambda size: mm.DeiT3(ARCH, img_size=size),
    'beit': make_beit,
    'beit with shared bias': lambda size: make_beit(
        size, use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    'beit without cls or bias': lambda size: make_beit(
        size, use_rel_pos_bias=False, with_cls_token=False
    ),
    'beit with positions and final norm': lambda size: make_beit(
        size, use_abs_pos_emb=True, final_norm=True
    ),
    'eva02': lambda size: mm.ViTEVA02(ARCH, img_size=size),
    'eva02 without cls': lambda size: mm.ViTEVA02(
        ARCH, img_size=size, with_cls_token=False, out_type='avg_featmap'
    ),
}
SIZES = [(64, 64), (96, 96), (64, 96)]

every_teacher = pytest.mark.parametrize('name', TEACHERS)


def build(name, size):
    net = TEACHERS[name](size)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    net.eval()
    return net.requires_grad_(False)


@torch.no_grad()
def run(net, images):
    """Record the four stages as tokens."""
    recorder = StageOutputsRecorder()
    recorder.initialize(net)
    with recorder:
        net(images)
    return [to_tokens(map_) for map_ in recorder.get_record_data()]


@pytest.mark.parametrize('size', SIZES, ids=str)
@every_teacher
def test_own_stages_replayed_give_the_last_with_no_difference(name, size):
    if size[0] != size[1] and name.startswith('eva02'):
        pytest.skip("MMPretrain's EVA02 takes square images only")
    net = build(name, size)
    tails = [build_tail(net, stage) for stage in (3, 2)]
    stages = run(net, torch.randn(3, 3, *size))
    for stage, tail in zip((3, 2), tails, strict=True):
        replayed = tail(stages[stage - 1])
        assert replayed.shape == stages[3].shape
        assert (replayed - stages[3]).abs().max() == 0.0


@pytest.mark.parametrize('size', [(72, 72), (40, 104)], ids=str)
@pytest.mark.parametrize('name', [n for n in TEACHERS if 'swin' in n])
def test_maps_of_odd_sides_are_merged_like_the_teachers(name, size):
    net = build(name, size)
    tail = build_tail(net, 2)
    stages = run(net, torch.randn(2, 3, *size))
    assert (tail(stages[1]) - stages[3]).abs().max() == 0.0


@every_teacher
def test_tail_may_end_before_the_last_stage(name):
    net = build(name, (64, 64))
    tail = build_tail(net, 1, 3)
    stages = run(net, torch.randn(2, 3, 64, 64))
    assert (tail(stages[0]) - stages[2]).abs().max() == 0.0


@pytest.mark.parametrize(
    'name', ['swin', 'vit', 'vit without cls', 'deit distilled', 'deit3']
)
def test_tail_follows_the_teacher_to_another_image_size(name):
    net = build(name, (64, 64))
    tail = build_tail(net, 3)
    for size in ((64, 64), (96, 64), (64, 64)):
        stages = run(net, torch.randn(2, 3, *size))
        assert (tail(stages[2]) - stages[3]).abs().max() == 0.0


@every_teacher
def test_two_views_in_one_batch_are_two_runs(name):
    net = build(name, (64, 64))
    tail = build_tail(net, 3)
    stages = run(net, torch.randn(3, 3, 64, 64))
    first = stages[2]
    second = torch.randn_like(first)
    together = tail(torch.cat((first, second)))
    alone = torch.cat((tail(first), tail(second)))
    assert torch.allclose(together, alone, rtol=1e-5, atol=1e-5)
    # Mixing images up would show.
    assert not torch.allclose(together, alone.flip(0), rtol=1e-2, atol=1e-2)


@every_teacher
def test_gradient_reaches_the_tokens_and_no_parameter(name):
    net = build(name, (64, 64))
    tail = build_tail(net, 3)
    stages = run(net, torch.randn(2, 3, 64, 64))
    tokens = stages[2].clone().requires_grad_()
    tail(tokens).square().sum().backward()
    assert (tokens.grad.abs().sum(-1) > 0).all()
    assert not [n for n, p in net.named_parameters() if p.grad is not None]


def test_other_blocks_may_end_the_stages():
    blocks = (0, 2, 3, 5)
    net = build('vit', (64, 64))
    tail = build_tail(net, 3, blocks=blocks)
    recorder = StageOutputsRecorder(blocks=blocks)
    recorder.initialize(net)
    with recorder, torch.no_grad():
        net(torch.randn(2, 3, 64, 64))
    third, last = (recorder.get_record_data(data_idx=i) for i in (2, 3))
    assert torch.equal(tail(to_tokens(third)), to_tokens(last))


# -------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    'net',
    [
        mm.ResNet(18, stem_channels=4, base_channels=4),
        mm.MlpMixer(
            dict(
                embed_dims=8,
                num_layers=4,
                tokens_mlp_dims=8,
                channels_mlp_dims=8,
            ),
            64,
        ),
    ],
    ids=lambda net: type(net).__name__,
)
def test_teacher_without_a_tail_is_refused(net):
    with pytest.raises(ValueError, match='cannot be replayed') as caught:
        build_tail(net, 3)
    assert type(net).__name__ in str(caught.value)
    assert 'SwinTransformer' in str(caught.value)


@pytest.mark.parametrize(
    ('start', 'end'), [(0, 4), (4, 4), (3, 2), (3, 3), (3, 5)]
)
def test_stages_out_of_order_are_refused(start, end):
    net = build('swin', 64)
    with pytest.raises(ValueError, match=f'={start}, to_stage={end}'):
        build_tail(net, start, end)


@pytest.mark.parametrize('name', ['swin', 'vit'])
def test_tokens_of_another_grid_are_refused(name):
    net = build(name, (64, 64))
    tail = build_tail(net, 3)
    (third, _) = run(net, torch.randn(2, 3, 64, 64))[2:]
    with pytest.raises(ValueError, match='15 tokens.* 4 x 4.*shape_like'):
        tail(third[:, 1:])


@pytest.mark.parametrize('name', ['swin', 'vit'])
def test_tail_before_the_teachers_first_run_is_refused(name):
    tail = build_tail(build(name, (64, 64)), 3)
    with pytest.raises(RuntimeError, match='teacher has to run'):
        tail(torch.rand(2, 16, 32))
