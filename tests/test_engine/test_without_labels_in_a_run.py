"""Bare backbones and images without labels, in whole runs."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import DATASETS, METRICS, TRANSFORMS
from mmpretrain.structures import DataSample


class FeatureNorm(BaseMetric):
    """A metric of features: their mean norm."""

    default_prefix = 'feature'

    def process(self, data_batch, data_samples) -> None:
        self.results += [s['feature'].norm().item() for s in data_samples]

    def compute_metrics(self, results) -> dict:
        return dict(norm=sum(results) / len(results), count=len(results))


class BlindSample(DataSample):
    """A sample whose labels must not be touched."""

    @property
    def gt_label(self):
        raise AssertionError('a label was read')

    gt_score = gt_label


class Blind(CustomDataset):
    """Labelled images whose labels must not be read."""

    def get_gt_labels(self):
        raise AssertionError('a label was read')

    def get_cat_ids(self, idx: int):
        raise AssertionError('a label was read')


class PackBlind:
    """Pack an image with a sample whose labels must not be touched."""

    def __call__(self, results: dict) -> dict:
        pixels = torch.from_numpy(results['img'].transpose(2, 0, 1).copy())
        sample = BlindSample(metainfo=dict(sample_idx=results['sample_idx']))
        return dict(inputs=pixels, data_samples=sample)


@pytest.fixture(autouse=True)
def registered():
    """Parts that configs here name."""
    named = (
        (METRICS, FeatureNorm),
        (DATASETS, Blind),
        (TRANSFORMS, PackBlind),
    )
    for registry, kind in named:
        registry.register_module(module=kind)
    yield
    for registry, kind in named:
        registry.module_dict.pop(kind.__name__)


@pytest.fixture
def unlabelled(short_run, tiny, image_folder):
    """A bare ResNet learns its third stage from a bare ViT."""

    def make(name: str = 'run', **model) -> Config:
        stages = dict(stages=dict(type='mmcakd.StageOutputs'))
        target = tiny.record('stages', False, 3)
        cfg = short_run(
            name,
            model=tiny.distillation(
                architecture=tiny.resnet(type='mmpretrain.ResNet'),
                teacher=tiny.vit(type='mmpretrain.VisionTransformer'),
                distiller=dict(
                    student_recorders=stages,
                    teacher_recorders=stages,
                    connectors=dict(
                        project=dict(
                            type='mmcakd.FitNetConnector',
                            inputs=dict(
                                feature=tiny.record('stages', True, 2)
                            ),
                            shape_like=target,
                        )
                    ),
                    distill_losses=dict(
                        loss_mimic=dict(type='mmcakd.MSELoss')
                    ),
                    loss_forward_mappings=dict(
                        loss_mimic=dict(
                            student=dict(connector='project'), teacher=target
                        )
                    ),
                ),
            )
            | model,
            val_evaluator=dict(type='FeatureNorm'),
            default_hooks=dict(
                training_set=dict(type='mmcakd.TrainingSetHook'),
                checkpoint=dict(type='CheckpointHook', interval=1),
            ),
            custom_hooks=[
                dict(type='EMAHook', momentum=0.1),
                dict(type='mmcakd.ExportStudentHook'),
                dict(
                    type='mmcakd.LossWeightScheduleHook',
                    points=[(0, 1.0), (2, 0.5)],
                ),
            ],
        )
        cfg.train_dataloader.dataset.update(
            type='mmcakd.UnlabelledImages', data_prefix='train'
        )
        return cfg

    return make


class Watch(Hook):
    """Note metrics and the weight of the loss."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.metrics, self.weights = [], []

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.metrics.append(metrics)

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        losses = runner.model.distiller.distill_losses
        self.weights.append(losses['loss_mimic'].loss_weight)


