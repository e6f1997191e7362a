"""Random numbers are a function of the place in training."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mmcakd.engine.hooks.seed_by_epoch_hook as module
from mmcakd.engine.hooks import SeedByEpochHook


@pytest.fixture
def draw(monkeypatch):
    """What a process draws from all generators in a step."""

    def draw(seed=0, iter=0, rank=0, history=0) -> torch.Tensor:
        for _ in range(history):
            random.random(), np.random.rand(), torch.rand(3)
        runner = SimpleNamespace(seed=seed, iter=iter)
        monkeypatch.setattr(module, 'get_rank', lambda: rank)
        SeedByEpochHook().before_train_iter(runner, 0)
        return torch.tensor(
            [random.random(), np.random.rand(), torch.rand(1).item()],
            dtype=torch.float64,
        )

    return draw


def test_the_past_does_not_matter(draw):
    assert torch.equal(draw(iter=3), draw(iter=3, history=2))


@pytest.mark.parametrize('other', [dict(iter=1), dict(seed=1), dict(rank=1)])
def test_seed_step_and_rank_do_matter(draw, other):
    assert not (draw() == draw(**other)).any()


def test_neighbouring_steps_and_processes_do_not_meet(draw):
    drawn = [draw(iter=i, rank=r) for i in range(30) for r in range(4)]
    values = torch.cat(drawn)
    assert len(values.unique()) == len(values)


@pytest.mark.parametrize('seed', [0, 2**31 - 1, 2**63])
def test_late_steps_have_a_valid_seed(draw, seed):
    draw(seed=seed, iter=10**9)


def test_loop_without_a_training_is_left_alone():
    runner = SimpleNamespace(_train_loop=None, seed=0)
    SeedByEpochHook().before_run(runner)
    assert runner._train_loop is None
