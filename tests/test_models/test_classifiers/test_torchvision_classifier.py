"""torchvision's classifiers as students and teachers."""

import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import TimmClassifier
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


# ------------------------------------------------- auxiliary classifiers


@pytest.fixture(scope='module')
def auxiliary():
    """Classifiers whose networks return more in training."""
    options = dict(num_classes=5, init_weights=False)
    return {
        name: TorchvisionClassifier(name, **options)
        for name in ('googlenet', 'inception_v3')
    }


@pytest.mark.parametrize(
    ('name', 'pixels', 'weight'),
    [('googlenet', 64, 0.3), ('inception_v3', 299, 0.4)],
)
@pytest.mark.parametrize('soft', [False, True])
def test_auxiliary_classifiers_learn_beside(
    auxiliary, tiny, name, pixels, weight, soft
):
    model = auxiliary[name].train()
    outputs = []
    handle = model.model.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    images, samples = tiny.batch(pixels=pixels, soft=soft)
    losses = model.loss(images, samples)
    handle.remove()
    field = 'gt_score' if soft else 'gt_label'
    labels = torch.stack([sample.get(field) for sample in samples])
    labels = labels if soft else labels.flatten()
    cross_entropy = torch.nn.functional.cross_entropy
    logits, *others = outputs[0]
    assert torch.allclose(losses['loss'], cross_entropy(logits, labels))
    assert len(others) == (2 if name == 'googlenet' else 1)
    expected = sum(cross_entropy(other, labels) for other in others) * weight
    assert torch.allclose(losses['loss_aux'], expected)
    # In evaluation they are none.
    assert set(model.eval().loss(images, samples)) == {'loss'}


def test_scores_are_those_of_the_last_classifier(auxiliary, tiny):
    model = auxiliary['googlenet']
    images, samples = tiny.batch()
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder:
        scores = model.train()(images)
    assert scores.shape == (2, 5)
    assert torch.equal(recorder.get_record_data(), scores)


def test_student_with_auxiliary_classifiers_is_distilled(tiny):
    student = CFG | dict(model_name='googlenet', init_weights=False)
    model = tiny.build_distillation(
        architecture=student,
        teacher=tiny.classifier(tiny.resnet()),
        distiller=tiny.logit_kd(),
    ).train()
    losses = model(*tiny.batch(4), mode='loss')
    assert set(losses) == {
        'student.loss',
        'student.loss_aux',
        'distill.loss_kd',
    }
    # Every weight learns.
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.student.parameters())


class Deep(torch.nn.Module):
    """Returns or needs another thing in training."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 5)
        self.fails = fails

    def forward(self, images):
        scores = self.fc(images.mean((2, 3)))
        if self.training and self.fails:
            raise RuntimeError('no labels are given')
        return (scores, scores) if self.training else scores


@pytest.mark.parametrize(
    ('fails', 'message'),
    [
        (False, 'returns 2 outputs, where TimmClassifier expects class score'),
        (True, 'evaluation, but not in training: no labels are given'),
    ],
)
def test_student_that_cannot_be_trained_is_refused(tiny, fails, message):
    student = TimmClassifier('resnet10t', num_classes=5)
    student.model = Deep(fails)
    with pytest.raises(ValueError, match=message):
        tiny.build_distillation(
            architecture=student,
            teacher=tiny.classifier(tiny.resnet()),
            distiller=tiny.logit_kd(),
        )


def test_auxiliary_classifiers_of_timm_are_refused(tiny):
    student = dict(type='TimmClassifier', model_name='inception_v3')
    student |= dict(_scope_='mmpretrain', num_classes=5, aux_logits=True)
    with pytest.raises(ValueError, match='without .aux_logits=False'):
        tiny.build_distillation(
            architecture=student,
            teacher=tiny.classifier(tiny.resnet()),
            distiller=tiny.logit_kd(),
            input_size=299,
        )


def test_trying_the_student_leaves_no_trace(tiny):
    drawn = []
    for drop in (0.0, 0.5):
        torch.manual_seed(0)
        swin = tiny.swin(drop_path_rate=drop)
        model = tiny.build_distillation(architecture=tiny.classifier(swin))
        assert all(module.training for module in model.student.modules())
        drawn.append(torch.get_rng_state())
    # Stochastic depth draws no numbers that the run would miss.
    assert torch.equal(*drawn)
    student = tiny.build(tiny.classifier(tiny.resnet()))
    weights = copy.deepcopy(student.state_dict())
    tiny.build_distillation(architecture=student)
    for key, value in weights.items():
        assert torch.equal(student.state_dict()[key], value), key


# -------------------------------------------------------------------- errors


def test_unknown_model_is_named():
    with pytest.raises(ValueError, match="'resnet19'.*list_models"):
        TorchvisionClassifier('resnet19')


def test_weights_that_would_load_unchecked_are_refused():
    with pytest.raises(ValueError, match='teacher_ckpt'):
        TorchvisionClassifier(NAME, weights='DEFAULT')
