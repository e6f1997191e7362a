"""What a dry run shows, counts and complains of."""

import importlib.util
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import cifar
from torch import nn

REPO = Path(__file__).resolve().parents[2]
DRY_RUN = 'tools/analysis_tools/dry_run.py'


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('dry_run', REPO / DRY_RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def look(tool):
    """Look at a distillation in this process."""

    init_default_scope('mmpretrain')

    def run(model: dict, **cfg):
        return tool.DryRun(Config(dict(model=model, **cfg)), None, False)

    return run


@pytest.fixture
def scalekd_config(tiny, tiny_config, tmp_path):
    """ScaleKD from a tiny Swin, at 64 pixels, on 32 pixel data."""
    model = tiny.distillation(teacher_ckpt='nowhere.pth')
    path = tmp_path / 'scalekd.py'
    path.write_text(
        f'_base_ = {str(tiny_config)!r}\nmodel = {dict(model)!r}\n'
        "model['_delete_'] = True\n"
    )
    return path


def test_all_of_a_distillation_is_shown(scalekd_config, run_tool):
    printed = ' '.join(run_tool(DRY_RUN, scalekd_config, code=1).split())
    for expected in (
        # models, without the checkpoint, which does not exist
        'nowhere.pth',
        # stages: the student's last, the teacher's third
        'backbone.layer4 │ NCHW │ 32 x 2 x 2',
        'backbone.stages.2.blocks.1 │ NLC │ 32 x 4 x 4',
        # connectors
        's4_frequency │ CAPConnector',
        'tail │ TeacherReplay',
        # losses
        'student.loss │ LinearClsHead │ 0.5',
        'distill.loss_s4_frequency │ DualViewLoss │ 0.06',
        # cost
        'teachers │ 0.00 G │',
        'backward │ 0.0',
        'step ',
        # checks
        'student 5, teacher 5',
        '8 images, 32 x 32, 4 classes; the student has another number',
    ):
        assert expected in printed, expected


# ------------------------------------------------------------------ problems


def test_problems_are_told_apart(tiny_config, run_tool):
    fine = run_tool(DRY_RUN, tiny_config, '--data')
    assert 'PROBLEM' not in fine

    missing = ['--cfg-options', 'train_dataloader.dataset.data_root=missing']
    printed = run_tool(DRY_RUN, tiny_config, *missing)
    assert 'there is no folder missing' in printed
    assert 'PROBLEM' not in printed
    printed = run_tool(DRY_RUN, tiny_config, '--data', *missing, code=1)
    assert printed.count('PROBLEM') == 1

    broken = ['--cfg-options', 'val_dataloader.dataset.pipeline.0.type=Missed']
    printed = run_tool(DRY_RUN, tiny_config, '--size', 64, *broken, code=1)
    assert 'Missed' in printed


def test_broken_config_is_named(tiny_config, run_tool):
    printed = run_tool(
        DRY_RUN,
        tiny_config,
        '--cfg-options',
        'model.teacher.head.in_channels=8',
        code=1,
    )
    assert 'does not build: the teacher cannot run' in printed


def test_folder_without_images_is_missing_data(tool, look, tiny, tmp_path):
    run = look(tiny.distillation(distiller=tiny.logit_kd()))

    def check(**dataset):
        loader = dict(dataset=dict(type='CustomDataset', **dataset))
        return tool.check_split(
            Config(dict(val_dataloader=loader)), 'val', run
        )

    nowhere = str(tmp_path / 'nowhere')
    assert check(data_root=nowhere)[1] == tool.MISSING
    assert check(data_prefix=nowhere)[1] == tool.MISSING
    # It is there, and wrong.
    assert check(data_root=str(tmp_path))[1] == tool.PROBLEM


def test_nothing_is_downloaded(tool, look, tiny, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError('downloads')

    monkeypatch.setattr(cifar, 'download_and_extract_archive', fail)
    run = look(tiny.distillation(distiller=tiny.logit_kd()))
    dataset = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(type='CIFAR100', data_root=str(tmp_path), pipeline=[]),
    )
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    found, status = tool.check_split(cfg, 'train', run)
    assert status == tool.MISSING
    assert 'Cannot find CIFAR100' in found
    assert 'download' not in cfg.train_dataloader.dataset.dataset


def mimic(tiny, stage: int = 2) -> dict:
    """Maps of a stage, projected, through the teacher's last stage."""
    return dict(
        type='mmcakd.CrossArchDistiller',
        student_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
        teacher_recorders=dict(stages=dict(type='mmcakd.StageOutputs')),
        connectors=dict(
            project=dict(
                type='mmcakd.GLPConnector',
                inputs=dict(feature=tiny.record('stages', True, stage)),
                shape_like=tiny.record('stages', False, stage),
            ),
            tail=dict(
                type='mmcakd.TeacherReplay',
                from_stage=3,
                inputs=dict(feature=dict(connector='project')),
            ),
        ),
        distill_losses=dict(loss_s4=dict(type='mmcakd.MSELoss')),
        loss_forward_mappings=dict(
            loss_s4=dict(
                student=dict(connector='tail', connector_idx='feature'),
                teacher=tiny.record('stages', False, 3),
            )
        ),
    )


def test_other_classes_of_a_teacher_matter_where_they_are_read(
    tool, look, tiny
):
    teacher = tiny.classifier(tiny.resnet(), classes=7)
    run = look(tiny.distillation(teacher=teacher, distiller=mimic(tiny)))
    found, status = tool.check_classes(run)
    assert not run.compares_logits_of('teacher')
    assert status == tool.FINE
    assert found.startswith('student 5, teacher 7; no loss compares')

    # A loss on distances between images compares no class with another.
    distiller = tiny.logit_kd()
    distiller['distill_losses']['loss_kd'] = dict(type='mmcakd.RKDLoss')
    run = look(tiny.distillation(teacher=teacher, distiller=distiller))
    assert tool.check_classes(run) == (found, tool.FINE)


@pytest.mark.parametrize(
    ('pretrained', 'ckpt', 'expected'),
    [
        (True, None, 'what its own config names'),
        (False, None, 'NOWHERE: set teacher_ckpt'),
        (True, 'nowhere.pth', 'nowhere.pth'),
    ],
)
def test_where_the_weights_of_a_teacher_come_from(
    tool, look, tiny, pretrained, ckpt, expected
):
    teacher = dict(
        type='mmpretrain.TimmClassifier',
        model_name='test_resnet',
        num_classes=tiny.classes,
        pretrained=pretrained,
    )
    run = look(
        tiny.distillation(
            teacher=teacher, distiller=tiny.logit_kd(), teacher_ckpt=ckpt
        )
    )
    (*_, cells) = [list(c.cells) for c in tool.models_table(run).columns]
    assert cells == ['scratch', expected]


def test_weights_of_a_name_come_from_the_zoo_and_not_now(tool, look, tiny):
    student = tiny.classifier(tiny.resnet(), classes=1000)
    run = look(
        tiny.distillation(
            architecture=student,
            teacher='resnet18_8xb32_in1k',
            teacher_ckpt=None,
            distiller=tiny.logit_kd(),
        )
    )
    (*_, cells) = [list(c.cells) for c in tool.models_table(run).columns]
    assert cells == ['scratch', 'the model zoo, when training starts']


# -------------------------------------------------------------------- losses


def test_shares_of_the_losses_add_up(tool, look, tiny):
    run = look(tiny.distillation())
    columns = {
        column.header: list(column.cells)
        for column in tool.losses_table(run).columns
    }
    names, values, shares = (columns[key] for key in ('', 'example', 'share'))
    assert set(names) == {
        'student.loss',
        'distill.loss_s3_original',
        'distill.loss_s3_frequency',
        'distill.loss_s4_original',
        'distill.loss_s4_frequency',
        'distill.loss_kd',
    }
    total = sum(map(float, values))
    for value, share in zip(values, shares, strict=True):
        expected = 100 * float(value) / total
        assert float(share.rstrip('%')) == pytest.approx(expected, abs=0.06)


def test_only_losses_that_count_have_a_share(tool, look, tiny):
    losses = look(tiny.distillation(student_loss_weight=0.25)).losses
    # Five classes, hardly told apart by a student that knows nothing.
    assert losses['student.loss'] == pytest.approx(0.25 * 1.6, rel=0.5)
    losses = look(tiny.distillation(calculate_student_loss=False)).losses
    assert losses
    assert not [name for name in losses if not name.startswith('distill.')]


# ------------------------------------------------- teachers and students


def test_two_teachers_that_run_and_a_stored_one(tool, look, tiny):
    distiller = tiny.logit_kd()
    logits = distiller['student_recorders']
    student = tiny.record('logits', True)
    names = ('swin', 'grey', 'stored')
    run = look(
        tiny.distillation(
            distiller=dict(
                student_recorders=logits,
                teacher_recorders=dict.fromkeys(names, logits),
                distill_losses={
                    f'loss_{name}': dict(type='mmcakd.MSELoss')
                    for name in names
                },
                loss_forward_mappings={
                    f'loss_{name}': dict(
                        student=student,
                        teacher=dict(recorder='logits', teacher=name),
                    )
                    for name in names
                },
            ),
            teachers=dict(
                swin=dict(
                    model=tiny.classifier(tiny.swin()), ckpt='nowhere.pth'
                ),
                grey=dict(
                    model=tiny.classifier(tiny.resnet(in_channels=1)),
                    ckpt='random',
                    inputs='grey',
                ),
                stored=dict(
                    type='mmcakd.InMemoryTargets',
                    records=dict(logits=[[0.0] * tiny.classes] * 3),
                ),
            ),
            data_preprocessor=dict(
                type='mmcakd.NamedInputsPreprocessor',
                image=dict(mean=[0.0] * 3, std=[1.0] * 3),
                grey=dict(mean=[0.0], std=[1.0]),
            ),
        )
        | dict(teacher=None, teacher_ckpt=None)
    )
    assert set(run.losses) == {'student.loss'} | {
        f'distill.loss_{name}' for name in names
    }
    table = tool.models_table(run)
    cells = [list(column.cells) for column in table.columns]
    assert dict(zip(cells[0], cells[-1], strict=True)) == dict(
        student='scratch', swin='nowhere.pth', grey='random', stored='a store'
    )
    found, status = tool.check_classes(run)
    assert (found, status) == ('student 5, grey 5, swin 5', tool.FINE)
    assert run.flops['connectors'] == 0 < run.flops['teachers']


def test_bare_backbones_have_stages_and_no_classes(tool, look, tiny):
    resnet = tiny.resnet(type='mmpretrain.ResNet')
    swin = tiny.swin(type='mmpretrain.SwinTransformer')
    run = look(
        tiny.distillation(
            architecture=resnet, teacher=swin, distiller=mimic(tiny)
        )
    )
    assert set(run.losses) == {'distill.loss_s4'}
    assert {whose: len(rows) for whose, rows in run.stages.items()} == dict(
        student=4, teacher=4
    )
    expected = ('no model has a head', tool.FINE)
    assert tool.check_classes(run) == expected
    for table in (tool.losses_table, tool.cost_table, tool.stages_table):
        table(run)


# --------------------------------------------------------------------- FLOPs


def layers(network: nn.Module, pixels: int = 64) -> dict[str, int]:
    """FLOPs of the forward of all convolutions and linear layers.

    An image at a time; from the sizes of weights and outputs.
    """
    flops, handles = {}, []
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue

        def count(module, inputs, output, name=name):
            if isinstance(module, nn.Conv2d):
                positions = output.shape[2:].numel()
            else:
                positions = output[0].numel() // output.shape[-1]
            flops[name] = 2 * module.weight.numel() * positions

        handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, pixels, pixels), mode='tensor')
    for handle in handles:
        handle.remove()
    return flops


