import pytest


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
    dry_run = 'tools/analysis_tools/dry_run.py'
    printed = ' '.join(run_tool(dry_run, scalekd_config, code=1).split())
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
        'student.loss',
        'distill.loss_s4_frequency │ DualViewLoss │ 0.06',
        # cost
        'teacher │ 0.00 G │',
        'step ',
        # checks
        'student 5, teacher 5',
        '8 images, 32 x 32, 4 classes; the student has another number',
    ):
        assert expected in printed, expected


def test_problems_are_told_apart(tiny_config, run_tool):
    dry_run = 'tools/analysis_tools/dry_run.py'
    fine = run_tool(dry_run, tiny_config)
    assert 'PROBLEM' not in fine

    options = [
        'train_dataloader.dataset.data_root=missing',
        'val_dataloader.dataset.pipeline.0.type=LoadMissing',
    ]
    printed = run_tool(
        dry_run, tiny_config, '--size', 64, '--cfg-options', *options, code=1
    )
    assert 'there is no folder missing' in printed
    assert 'LoadMissing' in printed


def test_broken_config_is_named(tiny_config, run_tool):
    printed = run_tool(
        'tools/analysis_tools/dry_run.py',
        tiny_config,
        '--cfg-options',
        'model.teacher.head.in_channels=8',
        code=1,
    )
    assert 'does not build: the teacher cannot run' in printed
