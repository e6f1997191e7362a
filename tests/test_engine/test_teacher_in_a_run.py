"""What a Runner knows before the first step: weights and normalisation."""

import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

OWN = dict(mean=[90.0, 115.0, 130.0], std=[70.0, 65.0, 75.0], to_rgb=True)
NORMALISE = dict(
    type='Normalize',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)
TRAINING_SET = dict(training_set=dict(type='mmcakd.TrainingSetHook'))
ONE_EPOCH = dict(by_epoch=True, max_epochs=1)


class Steps(Hook):
    """Count the steps that were begun."""

    count = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.count += 1


@pytest.fixture
def make(short_run, tiny):
    """A run of one epoch whose only method is soft targets."""

    def make_runner(name='run', model=None, steps=None, **kwargs):
        settings = dict(architecture=tiny.classifier(tiny.resnet()))
        settings |= dict(distiller=tiny.logit_kd()) | (model or {})
        cfg = short_run(
            name,
            model=tiny.distillation(**settings),
            train_cfg=ONE_EPOCH,
            param_scheduler=None,
            **kwargs,
        )
        if steps is not None:
            for split in ('train', 'val'):
                cfg[f'{split}_dataloader'].dataset.pipeline[2:2] = steps
        runner = Runner.from_cfg(cfg)
        counter = Steps()
        runner.register_hook(counter)
        return runner, counter

    return make_runner


# ------------------------------------------------------------------ weights


def test_run_does_not_start_with_a_teacher_without_weights(make):
    runner, steps = make(model=dict(teacher_ckpt=None))
    with pytest.raises(ValueError, match='no weights.*teacher_ckpt'):
        runner.train()
    assert steps.count == 0


def test_loop_of_ones_own_does_not_start_either(tiny):
    model = tiny.build_distillation(teacher_ckpt=None)
    images, samples = tiny.batch()
    model.train()
    with pytest.raises(ValueError, match='no weights.*teacher_ckpt'):
        model(images, samples, mode='loss')
    # What learns nothing asks for nothing.
    model.eval()
    losses = model(images, samples, mode='loss')
    assert 'distill.loss_kd' in losses
    assert len(model(images, samples, mode='predict')) == 2


def test_teacher_without_weights_is_no_error_where_nothing_is_trained(make):
    test = dict(test_cfg=dict(), test_evaluator=dict(type='Accuracy'))
    runner, _ = make(model=dict(teacher_ckpt=None))
    runner, _ = make(
        model=dict(teacher_ckpt=None),
        test_dataloader=runner.cfg.val_dataloader,
        **test,
    )
    assert 'accuracy/top1' in runner.test()


def test_teacher_is_loaded_again_when_a_run_is_resumed(make, tiny, tmp_path):
    teacher = tiny.build(tiny.classifier(tiny.swin()))
    teacher.init_weights()
    path = str(tmp_path / 'teacher.pth')
    torch.save(dict(state_dict=teacher.state_dict()), path)
    model = dict(teacher_ckpt=path)
    make('run', model)[0].train()
    runner, steps = make('run', model, resume=True)
    runner.train()
    assert steps.count == 0
    kept = runner.model.teacher.model.state_dict()
    for key, value in teacher.state_dict().items():
        assert torch.equal(kept[key], value), key


# ----------------------------------------------------- weights of the student


@pytest.fixture
def plain(tiny):
    """A student whose weights no initialisation makes."""
    model = tiny.build(tiny.classifier(tiny.resnet()))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


FORMS = {
    'mmengine': lambda w: dict(state_dict=w, meta={}),
    'plain': lambda w: dict(w),
    'deit': lambda w: dict(model=w, epoch=3),
    'ddp': lambda w: dict(state_dict={f'module.{k}': v for k, v in w.items()}),
    'distillation': lambda w: dict(
        state_dict={f'architecture.{k}': v for k, v in w.items()}
    ),
    'ema alone': lambda w: dict(state_dict_ema=w),
    'ema of timm': lambda w: dict(
        state_dict={k: 2 * v for k, v in w.items()}, state_dict_ema=w
    ),
    'ema of deit': lambda w: dict(
        model={k: 2 * v for k, v in w.items()}, model_ema=w
    ),
}


@pytest.mark.parametrize('form', FORMS)
def test_weights_of_a_plain_student_are_loaded(make, plain, tmp_path, form):
    path = tmp_path / 'plain.pth'
    torch.save(FORMS[form](plain.state_dict()), path)
    runner, _ = make()
    runner.load_checkpoint(str(path))
    for key, value in runner.model.student.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]), key


@pytest.mark.parametrize('ema', [False, True])
def test_run_starts_from_a_plain_student(make, plain, tmp_path, ema):
    path = tmp_path / 'plain.pth'
    torch.save(dict(state_dict=plain.state_dict()), path)
    hooks = [dict(type='EMAHook', momentum=0.1)] if ema else []
    runner, _ = make(
        load_from=str(path),
        custom_hooks=hooks,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
    )
    runner.train()
    expected = dict(plain.named_parameters())
    for key, value in runner.model.student.named_parameters():
        assert torch.allclose(value, expected[key], atol=1e-6), key


