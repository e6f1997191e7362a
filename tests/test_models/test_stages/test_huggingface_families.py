"""The four stages of Hugging Face's image classifiers.

Stand-ins have the paths of transformers' modules, and call and return as they
do; with the package installed, its own models are tested as well.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmcakd.models.stages import FAMILIES, find_family, find_taps

PACKAGE = 'transformers.models.stand_in'


class Embeddings(nn.Module):
    def __init__(self, width, patch, extra):
        super().__init__()
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, extra, width))

    def forward(self, images):
        map_ = self.patch_embeddings.projection(images)
        tokens = map_.flatten(2).transpose(1, 2)
        cls = self.cls_token.expand(len(tokens), -1, -1)
        return torch.cat((cls, tokens), 1), tuple(map_.shape[2:])


class Layer(nn.Linear):
    """Returns a tuple, as the layers of a ViT do."""

    def forward(self, tokens):
        return (super().forward(tokens),)


class TokenModel(nn.Module):
    """A ViT's modules."""

    base_model_prefix = 'vit'

    def __init__(self, extra=1, registers=0, norm=True):
        super().__init__()
        self.config = SimpleNamespace(num_register_tokens=registers)
        self.embeddings = Embeddings(8, 16, extra + registers)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList([Layer(8, 8) for _ in range(6)])
        self.layernorm = nn.LayerNorm(8) if norm else nn.Identity()

    def forward(self, images):
        tokens, _ = self.embeddings(images)
        for layer in self.encoder.layer:
            tokens = layer(tokens)[0]
        return self.layernorm(tokens)


class Stage(nn.Module):
    """Tokens after and before the downsampling, and their grids."""

    def __init__(self, width, last):
        super().__init__()
        self.block = nn.Linear(width, width)
        self.merge = None if last else nn.Linear(4 * width, 2 * width)

    def forward(self, tokens, grid, *others):
        tokens = before = self.block(tokens)
        merged = grid
        if self.merge:
            map_ = tokens.unflatten(1, grid).unflatten(1, (-1, 2))
            map_ = map_.unflatten(3, (-1, 2)).permute(0, 1, 3, 2, 4, 5)
            merged = tuple(map_.shape[1:3])
            tokens = self.merge(map_.flatten(1, 2).flatten(2))
        return tokens, before, (*grid, *merged)


class SwinModel(nn.Module):
    __module__ = PACKAGE
    base_model_prefix = 'swin'

    def __init__(self):
        super().__init__()
        self.embeddings = Embeddings(4, 4, 0)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            [Stage(4 * 2**i, i == 3) for i in range(4)]
        )
        self.layernorm = nn.LayerNorm(32)

    def forward(self, images):
        tokens, grid = self.embeddings(images)
        for stage in self.encoder.layers:
            tokens, _, grids = stage(tokens, grid, None, False)
            grid = grids[2:]
        return self.layernorm(tokens)


class ConvModel(nn.Module):
    """The modules of a ResNet or ConvNeXt."""

    base_model_prefix = 'resnet'

    def __init__(self):
        super().__init__()
        self.embedder = nn.Conv2d(3, 4, 4, 4)
        self.encoder = nn.Module()
        self.encoder.stages = nn.ModuleList(
            [nn.Conv2d(4, 4, 1)] + [nn.Conv2d(4, 4, 2, 2) for _ in range(3)]
        )

    def forward(self, images):
        map_ = self.embedder(images)
        for stage in self.encoder.stages:
            map_ = stage(map_)
        return map_


def named(name, parent, **arguments):
    cls = type(name, (parent,), {'__module__': PACKAGE})
    return lambda: cls(**arguments)