def test_flops_of_a_frozen_tail_are_those_of_its_inputs_alone(look, tiny):
    teacher = tiny.classifier(tiny.resnet(base_channels=8))
    teacher['head']['in_channels'] = 64
    run = look(tiny.distillation(teacher=teacher, distiller=mimic(tiny)))
    student = layers(run.model.student)
    teacher = layers(run.model.teacher.model)
    tail = sum(n for key, n in teacher.items() if '.layer4.' in key)
    # From 16 to 32 channels on a grid of 4x4.
    project = 2 * 16 * 32 * 4 * 4
    trained = sum(student.values())
    assert run.flops == dict(
        teachers=sum(teacher.values()),
        student=trained,
        connectors=project + tail,
        # Images have no gradient.
        backward=2 * trained - student['backbone.conv1'] + 2 * project + tail,
    )


def test_flops_of_convolutions_in_groups(look, tiny):
    student = dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='MobileNetV2', widen_factor=0.25),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=tiny.classes, in_channels=1280
        ),
    )
    run = look(
        tiny.distillation(architecture=student, distiller=tiny.logit_kd())
    )
    flops = layers(run.model.student)
    assert run.flops['student'] == sum(flops.values())
    assert run.flops['connectors'] == 0
    assert run.flops['backward'] == (
        2 * sum(flops.values()) - flops['backbone.conv1.conv']
    )


