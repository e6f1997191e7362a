import csv
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmcakd.utils import FolderLock

REPO = Path(__file__).resolve().parents[2]
TOOL = 'tools/analysis_tools/compare.py'

#: Writes what a training of as many epochs would, in no time.
TRAINER = """
import json, sys
from pathlib import Path
from mmengine.config import Config

config, _, work_dir, resume = sys.argv[1:]
assert resume == '--resume'
cfg, work_dir = Config.fromfile(config), Path(work_dir)
done = len(list(work_dir.glob('*/vis_data')))
part = work_dir / f'2026010{done}_000000'
(part / 'vis_data').mkdir(parents=True)
cfg.dump(part / 'vis_data/config.py')
last = 1 if cfg.model.breaks_once and not done else cfg.train_cfg.max_epochs
scalars = [
    {'accuracy/top1': cfg.model.top1 + cfg.randomness.seed, 'step': epoch}
    for epoch in range(done + 1, last + 1)
]
(part / 'vis_data/scalars.json').write_text(
    '\\n'.join(map(json.dumps, scalars)))
(part / 'run.log').write_text(
    '2026/01/01 00:00:00 - mmengine - INFO - \\n'
    '    GPU 0: Some GPU\\n    PyTorch: 2.9\\n'
    '2026/01/01 00:01:30 - mmengine - INFO - done\\n')
if cfg.model.breaks_once and not done:
    raise SystemExit('out of luck')
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('compare', REPO / TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = tmp_path / 'trainer.py'
    trainer.write_text(TRAINER)
    monkeypatch.setattr(module, 'TRAIN', trainer)
    return module


@pytest.fixture
def run(tool, tmp_path, main_of, monkeypatch, capsys):
    """Run the tool in this process; return its exit status and output."""

    def run(*arguments) -> tuple[int, str]:
        words = [TOOL, *arguments, '--work-dir', tmp_path / 'runs']
        monkeypatch.setattr(sys, 'argv', list(map(str, words)))
        return main_of(tool), ''.join(capsys.readouterr())

    return run


@pytest.fixture
def config(tmp_path):
    def write(
        name: str, top1: float = 50.0, epochs: int = 2, breaks: bool = False
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'model = dict(top1={top1}, breaks_once={breaks})\n'
            f'train_cfg = dict(max_epochs={epochs})\n'
        )
        return path

    return write


def read_csv(work_dir: Path) -> list[dict]:
    with open(work_dir / 'results.csv') as file:
        return list(csv.DictReader(file))


def table_of(work_dir: Path) -> list[str]:
    lines = (work_dir / 'report.md').read_text().splitlines()
    return [line for line in lines if line.startswith('|')]


def test_two_configs_are_trained_and_compared(tiny_config, run_tool, tmp_path):
    alone = tmp_path / 'alone.py'
    alone.write_text(
        f'_base_ = {str(tiny_config)!r}\nmodel = _base_.student\n'
        "model['_delete_'] = True\n"
    )
    work_dir = tmp_path / 'runs'
    command = (TOOL, alone, tiny_config, '--seeds', 1, '--jobs', 2)
    printed = run_tool(*command, '--work-dir', work_dir)

    scores = {}
    for name in ('alone', 'tiny'):
        run = work_dir / name / 'seed1'
        assert f'{name}, seed 1: done' in printed
        assert (run / 'student.pth').is_file()
        (scalars,) = run.glob('*/vis_data/scalars.json')
        last = json.loads(scalars.read_text().splitlines()[-1])
        scores[name, '1'] = last['accuracy/top1']
        assert 'seed=1' in (run / f'{name}.py').read_text()
    rows = read_csv(work_dir)
    assert scores == {
        (row['config'], row['seed']): float(row['top1']) for row in rows
    }
    assert {(row['epoch'], row['finished']) for row in rows} == {('1', 'yes')}
    assert Image.open(work_dir / 'curves.png').size == (840, 540)
    report = (work_dir / 'report.md').read_text()
    for expected in (
        '- command: `python tools/analysis_tools/compare.py ',
        '- seeds: 1',
        '- runs made with: torch ',
        '- runs made at commit: ',
        '- report made on: ',
    ):
        assert expected in report


def test_table_has_means_deviations_and_paired_gains(run, config, tmp_path):
    configs = config('a.py', 50.0), config('b.py', 60.5)
    code, printed = run(*configs, '--seeds', 0, 2, '--labels', 'A', 'B')
    assert code == 0, printed
    assert table_of(tmp_path / 'runs') == [
        '|  | seed 0 | seed 2 | mean ± std | n | gain |',
        '|---|---|---|---|---|---|',
        '| A | 50.00 | 52.00 | 51.00 ± 1.41 | 2 |  |',
        '| B | 60.50 | 62.50 | 61.50 ± 1.41 | 2 | +10.50 |',
    ]
    assert read_csv(tmp_path / 'runs')[-1] == dict(
        config='b',
        seed='2',
        epoch='2',
        top1='62.5',
        seconds='90',
        finished='yes',
    )
    report = (tmp_path / 'runs/report.md').read_text()
    assert '- runs made with: torch 2.9 on Some GPU\n' in report
    assert '- seconds a run: 90' in report
    # The other one as the baseline, and nothing trained again.
    code, printed = run(
        *configs, '--seeds', 0, 2, '--baseline', 'b', '--title', 'Again'
    )
    assert code == 0 and 'started' not in printed
    assert '| -10.50 |' in table_of(tmp_path / 'runs')[2]
    assert (tmp_path / 'runs/report.md').read_text().startswith('# Again\n')


def test_failed_run_is_shown_and_resumed(run, config, tmp_path):
    configs = config('bad.py', breaks=True), config('good.py')
    code, printed = run(*configs)
    assert code == 1
    assert 'out of luck\nbad, seed 0: ended with 1' in printed
    assert 'failed: bad, seed 0' in printed
    assert table_of(tmp_path / 'runs')[2:] == [
        '| bad | (50.00 at 1 of 2) |  | 0 |  |',
        '| good | 50.00 | 50.00 | 1 |  |',
    ]
    assert read_csv(tmp_path / 'runs')[0]['finished'] == 'no'

    code, printed = run(*configs)
    assert code == 0, printed
    assert 'good, seed 0: started' not in printed
    assert table_of(tmp_path / 'runs')[2] == '| bad | 50.00 | 50.00 | 1 |  |'
    assert read_csv(tmp_path / 'runs')[0]['seconds'] == '180'


def test_run_of_a_changed_config_is_refused(run, config, tmp_path):
    path = config('a.py', 50.0)
    assert run(path)[0] == 0
    code, printed = run(config('a.py', 55.0))
    assert code == 1
    assert 'its config has changed since' in printed
    assert '+model = dict(breaks_once=False, top1=55.0)' in printed
    code, printed = run(path, '--cfg-options', 'train_cfg.max_epochs=3')
    assert code == 1 and 'max_epochs=3' in printed
    # As it is, it may still be read.
    assert run(path, '--report-only')[0] == 0


@pytest.mark.parametrize(
    'teachers',
    [
        "teacher='resnet18', teacher_ckpt='{}'",
        "teacher=dict(model='resnet18', ckpt='{}')",
        # Whatever they are called.
        "teachers=dict(teacher=dict(model='resnet18', ckpt='random'), "
        "other=dict(model='resnet34', ckpt='{}'))",
    ],
)
def test_run_of_changed_teacher_weights_is_refused(
    tool, run, config, tmp_path, teachers
):
    path, weights = config('a.py'), tmp_path / 'teacher.pth'
    with open(path, 'a') as file:
        given = teachers.format(weights)
        file.write(f"model.update(architecture='resnet18', {given})\n")
    weights.write_text('one')
    assert run(path)[0] == 0
    assert run(path)[0] == 0
    weights.write_text('another')
    # As in another process.
    tool.digest.cache_clear()
    code, printed = run(path)
    assert code == 1
    assert 'the weights of its teacher have changed' in printed


def test_foreign_folder_is_left_alone(run, config, tmp_path):
    precious = tmp_path / 'runs/a/seed0/precious'
    precious.parent.mkdir(parents=True)
    precious.touch()
    code, printed = run(config('a.py'))
    assert code == 1 and 'was not made by this tool' in printed
    assert list(precious.parent.iterdir()) == [precious]


def make_by_hand(work_dir: Path, curve: dict, epochs: int) -> None:
    part = work_dir / '20260101_000000' / 'vis_data'
    part.mkdir(parents=True)
    (part / 'config.py').write_text(f'train_cfg = dict(max_epochs={epochs})')
    lines = [{'loss': 1.0, 'step': 1}] + [
        {'accuracy/top1': top1, 'step': step} for step, top1 in curve.items()
    ]
    text = '\n'.join(map(json.dumps, lines))
    (part / 'scalars.json').write_text(text)


def test_runs_made_by_hand_are_reported(run, tmp_path):
    runs = tmp_path / 'runs'
    make_by_hand(runs / 'alone/seed0', {1: 10.0, 2: 20.0}, 2)
    make_by_hand(runs / 'alone/seed1', {1: 10.0, 2: 22.0}, 2)
    make_by_hand(runs / 'kd/seed1', {1: 30.0, 2: 25.0}, 2)
    make_by_hand(runs / 'kd/seed2', {1: 40.0}, 2)
    code, printed = run('--report-only')
    assert code == 0, printed
    assert table_of(runs)[2:] == [
        '| alone | 20.00 | 22.00 |  | 21.00 ± 1.41 | 2 |  |',
        '| kd |  | 25.00 | (40.00 at 1 of 2) | 25.00 | 1 | +3.00 |',
    ]
    report = (runs / 'report.md').read_text()
    assert '- runs made with: unknown for 4 of 4 runs' in report
    # Some of them, in another order.
    code, printed = run('kd', 'alone', '--report-only', '--seeds', 1)
    assert table_of(runs)[2:] == [
        '| kd | 25.00 | 25.00 | 1 |  |',
        '| alone | 22.00 | 22.00 | 1 | -3.00 |',
    ]


def test_run_without_its_config_is_refused(run, tmp_path):
    make_by_hand(tmp_path / 'runs/a/seed0', {1: 10.0}, 1)
    next(tmp_path.glob('runs/a/seed0/*/*/config.py')).unlink()
    code, printed = run('--report-only')
    assert code == 1 and 'copy the whole folder of the run' in printed


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--report-only'], 'holds no CONFIG/seedN'),
        (['x', '--report-only'], 'holds no runs of x'),
        (['x', 'y', '--labels', 'A', '--report-only'], 'must be 2 different'),
        (['x', '--baseline', 'z', '--report-only'], 'z is none of x'),
        (['x.py', 'x.py'], 'several configs would be called'),
    ],
)
def test_what_cannot_be_done_is_said(run, arguments, message):
    code, printed = run(*arguments)
    assert code == 1 and message in printed


def test_equal_names_are_told_apart_by_their_folders(tool):
    names = tool.run_names(['cifar/kd.py', 'in1k/kd.py', 'in1k/ofa.py'])
    assert names == ['cifar_kd', 'in1k_kd', 'in1k_ofa']
    assert tool.run_names(['cifar/kd.py', 'in1k/ofa.py']) == ['kd', 'ofa']


# ------------------------------------------------------------- lost ledgers


CUT = [b'', bytes(500), b'{"fingerprint": {"con', b'\xff\xfe', b'[]', b'{}']


@pytest.mark.parametrize('content', CUT)
def test_a_lost_ledger_is_named_and_the_run_goes_on(
    content, run, config, tmp_path
):
    path = config('alone.py', breaks=True)
    assert run(path)[0] == 1
    ledger = tmp_path / 'runs/alone/seed0/compare.json'
    ledger.write_bytes(content)
    code, printed = run(path)
    assert code == 0
    assert f'{ledger} cannot be read' in printed
    assert 'not finished' in printed
    (row,) = read_csv(tmp_path / 'runs')
    assert row['epoch'] == '2' and row['finished'] == 'yes'
    assert json.loads(ledger.read_text())['finished']


def test_a_lost_ledger_does_not_hide_another_config(run, config, tmp_path):
    run(config('alone.py'))
    (tmp_path / 'runs/alone/seed0/compare.json').write_bytes(b'')
    code, printed = run(config('alone.py', top1=70.0))
    assert code == 1
    assert 'was trained otherwise' in printed and '-model = ' in printed


def test_report_is_made_without_ledgers_and_of_cut_scalars(
    run, config, tmp_path
):
    path = config('alone.py')
    run(path)
    folder = tmp_path / 'runs/alone/seed0'
    (folder / 'compare.json').write_bytes(bytes(90))
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    scalars.write_bytes(scalars.read_bytes() + b'\n{"accuracy/top1": 9')
    code, printed = run('--report-only')
    assert code == 0 and 'commit of the run is unknown' in printed
    (row,) = read_csv(tmp_path / 'runs')
    assert row['epoch'] == '2'


def test_config_of_a_run_is_read_without_running_it(run, config, tmp_path):
    run(config('alone.py'))
    folder = tmp_path / 'runs/alone/seed0'
    (dumped,) = folder.glob('*/vis_data/config.py')
    mark = tmp_path / 'mark'
    text = dumped.read_text()
    # As MMEngine wrote it, and nobody could run it.
    dumped.write_text(f'{text}clip = dict(max_norm=inf)\n')
    assert run('--report-only')[0] == 0
    dumped.write_text(f'{text}open({str(mark)!r}, "w")\n')
    code, printed = run('--report-only')
    assert code == 1 and str(dumped) in printed
    assert not mark.exists()


def test_second_comparison_in_a_folder_stops(run, config, tmp_path):
    with FolderLock(tmp_path / 'runs/alone/seed0'):
        code, printed = run(config('alone.py'))
    assert code == 1
    assert f'in use by process {os.getpid()}' in printed
    assert run(config('alone.py'))[0] == 0
