import csv
import json
import shutil


def test_clean_images_score_as_in_validation(trained, run_tool, tmp_path):
    runs = tmp_path / 'runs'
    for seed in (0, 1):
        shutil.copytree(trained, runs / f'seed{seed}')
    out = tmp_path / 'out'
    printed = run_tool(
        'tools/analysis_tools/robustness.py',
        runs,
        trained,
        '--labels',
        'twice',
        'once',
        '--noise',
        '80',
        '--occlusion',
        '0',
        '1',
        '--out',
        out,
    )
    assert 'occlusion 1' in printed
    (scalars,) = trained.glob('*/vis_data/scalars.json')
    last = json.loads(scalars.read_text().strip().split('\n')[-1])
    with open(out / 'results.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4
    scores = {
        (row['method'], row['run'], row['corruption'], row['severity']): float(
            row['top1']
        )
        for row in rows
    }
    for method, run in (
        ('twice', 'seed0'),
        ('twice', 'seed1'),
        ('once', trained.name),
    ):
        clean = scores[method, run, 'clean', '0.0']
        assert clean == last['accuracy/top1']
        assert scores[method, run, 'occlusion', '0.0'] == clean
        # Of nothing but grey, all images are the same class: one of four.
        assert scores[method, run, 'occlusion', '1.0'] == 25
    assert (out / 'curves.png').stat().st_size > 5000
    report = (out / 'report.md').read_text()
    assert '| twice |' in report
    assert 'twice: 2, once: 1' in report


def test_directory_without_a_run_is_named(run_tool, tmp_path):
    printed = run_tool('tools/analysis_tools/robustness.py', tmp_path, code=1)
    assert f'{tmp_path} holds no last checkpoint' in printed
