"""Replaying a teacher's own features gives the teacher's own result."""

import mmpretrain.models as mm
import pytest
import timm
import torch
from torch import nn

from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.stages import build_tail, frozen_statistics, to_tokens
from mmcakd.models.teachers import Teacher

ARCH = dict(embed_dims=16, num_layers=6, num_heads=2, feedforward_channels=32)
CONVNEXT = dict(depths=[1, 1, 1, 1], channels=[4, 8, 16, 32])
MIXER = dict(
    embed_dims=16, num_layers=6, tokens_mlp_dims=8, channels_mlp_dims=32
)
SWIN = dict(embed_dims=8, depths=[1, 2, 2, 2], num_heads=[1, 2, 4, 4])


def make_swin(size, **kwargs):
    cfg = dict(img_size=size, window_size=2) | kwargs
    return mm.SwinTransformer(SWIN, **cfg)


def make_swin_v2(size, **kwargs):
    arch = SWIN | dict(extra_norm_every_n_blocks=2)
    cfg = dict(img_size=size, window_size=2) | kwargs
    return mm.SwinTransformerV2(arch, **cfg)


def make_timm_vit(size, **kwargs):
    return timm.models.VisionTransformer(
        size, 16, embed_dim=16, depth=6, num_heads=2, **kwargs
    )


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
    'swin v2': make_swin_v2,
    'swin v2 with padded windows': lambda size: make_swin_v2(
        size, window_size=5, pad_small_map=True
    ),
    'resnet': lambda size: mm.ResNet(18, stem_channels=4, base_channels=4),
    'convnext': lambda size: mm.ConvNeXt(CONVNEXT),
    'mixer': lambda size: mm.MlpMixer(MIXER, size),
    'timm vit with registers': lambda size: make_timm_vit(size, reg_tokens=4),
    'timm swin': lambda size: timm.models.SwinTransformer(
        size,
        window_size=2,
        embed_dim=8,
        depths=(1, 2, 2, 2),
        num_heads=(1, 2, 4, 4),
    ),
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
    return ready(TEACHERS[name](size))


def ready(net):
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
@pytest.mark.parametrize(
    'name',
    [
        'swin',
        'swin with padded windows',
        'swin without final norm',
        'swin v2',
        'swin v2 with padded windows',
        'resnet',
        'convnext',
    ],
)
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
    'name',
    [
        'swin',
        'swin v2',
        'resnet',
        'convnext',
        'vit',
        'vit without cls',
        'deit distilled',
        'deit3',
    ],
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


@pytest.mark.parametrize('name', ['vit', 'timm vit with registers'])
def test_tails_of_one_teacher_do_not_disturb_each_other(name):
    net = build(name, (64, 64))
    long, short = build_tail(net, 1), build_tail(net, 3)
    stages = run(net, torch.randn(2, 3, 64, 64))
    # Runs through the modules that the short one looks at.
    long(torch.randn_like(stages[0]).repeat(2, 1, 1))
    assert torch.equal(short(stages[2]), stages[3])


def test_tail_that_failed_leaves_the_teacher_to_be_watched():
    net = build('vit', (64, 64))
    tail = build_tail(net, 3)
    stages = run(net, torch.randn(2, 3, 64, 64))
    with pytest.raises(RuntimeError):
        tail(stages[2][..., :3])
    stages = run(net, torch.randn(2, 3, 96, 64))
    assert torch.equal(tail(stages[2]), stages[3])


@pytest.mark.parametrize('name', ['resnet', 'convnext'])
def test_channels_last_teacher_is_replayed_as_it_runs(name):
    net = build(name, (64, 64)).to(memory_format=torch.channels_last)
    tail = build_tail(net, 2)
    images = torch.randn(2, 3, 64, 96)
    images = images.to(memory_format=torch.channels_last)
    stages = run(net, images)
    assert torch.equal(tail(stages[1].contiguous()), stages[3])


def test_batch_norm_in_a_tail_learns_nothing(tiny):
    teacher = Teacher(tiny.build(tiny.classifier(tiny.resnet())))
    tail = teacher.build_tail(1)
    teacher.train()
    teacher(torch.randn(2, 3, 64, 64))
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    tokens = torch.randn(2, 256, 4, requires_grad=True)
    tail(tokens).sum().backward()
    assert tokens.grad.abs().sum() > 0
    for key, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[key])


# ------------------------------------------- behind the transition in front


