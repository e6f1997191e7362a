"""Detectors and segmentors that learn from detectors and segmentors."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmcakd.models.teachers.build import build_model, read_model_cfg
from mmcakd.registry import MODELS

ROOT = Path(__file__).parents[2]
FPN = 'retinanet_swin-t_resnet50_fpn_1x_coco'
LOGITS = 'fcn_swin-t_resnet50_ade20k_80k'

NARROW_RESNET = dict(depth=18, stem_channels=8, base_channels=8)
NARROW_SWIN = dict(
    embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], init_cfg=None
)
NARROW_RETINA = {
    'neck.out_channels': 16,
    'bbox_head.in_channels': 16,
    'bbox_head.feat_channels': 16,
    'bbox_head.stacked_convs': 1,
}
NARROW_FCN = {'decode_head.channels': 8, 'auxiliary_head.channels': 8}
#: Options that make the networks of a config narrow, and nothing else.
NARROW = {
    FPN: dict(
        student={
            'backbone': NARROW_RESNET | dict(init_cfg=None),
            'neck.in_channels': [8, 16, 32, 64],
            **NARROW_RETINA,
        },
        teacher={
            'backbone': NARROW_SWIN,
            'neck.in_channels': [16, 32, 64],
            **NARROW_RETINA,
        },
    ),
    LOGITS: dict(
        student={
            'pretrained': None,
            'backbone': NARROW_RESNET,
            'decode_head.in_channels': 64,
            'auxiliary_head.in_channels': 32,
            **NARROW_FCN,
        },
        teacher={
            'backbone': NARROW_SWIN,
            'decode_head.in_channels': [8, 16, 32, 64],
            'auxiliary_head.in_channels': 32,
            **NARROW_FCN,
        },
    ),
}


@pytest.fixture
def narrow(read_config, coco_root, ade20k_root, shrink, tmp_path):
    """Read a config with narrow networks and small images."""

    def read(name: str) -> Config:
        cfg = read_config('distill', name)
        teacher = Config(dict(model=read_model_cfg(cfg.model.teacher, 'it')))
        for whose, part in dict(
            student=cfg.model.architecture, teacher=teacher.model
        ).items():
            holder = Config(dict(model=part))
            holder.merge_from_dict(
                {f'model.{k}': v for k, v in NARROW[name][whose].items()}
            )
            part.update(holder.model)
        init_default_scope(cfg.default_scope)
        path = tmp_path / 'teacher.pth'
        torch.manual_seed(1)
        torch.save(build_model(teacher.model, 'teacher').state_dict(), path)
        cfg.model.update(teacher=teacher.model, teacher_ckpt=str(path))

        root = coco_root if name == FPN else ade20k_root
        divisor = 8 if name == FPN else 4
        for loader in ('train_dataloader', 'val_dataloader'):
            cfg[loader] = shrink(cfg[loader], divisor)
            cfg[loader].update(
                batch_size=2, num_workers=0, persistent_workers=False
            )
            cfg[loader].dataset.data_root = str(root)
        if name == FPN:
            annotations = root / 'annotations' / 'instances_val2017.json'
            cfg.val_evaluator.ann_file = str(annotations)
            # Nothing is found with confidence after two steps.
            cfg.model.architecture.test_cfg.score_thr = 0.0
            cfg.train_cfg.max_epochs = 1
        else:
            cfg.val_dataloader.batch_size = 1
            cfg.data_preprocessor = shrink(cfg.data_preprocessor, divisor)
            cfg.train_cfg.update(max_iters=2, val_interval=2)
            cfg.default_hooks.checkpoint.interval = 2
        cfg.test_dataloader = cfg.val_dataloader
        cfg.test_evaluator = cfg.val_evaluator
        cfg.work_dir = str(tmp_path / 'run')
        return cfg

    return read


class Watch(Hook):
    """Note what a run does, and how often its teacher runs."""

    priority = 'VERY_LOW'

    def __init__(self) -> None:
        self.log = []
        self.reached = set()  # the parameters that got a gradient
        self.calls = []  # what the teacher returned, and in which mode

    def before_train(self, runner) -> None:
        model = runner.model
        self.teacher = {
            key: value.clone()
            for key, value in model.teacher.state_dict().items()
        }
        model.teacher.model.register_forward_hook(
            lambda module, args, output: self.calls.append(
                (module.training, flatten(output))
            )
        )
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(
                    lambda grad, name=name: self.reached.add(name)
                )

    def after_train_iter(self, runner, batch_idx, data_batch, outputs) -> None:
        self.log.append({k: v.item() for k, v in outputs.items()})

    def after_val_epoch(self, runner, metrics) -> None:
        self.metrics = metrics


def flatten(outputs) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in flatten(output)]


@pytest.fixture
def train(narrow):
    """Train by MMEngine's Runner for two steps and evaluate."""

    def run(name: str) -> tuple[Runner, Watch]:
        runner = Runner.from_cfg(narrow(name))
        watch = Watch()
        runner.register_hook(watch)
        runner.train()
        return runner, watch

    return run


