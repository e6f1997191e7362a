import importlib.util
import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmcakd.utils import FolderLock

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def quickstart():
    spec = importlib.util.spec_from_file_location(
        'quickstart', REPO / 'demo/quickstart.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def work_dir(run_tool, tmp_path_factory):
    """ScaleKD alone; .ci/run smoke-runs all methods."""
    work_dir = tmp_path_factory.mktemp('quickstart')
    work_dir.joinpath('printed').write_text(
        run_tool(
            'demo/quickstart.py',
            '--smoke',
            '--methods',
            'scalekd',
            '--work-dir',
            work_dir,
        )
    )
    return work_dir


def test_quick_start_reports(work_dir):
    report = (work_dir / 'report.md').read_text()
    for expected in (
        '| ScaleKD |',
        '| teacher (ViT) |',
        '1 epochs of 64 images',
        '- seeds: 0',
        '- command: `python demo/quickstart.py --smoke',
        '- wall time:',
        '- machine:',
        '- commit:',
    ):
        assert expected in report
    for name in ('curves.png', 'predictions.png'):
        assert min(Image.open(work_dir / name).size) > 400
    printed = (work_dir / 'printed').read_text()
    assert 'ScaleKD, seed 0: epoch 1/1, top-1' in printed
    assert 'mmengine' not in printed


def test_quick_start_leaves_a_plain_student(work_dir):
    weights = torch.load(work_dir / 'scalekd_student.pth')['state_dict']
    assert {key.split('.')[0] for key in weights} == {'backbone', 'head'}
    assert 'mmcakd' not in (work_dir / 'scalekd_student.py').read_text()


def test_second_quick_start_reuses_the_first(work_dir, run_tool):
    result = work_dir / 'scalekd/seed_0/result.json'
    before = result.stat().st_mtime_ns
    printed = run_tool(
        'demo/quickstart.py',
        '--smoke',
        '--methods',
        'scalekd',
        '--work-dir',
        work_dir,
    )
    assert 'done before' in printed
    assert result.stat().st_mtime_ns == before


def test_foreign_folder_is_left_alone(quickstart, tmp_path):
    run = tmp_path / 'kd' / 'seed_0'
    run.mkdir(parents=True)
    (run / 'precious').touch()
    cfg = quickstart.Config(dict(randomness=dict(seed=0)))
    with pytest.raises(SystemExit, match='not made by the quick start'):
        quickstart.train(cfg, 'kd', run, 'stamp')
    assert (run / 'precious').exists()


def test_other_number_of_epochs_stretches_the_schedule(quickstart, tmp_path):
    cfg = quickstart.configure('kd', 3, tmp_path, Namespace(epochs=20))
    warmup, cosine = cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == cosine.end == 20
    assert warmup.end == cosine.begin == 1
    assert cosine.T_max == 19
    assert cfg.randomness.seed == 3
    assert Path(cfg.model.teacher_ckpt).is_absolute()


def test_methods_share_data_student_and_schedule(quickstart, tmp_path):
    args = Namespace(epochs=None)
    configs = [
        quickstart.configure(method, 0, tmp_path, args)
        for method in quickstart.METHODS
    ]
    for key in (
        'student',
        'train_dataloader',
        'val_dataloader',
        'param_scheduler',
        'train_cfg',
        'randomness',
        'data_preprocessor',
    ):
        assert all(cfg[key] == configs[0][key] for cfg in configs), key
    for cfg in configs:
        # Connectors may learn at another rate; the student may not.
        apart = cfg.optim_wrapper.pop('paramwise_cfg', {})
        assert set(apart.get('custom_keys', ())) <= {'distiller'}
        assert cfg.optim_wrapper == configs[0].optim_wrapper
    alone, kd, scalekd = (cfg.model for cfg in configs)
    assert alone == kd.architecture == scalekd.architecture
    assert kd.teacher == scalekd.teacher


def test_table_has_means_deviations_and_paired_gains(quickstart):
    def result(method, seed, top1):
        return quickstart.Result(method, seed, {1: 0.0, 2: top1}, 10.0)

    results = [
        result('student_alone', 0, 60.0),
        result('student_alone', 1, 62.0),
        result('scalekd', 0, 70.0),
        result('scalekd', 1, 74.0),
    ]
    rows = quickstart.table_rows(results, 95.0)
    assert rows == [
        ['teacher (ViT)', '95.0', '', ''],
        ['student alone', '61.0 ± 1.4', '', '10'],
        ['ScaleKD', '72.0 ± 2.8', '+11.0', '10'],
    ]


def test_curve_is_read_over_a_resumed_run(quickstart, tmp_path):
    for part, epochs in (('20260101_000000', (2, 4)), ('20260102_0', (4, 6))):
        folder = tmp_path / part / 'vis_data'
        folder.mkdir(parents=True)
        lines = [{'loss': 1.0, 'step': 7}] + [
            {'accuracy/top1': epoch * 10.0, 'step': epoch} for epoch in epochs
        ]
        text = '\n'.join(map(json.dumps, lines))
        (folder / 'scalars.json').write_text(text)
    curve = quickstart.read_curve(tmp_path)
    assert curve == {2: 20.0, 4: 40.0, 6: 60.0}


# ------------------------------------------------------------- lost ledgers


@pytest.fixture
def begun(quickstart, tmp_path, monkeypatch):
    """A run that has begun; training ends at once with one score."""
    cfg = quickstart.Config(
        dict(randomness=dict(seed=0), train_cfg=dict(max_epochs=1))
    )
    work_dir, stamp = tmp_path / 'kd' / 'seed_0', 'a' * 64
    trained = []

    def run(command, say, log=None, lock=None):
        trained.append(sorted(path.name for path in work_dir.iterdir()))
        (work_dir / '1/vis_data').mkdir(parents=True, exist_ok=True)
        scalars = work_dir / '1/vis_data/scalars.json'
        scalars.write_text('{"accuracy/top1": 60.0, "step": 1}\n{"accu')

    monkeypatch.setattr(quickstart, 'run', run)
    result, former = quickstart.train(cfg, 'kd', work_dir, stamp)
    assert result.top1 == 60.0 and not former and len(trained) == 1
    train = partial(quickstart.train, method='kd', work_dir=work_dir)
    return SimpleNamespace(
        cfg=cfg, work_dir=work_dir, stamp=stamp, train=train, trained=trained
    )


@pytest.mark.parametrize(
    'content', [b'', bytes(99), b'{"method"', b'{"curve": {"x": 1}}', b'{}']
)
def test_lost_result_is_named_and_the_run_resumed(content, begun, capsys):
    (begun.work_dir / 'result.json').write_bytes(content)
    result, former = begun.train(begun.cfg, stamp=begun.stamp)
    assert result.top1 == 60.0 and not former
    # It goes on with what is there.
    assert '1' in begun.trained[-1]
    printed = ''.join(capsys.readouterr().out.split())
    assert 'result.json' in printed and 'notfinished' in printed
    assert begun.train(begun.cfg, stamp=begun.stamp)[1]


@pytest.mark.parametrize('content', [b'', bytes(64), b'a' * 30, b'\xff'])
def test_lost_stamp_is_named_and_the_run_kept(content, begun, capsys):
    (begun.work_dir / 'started').write_bytes(content)
    assert begun.train(begun.cfg, stamp=begun.stamp)[1]
    assert 'damaged' in capsys.readouterr().out


def test_lost_stamp_of_another_config_starts_anew(begun):
    (begun.work_dir / 'started').write_bytes(b'')
    begun.cfg.lr = 3
    assert not begun.train(begun.cfg, stamp=begun.stamp)[1]
    assert '1' not in begun.trained[-1]


def test_two_quick_starts_do_not_train_in_one_folder(begun):
    with (
        FolderLock(begun.work_dir),
        pytest.raises(RuntimeError, match='in use by process'),
    ):
        begun.train(begun.cfg, stamp=begun.stamp)
