"""The recorder of the four stages as MMRazor uses it."""

import mmpretrain.models as mm
import pytest
import torch
from torch import nn

from mmcakd.models.recorders import StageOutputsRecorder, unknown_tap
from mmcakd.models.stages import StageTokens


class Mixed(nn.Module):
    """Four stages of four layouts, of a family nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 4, 2, stride=2)
        self.last = nn.Linear(4, 6)
        self.embed = Embed()
        self.block = nn.Linear(6, 6)
        self.pair = Pair()

    def forward(self, x):
        x = self.last(self.maps(x).permute(0, 2, 3, 1))
        tokens, grid = self.embed(x)
        tokens = self.block(torch.cat((tokens[:, :1], tokens), 1))
        return self.pair(tokens[:, 1:].transpose(1, 2).unflatten(2, grid))


class Embed(nn.Module):
    def forward(self, x):
        return x.flatten(1, 2), tuple(x.shape[1:3])


class Pair(nn.Module):
    def forward(self, x):
        return x * 2, 'whatever comes with it'


TAPS = [
    dict(source='maps'),
    dict(source='last', layout='NHWC'),
    dict(source='block', layout='NLC', extra_tokens=1, grid_source='embed'),
    dict(source='pair'),
]


@pytest.fixture
def resnet():
    net = mm.ResNet(18, stem_channels=4, base_channels=4)
    net.eval()
    return net


@pytest.fixture
def recorder(resnet):
    recorder = StageOutputsRecorder()
    recorder.initialize(resnet)
    return recorder


def test_named_taps_of_every_layout_become_maps():
    net = Mixed()
    recorder = StageOutputsRecorder(taps=TAPS)
    recorder.initialize(net)
    images = torch.rand(2, 3, 8, 12)
    with recorder:
        output, _ = net(images)
    maps = recorder.get_record_data()
    assert [tuple(m.shape[1:]) for m in maps] == [
        (4, 4, 6), (6, 4, 6), (6, 4, 6), (6, 4, 6),
    ]  # fmt: skip
    expected = net.block(maps[1].flatten(2).transpose(1, 2))
    assert torch.allclose(maps[2].flatten(2).transpose(1, 2), expected)
    assert torch.equal(maps[3], output)


def test_one_stage_or_all_of_them(recorder, resnet):
    with recorder:
        resnet(torch.rand(1, 3, 64, 64))
    maps = recorder.get_record_data()
    assert isinstance(maps, tuple)
    for index in range(4):
        assert torch.equal(
            recorder.get_record_data(data_idx=index), maps[index]
        )


def test_nothing_is_recorded_outside(recorder, resnet):
    first, second = torch.rand(2, 1, 3, 64, 64)
    with recorder:
        resnet(first)
    before = recorder.get_record_data(data_idx=3)
    resnet(second)
    assert torch.equal(recorder.get_record_data(data_idx=3), before)
    with pytest.raises(RuntimeError, match='recorded 1 times'):
        recorder.get_record_data(1, 3)


def test_every_forward_of_a_step_has_its_record(recorder, resnet):
    first, second = torch.rand(2, 1, 3, 64, 64)
    with recorder:
        resnet(first)
        resnet(second)
    (expected,) = resnet(second)
    assert torch.equal(recorder.get_record_data(1, 3), expected)


def test_entering_again_forgets(recorder, resnet):
    for _ in range(2):
        with recorder:
            resnet(torch.rand(1, 3, 64, 64))
    with pytest.raises(RuntimeError, match='recorded 1 times'):
        recorder.get_record_data(1, 0)


def test_missing_record_names_its_stage(recorder):
    with recorder:
        pass
    with pytest.raises(RuntimeError, match=r'stage 3 \(layer3\).*0 times'):
        recorder.get_record_data(0, 2)


def test_only_stages_to_keep_stay_in_memory(recorder, resnet):
    recorder.stages_to_keep = {1, 3}
    with recorder:
        resnet(torch.rand(1, 3, 64, 64))
    assert [len(records) for records in recorder.data_buffer] == [0, 1, 0, 1]


def test_gradient_flows_through_a_record(recorder, resnet):
    with recorder:
        resnet(torch.rand(1, 3, 64, 64))
    recorder.get_record_data(data_idx=1).square().sum().backward()
    assert resnet.layer2[0].conv1.weight.grad.abs().sum() > 0
    assert resnet.layer3[0].conv1.weight.grad is None


# ---------------------------------------------------- final norm, extra tokens


def record(net, images, **kwargs):
    recorder = StageOutputsRecorder(**kwargs)
    recorder.initialize(net)
    with recorder, torch.no_grad():
        net(images)
    return recorder.get_record_data()


def plain_vit(**kwargs):
    arch = dict(
        embed_dims=8, num_layers=4, num_heads=2, feedforward_channels=8
    )
    net = mm.VisionTransformer(arch, (64, 96), **kwargs)
    net.eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def test_last_stage_before_the_final_norm():
    net, images = plain_vit(), torch.rand(2, 3, 64, 96)
    raw = record(net, images, final_norm=False)
    normed = record(net, images)
    for index in range(3):
        assert torch.equal(raw[index], normed[index])
    tokens = raw[3].flatten(2).transpose(1, 2)
    expected = net.ln1(tokens).transpose(1, 2).view_as(raw[3])
    assert torch.allclose(normed[3], expected, atol=1e-6)
    assert not torch.allclose(normed[3], raw[3], atol=0.1)


@pytest.mark.parametrize('final_norm', [True, False])
@pytest.mark.parametrize('cls', [True, False])
def test_class_token_is_kept_beside_an_oblong_map(final_norm, cls):
    kind = 'raw' if cls else 'avg_featmap'
    net = plain_vit(with_cls_token=cls, out_type=kind)
    images = torch.rand(2, 3, 64, 96)
    outputs = {}
    net.layers[3].register_forward_hook(
        lambda m, i, out: outputs.update({False: out})
    )
    net.ln1.register_forward_hook(
        lambda m, i, out: outputs.update({True: out})
    )
    stages = record(net, images, extra_tokens=True, final_norm=final_norm)
    assert all(isinstance(stage, StageTokens) for stage in stages)
    assert [tuple(stage.map.shape) for stage in stages] == [(2, 8, 4, 6)] * 4
    assert [tuple(s.extra.shape) for s in stages] == [(2, int(cls), 8)] * 4
    tokens = stages[3].map.flatten(2).transpose(1, 2)
    together = torch.cat((stages[3].extra, tokens), dim=1)
    assert torch.equal(together, outputs[final_norm])


def test_convolutional_stage_stays_a_map_beside_extra_tokens(resnet):
    images = torch.rand(1, 3, 64, 64)
    for plain, asked in zip(
        record(resnet, images),
        record(resnet, images, extra_tokens=True),
        strict=True,
    ):
        assert torch.equal(plain, asked)


def test_named_taps_may_tell_where_the_raw_feature_is(resnet):
    taps = [dict(source=f'layer{i}') for i in (1, 2, 3)]
    taps.append(dict(source='layer4', raw=dict(source='layer4.0')))
    images = torch.rand(1, 3, 64, 64)
    last = record(resnet, images, taps=taps)[3]
    raw = record(resnet, images, taps=taps, final_norm=False)[3]
    assert torch.equal(resnet.layer4[1](raw), last)


class WritesInPlace(nn.Module):
    """Its second block adds to what the first returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.second = nn.Identity()

    def forward(self, x):
        x = self.first(x)
        x += 1
        return self.second(x)


