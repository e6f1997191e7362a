"""Random numbers that are a function of some numbers, not of the past."""

import random

import numpy as np
import torch


def seed_generators(*numbers: int, devices: bool = True) -> None:
    """Seed random, numpy and torch by several numbers together.

    Args:
        *numbers (int): Such as the seed of a run and a step. Other numbers,
            or the same in another order, give unrelated random numbers.
        devices (bool): Whether to seed the generators of accelerators, too,
            which a process that reads data has no need for. Defaults to
            True.

    Examples:
        >>> import torch
        >>> from mmcakd.utils import seed_generators
        >>> seed_generators(0, 3)
        >>> first = torch.rand(2)
        >>> seed_generators(0, 3)
        >>> torch.equal(torch.rand(2), first)
        True
    """
    entropy = [number % 2**64 for number in numbers]
    own, numpys, torchs = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(own))
    np.random.seed(numpys)
    if devices:
        torch.manual_seed(int(torchs))
    else:
        torch.default_generator.manual_seed(int(torchs))