LOSSES = {
    FPN: {'student.loss_cls', 'student.loss_bbox'}
    | {f'distill.loss_fpn{level}' for level in range(5)},
    LOGITS: {
        'student.decode.loss_ce',
        'student.aux.loss_ce',
        'distill.loss_logits',
    },
}
METRIC = {FPN: 'coco/bbox_mAP', LOGITS: 'mIoU'}
#: What learns from the distiller's losses alone: all before the features.
TAUGHT = {FPN: ('backbone', 'neck'), LOGITS: ('backbone', 'decode_head')}


@pytest.mark.parametrize('name', [FPN, LOGITS])
def test_student_is_trained_evaluated_and_exported(name, train):
    runner, watch = train(name)
    model = runner.model

    # Two steps with every loss, and an evaluation.
    assert len(watch.log) == 2
    for log in watch.log:
        losses = {key for key in log if 'loss_' in key}
        assert losses == LOSSES[name]
        assert all(0 < log[key] < float('inf') for key in losses)
    assert METRIC[name] in watch.metrics

    # The student learns, all of it that is not frozen.
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == watch.reached
    assert any('backbone.layer4' in n for n in trained)

    # The teacher runs once a step, in eval mode, and stays as it was.
    assert len(watch.calls) == 2
    for training, outputs in watch.calls:
        assert not training
        assert not any(tensor.requires_grad for tensor in outputs)
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, watch.teacher[key]), key
    assert all(p.grad is None for p in model.teacher.parameters())
    optimised = {
        id(p)
        for group in runner.optim_wrapper.param_groups
        for p in group['params']
    }
    assert optimised <= {id(p) for p in model.parameters()}

    # Nor is it in the checkpoint.
    run = Path(runner.work_dir)
    checkpoint = run / (run / 'last_checkpoint').read_text()
    weights = torch.load(checkpoint)['state_dict']
    student = {
        key.removeprefix('architecture.'): value
        for key, value in weights.items()
        if key.startswith('architecture.')
    }
    assert len(student) == len(weights)

    # The student is a plain checkpoint of its package.
    exported = torch.load(run / 'student.pth')['state_dict']
    assert exported.keys() == student.keys()
    assert all(torch.equal(exported[key], student[key]) for key in student)
    plain = load(name, run)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, student[key]), key
    raw = dict(inputs=[torch.randint(256, (3, 64, 96), dtype=torch.uint8)])
    images = plain.data_preprocessor(raw)['inputs']
    assert torch.equal(images, model.data_preprocessor(raw)['inputs'])
    with torch.no_grad():
        expected = flatten(model.eval().student(images, None, mode='tensor'))
        found = flatten(plain.eval()(images, None, mode='tensor'))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def load(name: str, run: Path) -> torch.nn.Module:
    """Load the exported student by the tool of its package."""
    files = str(run / 'student.py'), str(run / 'student.pth')
    if name == FPN:
        from mmdet.apis import init_detector

        return init_detector(*files, device='cpu')
    from mmseg.apis import init_model

    return init_model(*files, device='cpu')


