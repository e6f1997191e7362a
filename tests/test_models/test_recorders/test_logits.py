"""The recorder of class scores."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmcakd.models.recorders import LogitsRecorder


def record_logits(model, run):
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder:
        output = run()
    return recorder.get_record_data(), output


@pytest.mark.parametrize('mode', ['tensor', 'loss', 'predict'])
@pytest.mark.parametrize('kind', ['resnet', 'swin', 'vit', 'convnext'])
def test_logits_of_mmpretrain_in_every_mode(tiny, kind, mode):
    model = tiny.build(tiny.classifier(getattr(tiny, kind)())).eval()
    images, samples = tiny.batch()
    logits, _ = record_logits(model, lambda: model(images, samples, mode=mode))
    assert torch.equal(logits, model(images, mode='tensor'))
    assert logits.shape == (2, tiny.classes)


@pytest.mark.parametrize('mode', ['tensor', 'loss'])
def test_logits_of_timm(tiny, mode):
    model = tiny.build(
        dict(
            type='mmpretrain.TimmClassifier',
            model_name='test_resnet',
            num_classes=tiny.classes,
            loss=dict(type='CrossEntropyLoss'),
        )
    ).eval()
    images, samples = tiny.batch()
    logits, _ = record_logits(model, lambda: model(images, samples, mode=mode))
    assert torch.equal(logits, model(images, mode='tensor'))


def test_logits_of_torchvision(tiny):
    model = tiny.build(
        dict(
            type='mmcakd.TorchvisionClassifier',
            model_name='shufflenet_v2_x0_5',
            num_classes=tiny.classes,
        )
    ).eval()
    images, samples = tiny.batch()
    logits, _ = record_logits(
        model, lambda: model(images, samples, mode='loss')
    )
    assert torch.equal(logits, model(images, mode='tensor'))


def test_logits_of_hugging_face_are_unpacked():
    class Wrapped(nn.Module):
        def forward(self, x):
            return SimpleNamespace(logits=x + 1)

    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Wrapped()

        def forward(self, x):
            return self.model(x).logits

    model = Wrapper()
    logits, output = record_logits(model, lambda: model(torch.zeros(2, 3)))
    assert torch.equal(logits, output)


def test_model_without_a_head_is_told_what_to_record():
    with pytest.raises(ValueError, match='Sequential.*ModuleOutputs'):
        LogitsRecorder().initialize(nn.Sequential(nn.Linear(1, 1)))
