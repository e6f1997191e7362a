import pytest
import torch

from mmcakd.utils import (
    sha256,
)
from mmcakd.utils.downstream import (
    mark_run,
    plan_run,
    read_metrics,
    run_config,
)


def test_a_run_knows_its_weights(run, student, tmp_path):
    assert run.checkpoint == student
    assert run.digest == sha256(student)
    assert run.work_dir == tmp_path / 'runs/student/seed3'
    assert not run.work_dir.exists()


def test_the_seed_may_be_part_of_the_source(save, tiny, tmp_path):
    for seed in (0, 1):
        (tmp_path / f'seed{seed}').mkdir()
        path = tmp_path / f'seed{seed}/student.pth'
        save(tiny.classifier(tiny.resnet()), path)
        source = f'{tmp_path}/seed{{seed}}/student.pth'
        assert plan_run('student', source, seed, '.').checkpoint == path


def test_a_run_starts_from_the_student(run, read, tiny):
    cfg = run_config(read(tiny.resnet(frozen_stages=1)), run)
    assert cfg.model.backbone.init_cfg.checkpoint == str(run.checkpoint)
    assert cfg.model.backbone.frozen_stages == 1
    assert cfg.randomness.seed == 3
    assert cfg.work_dir == str(run.work_dir)
    assert cfg.resume


def test_from_scratch_nothing_is_loaded_and_nothing_frozen(read, tiny):
    run = plan_run('scratch', 'none', 0, 'runs')
    assert run.checkpoint is None and run.digest is None
    given = read(tiny.resnet(frozen_stages=1, norm_eval=True))
    backbone = run_config(given, run).model.backbone
    assert 'init_cfg' not in backbone
    assert backbone.frozen_stages == -1 and not backbone.norm_eval
    assert given.model.backbone.frozen_stages == 1


def test_runs_do_not_share_a_visualizer(read, tiny):
    cfg = read(tiny.resnet(), visualizer=dict(type='X', name='visualizer'))
    names = {
        run_config(cfg, plan_run(name, 'none', seed, '.')).visualizer.name
        for name in ('baseline', 'scratch')
        for seed in (0, 1)
    }
    assert len(names) == 4


def test_a_finished_run_gives_its_metrics(run, read, tiny):
    cfg = read(tiny.resnet())
    assert read_metrics(cfg, run) is None
    mark_run(cfg, run)
    assert read_metrics(cfg, run) is None
    mark_run(cfg, run, dict(mIoU=1.5))
    assert read_metrics(cfg, run) == dict(mIoU=1.5)


def test_a_run_of_another_config_is_refused(run, read, tiny):
    mark_run(read(tiny.resnet()), run, dict(mIoU=1.5))
    with pytest.raises(ValueError, match=r'(?s)config has.*\+.*depth=34'):
        read_metrics(read(tiny.resnet(depth=34)), run)


def test_a_run_from_other_weights_is_refused(save, run, read, tiny, student):
    cfg = read(tiny.resnet())
    mark_run(cfg, run, dict(mIoU=1.5))
    torch.manual_seed(1)
    save(tiny.classifier(tiny.resnet()), student)
    other = plan_run('student', str(student), 3, run.work_dir.parents[1])
    with pytest.raises(ValueError, match='other weights'):
        read_metrics(cfg, other)


def test_a_folder_of_something_else_is_left_alone(run, read, tiny):
    run.work_dir.mkdir(parents=True)
    (run.work_dir / 'epoch_1.pth').touch()
    with pytest.raises(ValueError, match='not made by this tool'):
        read_metrics(read(tiny.resnet()), run)


# ------------------------------------------------------------ lost ledgers


CUT = [b'', bytes(200), b'{"fingerprint": {"conf', b'[1]', b'{"a": 1}']


@pytest.mark.parametrize('content', CUT)
def test_a_run_with_a_lost_ledger_is_not_finished(content, run, read, tiny):
    cfg = read(tiny.resnet())
    mark_run(cfg, run, dict(top1=3.0))
    # What MMEngine leaves when the training begins.
    run_config(cfg, run).dump(run.work_dir / 'detector.py')
    (run.work_dir / 'downstream.json').write_bytes(content)
    assert read_metrics(cfg, run) is None


def test_a_run_with_a_lost_ledger_and_another_config_is_not_resumed(
    run, read, tiny
):
    mark_run(read(tiny.resnet()), run)
    changed = run_config(read(tiny.resnet(), seed_of_data=7), run)
    changed.dump(run.work_dir / 'detector.py')
    (run.work_dir / 'downstream.json').write_bytes(b'')
    with pytest.raises(ValueError, match='trained otherwise') as caught:
        read_metrics(read(tiny.resnet()), run)
    assert '-seed_of_data = 7' in str(caught.value)
