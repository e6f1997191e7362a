import json

import torch

from mmcakd.utils.downstream import (
    DownstreamRun,
    tabulate,
    write_report,
)


def result(name, seed, **metrics):
    run = DownstreamRun(name, seed, 'none', f'runs/{name}/seed{seed}')
    return run, {
        key.replace('coco_', 'coco/'): v for key, v in metrics.items()
    }


def test_the_table_has_every_run_and_the_gains():
    header, rows = tabulate(
        [
            result('baseline', 0, coco_bbox_mAP=0.25, coco_bbox_mAP_s=0.1),
            result('student', 0, coco_bbox_mAP=0.375, coco_bbox_mAP_s=0.2),
        ]
    )
    assert header == ['', 'AP box']
    assert rows == [
        ['baseline', '25.00'],
        ['student', '37.50'],
        ['student - baseline', '+12.50'],
    ]


def test_several_seeds_have_mean_and_deviation():
    _, rows = tabulate(
        [
            result('scratch', 0, mIoU=10.0, aAcc=50.0),
            result('scratch', 1, mIoU=12.0, aAcc=50.0),
            result('student', 0, mIoU=20.0, aAcc=40.0),
            result('student', 1, mIoU=20.0, aAcc=42.0),
        ]
    )
    assert rows == [
        ['scratch', '11.00 ± 1.41', '50.00 ± 0.00'],
        ['student', '20.00 ± 0.00', '41.00 ± 1.41'],
        ['student - scratch', '+9.00', '-9.00'],
    ]


def test_a_detector_that_finds_nothing_has_no_figure():
    _, rows = tabulate(
        [result('baseline', 0), result('student', 0, coco_bbox_mAP=0.5)]
    )
    assert rows == [
        ['baseline', '-'],
        ['student', '50.00'],
        ['student - baseline', '-'],
    ]


def test_detectors_that_all_find_nothing_have_a_table():
    header, rows = tabulate([result('scratch', 0), result('student', 0)])
    assert header == ['', 'no metric']
    assert [row[0] for row in rows] == [
        'scratch',
        'student',
        'student - scratch',
    ]
    assert {row[1] for row in rows} == {'-'}


def test_metrics_that_are_not_known_are_shown_as_they_are():
    header, rows = tabulate([result('student', 0, PQ=3.25)])
    assert header == ['', 'PQ'] and rows == [['student', '3.25']]


def test_the_report_names_what_it_came_from(run, tmp_path):
    results = [(run, {'coco/bbox_mAP': 0.5}), result('scratch', 3)]
    path = write_report(tmp_path, 'a/detector.py', results, 'cmd', 'abc')
    text = path.read_text()
    assert text.startswith('# detector\n')
    assert '| student | 50.00 |' in text
    assert run.digest in text and 'backbone from scratch' in text
    found = json.loads((tmp_path / 'results.json').read_text())
    assert found['config'] == 'a/detector.py'
    assert found['seeds'] == [3]
    assert found['versions']['torch'] == torch.__version__.split('+')[0] or (
        found['versions']['torch'] == torch.__version__
    )
    student, scratch = found['runs']
    assert student['sha256'] == run.digest
    assert student['checkpoint'] == str(run.checkpoint)
    assert student['metrics'] == {'coco/bbox_mAP': 0.5}
    assert scratch['checkpoint'] is None
