"""Hooks and constructors of MMEngine, MMPretrain and MMRazor on a student."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.engine.hooks import (
    SetAdaptiveMarginsHook,
    SwitchRecipeHook,
    WarmupParamHook,
)
from mmpretrain.models import LabelSmoothLoss, Mixup
from mmpretrain.models.heads import ArcFaceClsHead
from torch import nn

from mmcakd.models.algorithms import CrossArchDistill
from mmcakd.models.algorithms.of_the_student import OF_THE_STUDENT


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')


@pytest.fixture
def distill(tiny):
    """Build a distillation to a student by its backbone, and its connector."""

    def build(backbone: dict, **kwargs) -> CrossArchDistill:
        student = tiny.classifier(backbone)
        student['head'] |= kwargs.pop('head', {})
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
            distill_losses=dict(loss_fit=dict(type='mmcakd.MSELoss')),
            loss_forward_mappings=dict(
                loss_fit=dict(student=dict(connector='fit'), teacher=last[1])
            ),
        )
        return tiny.build_distillation(
            **dict(architecture=student, distiller=distiller) | kwargs
        )

    return build


def runner_of(model: nn.Module, **kwargs) -> SimpleNamespace:
    """What a hook reads of a Runner."""
    kwargs = dict(_resume=False, epoch=0, iter=0) | kwargs
    logger = SimpleNamespace(info=lambda text: None)
    return SimpleNamespace(model=model, logger=logger, **kwargs)


# ---------------------------------------------------- what is of the student


def test_parts_that_are_looked_for_are_those_of_the_student(distill, tiny):
    model = distill(tiny.resnet())
    student = model.architecture
    assert model.backbone is student.backbone
    assert model.neck is student.neck
    assert model.head is student.head
    assert model.with_neck and model.with_head
    model = distill(tiny.vit())
    assert model.neck is None
    assert not model.with_neck


def test_nothing_else_of_the_student_is_a_part_of_the_algorithm(distill, tiny):
    model = distill(tiny.resnet())
    assert len(OF_THE_STUDENT) == 6
    assert not any(hasattr(model, name) for name in ('bbox_head', 'layer1'))
    model.architecture.queue = torch.ones(1)
    with pytest.raises(AttributeError, match='queue'):
        _ = model.queue
    # Neither is anything of the student saved twice.
    assert not [key for key in model.state_dict() if key.startswith('head')]


def test_part_that_is_replaced_is_replaced_in_the_student(distill, tiny):
    model = distill(tiny.resnet())
    model.head = nn.Identity()
    assert isinstance(model.architecture.head, nn.Identity)
    assert 'head' not in model._modules
    assert model.head is model.architecture.head


class Segmentor(nn.Module):
    """Stands for a model of a package that reads names of weights."""

    backbone = nn.Identity()


def test_students_of_other_packages_are_named_by_their_path(distill, tiny):
    model = distill(tiny.resnet())
    model.architecture = Segmentor()
    assert not hasattr(model, 'backbone')
    with pytest.raises(AttributeError, match=r'architecture\.backbone'):
        _ = model.backbone


# ----------------------------------------------------- layer-wise decay


def learning_rates(model: nn.Module, **optimizer) -> dict[str, float]:
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1.0) | optimizer,
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    return {
        group['param_name']: group['lr']
        for group in wrapper.optimizer.param_groups
    }


@pytest.mark.parametrize('name', ['vit', 'swin', 'convnext'])
def test_layers_of_the_student_learn_as_they_would_alone(name, distill, tiny):
    model = distill(getattr(tiny, name)())
    alone = learning_rates(model.architecture)
    rates = learning_rates(model)
    assert len(set(alone.values())) > 3
    for key, value in alone.items():
        assert rates.pop(f'architecture.{key}') == value, key
    # What is left are connectors.
    assert rates
    assert all(key.startswith('distiller.connectors.fit') for key in rates)
    assert set(rates.values()) == {1.0}


@pytest.mark.parametrize(
    ('optimizer', 'decay'),
    [
        (dict(), 0.01),
        (dict(type='SGD'), 0.0),
        (dict(type=torch.optim.Adam), 0.0),
        (dict(type='Rprop'), None),
        (dict(weight_decay=0.3), 0.3),
    ],
)
def test_layer_wise_rates_need_no_weight_decay(
    distill, tiny, optimizer, decay
):
    model = distill(tiny.vit())
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=0.1) | optimizer,
            constructor='LearningRateDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.5),
        ),
    )
    if decay is not None:
        found = {
            group['weight_decay'] for group in wrapper.optimizer.param_groups
        }
        assert found == {decay}
    assert wrapper.param_groups[0]['lr'] < 0.1


def test_student_without_depths_is_named(distill, tiny):
    timm = dict(type='TimmClassifier', _scope_='mmpretrain')
    timm |= dict(model_name='resnet10t', num_classes=5)
    for model, name in (
        (distill(tiny.mixer()), 'MlpMixer'),
        # MMPretrain knows those of 50 layers and more.
        (distill(tiny.resnet()), 'ResNet'),
        (distill(tiny.resnet(), architecture=timm), 'TimmClassifier'),
    ):
        with pytest.raises(NotImplementedError, match=f'this {name} does not'):
            learning_rates(model)


# ------------------------------------------------------- hooks of MMPretrain


def test_recipe_switches_augments_of_the_preprocessor_in_use(distill, tiny):
    preprocessor = dict(num_classes=5, mean=[0.0] * 3, std=[1.0] * 3)
    model = distill(tiny.resnet(), data_preprocessor=preprocessor).train()
    augments = dict(augments=dict(type='Mixup', alpha=0.8))
    hook = SwitchRecipeHook(
        [
            dict(action_epoch=2, batch_augments=augments),
            dict(action_epoch=3, batch_augments=None),
        ]
    )
    hook.before_train(runner_of(model))
    np.random.seed(0)
    torch.manual_seed(0)
    kinds = []
    for epoch in range(3):
        hook.before_train_epoch(runner_of(model, epoch=epoch))
        images, samples = tiny.batch(4)
        batch = dict(inputs=images, data_samples=samples)
        batch = model.data_preprocessor(batch, training=True)
        kinds.append([s.get('gt_score') for s in batch['data_samples']])
        losses = model(**batch, mode='loss')
        assert losses['student.loss'].isfinite()
    assert kinds[0] == [None] * 4
    assert any(score.max() < 1 for score in kinds[1])
    assert all(score.max() == 1 for score in kinds[2])
    assert isinstance(hook.schedule[2]['batch_augments'].augments[0], Mixup)


def test_augments_that_a_preprocessor_does_not_do_are_refused(distill, tiny):
    preprocessor = dict(type='mmengine.ImgDataPreprocessor')
    model = distill(tiny.resnet(), data_preprocessor=preprocessor)
    augments = dict(augments=dict(type='CutMix', alpha=1.0))
    hook = SwitchRecipeHook([dict(action_epoch=90, batch_augments=augments)])
    with pytest.raises(ValueError, match='ImgDataPreprocessor does no'):
        hook.before_train(runner_of(model))
    # Without any there is nothing to say.
    SwitchRecipeHook(
        [dict(action_epoch=90, batch_augments=None)]
    ).before_train(runner_of(model))


@pytest.mark.parametrize('wrapped', [False, True])
def test_recipe_switches_the_loss_of_the_student(distill, tiny, wrapped):
    options = {}
    if wrapped:
        student = dict(type='mmcakd.TorchvisionClassifier', num_classes=5)
        options['architecture'] = student | dict(model_name='resnet18')
    model = distill(tiny.resnet(), **options).train()
    loss = dict(type='LabelSmoothLoss', label_smooth_val=0.4, num_classes=5)
    hook = SwitchRecipeHook([dict(action_epoch=1, loss=loss)])
    data = tiny.batch(4)
    logits = []
    layer = model.architecture.model if wrapped else model.head.fc
    layer.register_forward_hook(
        lambda module, inputs, outputs: logits.append(outputs)
    )
    hook.before_train_epoch(runner_of(model))
    value = model(*data, mode='loss')['student.loss']
    owner = model.architecture if wrapped else model.architecture.head
    assert isinstance(owner.loss_module, LabelSmoothLoss)
    labels = torch.cat([sample.gt_label for sample in data[1]])
    soft = torch.full((4, 5), 0.4 / 5)
    soft[range(4), labels] += 0.6
    expected = -(logits[-1].log_softmax(1) * soft).sum(1).mean() * 0.5
    assert torch.allclose(value, expected)
    assert not [k for k in model._modules if 'loss' in k]


def test_margins_follow_how_often_a_class_occurs(distill, tiny):
    model = distill(tiny.resnet(), head=dict(type='ArcFaceClsHead'))
    labels = np.repeat(range(5), [1, 16, 81, 256, 625])
    dataset = SimpleNamespace(get_gt_labels=lambda: labels)
    loader = SimpleNamespace(dataset=dataset)
    hook = SetAdaptiveMarginsHook(margin_min=0.1, margin_max=0.9)
    hook.before_train(runner_of(model, train_dataloader=loader))
    # n ** -0.25 is 1, 1/2, 1/3, 1/4, 1/5.
    powers = 1 / np.arange(1, 6)
    expected = (powers - 0.2) / 0.8 * 0.8 + 0.1
    head = model.architecture.head
    assert isinstance(head, ArcFaceClsHead)
    assert np.allclose(head.margins, expected)
    other = distill(tiny.resnet())
    with pytest.raises(ValueError, match='ArcFaceClsHead'):
        hook.before_train(runner_of(other, train_dataloader=loader))


def test_parameter_of_the_head_warms_up(distill, tiny):
    model = distill(tiny.resnet(), head=dict(type='ArcFaceClsHead'))
    head = model.architecture.head
    hook = WarmupParamHook('scale', module_name='head', warmup_epochs=2)
    runner = runner_of(model, max_iters=40, max_epochs=4)
    hook.before_train(runner)
    runner.iter = 5
    hook.before_train_iter(runner, 0)
    assert head.scale == pytest.approx(64 / 4)
    runner.iter = 30
    hook.before_train_iter(runner, 0)
    assert head.scale == 64


def test_one_run_with_many_hooks(short_run, tiny):
    student = tiny.classifier(tiny.resnet())
    augments = dict(augments=dict(type='Mixup', alpha=0.8))
    cfg = short_run(
        model=tiny.distillation(architecture=student),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        custom_hooks=[
            dict(type='PreciseBNHook', num_samples=20, priority=49),
            dict(type='EMAHook', momentum=0.5, priority='ABOVE_NORMAL'),
            dict(type='SyncBuffersHook'),
            dict(type='ClassNumCheckHook'),
            dict(
                type='SwitchRecipeHook',
                schedule=[dict(action_epoch=2, batch_augments=augments)],
            ),
            dict(
                type='mmrazor.EstimateResourcesHook',
                estimator_cfg=dict(
                    type='mmrazor.ResourceEstimator',
                    input_shape=(1, 3, 64, 64),
                    latency_cfg=dict(max_iter=2, num_warmup=1),
                ),
            ),
        ],
    )
    runner = Runner.from_cfg(cfg)
    batches = []
    norm = runner.model.backbone.layer4[1].norm2

    def note(module, inputs) -> None:
        if module.momentum == 1.0:
            batches.append(inputs[0].mean((0, 2, 3)))

    norm.register_forward_pre_hook(note)
    runner.train()
    # The running statistics are the mean over the batches of one epoch.
    assert len(batches) == 2 * 5
    checkpoint = torch.load(f'{cfg.work_dir}/epoch_2.pth', weights_only=False)
    key = 'architecture.backbone.layer4.1.bn2.running_mean'
    trained = checkpoint['ema_state_dict']['module.' + key]
    assert torch.allclose(trained, torch.stack(batches[5:]).mean(0), atol=1e-6)
    assert runner.model.data_preprocessor.batch_augments is not None
