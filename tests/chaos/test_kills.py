"""Runs that are killed anywhere lose nothing; the long form is kills.py."""

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name('kills.py')


@pytest.fixture(scope='module')
def kills():
    spec = importlib.util.spec_from_file_location('kills', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('method', ['KD', 'ScaleKD', 'CAKD', 'TAS'])
def test_killed_runs_end_as_if_they_had_not_been(run_tool, method):
    run_tool(SCRIPT, '--methods', method, '--trials', 8)


def test_a_difference_would_be_found(kills):
    one = dict(a=torch.ones(2), b=[dict(c=1.0)])
    same = dict(a=torch.ones(2), b=[dict(c=1.0)])
    assert list(kills.differences(one, same, 'state')) == []
    same['b'][0]['c'] = 2.0
    assert list(kills.differences(one, same, 'state')) == ['state.b[0].c']


def test_a_process_dies_at_the_call_it_is_told(kills, tmp_path):
    def work():
        with kills.counting(at=1):
            for name in ('a', 'b', 'c'):
                (tmp_path / f'{name}.part').write_text(name)
                kills.os.replace(tmp_path / f'{name}.part', tmp_path / name)

    code = kills.wait(kills.fork(work, tmp_path / 'log'))
    assert code == kills.KILLED
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a', 'b.part', 'log']
