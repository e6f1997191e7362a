"""A classifier's last stage and head, run on features of another model."""

import copy
import weakref

import pytest
import torch
from mmpretrain.models import ImageClassifier, TimmClassifier
from torch import nn

from mmcakd.models.classifiers import TorchvisionClassifier
from mmcakd.models.connectors.receiver import Receiver
from mmcakd.models.recorders import StageOutputsRecorder
from mmcakd.models.stages import find_taps, to_tokens
from mmcakd.models.teachers import Teacher

POOL = dict(type='GlobalAveragePooling')
#: What classifiers put behind a backbone: a neck, and the type of the head.
READ_OUTS = dict(
    map=(POOL, 'LinearClsHead'),
    tokens=(POOL | dict(dim=1), 'LinearClsHead'),
    vector=(None, 'LinearClsHead'),
    cls=(None, 'VisionTransformerClsHead'),
    two=(None, 'DeiTClsHead'),
)
MEAN = dict(out_type='avg_featmap')

#: Networks of the tests of families, what reads them out, and how they are
#: built to classify, where that is not the default.
CLASSIFIERS = {
    'ResNet': ('map', {}),
    'ResNetV1d': ('map', {}),
    'MobileNetV2': ('map', {}),
    'EfficientNet': ('map', {}),
    'ShuffleNetV2': ('map', {}),
    'RepVGG': ('map', {}),
    'RepLKNet': ('map', {}),
    'DenseNet': ('map', {}),
    'ConvNeXt': ('vector', {}),
    'ConvNeXt V2': ('vector', {}),
    'HorNet': ('vector', {}),
    'EdgeNeXt': ('vector', {}),
    'VAN': ('map', {}),
    'PoolFormer': ('map', {}),
    'MobileViT': ('map', {}),
    'EfficientFormer': ('tokens', {}),
    'TinyViT': ('vector', {}),
    'SwinTransformer': ('map', {}),
    'SwinTransformerV2': ('map', {}),
    'DaViT': ('map', {}),
    'PCPVT': ('map', {}),
    'SVT': ('map', {}),
    'MViT': ('map', {}),
    'VisionTransformer': ('cls', {}),
    'VisionTransformer without cls': ('vector', MEAN),
    'DeiT distilled': ('two', {}),
    'DeiT3': ('cls', {}),
    'BEiTViT': ('cls', dict(out_type='cls_token')),
    'BEiTViT without final norm': ('vector', MEAN),
    'ViTEVA02': ('vector', MEAN),
    'T2T_ViT': ('cls', {}),
    'MlpMixer': ('tokens', {}),
    'RepMLPNet': ('map', {}),
}
TIMM = [
    'ByobNet',
    'ConvNeXt',
    'ConvNeXt with its norm in front of the pooling',
    'EdgeNeXt',
    'MetaFormer',
    'MobileNetV3',
    'ResNet',
    'SwinTransformer',
    'MultiScaleVit with cls',
    'Twins',
    'VisionTransformer',
    'VisionTransformer with registers',
    'VisionTransformer without cls',
    'VisionTransformerDistilled',
    'MlpMixer',
    'MlpMixer as ResMLP',
]
TORCHVISION = [
    'ResNet',
    'RegNet',
    'MobileNetV2',
    'MobileNetV3',
    'EfficientNet',
    'ConvNeXt',
    'SwinTransformer',
    'VisionTransformer',
]


@pytest.fixture
def classify(networks):
    """Build an MMPretrain classifier on a network of the tests of families.

    Returns it with a size of images.
    """

    def make(name: str, read_out: str, **changes):
        case = networks.mmpretrain[name]
        size = case.sizes[-1]
        arguments = {
            key: value(size) if callable(value) else value
            for key, value in case.arguments.items()
            # Those of the tests of families are for features.
            if key not in ('out_indices', 'out_type', 'gap_before_final_norm')
        }
        neck, head = READ_OUTS[read_out]
        model = ImageClassifier(
            backbone=dict(type=case.type) | arguments | changes,
            neck=neck,
            head=dict(type=head, num_classes=5, in_channels=case.widths[3]),
        )
        return networks.ready(model), size

    return make


def wrap(classifier, net):
    """Put a small network into a classifier that was built on another."""
    classifier.model = net
    return classifier.eval()