#: Networks, and the module whose input is what enters the blocks of the last
#: stage: a map ``(N, C, H, W)``, or tokens behind that many extra ones.
ENTRIES = {
    'swin': ('stages.3.blocks.0', (2, 3), 64, 0),
    'swin with padded windows': ('stages.3.blocks.0', (2, 3), 64, 0),
    'swin without final norm': ('stages.3.blocks.0', (2, 3), 64, 0),
    'swin v2': ('stages.3.blocks.0', (2, 3), 64, 0),
    'resnet': ('layer4', (4, 6), 16, 0),
    'convnext': ('stages.3', (2, 3), 32, 0),
    'mixer': ('layers.5', (4, 6), 16, 0),
    'timm swin': ('layers.3', (4, 6), 32, 0),
    'timm vit with registers': ('blocks.5', (4, 6), 16, 5),
    'vit': ('layers.5', (4, 6), 16, 1),
    'vit without cls': ('layers.5', (4, 6), 16, 0),
    'deit distilled': ('layers.5', (4, 6), 16, 2),
    'beit with shared bias': ('layers.5', (4, 6), 16, 1),
    'DaViT': ('stages.3.blocks.0', (2, 3), 64, 0),
    'TinyViT': ('stages.3.blocks.0', (2, 3), 32, 0),
    'HorNet': ('stages.3', (2, 3), 128, 0),
    'EdgeNeXt': ('stages.3', (2, 3), 32, 0),
    'RepLKNet': ('stages.3', (2, 3), 64, 0),
    'RepMLPNet': ('stages.3', (2, 3), 64, 0),
    'PoolFormer': ('network.6', (2, 3), 32, 0),
    'DenseNet': ('stages.3', (2, 3), 6, 0),
    'MobileNetV2': ('layer6', (4, 6), 24, 0),
    'T2T_ViT': ('encoder.5', (4, 6), 16, 1),
}


@pytest.mark.parametrize('name', ENTRIES)
def test_tail_entered_behind_the_transition(name, networks):
    path, grid, width, extra = ENTRIES[name]
    size = (64, 96)
    if name in TEACHERS:
        net = build(name, size)
    else:
        net = ready(networks.mmpretrain[name].build(size))
    tail = build_tail(net, 3, skip_transition=True)
    entered = []
    net.get_submodule(path).register_forward_pre_hook(
        lambda module, inputs: entered.append(inputs[0])
    )
    stages = run(net, torch.randn(2, 3, *size))
    entry = entered[0]
    if name == 'timm swin':
        entry = entry.permute(0, 3, 1, 2)
    tokens = to_tokens(entry)[:, extra:]
    assert tail.grid == grid
    assert tail.width == width
    assert tokens.shape[1:] == (grid[0] * grid[1], width)
    assert torch.equal(tail(tokens), stages[3])
    # The comparison could tell what is skipped from what is not.
    assert not torch.equal(tail(tokens.flip(1)), stages[3])


