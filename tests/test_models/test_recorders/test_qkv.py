"""Queries, keys and values of each family, and the windows of a Swin."""

import copy

import mmpretrain.models as mm
import pytest
import timm
import torch
import torch.nn.functional as F
from mmrazor.models.task_modules import RecorderManager

from mmcakd.models.connectors import attend
from mmcakd.models.recorders import QKVRecorder, find_windows

ARCH = dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32)
SWIN = dict(embed_dims=8, depths=[1, 1, 2, 2], num_heads=[1, 2, 4, 4])


def plain(cls=mm.VisionTransformer, **kwargs):
    net = cls(ARCH, img_size=64, patch_size=16, **kwargs)
    net.eval()
    return net


def beit(**kwargs):
    net = plain(mm.BEiTViT, **kwargs)
    for layer in net.layers:
        if layer.attn.bias == 'qv_bias':
            torch.nn.init.normal_(layer.attn.q_bias)
            torch.nn.init.normal_(layer.attn.v_bias)
    return net


def swin(**kwargs):
    net = mm.SwinTransformer(SWIN, 64, window_size=2, **kwargs)
    net.eval()
    return net


def record(net, images, block=-1):
    recorder = QKVRecorder(block)
    recorder.initialize(net)
    with recorder:
        net(images)
    return recorder.get_record_data()


def caught(module):
    """Fill a list with the inputs and outputs of a module."""
    calls = []
    module.register_forward_hook(lambda m, i, o: calls.append((i, o)))
    return calls


def by_hand(x, weight, bias, heads):
    """Queries, keys and values of tokens, head by head."""
    parts = []
    for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True):
        rows = x @ w.T + b
        parts.append(torch.stack(rows.chunk(heads, -1), 1))
    return parts


@pytest.mark.parametrize(
    ('build', 'extra'),
    [
        (plain, 1),
        (lambda: plain(mm.DistilledVisionTransformer), 2),
        (lambda: plain(mm.DeiT3), 1),
        (lambda: plain(with_cls_token=False, out_type='avg_featmap'), 0),
        (beit, 1),
        (lambda: beit(bias=True), 1),
        (lambda: beit(bias=False), 1),
        (
            lambda: beit(use_shared_rel_pos_bias=True, use_rel_pos_bias=False),
            1,
        ),
    ],
    ids=[
        'vit',
        'deit',
        'deit3',
        'no_cls',
        'beit',
        'bias',
        'no_bias',
        'shared',
    ],
)
def test_patch_tokens_of_a_plain_vit(build, extra):
    net = build()
    attention = net.layers[-1].attn
    calls = caught(attention)
    qkv = record(net, torch.randn(2, 3, 64, 64))
    (((x, *_), _),) = calls
    if getattr(attention, 'bias', None) == 'qv_bias':
        bias = torch.cat((attention.q_bias, torch.zeros(16), attention.v_bias))
    else:
        bias = attention.qkv.bias
        bias = torch.zeros(48) if bias is None else bias
    expected = by_hand(x[:, extra:], attention.qkv.weight, bias, heads=2)
    assert qkv.grid == (4, 4)
    assert qkv.windows is None
    for got, want in zip(qkv[:3], expected, strict=True):
        assert got.shape == (2, 2, 16, 8)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    'build',
    [
        lambda: plain(with_cls_token=False, out_type='avg_featmap'),
        lambda: beit(
            with_cls_token=False,
            out_type='avg_featmap',
            use_rel_pos_bias=False,
        ),
    ],
    ids=['vit', 'beit'],
)
def test_attention_of_the_record_is_that_of_the_block(build):
    net = build()
    attention = net.layers[-1].attn
    calls = caught(attention)
    qkv = record(net, torch.randn(2, 3, 64, 64))
    out = attention.proj(attend(qkv).transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, calls[0][1])


