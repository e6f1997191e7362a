"""The tool as a whole, with a classifier in the place of a detector.

Detectors and segmentors, which need compiled operators, are in
tests/test_downstream.
"""

import json
import shutil

import pytest
import torch
from mmengine.config import Config

SEED = 'seed0'


@pytest.fixture(scope='module')
def config(tiny_config, tmp_path_factory):
    """Two epochs of another classifier on the student's backbone."""
    cfg = Config.fromfile(tiny_config)
    backbone = dict(
        cfg.student.backbone,
        type='mmpretrain.ResNet',
        # On a CPU it works in no process group.
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(
            type='Pretrained', checkpoint='student.pth', prefix='backbone.'
        ),
    )
    for key in ('teacher', 'student', 'logits', 'custom_hooks'):
        cfg.pop(key)
    cfg.model = dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=4, in_channels=64),
    )
    cfg.train_cfg.max_epochs = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.collate_fn = dict(type='default_collate')
    path = tmp_path_factory.mktemp('config') / 'classifier.py'
    cfg.dump(path)
    return path


@pytest.fixture(scope='module')
def compared(config, trained, run_tool, tmp_path_factory):
    """Work directory and output of a student and a backbone from scratch."""
    work_dir = tmp_path_factory.mktemp('downstream') / 'runs'
    printed = run_tool(*command(config, trained, work_dir))
    return work_dir, printed


def command(config, student, work_dir, *arguments) -> list:
    tool = ['tools/downstream.py', config, '--student', student]
    return [*tool, '--baseline', 'none', '--work-dir', work_dir, *arguments]


def results(work_dir) -> dict:
    found = json.loads((work_dir / 'results.json').read_text())
    return {run['name']: run for run in found['runs']}


def test_both_are_trained_and_reported(compared, trained):
    work_dir, printed = compared
    student = torch.load(trained / 'student.pth')['state_dict']
    count = sum(key.startswith('backbone.') for key in student)
    expected = f"{count} weights of the backbone are the student's to the bit"
    assert printed.count(expected) == 1
    assert printed.count('Epoch(train) [2][2/2]') == 2
    assert 'student - scratch' in printed
    for name in ('student', 'scratch'):
        assert (work_dir / name / SEED / 'epoch_2.pth').is_file()
        assert list((work_dir / name / SEED).glob('*/vis_data/scalars.json'))
    assert '| student - scratch |' in (work_dir / 'report.md').read_text()
    found = results(work_dir)
    assert found['student']['checkpoint'] == str(trained / 'student.pth')
    assert found['scratch']['checkpoint'] is None


def test_finished_runs_are_not_repeated(compared, config, trained, run_tool):
    work_dir, _ = compared
    before = results(work_dir)
    printed = run_tool(*command(config, trained, work_dir))
    assert printed.count('finished already') == 2
    assert 'Epoch(train)' not in printed
    assert 'student - scratch' in printed
    assert results(work_dir) == before


def test_an_interrupted_run_goes_on(
    compared, config, trained, run_tool, tmp_path
):
    finished, _ = compared
    work_dir = shutil.copytree(finished, tmp_path / 'runs')
    before = results(work_dir)
    (work_dir / 'results.json').unlink()
    run = work_dir / 'student' / SEED
    (run / 'epoch_2.pth').unlink()
    (run / 'last_checkpoint').write_text(str(run / 'epoch_1.pth'))
    # The other was stopped after its last step and before its last word.
    for name in ('student', 'scratch'):
        marker = work_dir / name / SEED / 'downstream.json'
        content = json.loads(marker.read_text())
        marker.write_text(json.dumps(content | dict(metrics=None)))
    printed = run_tool(*command(config, trained, work_dir))
    assert 'Epoch(train) [1]' not in printed
    assert printed.count('Epoch(train) [2][2/2]') == 1
    found = results(work_dir)
    for name in ('student', 'scratch'):
        assert found[name]['metrics'] == before[name]['metrics']


def test_two_processes_train_on_the_cpu(
    config, trained, run_tool, free_port, tmp_path
):
    arguments = command(config, trained, tmp_path / 'runs')[2:]
    printed = run_tool(
        'tools/dist_train.sh',
        config,
        2,
        *arguments,
        TOOL='downstream.py',
        PORT=free_port,
    )
    # Eight images, in batches of four, on two processes.
    assert printed.count('Epoch(train) [2][1/1]') == 2
    assert printed.count('BatchNorm is not synchronised') == 1
    assert printed.count('report.md: the report') == 1
    assert set(results(tmp_path / 'runs')) == {'student', 'scratch'}


@pytest.mark.parametrize('processes', [1, 2])
def test_a_wrong_student_stops_before_training(
    processes, config, trained, run_tool, free_port, tmp_path
):
    saved = torch.load(trained / 'student.pth')
    del saved['state_dict']['backbone.layer1.0.conv1.weight']
    torch.save(saved, tmp_path / 'wrong.pth')
    tool = command(config, tmp_path / 'wrong.pth', tmp_path / 'runs')
    environment = {}
    if processes > 1:
        tool = ['tools/dist_train.sh', config, processes, *tool[2:]]
        environment = dict(TOOL='downstream.py', PORT=free_port)
    printed = run_tool(*tool, code=1, **environment)
    assert printed.count('missing: 1 (layer1.0.conv1.weight)') == 1
    assert 'wrong.pth does not fit' in printed
    assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--student', 'none'], 'needs weights'),
        (['--student', 'a', '--baseline', 'b', 'c'], 'one student'),
    ],
)
def test_impossible_comparisons_are_refused(arguments, expected, run_tool):
    printed = run_tool('tools/downstream.py', 'x.py', *arguments, code=2)
    assert expected in printed


def test_a_missing_run_is_named(config, run_tool, tmp_path):
    tool = command(config, tmp_path / 'nowhere', tmp_path / 'runs')
    printed = run_tool(*tool, code=1)
    assert f'error: there is no checkpoint at {tmp_path}' in printed
    assert 'Traceback' not in printed