@pytest.mark.parametrize('name', ['swin', 'convnext', 'resnet', 'vit'])
def test_entry_follows_the_network_to_another_image_size(name):
    net = build(name, (64, 64))
    tail = build_tail(net, 3, skip_transition=True)
    sides = {'swin': 32, 'convnext': 32, 'resnet': 16, 'vit': 16}
    for size in ((64, 96), (128, 64)):
        stages = run(net, torch.randn(2, 3, *size))
        assert tail.grid == tuple(side // sides[name] for side in size)
        replayed = tail(
            torch.randn(2, tail.grid[0] * tail.grid[1], tail.width)
        )
        assert replayed.shape == stages[3].shape


def test_several_stages_behind_a_transition():
    net = build('swin', (64, 64))
    tail = build_tail(net, 2, skip_transition=True)
    entered = []
    net.stages[2].blocks[0].register_forward_pre_hook(
        lambda module, inputs: entered.append(inputs[0])
    )
    stages = run(net, torch.randn(2, 3, 64, 64))
    assert torch.equal(tail(entered[0]), stages[3])


@pytest.mark.parametrize('name', ['swin', 'resnet', 'vit', 'timm swin'])
def test_replay_keeps_the_layout_that_a_view_turns_into_tokens(name):
    net = build(name, (64, 96))
    tail = build_tail(net, 3)
    raw = []
    net.get_submodule(tail.end.source).register_forward_hook(
        lambda module, inputs, outputs: raw.append(outputs)
    )
    stages = run(net, torch.randn(2, 3, 64, 96))
    replayed = tail.replay(stages[2])
    assert torch.equal(replayed, raw[0])
    assert torch.equal(tail.view(replayed), stages[3])
    if tail.end.layout == 'NLC':
        height, width = tail.end_grid
        assert height * width == stages[3].shape[1]
        assert width > height


# ----------------------------------------------------- tokens without images


def cls_and_position(net):
    return net.cls_token + net.pos_embed[:, :1]


#: What enters the first block in front of the patches.
FRESH = {
    'vit': cls_and_position,
    'eva02': cls_and_position,
    'T2T_ViT': cls_and_position,
    'beit with positions and final norm': cls_and_position,
    # No position of its own.
    'deit3': lambda net: net.cls_token,
    'beit': lambda net: net.cls_token,
    'deit distilled': lambda net: (
        torch.cat((net.cls_token, net.dist_token), 1) + net.pos_embed[:, :2]
    ),
    'timm vit with registers': lambda net: (
        torch.cat((net.cls_token, net.reg_token), 1) + net.pos_embed[:, :5]
    ),
}


@pytest.mark.parametrize('name', FRESH)
def test_fresh_extra_tokens_are_those_in_front_of_the_first_block(
    name, networks
):
    if name in TEACHERS:
        net = build(name, (64, 64))
    else:
        net = ready(networks.mmpretrain[name].build((64, 64)))
    tail = build_tail(net, 3, fresh_extra_tokens=True)
    own = build_tail(net, 3)
    run(net, torch.randn(3, 3, 64, 64))
    expected = FRESH[name](net)
    assert torch.equal(tail.extra_tokens, expected.expand(3, -1, -1))
    assert own.extra_tokens.shape == tail.extra_tokens.shape
    # Those of this depth have seen the images.
    assert not torch.allclose(own.extra_tokens[0], own.extra_tokens[1])


@pytest.mark.parametrize('name', ['vit', 'timm vit with registers'])
def test_fresh_extra_tokens_tell_nothing_of_the_images(name):
    net = build(name, (64, 64))
    fresh = build_tail(net, 3, fresh_extra_tokens=True)
    own = build_tail(net, 3)
    tokens = torch.randn(2, 16, 16)
    results = []
    for _ in range(2):
        run(net, torch.randn(2, 3, 64, 64))
        results.append((fresh(tokens), own(tokens)))
    (first, others), (second, others_again) = results
    assert torch.equal(first, second)
    assert not torch.allclose(others, others_again)


# --------------------------------------------------------- frozen statistics


def test_frozen_statistics_normalise_by_the_batch_and_learn_nothing():
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    maps = torch.randn(5, 3, 4, 4) * 7 + 3
    before = {key: x.clone() for key, x in norm.state_dict().items()}
    with frozen_statistics(norm):
        result = norm(maps)
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert result.mean((0, 2, 3)).abs().max() < 1e-5
    # Otherwise it is the norm that it was.
    assert torch.equal(norm(maps), result)
    assert norm[1].num_batches_tracked == 1
    assert not torch.equal(norm[1].running_mean, before['1.running_mean'])


def test_frozen_statistics_leave_other_norms_alone():
    norms = nn.ModuleList(
        [
            nn.BatchNorm2d(2).eval(),
            nn.BatchNorm2d(2, track_running_stats=False),
            nn.LayerNorm(2),
        ]
    )
    with frozen_statistics(norms):
        assert norms[0].track_running_stats
        maps = torch.randn(3, 2, 2, 2)
        # By its own mean and variance, 0 and 1.
        assert torch.allclose(norms[0](maps), maps, atol=1e-4)
    assert [n.track_running_stats for n in norms[:2]] == [True, False]


def test_statistics_are_learned_again_after_an_error():
    norm = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match='stop'), frozen_statistics(norm):
        raise ValueError('stop')
    norm(torch.randn(3, 2))
    assert norm.num_batches_tracked == 1


# -------------------------------------------------------------------- errors


def test_teacher_without_a_tail_is_refused():
    with torch.device('meta'):
        net = timm.create_model('xception41p')
    with pytest.raises(
        ValueError, match='XceptionAligned cannot be replayed'
    ) as caught:
        build_tail(net, 3)
    assert 'docs/families.md' in str(caught.value)
    assert 'SwinTransformer' in str(caught.value)


def test_blocks_of_a_teacher_with_stages_are_refused():
    with pytest.raises(ValueError, match='has stages of its own'):
        build_tail(build('swin', 64), 3, blocks=(0, 1, 4, 5))


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
    with pytest.raises(RuntimeError, match='network has to run'):
        tail(torch.rand(2, 16, 32))
