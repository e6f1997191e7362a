"""The first step of every config is what it was: losses and gradients."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tests' / 'first_steps' / 'run.py'
#: Written by the script, in float64, before anything read them.
KEPT = json.loads((SCRIPT.parent / 'float64.json').read_text())


def load_script() -> SimpleNamespace:
    spec = importlib.util.spec_from_file_location('first_steps', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def test_every_config_has_its_values():
    assert list(KEPT) == script.list_configs(ROOT)


@pytest.mark.parametrize('name', KEPT)
def test_losses_and_gradients_are_what_they_were(name):
    step = script.run_config(ROOT, name, torch.float64)
    for what in ('losses', 'norms'):
        assert step[what] == pytest.approx(KEPT[name][what], rel=1e-6), what


def test_a_comparison_tells_weights_losses_and_gradients_apart():
    name = 'quickstart/kd.py'
    step = script.run_config(ROOT, name, torch.float32)
    again = script.run_config(ROOT, name, torch.float32)
    assert script.compare({name: step}, {name: again}) == []

    gradients = dict(again['gradients'])
    changed = next(iter(gradients))
    gradients[changed] = ['0', 0.0]
    for key, value, found in (
        ('weights', '0', 'initial weights differ'),
        ('losses', again['losses'] | dict(loss=0.0), 'losses differ: loss: '),
        ('gradients', gradients, f'gradients differ: {changed}: '),
        ('buffers', '0', 'buffers differ'),
    ):
        (line,) = script.compare({name: step}, {name: again | {key: value}})
        assert line.startswith(f'{name}: {found}')
    (line,) = script.compare({name: step}, {})
    assert line == f'{name}: only in one of them'
    (line,) = script.compare({name: step}, {name: dict(error='no')})
    assert line == f'{name}: runs / no'
