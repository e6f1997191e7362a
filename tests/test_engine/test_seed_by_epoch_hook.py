"""Random numbers are a function of seed, epoch and rank."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import mmcakd.engine.hooks.seed_by_epoch_hook as module
from mmcakd.engine.hooks import SeedByEpochHook


class Dice(Dataset):
    """Items that draw from every generator."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.tensor(
            [random.random(), np.random.rand(), torch.rand(1).item()],
            dtype=torch.float64,
        )


def draw(seed=0, epoch=0, rank=0, history=0, monkeypatch=None, **kwargs):
    """What the process and its loader draw in an epoch."""
    loader = DataLoader(Dice(), batch_size=2, **kwargs)
    for _ in range(history):
        random.random(), np.random.rand(), torch.rand(3), list(loader)
    runner = SimpleNamespace(seed=seed, epoch=epoch, train_dataloader=loader)
    monkeypatch.setattr(module, 'get_rank', lambda: rank)
    SeedByEpochHook().before_train_epoch(runner)
    own = [random.random(), np.random.rand(), torch.rand(1).item()]
    return [torch.tensor(own, dtype=torch.float64), *loader]


LOADERS = [
    dict(num_workers=0),
    dict(num_workers=2),
    dict(num_workers=2, persistent_workers=True),
]


@pytest.mark.parametrize('kwargs', LOADERS)
def test_the_past_does_not_matter(monkeypatch, kwargs):
    fresh = draw(epoch=3, monkeypatch=monkeypatch, **kwargs)
    later = draw(epoch=3, history=2, monkeypatch=monkeypatch, **kwargs)
    for first, second in zip(fresh, later, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize('other', [dict(epoch=1), dict(seed=1), dict(rank=1)])
@pytest.mark.parametrize('kwargs', LOADERS[:2])
def test_seed_epoch_and_rank_do_matter(monkeypatch, kwargs, other):
    base = draw(monkeypatch=monkeypatch, **kwargs)
    changed = draw(monkeypatch=monkeypatch, **kwargs, **other)
    for first, second in zip(base, changed, strict=True):
        assert not (first == second).any()


def test_workers_draw_different_numbers(monkeypatch):
    _, first, second, _ = draw(monkeypatch=monkeypatch, num_workers=2)
    assert not (first == second).any()


def test_neighbouring_epochs_and_processes_do_not_meet(monkeypatch):
    drawn = [
        draw(epoch=epoch, rank=rank, monkeypatch=monkeypatch, num_workers=2)
        for epoch in range(3)
        for rank in range(2)
    ]
    processes = torch.cat([own for own, *_ in drawn])
    workers = torch.cat([torch.cat(items).flatten() for _, *items in drawn])
    for values in (processes, workers):
        assert len(values.unique()) == len(values)


@pytest.mark.parametrize('seed', [0, 2**31 - 1])
def test_late_epochs_have_a_valid_seed(monkeypatch, seed):
    draw(seed=seed, epoch=1_000_000, monkeypatch=monkeypatch, num_workers=0)
