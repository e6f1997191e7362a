"""What a network's own forward does when it runs from a stage on."""

import copy

import mmpretrain.models as mm
import pytest
import timm
import torch
from torch import nn

from mmcakd.models.stages import build_tail, find_taps, to_map, to_tokens
from mmcakd.models.teachers import Teacher


@pytest.fixture
def build(networks):
    """Build a small network of the tests of families, with images of it."""

    def build(name: str):
        if name not in networks.mmpretrain:
            net = networks.timm[name]()
            return networks.ready(net), networks.timm_images(name)
        case = networks.mmpretrain[name]
        size = case.sizes[-1]
        return networks.ready(case.build(size)), torch.randn(2, 3, *size)

    return build


def record(net, images, checks):
    return [to_tokens(stage) for stage in checks.record(net, images)]


#: Networks with other branches, with class tokens, and with neither.
KINDS = ['HRNet', 'Conformer', 'TNT', 'Eva', 'MultiScaleVit with cls', 'VAN']


@pytest.mark.parametrize('name', KINDS)
def test_several_views_are_several_runs(name, build, checks):
    net, images = build(name)
    tail = build_tail(net, 2)
    own = record(net, images, checks)[1]
    views = own, torch.randn_like(own), own.flip(2)
    together = tail(torch.cat(views))
    alone = torch.cat([tail(view) for view in views])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['HRNet', 'Conformer', 'TNT', 'Eva'])
def test_other_images_than_the_networks_are_refused(name, build, checks):
    net, images = build(name)
    tail = build_tail(net, 2)
    own = record(net, images, checks)[1]
    with pytest.raises(ValueError, match='3 images .* the 2 that'):
        tail(torch.cat((own, own[:1])))


@pytest.mark.parametrize('name', ['HRNet', 'VAN', 'PCPVT', 'SwinTransformer'])
def test_tail_follows_the_network_to_another_image_size(name, build, checks):
    net, _ = build(name)
    tail = build_tail(net, 2)
    for size in ((64, 64), (96, 64), (64, 96)):
        stages = record(net, torch.randn(2, 3, *size), checks)
        with torch.no_grad():
            assert torch.equal(tail(stages[1]), stages[3])


@pytest.mark.parametrize('name', ['HRNet', 'VAN', 'Conformer'])
def test_channels_last_network_is_replayed_as_it_runs(name, build, checks):
    net, images = build(name)
    net.to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    tail = build_tail(net, 1)
    stages = record(net, images, checks)
    with torch.no_grad():
        assert torch.equal(tail(stages[0].contiguous()), stages[3])


@pytest.mark.parametrize('name', ['HRNet', 'TNT', 'Eva'])
def test_network_in_half_precision_is_replayed_in_full(name, build, checks):
    net, images = build(name)
    tail = build_tail(net, 3)
    stages = record(net, images, checks)
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        net(images)
    result = tail(stages[2])
    assert result.dtype == torch.float32
    # Branches and class tokens of the network have its precision.
    assert torch.allclose(result, stages[3], rtol=0.2, atol=0.2)


def test_earlier_modules_do_not_run_and_hooks_see_no_replay(build, checks):
    net, images = build('SwinTransformer')
    stages = record(net, images, checks)
    tail = build_tail(net, 3)
    record(net, images, checks)
    called = []
    for path, module in net.named_modules():
        module.register_forward_hook(
            lambda module, inputs, outputs, path=path: called.append(path)
        )
    tail(stages[2])
    assert called
    # The backbone hands out its third stage, too, behind a norm.
    later = ('norm2', 'stages.2.downsample', 'stages.3', 'norm3')
    assert all(path.startswith(later) for path in called)


@pytest.mark.parametrize('name', KINDS)
def test_error_in_a_replay_leaves_nothing_behind(name, build, checks):
    net, images = build(name)
    tail = build_tail(net, 1)
    stages = record(net, images, checks)
    before = {path: set(vars(module)) for path, module in net.named_modules()}
    with pytest.raises((RuntimeError, ValueError)):
        tail(torch.randn(2, stages[0].shape[1], 3))
    for path, module in net.named_modules():
        assert set(vars(module)) == before[path]
    for network in (net, copy.deepcopy(net)):
        again = record(network, images, checks)
        assert all(map(torch.equal, again, stages))
    with torch.no_grad():
        assert torch.equal(tail(stages[0]), stages[3])


@pytest.mark.parametrize('name', ['HRNet', 'TNT', 'Eva'])
def test_tails_and_copies_do_not_disturb_each_other(name, build, checks):
    net, images = build(name)
    long, short = build_tail(net, 1), build_tail(net, 3)
    stages = record(net, images, checks)
    # Both run modules that the short one looks at.
    copy.deepcopy(net)(torch.randn(4, *images.shape[1:]))
    long(torch.randn_like(stages[0]).repeat(2, 1, 1))
    with torch.no_grad():
        assert torch.equal(short(stages[2]), stages[3])


