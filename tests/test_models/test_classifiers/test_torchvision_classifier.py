"""torchvision's classifiers as students and teachers."""

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models.losses import LabelSmoothLoss
from torchvision.models import get_model

from mmcakd.models.classifiers import TorchvisionClassifier
from mmcakd.models.recorders import LogitsRecorder
from mmcakd.models.stages import find_taps
from mmcakd.models.teachers import Teacher, build_model, load_weights

NAME = 'shufflenet_v2_x0_5'
CFG = dict(type='mmcakd.TorchvisionClassifier', model_name=NAME, num_classes=5)


@pytest.fixture
def model():
    return TorchvisionClassifier(NAME, num_classes=5).eval()


def test_logits_are_those_of_torchvision(model, tiny):
    images, samples = tiny.batch()
    own = get_model(NAME, num_classes=5).eval()
    own.load_state_dict(model.state_dict())
    logits = own(images)
    assert torch.equal(model(images), logits)
    predictions = model.predict(images, samples)
    for sample, row in zip(predictions, logits, strict=True):
        assert torch.allclose(sample.pred_score, row.softmax(0))
        assert sample.pred_label == row.argmax()


@pytest.mark.parametrize('soft', [False, True])
def test_loss_is_cross_entropy_of_hard_or_mixed_labels(model, tiny, soft):
    images, samples = tiny.batch(soft=soft)
    loss = model.loss(images, samples)['loss']
    field = 'gt_score' if soft else 'gt_label'
    labels = torch.stack([sample.get(field) for sample in samples])
    labels = labels if soft else labels.flatten()
    expected = torch.nn.functional.cross_entropy(model(images), labels)
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize('scope', [None, 'mmpretrain', 'mmrazor', 'mmcakd'])
def test_plain_names_inside_are_those_of_mmpretrain(scope):
    cfg = CFG | dict(
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1),
        train_cfg=dict(augments=dict(type='Mixup', alpha=1.0)),
        data_preprocessor=dict(mean=[1.0] * 3, std=[2.0] * 3),
    )
    with DefaultScope.overwrite_default_scope(scope):
        model = build_model(cfg, 'student')
    assert isinstance(model.loss_module, LabelSmoothLoss)
    preprocessor = model.data_preprocessor
    assert preprocessor.mean.flatten().tolist() == [1, 1, 1]
    (augment,) = preprocessor.batch_augments.augments
    assert type(augment).__name__ == 'Mixup'
    assert 'batch_augments' not in cfg['data_preprocessor']


def test_checkpoint_of_torchvision_fits_unchanged(model, tmp_path):
    path = tmp_path / 'torchvision.pth'
    own = get_model(NAME, num_classes=5)
    torch.save(own.state_dict(), path)
    load_weights(model, str(path))
    assert model.state_dict().keys() == own.state_dict().keys()
    for key, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_recorders_find_its_logits_and_stages(tiny):
    model = TorchvisionClassifier('resnet18', num_classes=5).eval()
    recorder = LogitsRecorder()
    recorder.initialize(model)
    images, samples = tiny.batch()
    with recorder:
        model.loss(images, samples)
    assert torch.equal(recorder.get_record_data(), model(images))
    sources = [tap.source for tap in find_taps(model)]
    assert sources == [f'model.layer{i}' for i in (1, 2, 3, 4)]


def test_it_teaches_and_its_tail_is_replayed(tiny):
    teacher = Teacher(TorchvisionClassifier('resnet18', num_classes=5))
    tail = teacher.build_tail(3)
    assert teacher(tiny.batch()[0]).shape == (2, 5)
    assert tail(torch.rand(4, 16, 256)).shape == (4, 4, 512)


# -------------------------------------------------------------------- errors


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="'resnet19'.*list_models"):
        TorchvisionClassifier('resnet19')


def test_weights_that_would_load_unchecked_are_refused():
    with pytest.raises(ValueError, match='teacher_ckpt'):
        TorchvisionClassifier(NAME, weights='DEFAULT')