def test_copy_is_kept_of_what_the_network_writes_into():
    net, images = WritesInPlace(), torch.rand(1, 3, 2, 2)
    taps = [dict(source='first'), dict(source='first', copy=True)]
    taps += [dict(source='second')] * 2
    kept, copied, second, _ = record(net, images, taps=taps)
    assert torch.equal(copied, net.first(images))
    assert torch.equal(kept, second)
    assert torch.equal(second, copied + 1)


def test_one_of_several_outputs_and_a_grid_known_beforehand():
    class Two(nn.Module):
        def forward(self, x):
            return x, x.flatten(2).transpose(1, 2) * 2

    net, images = nn.Sequential(Two()), torch.rand(1, 3, 2, 4)
    tap = dict(source='0', output=1, layout='NLC', grid=(2, 4))
    maps = record(net, images, taps=[tap] * 4)
    assert torch.equal(maps[0], images * 2)


# -------------------------------------------------------------------- errors


def test_taps_have_to_name_a_stage():
    with pytest.raises(ValueError, match='at least one stage'):
        StageOutputsRecorder(taps=[])


@pytest.mark.parametrize('count', [1, 3, 5])
def test_a_model_has_as_many_stages_as_are_named(count, resnet):
    names = ['maxpool', 'layer1', 'layer2', 'layer3', 'layer4'][-count:]
    recorder = StageOutputsRecorder(taps=[dict(source=n) for n in names])
    recorder.initialize(resnet)
    with recorder:
        resnet(torch.rand(1, 3, 64, 64))
    stages = recorder.get_record_data()
    assert len(stages) == count
    for index in range(-count, count):
        stage = recorder.get_record_data(data_idx=index)
        assert torch.equal(stage, stages[index])
    for index in (count, -count - 1, 'last'):
        with pytest.raises(
            ValueError, match=f'ResNet has {count} stage'
        ) as caught:
            recorder.get_record_data(data_idx=index)
        assert repr(index) in str(caught.value)