PYRAMID = [(4, 16, 24), (4, 8, 12), (4, 4, 6), (4, 2, 3)]
TOKENS = [
    (4 * 2**i, 16 // 2**i, 24 // 2**i, 0) for i in range(4)
]  # fmt: skip
#: Network, and ``(C, H, W)`` of its stages for 64 x 96, with extra tokens.
CASES = {
    name: (named(name, parent, **arguments), expected)
    for name, parent, arguments, expected in [
        ('ResNetModel', ConvModel, {}, PYRAMID),
        ('RegNetModel', ConvModel, {}, PYRAMID),
        ('ConvNextModel', ConvModel, {}, PYRAMID),
        ('ConvNextV2Model', ConvModel, {}, PYRAMID),
        ('SwinModel', SwinModel, {}, TOKENS),
        ('Swinv2Model', SwinModel, {}, TOKENS),
        ('ViTModel', TokenModel, {}, [(8, 4, 6, 1)] * 4),
        ('DeiTModel', TokenModel, dict(extra=2), [(8, 4, 6, 2)] * 4),
        ('BeitModel', TokenModel, dict(norm=False), [(8, 4, 6, 1)] * 4),
        ('Dinov2Model', TokenModel, {}, [(8, 4, 6, 1)] * 4),
        (
            'Dinov2WithRegistersModel',
            TokenModel,
            dict(registers=4),
            [(8, 4, 6, 5)] * 4,
        ),
    ]
}


@pytest.mark.parametrize('name', CASES)
def test_maps_and_extra_tokens(name, checks):
    build, expected = CASES[name]
    net, images = build(), torch.randn(2, 3, 64, 96)
    assert find_family(net)[0] == f'transformers.{name}'
    raw = checks.record(net, images, final_norm=False, extra_tokens=True)
    assert checks.shapes(raw) == expected
    maps = checks.record(net, images)
    assert checks.shapes(maps) == [shape[:3] for shape in expected]
    # The last map is the network's own.
    own = net(images)
    if own.ndim == 3:
        own = own[:, own.shape[1] - 6 if 'Swin' in name else -24 :]
        own = own.transpose(1, 2).unflatten(2, maps[3].shape[2:])
    assert torch.equal(maps[3], own)


def test_network_is_found_inside_a_classifier(checks):
    class Classifier(nn.Module):
        base_model_prefix = 'vit'

        def __init__(self):
            super().__init__()
            self.vit = CASES['ViTModel'][0]()

        def forward(self, images):
            return self.vit(images)

    class HuggingFaceClassifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Classifier()

        def forward(self, images):
            return self.model(images)

    model = HuggingFaceClassifier()
    assert find_taps(model)[0].source == 'model.vit.encoder.layer.0'
    assert find_taps(model)[3].source == 'model.vit.layernorm'
    maps = checks.record(model, torch.rand(1, 3, 32, 48))
    assert checks.shapes(maps) == [(8, 2, 3)] * 4


def test_convolutional_networks_can_be_replayed(checks):
    net = checks.ready(CASES['ConvNextModel'][0]())
    checks.replay(net, torch.randn(2, 3, 64, 96))
    for name in ('ViTModel', 'SwinModel'):
        assert not checks.find_replayable(CASES[name][0]())


def test_every_family_of_hugging_face_is_tested():
    entries = {key for key in FAMILIES if key.startswith('transformers.')}
    assert {f'transformers.{name}' for name in CASES} == entries


VIT = dict(
    hidden_size=16,
    num_hidden_layers=6,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=64,
    patch_size=16,
)


@pytest.mark.parametrize(
    ('model', 'arguments', 'extra'),
    [
        ('ViT', VIT, 1),
        ('DeiT', VIT, 2),
        ('Beit', VIT, 1),
        ('Dinov2', VIT, 1),
        ('ResNet', dict(embedding_size=4, hidden_sizes=[4, 8, 16, 32]), None),
        ('ConvNext', dict(hidden_sizes=[4, 8, 16, 32]), None),
    ],
)
def test_maps_are_the_hidden_states_of_transformers(
    model, arguments, extra, checks
):
    transformers = pytest.importorskip(
        'transformers', reason='transformers is not installed'
    )
    config = getattr(transformers, f'{model}Config')(**arguments)
    net = getattr(transformers, f'{model}ForImageClassification')(config)
    net.eval()
    images = torch.randn(2, 3, 64, 64)
    stages = checks.record(net, images, final_norm=False, extra_tokens=True)
    with torch.no_grad():
        states = net(images, output_hidden_states=True).hidden_states
    ends = (1, 2, 5, 6) if extra else (1, 2, 3, 4)
    for stage, end in zip(stages, ends, strict=True):
        if extra:
            tokens = stage.map.flatten(2).transpose(1, 2)
            assert stage.extra.shape[1] == extra
            stage = torch.cat((stage.extra, tokens), 1)
        assert torch.equal(stage, states[end])
