"""Data loaders whose samples depend on their place alone."""

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from torch.utils.data import DataLoader, IterableDataset

from mmcakd.utils.randomness import seed_generators


class SampleIndex(int):
    """An index into a data set that brings along what its sample is seeded by.

    It is the only thing that reaches a data worker that lives on from one
    epoch to the next.

    Attributes:
        seed (tuple[int, ...]): For :func:`mmcakd.utils.seed_generators`.
    """

    seed: tuple[int, ...]

    def __new__(cls, index: int, *seed: int) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self) -> tuple:
        return SampleIndex, (int(self), *self.seed)


class SeededDataset:
    """A data set whose random augmentations depend on the index alone.

    All but reading a sample is left to the data set: hooks may look for its
    ``pipeline`` here, and replace it.

    Args:
        dataset (Dataset): Indexed by :class:`SampleIndex`, or by plain
            integers, for which nothing is seeded.
    """

    def __init__(self, dataset: Any) -> None:
        vars(self)['dataset'] = dataset

    def __getattr__(self, name: str) -> Any:
        # What is copied or unpickled has no data set at first.
        if name == 'dataset':
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if isinstance(index, SampleIndex):
            seed_generators(*index.seed, devices=False)
        return self.dataset[int(index)]

    # A batch at once would be drawn from one seed.
    __getitems__ = None


class ResumableBatches:
    """A batch sampler that begins at any batch of any epoch.

    Args:
        batches (Sampler): The batch sampler it stands for.
        seed (int): Of the run.

    Attributes:
        is_endless (bool): Whether an epoch never ends.
    """

    def __init__(self, batches: Any, seed: int) -> None:
        self.batches = batches
        self.seed = seed
        self.is_endless = isinstance(batches.sampler, InfiniteSampler)
        self.begin(0)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def begin(self, epoch: int, start: int = 0) -> None:
        """Say where the next pass begins.

        Args:
            epoch (int): Counted from 0.
            start (int): Batches of it to pass over. Defaults to 0.
        """
        self.epoch = epoch
        self.start = start
        sampler = self.batches.sampler
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
        if self.is_endless:
            # It goes on where somebody else stopped, if not made anew.
            sampler.indices = sampler._indices_of_rank()

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        start, self.start = self.start, 0
        place, rank, world = 0, get_rank(), get_world_size()
        for number, batch in enumerate(self.batches):
            if number >= start:
                yield [
                    SampleIndex(
                        index,
                        self.seed,
                        *self._when(index, (place + offset) * world + rank),
                    )
                    for offset, index in enumerate(batch)
                ]
            place += len(batch)

    def _when(self, index: int, place: int) -> tuple[int, ...]:
        """Which of the times that a sample is drawn."""
        sampler = self.batches.sampler
        if self.is_endless:
            return place // len(sampler), index
        if hasattr(sampler, 'num_repeats'):
            # Several times an epoch, and never alike.
            return self.epoch, index, place
        return self.epoch, index


def make_resumable(loader: DataLoader, seed: int) -> bool:
    """Let samples depend on seed, epoch and index, and passes begin anywhere.

    It does not matter then which process reads a sample, nor what it read
    before: workers may live on (``persistent_workers``), and batches that are
    done can be passed over unread.

    Args:
        loader (DataLoader): Changed in place. One whose samples have no index
            stays what it is.
        seed (int): Of the run.

    Returns:
        bool: Whether it can begin anywhere.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, Dataset
        >>> from mmcakd.datasets import make_resumable
        >>> class Noise(Dataset):
        ...     def __len__(self):
        ...         return 6
        ...     def __getitem__(self, index):
        ...         return torch.rand(1)
        >>> loader = DataLoader(Noise(), batch_size=2)
        >>> make_resumable(loader, seed=0)
        True
        >>> first, second, third = loader
        >>> loader.batch_sampler.begin(epoch=0, start=2)
        >>> torch.equal(next(iter(loader)), third)
        True
    """
    batches = loader.batch_sampler
    if isinstance(batches, ResumableBatches):
        return True
    if batches is None or isinstance(loader.dataset, IterableDataset):
        return False
    # A loader forbids this once it is made, since living workers would not
    # learn of it: there are none yet.
    object.__setattr__(loader, 'dataset', SeededDataset(loader.dataset))
    object.__setattr__(
        loader, 'batch_sampler', ResumableBatches(batches, seed)
    )
    loader._iterator = None
    return True
