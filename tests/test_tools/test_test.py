import json

import pytest


@pytest.mark.parametrize(
    'config, checkpoint',
    [('tiny.py', 'epoch_1.pth'), ('student.py', 'student.pth')],
)
def test_student_is_evaluated_as_it_was_while_training(
    config, checkpoint, trained, run_tool, tmp_path
):
    out = tmp_path / 'metrics.json'
    run_tool(
        'tools/test.py',
        trained / config,
        trained / checkpoint,
        '--work-dir',
        tmp_path,
        '--out',
        out,
    )
    (scalars,) = trained.glob('*/vis_data/scalars.json')
    last = json.loads(scalars.read_text().strip().split('\n')[-1])
    assert json.loads(out.read_text()) == {
        'accuracy/top1': last['accuracy/top1']
    }


def test_out_of_another_kind_is_refused(trained, run_tool):
    printed = run_tool(
        'tools/test.py',
        trained / 'tiny.py',
        trained / 'epoch_1.pth',
        '--out',
        'metrics.txt',
        code=2,
    )
    assert '.json or .pkl' in printed