def test_bare_backbone_learns_from_images_without_labels(
    unlabelled, run, read, equal, tiny, tmp_path
):
    watch = Watch()
    runner = run(unlabelled(), watch)
    model = runner.model
    assert [m['feature/count'] for m in watch.metrics] == [10] * 3
    assert len({m['feature/norm'] for m in watch.metrics}) == 3
    assert watch.weights == [1.0] * 5 + [0.75] * 5 + [0.5] * 5

    # Nothing but what is trained is in the optimizer; no teacher anywhere.
    held = [
        p
        for group in runner.optim_wrapper.param_groups
        for p in group['params']
    ]
    trained = dict(model.named_parameters())
    assert {id(p) for p in held} == {id(p) for p in trained.values()}
    assert len(held) == len(trained)
    assert not [name for name in trained if '.layer4.' in name]
    last = read(tmp_path / 'run')
    names = set(model.state_dict())
    assert set(last['state_dict']) == names
    assert not [name for name in names if 'teacher' in name]
    averaged = last['ema_state_dict']
    assert set(averaged) == {f'module.{n}' for n in names} | {'steps'}
    assert len(last['optimizer']['state']) == len(held)

    # What nothing reads stays as it was made, and is exported all the same.
    first = read(tmp_path / 'run', 'epoch_1.pth')['state_dict']
    frozen = 'architecture.backbone.layer4.0.conv1.weight'
    moving = 'architecture.backbone.layer3.0.conv1.weight'
    assert torch.equal(last['state_dict'][frozen], first[frozen])
    assert not torch.equal(last['state_dict'][moving], first[moving])
    exported = torch.load(tmp_path / 'run' / 'student.pth')['state_dict']
    backbone = tiny.build(tiny.resnet(type='mmpretrain.ResNet'))
    assert exported.keys() == {f'backbone.{n}' for n in backbone.state_dict()}
    for name, value in exported.items():
        # The average, which MMEngine saves in the place of the weights.
        assert torch.equal(value, last['state_dict'][f'architecture.{name}'])

    # A run that goes on ends as one that was not broken off.
    cfg = unlabelled('resumed')
    cfg.resume = True
    cfg.load_from = str(tmp_path / 'run' / 'epoch_1.pth')
    run(cfg)
    resumed = read(tmp_path / 'resumed')
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert not equal(last[part], resumed[part])


@pytest.mark.parametrize('student', ['bare', 'with an unread head'])
def test_labels_that_raise_when_they_are_read_train_through(
    unlabelled, run, tiny, student
):
    model = {}
    if student != 'bare':
        model = dict(
            architecture=tiny.classifier(tiny.resnet()), student_loss_weight=0
        )
    cfg = unlabelled(**model)
    cfg.train_dataloader.dataset.type = 'Blind'
    cfg.train_dataloader.dataset.pipeline[-1] = dict(type='PackBlind')
    cfg.train_cfg.max_epochs = 1
    cfg.custom_hooks = []
    if student != 'bare':
        cfg.val_evaluator = dict(type='Accuracy')
    runner = run(cfg)
    assert runner.iter == 5


# -------------------------------------------------- refused before a step


def refused(runner: Runner, message: str) -> None:
    before = copy.deepcopy(runner.model.distiller.state_dict())
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert runner.iter == 0
    for name, value in runner.model.distiller.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_accuracy_of_a_student_without_a_head_is_refused(unlabelled):
    cfg = unlabelled()
    cfg.val_evaluator = [dict(type='FeatureNorm'), dict(type='Accuracy')]
    refused(Runner.from_cfg(cfg), 'no head, but Accuracy evaluates')


@pytest.mark.parametrize('student', ['bare', 'weight', 'off'])
def test_end_of_distillation_is_refused_where_nothing_else_is_learnt(
    unlabelled, tiny, student
):
    head = dict(architecture=tiny.classifier(tiny.resnet()))
    model = dict(
        bare={},
        weight=head | dict(student_loss_weight=0.0),
        off=head | dict(calculate_student_loss=False),
    )[student]
    cfg = unlabelled(**model)
    cfg.custom_hooks = [dict(type='mmrazor.StopDistillHook', stop_epoch=1)]
    refused(Runner.from_cfg(cfg), 'StopDistillHook stops distillation')