@pytest.mark.parametrize('name', KINDS)
def test_no_graph_of_the_networks_forward_is_kept(name, build):
    net, images = build(name)
    net.requires_grad_(True)
    tail = build_tail(net, 2)
    net(images)
    leaves, _ = torch.utils._pytree.tree_flatten(
        [value for key, value in vars(tail).items() if key != '_modules']
    )
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    assert not any(tensor.requires_grad for tensor in tensors)


class Shortcut(mm.VAN):
    """A network whose stages are joined by more than the last feature."""

    def forward(self, x):
        first, _ = self.patch_embed1(x)
        mean = first.mean()
        self.norm2.register_forward_pre_hook(
            lambda module, inputs: inputs[0] + mean
        )
        return super().forward(x)


ARCH = dict(embed_dims=[4, 8, 16, 32], depths=[1] * 4, ffn_ratios=[2] * 4)


def test_what_passes_by_a_stage_is_noticed(checks):
    net = checks.ready(Shortcut(arch=ARCH))
    tail = build_tail(net, 1)
    stages = record(net, torch.randn(2, 3, 64, 64), checks)
    with pytest.raises(RuntimeError, match='stage 4 of this Shortcut is made'):
        tail(stages[0])


def test_features_that_overflow_are_no_such_fault(build, checks):
    net, images = build('VAN')
    tail = build_tail(net, 2)
    own = record(net, images, checks)[1]
    assert tail(torch.full_like(own, torch.inf)).isnan().any()
    assert tail(own).isfinite().all()


@pytest.mark.parametrize('name', ['Beit', 'Eva'])
def test_checkpointed_blocks_pass_the_same_gradients(name, build, checks):
    net, images = build(name)
    gradients = []
    for checkpoints in (False, True):
        net.set_grad_checkpointing(checkpoints)
        tail = build_tail(net, 2)
        tokens = record(net, images, checks)[1].requires_grad_()
        tail(tokens).square().sum().backward()
        gradients.append(tokens.grad)
    torch.testing.assert_close(*gradients)


def test_reentrant_checkpoints_around_blocks_are_refused(build, checks):
    net, images = build('MixMIMTransformer')
    tail = build_tail(net, 2)
    own = record(net, images, checks)[1]
    for layer in net.layers:
        layer.use_checkpoint = True
    with pytest.raises(RuntimeError, match='switch its checkpointing off'):
        tail(own.requires_grad_())


@pytest.mark.parametrize(
    'name',
    ['VAN', 'PCPVT', 'SVT', 'MixMIMTransformer', 'SwinTransformerV2', 'DaViT']
    + ['Twins'],
)
def test_tail_entered_behind_the_patch_merging(name, build, checks):
    net, images = build(name)
    tail = build_tail(net, 3, skip_transition=True)
    entry = find_taps(net)[3].entry
    entered = []
    net.get_submodule(entry.source).register_forward_hook(
        lambda module, inputs, outputs: entered.append(entry.pick(outputs))
    )
    stages = record(net, images, checks)
    tokens = to_tokens(to_map(entered[0], entry.layout, tail.grid))
    assert tail.width == tokens.shape[2] == stages[3].shape[2]
    with torch.no_grad():
        assert torch.equal(tail(tokens), stages[3])
        assert not torch.equal(tail(tokens.flip(0)), stages[3])


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('HRNet', 'one stage leads to the next'),
        ('Conformer', 'one stage leads to the next'),
        ('TNT', 'one stage leads to the next'),
        ('ConVit', 'class token joins behind the first block'),
    ],
)
def test_what_knows_the_images_is_no_fresh_token(name, reason, build):
    net, _ = build(name)
    with pytest.raises(ValueError, match=f'cannot be replayed .*{reason}'):
        build_tail(net, 3, fresh_extra_tokens=True)


@pytest.mark.parametrize('name', ['Eva', 'MultiScaleVit with cls'])
def test_fresh_tokens_are_the_same_for_all_images(name, build, checks):
    net, images = build(name)
    fresh = build_tail(net, 3, fresh_extra_tokens=True)
    own = build_tail(net, 3)
    record(net, images, checks)
    assert torch.equal(*fresh.extra_tokens)
    assert not torch.allclose(*own.extra_tokens)


def test_teacher_of_timm_inside_mmpretrains_backbone(checks):
    net = mm.TIMMBackbone('test_byobnet')
    assert isinstance(net.timm_model, timm.models.ByobNet)
    teacher = Teacher(mm.ImageClassifier(dict(type='ResNet', depth=18)))
    teacher.model.backbone = checks.ready(net)
    teacher.model.neck = nn.Identity()
    tail = teacher.build_tail(2)
    stages = record(net, torch.randn(2, 3, 64, 64), checks)
    with torch.no_grad():
        assert torch.equal(tail(stages[1]), stages[3])