@pytest.mark.parametrize('name', [FPN, LOGITS])
def test_distillation_alone_brings_the_student_nearer(name, narrow):
    cfg = narrow(name)
    runner = Runner.from_cfg(cfg)
    model = runner.model.eval()
    data = next(iter(runner.train_dataloader))
    batch = model.data_preprocessor(data, training=True)

    def distill() -> torch.Tensor:
        losses = model(batch['inputs'], batch['data_samples'], mode='loss')
        parts = [v for k, v in losses.items() if k.startswith('distill.')]
        assert len(parts) == (5 if name == FPN else 1)
        return sum(parts)

    before = distill()
    before.backward()
    taught = tuple(f'architecture.{part}' for part in TAUGHT[name])
    reached = {n: p.grad for n, p in model.named_parameters()}
    for key, grad in reached.items():
        if grad is not None:
            assert key.startswith(taught), key
    if name == FPN:
        for level in range(5):
            weight = f'architecture.neck.fpn_convs.{level}.conv.weight'
            assert reached[weight].any()
    else:
        assert reached['architecture.decode_head.conv_seg.weight'].any()
    assert reached['architecture.backbone.layer3.0.conv1.weight'].any()
    with torch.no_grad():
        norm = sum(g.square().sum() for g in reached.values() if g is not None)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-5 * before * parameter.grad / norm
        gain = 1 - distill() / before
    # Small, since the loss bends much; large enough for 32 bits.
    assert gain.item() == pytest.approx(1e-5, rel=0.2)


def test_recipes_are_those_of_mmrazor():
    def read(name: str) -> dict:
        from mmengine.hub import get_config

        return get_config(f'mmrazor::distill/{name}').model.distiller

    ours = {
        name: Config.fromfile(
            ROOT / f'configs/downstream/distill/{name}.py'
        ).model.distiller
        for name in (FPN, LOGITS)
    }
    theirs = read('mmdet/cwd/cwd_fpn_retina_r101_retina_r50_1x_coco.py')
    for recorders in ('student_recorders', 'teacher_recorders'):
        assert ours[FPN][recorders] == theirs[recorders]
    for level in range(5):
        our, their = f'loss_fpn{level}', f'loss_cwd_fpn{level}'
        for part in ('distill_losses', 'loss_forward_mappings'):
            assert ours[FPN][part][our] == theirs[part][their]
    theirs = read(
        'mmseg/cwd/cwd_logits_pspnet_r101-d8_pspnet_r18-d8_4xb2-80k_'
        'cityscapes-512x1024.py'
    )
    for recorders in ('student_recorders', 'teacher_recorders'):
        assert ours[LOGITS][recorders] == theirs[recorders]
    our, their = (d['distill_losses'] for d in (ours[LOGITS], theirs))
    assert our['loss_logits'] == their['loss_cwd']


@pytest.mark.parametrize('name', [FPN, LOGITS])
def test_student_and_schedule_are_those_of_the_package(name, read_config):
    from mmengine.hub import get_config

    cfg = without_scopes(read_config('distill', name))
    recipe = {
        FPN: 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        LOGITS: 'mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py',
    }[name]
    assert cfg.pop('custom_imports')['imports'] == ['mmcakd']
    export = cfg['default_hooks'].pop('export')
    assert export == dict(type='mmcakd.ExportStudentHook')
    cfg['model'] = cfg['model']['architecture']
    assert cfg == without_scopes(get_config(recipe))


def without_scopes(cfg):
    if isinstance(cfg, (list, tuple)):
        return [without_scopes(item) for item in cfg]
    if hasattr(cfg, 'items'):
        return {k: without_scopes(v) for k, v in cfg.items() if k != '_scope_'}
    return cfg


def test_features_of_full_size_have_the_same_shape(read_config):
    """What the losses compare, read off the configs."""
    cfg = read_config('distill', FPN).model
    student, teacher = cfg.architecture, read_model_cfg(cfg.teacher, 'it')
    for key in ('num_outs', 'out_channels', 'add_extra_convs'):
        assert student.neck[key] == teacher['neck'][key]
    strides = [
        model['bbox_head']['anchor_generator']['strides']
        for model in (student, teacher)
    ]
    assert strides[0] == strides[1]
    # From a ResNet's strides 4 to 32 the first is left out, as by the teacher.
    assert student.neck.start_level == 1
    assert list(teacher['backbone']['out_indices']) == [1, 2, 3]

    cfg = read_config('distill', LOGITS).model
    student, teacher = cfg.architecture, read_model_cfg(cfg.teacher, 'it')
    for model in (student, teacher):
        assert model['decode_head']['num_classes'] == 150
    assert list(student.backbone.strides) == [1, 2, 1, 1]
    (upsample,) = cfg.distiller.connectors.values()
    assert upsample.func_args.scale_factor == 2