def test_new_head_is_left_to_mmengine(tiny, plain):
    model = tiny.build_distillation(
        architecture=tiny.classifier(tiny.resnet(), 9),
        teacher=tiny.classifier(tiny.swin(), 9),
        distiller=tiny.logit_kd(),
    )
    state = {
        key: value
        for key, value in plain.state_dict().items()
        if not key.startswith('head.')
    }
    found = model.load_state_dict(state, strict=False)
    missing = {key for key in found.missing_keys if 'head' in key}
    assert 'architecture.head.fc.weight' in missing
    assert torch.equal(
        model.student.backbone.conv1.weight, plain.backbone.conv1.weight
    )


@pytest.mark.parametrize('form', ['mmengine', 'deit', 'distillation'])
@pytest.mark.parametrize('kind', ['nothing', 'only the head'])
def test_weights_of_another_student_are_refused(
    make, tiny, tmp_path, kind, form
):
    other = tiny.build(tiny.classifier(tiny.vit()))
    state = other.state_dict()
    if kind == 'only the head':
        state['head.fc.weight'] = torch.randn(5, 32)
        state['head.fc.bias'] = torch.randn(5)
    path = tmp_path / 'other.pth'
    torch.save(FORMS[form](state), path)
    runner, _ = make()
    with pytest.raises(RuntimeError, match=f'{kind}.*fits the student'):
        runner.load_checkpoint(str(path))


@pytest.mark.parametrize('kind', ['nothing', 'only the head', 'all'])
def test_students_of_other_packages_are_told_apart(tiny, kind):
    cfg = dict(
        type='mmpretrain.TimmClassifier',
        model_name='vit_tiny_patch16_224',
        img_size=64,
        depth=4,
        num_classes=5,
    )
    model = tiny.build_distillation(
        architecture=cfg, distiller=tiny.logit_kd()
    )
    state = {k: v + 1 for k, v in model.student.state_dict().items()}
    assert 'head.weight' in state
    if kind == 'all':
        model.load_state_dict(state, strict=False)
        for key, value in model.student.state_dict().items():
            assert torch.equal(value, state[key]), key
        return
    state = {k: v for k, v in state.items() if k.startswith('head.')}
    if kind == 'nothing':
        state = {f'other.{k}': v for k, v in state.items()}
    with pytest.raises(RuntimeError, match=f'{kind}.*fits the student'):
        model.load_state_dict(state, strict=False)


def test_own_checkpoint_is_loaded_as_before(tiny):
    model = tiny.build_distillation()
    other = tiny.build_distillation()
    state = copy.deepcopy(other.state_dict())
    found = model.load_state_dict(state)
    assert not found.missing_keys
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    connectors = {k: v for k, v in state.items() if 'distiller' in k}
    model.load_state_dict(connectors, strict=False)


# ------------------------------------------------------------ normalisation


def watch_teacher(runner) -> list:
    seen = []
    runner.model.teacher.model.backbone.register_forward_pre_hook(
        lambda m, i: seen.append(i[0])
    )
    return seen


@pytest.mark.parametrize(
    'steps',
    [
        [NORMALISE],
        [
            dict(type='NumpyToPIL', to_rgb=True),
            dict(type='torchvision/ToTensor'),
            dict(
                type='torchvision/Normalize',
                mean=[0.485, 0.456, 0.406],
                std=[0.229, 0.224, 0.225],
            ),
        ],
    ],
    ids=['mmcv', 'torchvision'],
)
def test_pipeline_that_normalises_is_undone(make, tiny, steps):
    def seen_of(steps, preprocessor, name):
        runner, _ = make(
            name,
            dict(teacher=tiny.classifier(tiny.swin(), data_preprocessor=OWN)),
            steps,
            data_preprocessor=dict(num_classes=5, **preprocessor),
            default_hooks=TRAINING_SET,
        )
        seen = watch_teacher(runner)
        runner.train()
        return seen

    expected = seen_of([], {k: NORMALISE[k] for k in OWN}, 'expected')
    seen = seen_of(steps, {}, 'run')
    assert len(seen) == len(expected) == 5
    for image, other in zip(seen, expected, strict=True):
        assert torch.allclose(image, other, atol=1e-4)


def test_pipeline_that_nobody_read_is_refused_in_the_first_step(make, tiny):
    runner, steps = make(
        model=dict(
            teacher=tiny.classifier(tiny.swin(), data_preprocessor=OWN)
        ),
        steps=[NORMALISE],
        data_preprocessor=dict(num_classes=5),
    )
    before = copy.deepcopy(runner.model.state_dict())
    with pytest.raises(ValueError, match='data_preprocessor.*TrainingSetHook'):
        runner.train()
    assert steps.count == 1
    key = 'architecture.backbone.bn1.running_mean'
    assert torch.equal(runner.model.state_dict()[key], before[key])
