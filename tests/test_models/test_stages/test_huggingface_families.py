"""The four stages of Hugging Face's image classifiers.

Each family is tested on a tiny model of its own classes, with random weights.
"""

import re

import pytest
import torch
import transformers
from mmpretrain.models import HuggingFaceClassifier
from torch import nn

from mmcakd.models.recorders import LogitsRecorder
from mmcakd.models.stages import FAMILIES, find_family, find_taps
from mmcakd.models.teachers import Teacher

VIT = dict(
    hidden_size=16,
    num_hidden_layers=6,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=64,
    patch_size=16,
)
SWIN = dict(
    embed_dim=4,
    depths=[1, 2, 1, 1],
    num_heads=[1, 1, 2, 2],
    window_size=2,
    image_size=(64, 96),
)
RESNET = dict(
    embedding_size=4,
    hidden_sizes=[4, 8, 16, 32],
    depths=[1, 1, 1, 1],
    layer_type='basic',
)
CONVNEXT = dict(hidden_sizes=[4, 8, 16, 32], depths=[1, 1, 1, 1])
PYRAMID = [(4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3)]
TOKENS = [(*stage, 0) for stage in PYRAMID]
#: Arguments of each family's config, and ``(C, H, W)`` of its stages for 64 x
#: 96, with extra tokens.
CASES = {
    'ResNet': (RESNET, PYRAMID),
    'RegNet': (
        RESNET | dict(layer_type='x', groups_width=4),
        [(4, 16, 24), (8, 8, 12), (16, 4, 6), (32, 2, 3)],
    ),
    'ConvNext': (CONVNEXT, PYRAMID),
    'ConvNextV2': (CONVNEXT, PYRAMID),
    'Swin': (SWIN, TOKENS),
    'Swinv2': (SWIN, TOKENS),
    'ViT': (VIT, [(16, 4, 6, 1)] * 4),
    'DeiT': (VIT, [(16, 4, 6, 2)] * 4),
    'Beit': (VIT, [(16, 4, 6, 1)] * 4),
    'Dinov2': (VIT, [(16, 4, 6, 1)] * 4),
    'Dinov2WithRegisters': (
        VIT | dict(num_register_tokens=4),
        [(16, 4, 6, 5)] * 4,
    ),
}
#: Families that take images of one size only, unless asked to adapt.
FIXED_SIZE = ('ViT', 'DeiT', 'Beit')


@pytest.fixture(scope='module')
def save(tmp_path_factory):
    """Save a tiny model as the hub has it: its config and its weights."""

    def save(name: str, **kwargs) -> str:
        fixed = dict(image_size=(64, 96)) if name in FIXED_SIZE else {}
        config = getattr(transformers, f'{name}Config')(
            **{**CASES[name][0], **fixed, 'num_labels': 5, **kwargs}
        )
        net = getattr(transformers, f'{name}ForImageClassification')(config)
        folder = tmp_path_factory.mktemp(name)
        net.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture(scope='module')
def make(save):
    """Build a tiny classifier in eval mode."""
    return lambda name: HuggingFaceClassifier(save(name)).eval()


def find_network(classifier: nn.Module) -> nn.Module:
    net = classifier.model
    return getattr(net, net.base_model_prefix)


@pytest.mark.parametrize('name', CASES)
def test_maps_and_extra_tokens(name, make, checks):
    net, images = make(name), torch.randn(2, 3, 64, 96)
    assert find_family(find_network(net))[0] == f'transformers.{name}Model'
    raw = checks.record(net, images, final_norm=False, extra_tokens=True)
    assert checks.shapes(raw) == CASES[name][1]
    maps = checks.record(net, images)
    assert checks.shapes(maps) == [shape[:3] for shape in CASES[name][1]]


@pytest.mark.parametrize('name', CASES)
def test_last_map_is_the_last_hidden_state(name, make, checks):
    net, images = make(name), torch.randn(2, 3, 64, 96)
    last = checks.record(net, images, extra_tokens=True)[3]
    with torch.no_grad():
        own = find_network(net)(images).last_hidden_state
    if own.ndim == 3:
        tokens = last.map.flatten(2).transpose(1, 2)
        last = torch.cat((last.extra, tokens), 1)
    assert torch.equal(last, own)


@pytest.mark.parametrize(
    'name', [name for name in CASES if 'Swin' not in name]
)
def test_stages_are_among_the_hidden_states(name, make, checks):
    net, images = make(name), torch.randn(2, 3, 64, 96)
    stages = checks.record(net, images, final_norm=False, extra_tokens=True)
    with torch.no_grad():
        states = net.model(images, output_hidden_states=True).hidden_states
    is_vit = len(CASES[name][1][0]) == 4
    ends = (1, 2, 5, 6) if is_vit else (1, 2, 3, 4)
    for stage, end in zip(stages, ends, strict=True):
        if is_vit:
            tokens = stage.map.flatten(2).transpose(1, 2)
            stage = torch.cat((stage.extra, tokens), 1)
        assert torch.equal(stage, states[end])