def test_flops_of_attention(look, tiny):
    run = look(
        tiny.distillation(
            architecture=tiny.classifier(tiny.vit()),
            distiller=tiny.logit_kd(),
        )
    )
    flops = layers(run.model.student)
    patches = flops['backbone.patch_embed.projection']
    # Queries by keys and weights by values, of 17 tokens in six blocks; and
    # back, their four gradients and the weights once more.
    product = 6 * 2 * 17 * 17 * 16
    assert run.flops['student'] == sum(flops.values()) + 2 * product
    assert run.flops['backward'] == (
        2 * sum(flops.values()) - patches + 5 * product
    )


def test_frozen_stages_of_a_student_have_no_gradients(look, tiny):
    frozen = tiny.resnet(frozen_stages=1)
    run = look(
        tiny.distillation(
            architecture=tiny.classifier(frozen), distiller=tiny.logit_kd()
        )
    )
    flops = layers(run.model.student)
    still = ('backbone.conv1', 'backbone.layer1.')
    moving = {k: n for k, n in flops.items() if not k.startswith(still)}
    # Nothing in front of them asks for the gradients of their inputs.
    first = ('backbone.layer2.0.conv1', 'backbone.layer2.0.downsample.0')
    assert run.flops['backward'] == 2 * sum(moving.values()) - sum(
        flops[name] for name in first
    )


class Dense(BaseModel):
    """Scores for every place, and no loss without annotations."""

    num_classes = 3

    def __init__(self, data_preprocessor=None) -> None:
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(
            dict(
                type='mmpretrain.ResNet',
                depth=18,
                stem_channels=4,
                base_channels=4,
            )
        )
        self.conv_seg = nn.Conv2d(32, self.num_classes, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        assert mode == 'tensor'
        return [self.conv_seg(self.backbone(inputs)[-1])]


def test_flops_of_a_model_whose_loss_needs_annotations(look, tiny, tool):
    MODELS.register_module(module=Dense, force=True)
    try:
        run = look(
            tiny.distillation(
                architecture=dict(type='Dense'),
                teacher=dict(type='Dense'),
                distiller=mimic(tiny),
            )
        )
    finally:
        MODELS.module_dict.pop('Dense')
    student = layers(run.model.student)
    tail = sum(n for key, n in student.items() if '.layer4.' in key)
    project = 2 * 16 * 16 * 4 * 4
    assert run.flops['backward'] == (
        2 * sum(student.values())
        - student['backbone.conv1']
        + 2 * project
        + tail
    )
    table = tool.losses_table(run)
    assert list(table.columns[0].cells) == ['student.loss*', 'distill.loss_s4']