def compare(model, images):
    """Let a model and a receiver read out the same random last stage."""
    end = find_taps(model)[3]
    ends = []

    def replace(module, inputs, outputs):
        ends.append(torch.randn_like(outputs))
        return ends[-1]

    model.get_submodule(end.source).register_forward_hook(replace)
    receiver = Receiver(model)
    recorder = StageOutputsRecorder()
    recorder.initialize(model)
    with recorder, torch.no_grad():
        logits = model(images)
    receiver.check()
    # Class tokens of the assistant are others, so that its stage is, too.
    receiver.tail.replay = lambda tokens: ends[0]
    feature, same = receiver(None)

    last = recorder.get_record_data(data_idx=3)
    torch.testing.assert_close(feature, last.mean((2, 3)))
    torch.testing.assert_close(same, logits)
    # The two images can be told apart.
    assert not torch.allclose(logits[0], logits[1], rtol=0.01)


# -------------------------------------------------------------- the read-out


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_own_last_stage_gives_the_logits_of_mmpretrain(name, classify):
    read_out, changes = CLASSIFIERS[name]
    model, size = classify(name, read_out, **changes)
    compare(model, torch.randn(2, 3, *size))


def test_vit_that_averages_its_patches_beside_a_class_token(classify):
    model, size = classify('VisionTransformer', 'vector', **MEAN)
    compare(model, torch.randn(2, 3, *size))


def test_vit_read_out_as_a_map(classify):
    model, size = classify('VisionTransformer', 'map', out_type='featmap')
    compare(model, torch.randn(2, 3, *size))


@pytest.mark.parametrize('name', TIMM)
def test_own_last_stage_gives_the_logits_of_timm(name, networks):
    classifier = TimmClassifier('test_resnet')
    model = wrap(classifier, networks.ready(networks.timm[name]()))
    compare(model, networks.timm_images(name))


@pytest.mark.parametrize('name', TORCHVISION)
def test_own_last_stage_gives_the_logits_of_torchvision(name, networks):
    net, _ = networks.torchvision[name]
    classifier = TorchvisionClassifier('shufflenet_v2_x0_5')
    model = wrap(classifier, networks.ready(net()))
    compare(model, networks.torchvision_images(name))


def test_network_of_timm_in_a_classifier_of_mmpretrain(networks):
    model = ImageClassifier(
        dict(type='TIMMBackbone', model_name='test_resnet'),
        POOL,
        dict(type='LinearClsHead', num_classes=5, in_channels=96),
    )
    compare(networks.ready(model), torch.randn(2, 3, 64, 64))


#: The module that the tokens enter, in classifiers without class token.
ENTRIES = dict(
    resnet='layer4',
    convnext='stages.3',
    swin='stages.3.blocks.0',
    mixer='layers.3',
)


@pytest.mark.parametrize('kind', ENTRIES)
def test_own_features_pass_stage_and_head_as_in_the_model(
    kind, tiny, networks
):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)()))
    networks.ready(model)
    receiver = Receiver(model)
    entries = []
    model.backbone.get_submodule(ENTRIES[kind]).register_forward_pre_hook(
        lambda module, inputs: entries.append(inputs[0])
    )
    images, _ = tiny.batch(3)
    logits = model(images)
    receiver.check()
    _, same = receiver(to_tokens(entries[0]))
    torch.testing.assert_close(same, logits)
    _, others = receiver(to_tokens(entries[0]).flip(0))
    torch.testing.assert_close(others, logits.flip(0))


# ------------------------------------------------------------------ its sizes


@pytest.mark.parametrize(
    ('width', 'heads'),
    [(16, 1), (51, 1), (96, 3), (112, 2), (240, 6), (400, 10), (1024, 32)],
)
def test_heads_without_attention_are_of_about_32_channels(width, heads, tiny):
    receiver = Receiver(tiny.build(tiny.classifier(tiny.resnet())))
    receiver.tail.width = width
    assert receiver.num_heads == heads


@pytest.mark.parametrize(('kind', 'heads'), [('swin', 4), ('vit', 2)])
def test_heads_are_those_of_the_last_attention(kind, heads, tiny):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)()))
    assert Receiver(model).num_heads == heads


@pytest.mark.parametrize(
    ('kind', 'grid', 'width'),
    [
        ('resnet', (4, 6), 16),
        ('convnext', (2, 3), 32),
        ('swin', (2, 3), 64),
        ('vit', (4, 6), 16),
    ],
)
def test_sizes_are_those_of_the_last_stage(kind, grid, width, tiny):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)()))
    receiver = Receiver(model)
    model(torch.zeros(1, 3, 64, 96))
    assert (receiver.grid, receiver.width) == (grid, width)