@pytest.mark.parametrize('size', [(64, 64), (32, 96), (96, 64)])
def test_grid_is_that_of_the_images(size):
    grid = (size[0] // 16, size[1] // 16)
    qkv = record(plain(), torch.randn(1, 3, *size))
    assert qkv.grid == grid
    assert qkv.q.shape == (1, 2, grid[0] * grid[1], 8)
    # The last stage of the Swin has half of this stride.
    qkv = record(swin(pad_small_map=True), torch.randn(1, 3, *size))
    assert qkv.grid == (size[0] // 32, size[1] // 32)


@pytest.mark.parametrize('block', [-1, -2, 2, 3, 0])
@pytest.mark.parametrize('size', [(64, 64), (128, 192)])
def test_attention_of_a_swin_stays_in_its_windows(size, block):
    net = swin()
    blocks = [b for stage in net.stages for b in stage.blocks]
    attention = blocks[block].attn
    torch.nn.init.zeros_(attention.w_msa.relative_position_bias_table)
    calls = caught(attention)
    qkv = record(net, torch.randn(2, 3, *size), block)
    out = attend(qkv).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.w_msa.proj(out), calls[0][1])


def test_a_single_window_is_none():
    assert record(swin(), torch.randn(1, 3, 64, 64)).windows is None
    assert find_windows((3, 3), 3, 0, 'cpu') is None
    assert find_windows((3, 3), 3, 1, 'cpu') is not None
    assert find_windows((2, 3), 3, 0, 'cpu') is not None


def allowed(grid, size, shift):
    """Which token may attend to which, from their coordinates."""
    padded = [side + -side % size for side in grid]

    def place(y, x):
        moved = [y - shift, x - shift]
        wrapped = tuple(m < 0 for m in moved)
        windows = tuple(
            m % side // size for m, side in zip(moved, padded, strict=True)
        )
        return wrapped, windows

    places = [place(y, x) for y in range(grid[0]) for x in range(grid[1])]
    return torch.tensor([[a == b for b in places] for a in places])


CASES = [
    ((4, 6), 2, 0), ((4, 6), 2, 1), ((5, 7), 3, 0), ((5, 7), 3, 1),
    ((2, 7), 4, 2), ((3, 3), 4, 1), ((6, 6), 3, 2),
]  # fmt: skip


@pytest.mark.parametrize(('grid', 'size', 'shift'), CASES)
def test_windows_are_those_of_the_coordinates(grid, size, shift):
    windows = find_windows(grid, size, shift, 'cpu')
    length = grid[0] * grid[1]
    real = windows.index < length
    meets = torch.zeros(length + 1, length + 1, dtype=torch.bool)
    for index, mask in zip(windows.index, windows.mask, strict=True):
        assert mask.diagonal().all()
        rows, cols = mask.nonzero(as_tuple=True)
        meets[index[rows], index[cols]] = True
    assert torch.equal(meets[:-1, :-1], allowed(grid, size, shift))
    # Nothing meets padding, and every token has one place.
    assert not meets[:-1, -1].any() and not meets[-1, :-1].any()
    assert real.sum() == length
    assert torch.equal(windows.index[real].sort()[0], torch.arange(length))


@pytest.mark.parametrize(('grid', 'size', 'shift'), CASES)
def test_folding_is_undone_and_pads_with_zeros(grid, size, shift):
    windows = find_windows(grid, size, shift, 'cpu')
    tokens = torch.randn(2, 3, grid[0] * grid[1], 5, requires_grad=True)
    folded = windows.fold(tokens)
    assert folded.shape == (2 * len(windows.index), 3, size * size, 5)
    assert torch.equal(windows.unfold(folded), tokens)
    assert (folded != 0).sum() == tokens.numel()
    folded.sum().backward()
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


@pytest.mark.parametrize('build', [plain, beit, swin])
def test_gradient_reaches_the_student(build):
    net = build()
    qkv = record(net, torch.randn(1, 3, 64, 64))
    sum(x.square().sum() for x in qkv[:3]).backward()
    grads = [p.grad for p in net.patch_embed.parameters()]
    assert all(g.abs().sum() > 0 for g in grads)


@pytest.mark.parametrize('build', [plain, beit, swin])
def test_a_teacher_saves_nothing_for_backward(build):
    net = build()
    with torch.no_grad():
        qkv = record(net, torch.randn(1, 3, 64, 64))
    assert not any(x.requires_grad for x in qkv[:3])


@pytest.mark.parametrize('build', [plain, beit, swin])
def test_every_forward_inside_has_its_record_and_no_other(build):
    net = build()
    recorder = QKVRecorder()
    recorder.initialize(net)
    first, second, third = torch.randn(3, 1, 3, 64, 64)
    with recorder:
        net(first)
        net(second)
    net(third)
    assert len(recorder.data_buffer) == 2
    once = recorder.get_record_data(1)
    with recorder:
        net(second)
    assert len(recorder.data_buffer) == 1
    assert torch.equal(recorder.get_record_data().k, once.k)


@pytest.mark.parametrize('build', [plain, beit, swin])
def test_a_copy_of_the_network_leaves_the_record_alone(build):
    net = build()
    recorder = QKVRecorder()
    recorder.initialize(net)
    clone = copy.deepcopy(net)
    with recorder:
        clone(torch.randn(1, 3, 64, 64))
    assert not recorder.data_buffer


def test_bf16_autocast():
    net = beit()
    with torch.autocast('cpu', torch.bfloat16):
        qkv = record(net, torch.randn(1, 3, 64, 64))
    assert qkv.q.dtype == torch.bfloat16


def test_type_in_a_config():
    manager = RecorderManager(dict(qkv=dict(type='mmcakd.QKV', block=0)))
    net = plain()
    manager.initialize(net)
    with manager:
        net(torch.randn(1, 3, 64, 64))
    expected = record(net, torch.zeros(1, 3, 64, 64), 0)
    record_ = manager.get_recorder('qkv').get_record_data()
    assert record_.q.shape == expected.q.shape
    assert not torch.equal(record_.q, expected.q)


@pytest.mark.parametrize(
    ('net', 'reason'),
    [
        (lambda: mm.ResNet(18, stem_channels=4, base_channels=4), 'ResNet'),
        (lambda: mm.MlpMixer(dict(
            embed_dims=8, num_layers=4, tokens_mlp_dims=8, channels_mlp_dims=8
        ), img_size=32), 'MlpMixer'),
        (lambda: plain(mm.ViTEVA02), 'ViTEVA02.*rotate'),
        (lambda: mm.SwinTransformerV2(dict(
            embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
            extra_norm_every_n_blocks=0,
        ), 64, window_size=2), 'SwinTransformerV2.*cosine'),
        (lambda: timm.create_model('test_vit'), 'timm.VisionTransformer'),
    ],
    ids=['resnet', 'mixer', 'eva02', 'swin2', 'timm'],
)  # fmt: skip
def test_other_networks_are_refused_with_a_cure(net, reason):
    with pytest.raises(ValueError, match=f'{reason}.*GLPConnector'):
        QKVRecorder().initialize(net())


@pytest.mark.parametrize('block', [4, -5])
def test_a_block_that_is_not_there_is_refused(block):
    with pytest.raises(ValueError, match=f'{block}.*only 4 blocks'):
        QKVRecorder(block).initialize(plain())


def test_a_network_that_drops_tokens_is_told():
    net = plain()
    recorder = QKVRecorder()
    recorder.initialize(net)
    tokens = F.pad(torch.randn(1, 12, 16), (0, 0, 1, 0))
    with recorder, pytest.raises(ValueError, match='13 tokens.*all patch'):
        net.patch_embed(torch.randn(1, 3, 64, 64))
        net.layers[-1](tokens)