@pytest.mark.parametrize('name', ['Swin', 'Swinv2'])
def test_stages_of_a_swin_are_those_before_patches_merge(name, make, checks):
    net, images = make(name), torch.randn(2, 3, 64, 96)
    merged = {}
    layers = find_network(net).encoder.layers
    for index, layer in enumerate(layers[:3]):
        layer.downsample.register_forward_pre_hook(
            lambda module, inputs, index=index: merged.update(
                {index: inputs[0].clone()}
            )
        )
    stages = checks.record(net, images, final_norm=False)
    for index, tokens in merged.items():
        map_ = tokens.transpose(1, 2).unflatten(2, stages[index].shape[2:])
        assert torch.equal(stages[index], map_)
    assert len(merged) == 3


@pytest.mark.parametrize('name', CASES)
def test_any_part_replayed_is_the_networks_own(name, make, checks):
    checks.replay(checks.ready(make(name)), torch.randn(2, 3, 64, 96))


def test_every_family_of_hugging_face_is_tested():
    entries = {key for key in FAMILIES if key.startswith('transformers.')}
    assert {f'transformers.{name}Model' for name in CASES} == entries


# ------------------------------------------------------- in other releases


def layers_of(path: str) -> nn.Module:
    """A ViT as far as its taps are concerned."""
    net = type('ViTModel', (nn.Module,), {'__module__': 'transformers'})()
    net.config = transformers.ViTConfig()
    net.layernorm = nn.LayerNorm(4)
    parent, _, name = path.rpartition('.')
    if parent:
        setattr(net, parent, nn.Module())
    blocks = nn.ModuleList(nn.Identity() for _ in range(12))
    setattr(net.get_submodule(parent), name, blocks)
    return net


@pytest.mark.parametrize('path', ['layers', 'encoder.layer'])
def test_layers_of_transformers_4_and_5_are_found(path):
    sources = [tap.source for tap in find_taps(layers_of(path))]
    assert sources == [*(f'{path}.{end}' for end in (1, 3, 9)), 'layernorm']


def test_layers_elsewhere_name_the_releases_that_are_known():
    version = re.escape(transformers.__version__)
    with pytest.raises(ValueError, match=f'transformers {version} .* 5 and 4'):
        find_taps(layers_of('trunk.blocks'))


# ------------------------------------------------ as a student and a teacher


def test_network_is_found_inside_a_classifier(make):
    taps = find_taps(make('Dinov2'))
    assert taps[0].source == 'model.dinov2.encoder.layer.0'
    assert taps[3].source == 'model.dinov2.layernorm'


@pytest.mark.parametrize('name', ['ViT', 'Beit', 'Swin', 'ResNet'])
def test_classifier_reads_its_config_and_its_weights(name, save):
    folder = save(name)
    auto = transformers.AutoModelForImageClassification
    own = auto.from_pretrained(folder).eval()
    model = HuggingFaceClassifier(folder, pretrained=True).eval()
    for key, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    images = torch.randn(2, 3, 64, 96)
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder, torch.no_grad():
        expected = own(images).logits
        assert torch.equal(model(images), expected)
    assert torch.equal(recorder.get_record_data(), expected)
    # Without its weights, and for another number of classes.
    other = HuggingFaceClassifier(folder, num_labels=7)
    assert Teacher(other)(images).shape == (2, 7)


@pytest.mark.parametrize('name', ['ViT', 'Swin', 'ConvNext'])
@pytest.mark.parametrize('teaches', [False, True])
def test_stages_are_learnt_from_and_by(name, teaches, save, tiny):
    folder = save(name, image_size=64)
    hugging_face = dict(type='HuggingFaceClassifier', model_name=folder)
    hugging_face |= dict(_scope_='mmpretrain')
    other = tiny.classifier(tiny.resnet())
    last = [tiny.record('stages', whose, 3) for whose in (True, False)]
    distiller = dict(
        student_recorders=tiny.recorders(),
        teacher_recorders=tiny.recorders(),
        connectors=dict(
            fit=dict(
                type='mmcakd.FitNetConnector',
                inputs=dict(feature=last[0]),
                shape_like=last[1],
            )
        ),
        distill_losses=dict(
            loss_fit=dict(type='mmcakd.MSELoss'),
            loss_kd=dict(type='mmcakd.SoftTargetLoss'),
        ),
        loss_forward_mappings=dict(
            loss_fit=dict(student=dict(connector='fit'), teacher=last[1]),
            loss_kd=dict(
                student=tiny.record('logits', True),
                teacher=tiny.record('logits', False),
            ),
        ),
    )
    model = tiny.build_distillation(
        architecture=other if teaches else hugging_face,
        teacher=hugging_face if teaches else other,
        distiller=distiller,
    ).train()
    losses = model(*tiny.batch(4), mode='loss')
    model.parse_losses(losses)[0].backward()
    gradients = [p.grad for p in model.student.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)
    assert all(p.grad is None for p in model.teacher.parameters())