# ------------------------------------------------------------------ the check


KINDS = ['resnet', 'convnext', 'swin', 'vit', 'mixer']


@pytest.mark.parametrize('kind', KINDS)
def test_teacher_in_half_precision_is_accepted(kind, tiny, networks):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)()))
    networks.ready(model)
    teacher = Teacher(model, precision='bf16')
    receiver = Receiver(model)
    images, _ = tiny.batch()
    assert teacher(images).dtype == torch.bfloat16
    receiver.check()
    tokens = torch.randn(2, 16, receiver.width)
    tokens = tokens[:, : receiver.grid[0] * receiver.grid[1]]
    feature, logits = receiver(tokens)
    assert feature.dtype == logits.dtype == torch.float32


@pytest.mark.parametrize('kind', KINDS)
def test_head_that_starts_at_zero_is_accepted(kind, tiny):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)())).eval()
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    receiver = Receiver(model)
    assert not model(tiny.batch()[0]).any()
    receiver.check()


def test_student_in_training_is_checked_as_it_was_run(tiny):
    model = tiny.build(
        tiny.classifier(
            tiny.resnet(),
            head=dict(
                type='StackedLinearClsHead',
                num_classes=5,
                in_channels=32,
                mid_channels=[8],
                dropout_rate=0.9,
                norm_cfg=dict(type='BN1d'),
                act_cfg=dict(type='ReLU'),
            ),
        )
    )
    receiver = Receiver(model)
    images, _ = tiny.batch()
    model.eval()
    model(images)
    model.train()
    # As a student with frozen parts has it.
    model.backbone.layer1.eval()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    receiver.check()
    assert [part.training for part in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_nothing_is_kept_of_later_forwards(tiny):
    model = tiny.build(tiny.classifier(tiny.resnet())).eval()
    receiver = Receiver(model)
    images, _ = tiny.batch()
    model(images)
    receiver.check()
    kept = []
    model.backbone.layer4.register_forward_hook(
        lambda module, inputs, outputs: kept.append(weakref.ref(outputs))
    )
    logits = weakref.ref(model(images))
    assert kept[0]() is None
    assert logits() is None


def test_a_copy_stays_with_the_one_model(tiny):
    receiver = Receiver(tiny.build(tiny.classifier(tiny.resnet())))
    assert copy.deepcopy(receiver) is receiver


# --------------------------------------------------------------------- errors


def test_norm_that_a_tail_leaves_out_is_noticed(classify):
    model, size = classify('ConvNeXt', 'map', gap_before_final_norm=False)
    receiver = Receiver(model)
    model(torch.zeros(2, 3, *size))
    with pytest.raises(ValueError, match='of a ConvNeXt does more') as caught:
        receiver.check()
    assert '`first` of the assistant' in str(caught.value)


def test_layers_behind_the_last_stage_are_noticed(networks):
    classifier = TimmClassifier('test_resnet')
    model = wrap(classifier, networks.timm['EfficientNet']())
    receiver = Receiver(model)
    model(torch.zeros(2, 3, 64, 64))
    with pytest.raises(
        ValueError, match='TimmClassifier of a EfficientNet does more'
    ) as caught:
        receiver.check()
    # The convolution in front of the head did not run.
    assert 'shapes cannot be multiplied' in str(caught.value.__cause__)


@pytest.mark.parametrize('name', ['HRNet', 'Conformer', 'TNT'])
def test_network_with_branches_is_refused(name, networks):
    case = networks.mmpretrain[name]
    model = nn.Module()
    model.backbone = case.build(case.sizes[-1])
    with pytest.raises(
        ValueError, match=f'{case.type} cannot be replayed.*one stage leads'
    ):
        Receiver(model)


def test_classifier_whose_head_is_not_known_is_refused(networks):
    import transformers

    settings, _ = networks.hugging_face['ResNet']
    config = transformers.ResNetConfig(**settings, num_labels=5)

    class HuggingFaceClassifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = transformers.ResNetForImageClassification(config)

        def forward(self, images):
            return self.model(images).logits

    with pytest.raises(ValueError, match='HuggingFaceClassifier reads out'):
        Receiver(HuggingFaceClassifier())