def test_a_stage_that_is_read_has_to_exist(resnet):
    recorder = StageOutputsRecorder(taps=[dict(source='layer1')] * 2)
    recorder.stages_to_keep = {-1, 2}
    with pytest.raises(ValueError, match='data_idx=2.*2 stages.* 0, 1, or -1'):
        recorder.initialize(resnet)


def test_stages_to_keep_may_be_counted_from_the_end(resnet):
    recorder = StageOutputsRecorder()
    recorder.stages_to_keep = {-1, 1}
    recorder.initialize(resnet)
    with recorder:
        resnet(torch.rand(1, 3, 64, 64))
    assert [len(records) for records in recorder.data_buffer] == [0, 1, 0, 1]
    recorder.get_record_data(data_idx=3)


def test_family_without_stages_is_an_error_where_one_is_read():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match='no stages are known'):
        StageOutputsRecorder().initialize(net)
    recorder = StageOutputsRecorder()
    recorder.stages_to_keep = set()
    recorder.initialize(net)
    with recorder:
        net(torch.rand(1, 3, 2, 2))
    for data_idx in (0, None):
        with pytest.raises(ValueError, match='no stages are known'):
            recorder.get_record_data(data_idx=data_idx)


@pytest.mark.parametrize(
    ('tap', 'wrong', 'meant'),
    [
        (dict(source='layer9'), 'layer9', 'layer4'),
        (dict(source='backbone.layer2'), 'backbone.layer2', 'layer2'),
        (
            dict(source='layer1', layout='NLC', grid_source='layr2'),
            'layr2',
            'layer2',
        ),
    ],
)
def test_unknown_tap_is_named_with_what_may_be_meant(
    resnet, tap, wrong, meant
):
    taps = [tap, *(dict(source=f'layer{i}') for i in (2, 3, 4))]
    with pytest.raises(ValueError, match='no module') as caught:
        StageOutputsRecorder(taps=taps).initialize(resnet)
    assert repr(wrong) in str(caught.value)
    assert repr(meant) in str(caught.value)


def test_unknown_tap_without_a_likeness_has_no_suggestion():
    message = unknown_tap('zzz', {'layer1': None})
    assert 'did you mean' not in message
