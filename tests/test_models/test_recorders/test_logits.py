"""The recorder of class scores."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmpretrain.models import ConformerHead, LinearClsHead
from mmpretrain.structures import DataSample, MultiTaskDataSample
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


# ------------------------------------------------------------ plain scores


class MarginHead(LinearClsHead):
    """A head of one's own that moves the score of the label."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = nn.BatchNorm1d(self.in_channels)

    def forward(self, feats, data_samples=None):
        scores = self.fc(self.norm(feats[-1]))
        if data_samples is None:
            return scores
        labels = torch.cat([sample.gt_label for sample in data_samples])
        return scores - 5 * nn.functional.one_hot(labels, scores.shape[1])

    def loss(self, feats, data_samples):
        scores = self(feats, data_samples=data_samples)
        return self._get_loss(scores, data_samples)


HEADS = dict(
    ArcFace=dict(type='ArcFaceClsHead'),
    SubCenterArcFace=dict(
        type='ArcFaceClsHead', num_subcenters=3, margins=1.0
    ),
    own=dict(type=MarginHead),
    linear=dict(type='LinearClsHead'),
    several_labels=dict(type='MultiLabelLinearClsHead'),
)


def classifier_with(tiny, head: dict):
    head = dict(num_classes=tiny.classes, in_channels=32) | head
    return tiny.build(tiny.classifier(tiny.resnet(), head=head))


@pytest.mark.parametrize('name', HEADS)
def test_scores_of_a_training_forward_are_those_without_targets(tiny, name):
    model = classifier_with(tiny, HEADS[name])
    images, samples = tiny.batch(4)
    # Statistics of the batch, in both.
    model.train()
    logits, losses = record_logits(
        model, lambda: model(images, samples, mode='loss')
    )
    assert torch.allclose(logits, model(images, mode='tensor'), atol=1e-5)
    assert losses['loss'].isfinite()
    logits.square().sum().backward()
    assert model.backbone.layer1[0].conv1.weight.grad.abs().sum() > 0


def test_statistics_are_updated_once_in_a_step(tiny):
    model = classifier_with(tiny, HEADS['own']).train()
    images, samples = tiny.batch(4)
    record_logits(model, lambda: model(images, samples, mode='loss'))
    assert model.head.norm.num_batches_tracked == 1
    assert model.head.norm.track_running_stats


def test_head_that_cannot_do_without_targets_is_refused():
    class Needy(nn.Module):
        def forward(self, feats, target, scale=1):
            return feats

    model = nn.Module()
    model.head = Needy()
    with pytest.raises(
        ValueError, match=r"Needy.*\['target'\].*ModuleOutputs"
    ):
        LogitsRecorder().initialize(model)


# ----------------------------------------------------------- several heads


def multi_task(tiny, **heads):
    return tiny.build(
        tiny.classifier(
            tiny.resnet(),
            head=dict(
                type='MultiTaskHead',
                in_channels=32,
                task_heads=heads
                or dict(
                    colour=dict(type='LinearClsHead', num_classes=4),
                    shape=dict(type='ArcFaceClsHead', num_classes=3),
                ),
            ),
        )
    )


def of_tasks(count: int, **tasks):
    samples = []
    for index in range(count):
        sample = MultiTaskDataSample()
        for task, classes in tasks.items():
            # Not every image has every task.
            if (index + classes) % 3:
                label = DataSample().set_gt_label(index % classes)
                sample.set_field(label, task)
        samples.append(sample)
    return samples


@pytest.mark.parametrize('mode', ['tensor', 'loss', 'predict'])
@pytest.mark.parametrize(
    ('data_idx', 'task'),
    [('colour', 'colour'), (0, 'colour'), ('shape', 'shape'), (-1, 'shape')],
)
def test_a_task_is_picked_by_name_or_place(tiny, mode, data_idx, task):
    model = multi_task(tiny).eval()
    images, _ = tiny.batch(5)
    samples = of_tasks(5, colour=4, shape=3)
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder:
        model(images, samples, mode=mode)
    # Of all images, those without the task too.
    expected = model(images, mode='tensor')[task]
    found = recorder.get_record_data(data_idx=data_idx)
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(recorder.data_buffer) == 1


def test_one_of_the_heads_of_a_conformer():
    head = ConformerHead(num_classes=3, in_channels=[4, 6])
    model = nn.Module()
    model.head = head
    recorder = LogitsRecorder()
    recorder.initialize(model)
    features = ([torch.rand(2, 4), torch.rand(2, 6)],)
    with recorder:
        head(features)
    for index, own in enumerate((head.conv_cls_head, head.trans_cls_head)):
        assert torch.equal(
            recorder.get_record_data(data_idx=index), own(features[-1][index])
        )
    for wrong in (None, 2, -3, 'conv'):
        with pytest.raises(ValueError, match=r'\[0, 1\].*data_idx=0'):
            recorder.get_record_data(data_idx=wrong)


@pytest.mark.parametrize('wrong', [None, 'size', 2])
def test_heads_to_choose_from_are_named(tiny, wrong):
    model = multi_task(tiny).eval()
    images, _ = tiny.batch()
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder:
        model(images)
    with pytest.raises(
        ValueError, match=r"\['colour', 'shape'\].*data_idx='colour'"
    ) as caught:
        recorder.get_record_data(data_idx=wrong)
    assert (repr(wrong) in str(caught.value)) == (wrong is not None)


def test_a_single_task_needs_no_choice(tiny):
    model = multi_task(tiny, only=dict(type='LinearClsHead', num_classes=4))
    images, _ = tiny.batch()
    logits, output = record_logits(model.eval(), lambda: model(images))
    assert torch.equal(logits, output['only'])


@pytest.mark.parametrize('data_idx', [0, -1, 'head'])
def test_nothing_is_picked_of_a_single_head(tiny, data_idx):
    model = tiny.build(tiny.classifier(tiny.resnet())).eval()
    images, _ = tiny.batch()
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder:
        model(images)
    with pytest.raises(ValueError, match='one head.*remove data_idx'):
        recorder.get_record_data(data_idx=data_idx)


def test_a_copy_of_a_model_records_its_own_heads(tiny):
    model = multi_task(tiny).eval()
    recorder = LogitsRecorder()
    recorder.initialize(model)
    model, recorder = copy.deepcopy((model, recorder))
    nn.init.ones_(model.head.task_heads['colour'].fc.weight)
    images, _ = tiny.batch(5)
    samples = of_tasks(5, colour=4, shape=3)
    with recorder:
        model(images, samples, mode='loss')
    expected = model(images, mode='tensor')['colour']
    found = recorder.get_record_data(data_idx='colour')
    assert torch.allclose(found, expected, atol=1e-5)
    # A teacher is shared by copies of an algorithm: nothing of it is copied.
    held = [v for v in vars(recorder).values() if isinstance(v, nn.Module)]
    assert not held


def test_nothing_is_kept_outside_of_a_step(tiny):
    model = multi_task(tiny)
    images, _ = tiny.batch(5)
    samples = of_tasks(5, colour=4, shape=3)
    recorder = LogitsRecorder()
    recorder.initialize(model)
    with recorder:
        model(images, samples, mode='loss')
    recorder.reset_data_buffer()
    model(images, samples, mode='loss')
    with pytest.raises(AssertionError, match='length of data_buffer is 0'):
        recorder.get_record_data(data_idx='colour')