@pytest.mark.parametrize(
    'name, found',
    [
        (
            FPN,
            (
                'RetinaNet (SwinTransformer)',
                "preds_S: student's fpn[4]",
                'student 80, teacher 80',
                'there is no folder data/coco/',
            ),
        ),
        (
            LOGITS,
            (
                'EncoderDecoder (ResNetV1c)',
                "preds_S: upsample of student's logits",
                'student 150, teacher 150',
                'there is no folder data/ade/ADEChallengeData2016',
            ),
        ),
    ],
)
def test_a_dry_run_shows_both_networks_and_downloads_nothing(
    name, found, run_tool
):
    output = run_tool(
        'tools/analysis_tools/dry_run.py',
        ROOT / f'configs/downstream/distill/{name}.py',
        *('--size', 64, 96),
    )
    printed = ' '.join(output.split())
    for expected in (*found, 'what its own config names'):
        assert expected in printed, expected
    assert 'ownload' not in output.replace('download.openmmlab', '')


# ---------------------------------------------------------------- connectors


@pytest.mark.parametrize(
    'connector', ['mmcakd.FitNetConnector', 'mmcakd.GLPConnector']
)
def test_a_stage_learns_from_a_stage_of_another_width(connector, narrow):
    cfg = narrow(FPN)
    stages = dict(stages=dict(type='mmcakd.StageOutputs'))
    target = dict(recorder='stages', from_student=False, data_idx=3)
    cfg.model.update(
        input_size=(96, 160),
        distiller=dict(
            student_recorders=stages,
            teacher_recorders=stages,
            connectors=dict(
                project=dict(
                    type=connector,
                    inputs=dict(
                        feature=dict(
                            recorder='stages', from_student=True, data_idx=2
                        )
                    ),
                    shape_like=target,
                )
            ),
            distill_losses=dict(loss_stage=dict(type='mmcakd.MSELoss')),
            loss_forward_mappings=dict(
                loss_stage=dict(
                    student=dict(connector='project'), teacher=target
                )
            ),
        ),
    )
    resize = next(
        step
        for step in cfg.train_dataloader.dataset.pipeline
        if step.type == 'Resize'
    )
    resize.update(scale=(160, 96), keep_ratio=False)
    runner = Runner.from_cfg(cfg)
    project = runner.model.distiller.connectors.project
    assert (project.in_channels, project.out_channels) == (32, 64)
    assert project.grid == (3, 5)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    assert all(log['distill.loss_stage'] > 0 for log in watch.log)
    assert any(
        'distiller.connectors.project' in name for name in watch.reached
    )


def test_detectors_of_two_stages_are_read_too():
    """They make proposals, with the sizes of the images, before any loss."""

    def detector(backbone: dict, widths: list[int]) -> dict:
        cfg = Config(
            dict(
                model=read_model_cfg(
                    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'it'
                )
            )
        )
        cfg.merge_from_dict(
            {
                'model.backbone': backbone | dict(init_cfg=None),
                'model.neck.in_channels': widths,
                'model.neck.out_channels': 16,
                'model.rpn_head.in_channels': 16,
                'model.rpn_head.feat_channels': 16,
                'model.roi_head.bbox_roi_extractor.out_channels': 16,
                'model.roi_head.bbox_head.in_channels': 16,
                'model.roi_head.bbox_head.fc_out_channels': 16,
            }
        )
        return cfg.model

    init_default_scope('mmdet')
    levels = dict(fpn=dict(type='ModuleOutputs', source='neck'))
    swin = dict(_delete_=True, type='SwinTransformer') | NARROW_SWIN
    model = MODELS.build(
        dict(
            type='mmcakd.CrossArchDistill',
            architecture=detector(NARROW_RESNET, [8, 16, 32, 64]),
            teacher=detector(swin, [8, 16, 32, 64]),
            input_size=(64, 96),
            distiller=dict(
                student_recorders=levels,
                teacher_recorders=levels,
                distill_losses=dict(loss_p5=dict(type='mmcakd.MSELoss')),
                loss_forward_mappings=dict(
                    loss_p5=dict(
                        student=dict(
                            recorder='fpn', from_student=True, data_idx=3
                        ),
                        teacher=dict(
                            recorder='fpn', from_student=False, data_idx=3
                        ),
                    )
                ),
            ),
        )
    )
    assert model.input_size == (64, 96)
    assert not any('teacher' in key for key in model.state_dict())
