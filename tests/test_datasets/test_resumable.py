"""Samples depend on seed, epoch and index, and on nothing else."""

import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmpretrain.datasets.samplers import RepeatAugSampler
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmcakd.datasets import SampleIndex, SeededDataset, make_resumable
from mmcakd.datasets import resumable as module


class Dice(Dataset):
    """Items of their index, and a number from every generator."""

    metainfo = dict(classes=('dice',))
    pipeline = 'roll'

    def __len__(self):
        return 10

    def __getitem__(self, index):
        drawn = [random.random(), np.random.rand(), torch.rand(1).item()]
        return torch.tensor([index, *drawn], dtype=torch.float64)


def make_loader(sampler=DefaultSampler, seed=0, **kwargs) -> DataLoader:
    dataset = Dice()
    cfg = dict(batch_size=4, sampler=sampler(dataset, seed=0)) | kwargs
    loader = DataLoader(dataset, **cfg)
    assert make_resumable(loader, seed)
    return loader


def read(loader: DataLoader, epoch: int = 0, start: int = 0) -> torch.Tensor:
    """Read the rest of an epoch ``(M, 4)``."""
    loader.batch_sampler.begin(epoch, start)
    return torch.cat(list(loader))


WORKERS = [
    dict(num_workers=0),
    dict(num_workers=2),
    dict(num_workers=2, persistent_workers=True),
]


@pytest.mark.parametrize('workers', WORKERS)
def test_neither_past_nor_worker_matters(workers):
    expected = read(make_loader(), epoch=3)
    loader = make_loader(**workers)
    for epoch in (0, 1):
        read(loader, epoch)
    assert torch.equal(read(loader, epoch=3), expected)


@pytest.mark.parametrize('workers', WORKERS[:2])
def test_seed_and_epoch_matter(workers):
    base = read(make_loader(**workers))
    for other in (
        read(make_loader(**workers), epoch=1),
        read(make_loader(seed=1, **workers)),
    ):
        assert not set(base[:, 1].tolist()) & set(other[:, 1].tolist())


def test_samples_of_an_epoch_differ_in_every_generator():
    values = read(make_loader())[:, 1:].flatten()
    assert len(values.unique()) == len(values)


def test_batch_size_and_number_of_processes_do_not_matter(monkeypatch):
    def by_index(rows):
        return rows[rows[:, 0].argsort()]

    one = by_index(read(make_loader()))
    assert torch.equal(by_index(read(make_loader(batch_size=3))), one)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(module, 'get_rank', lambda rank=rank: rank)
        monkeypatch.setattr(module, 'get_world_size', lambda: 2)
        monkeypatch.setattr(
            'mmengine.dataset.sampler.get_dist_info',
            lambda rank=rank: (rank, 2),
        )
        parts.append(read(make_loader(batch_size=2)))
    assert torch.equal(by_index(torch.cat(parts)), one)


@pytest.mark.parametrize('workers', WORKERS)
@pytest.mark.parametrize('start', [0, 1, 2])
def test_pass_begins_anywhere(workers, start):
    whole = read(make_loader(), epoch=2)
    assert torch.equal(
        read(make_loader(**workers), epoch=2, start=start), whole[4 * start :]
    )


def test_next_pass_begins_at_its_start():
    loader = make_loader()
    assert len(read(loader, start=2)) == 2
    assert len(torch.cat(list(loader))) == 10


def test_endless_sampler_goes_on_where_it_was():
    loader = make_loader(InfiniteSampler)
    iterator = iter(loader)
    whole = torch.cat([next(iterator) for _ in range(8)])
    loader.batch_sampler.begin(0, 5)
    assert torch.equal(next(iter(loader)), whole[20:24])
    # Ten images: the same one is drawn anew in the next pass.
    first, second = (
        {row[0].item(): row[1].item() for row in rows}
        for rows in (whole[:10], whole[10:20])
    )
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


def test_repeated_augmentation_repeats_no_augmentation():
    loader = make_loader(RepeatAugSampler)
    rows = read(loader)
    assert len(rows[:, 0].unique()) < len(rows)
    assert len(rows[:, 1].unique()) == len(rows)
    again = read(make_loader(RepeatAugSampler, num_workers=2), start=1)
    assert torch.equal(again, rows[4:])


def test_hooks_find_and_change_the_data_set_through_the_loader():
    loader = make_loader()
    dataset = loader.dataset
    assert dataset.metainfo == Dice.metainfo
    dataset.pipeline = 'other'
    assert dataset.dataset.pipeline == 'other'
    assert len(dataset) == 10
    assert loader.batch_size == 4
    assert len(loader) == 3
    with pytest.raises(AttributeError, match='Dice.*nothing'):
        dataset.nothing  # noqa: B018


def test_loader_is_made_resumable_once():
    loader = make_loader()
    dataset = loader.dataset
    assert make_resumable(loader, seed=0)
    assert loader.dataset is dataset


def test_stream_without_indices_is_left_alone():
    class Stream(IterableDataset):
        def __iter__(self):
            yield from range(3)

    loader = DataLoader(Stream(), batch_size=2)
    assert not make_resumable(loader, seed=0)
    assert [batch.tolist() for batch in loader] == [[0, 1], [2]]


def test_index_and_data_set_reach_a_spawned_worker():
    index = pickle.loads(pickle.dumps(SampleIndex(7, 1, 2, 3)))
    assert (index, index.seed) == (7, (1, 2, 3))
    dataset = pickle.loads(pickle.dumps(SeededDataset(Dice())))
    assert torch.equal(dataset[index], SeededDataset(Dice())[index])
